"""Grades of (query, item) by an assessor, into `judgment_aliases`; build_texts makes `judgments` of them."""

from collections.abc import Mapping
from datetime import date

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ecomspark.config import Name, setting
from ecomspark.importing import ImportSettings, import_state
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import JUDGMENT_ALIASES
from ecomspark.tables import Warehouse

JOB = "import_judgments"

PUBLISHES = (JUDGMENT_ALIASES,)


class Config(ImportSettings):
    """`columns` maps to source_query_id, item_id and grade."""

    source_name: Name = setting(..., "the source_name under which import_queries imported the queries")
    judgment_set: Name = setting(..., "what these judgments are called: they share one scale and source")
    fractional_grades: bool = setting(
        False,
        "grades are means of several judges: any number from the lowest to the highest of `gains`; false: only those "
        "that `gains` names",
    )


def rules(gains: Mapping[int, float], is_fractional: bool) -> dict[str, str]:
    """Why a grade cannot be used: none of `gains`, or, where grades may be means, beyond its ends."""
    if is_fractional:
        return {"grade_off_scale": f"grade NOT BETWEEN {min(gains)} AND {max(gains)}"}
    return {"grade_off_scale": f"grade NOT IN ({', '.join(map(str, sorted(gains)))})"}


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    given = {"judgment_set": config.judgment_set, "source": config.source_name}
    of_set = F.col("judgment_set") == config.judgment_set
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        target=config.judgment_set,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                grades = rules(config.gains, config.fractional_grades)
                import_state(current, config, JUDGMENT_ALIASES, grades, given=given, scope=of_set)
    return current.summary()
