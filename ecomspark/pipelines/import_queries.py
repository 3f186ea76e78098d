"""Queries as a log or a judgment set has them, into `query_aliases`; build_texts makes `queries` of them."""

from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark.config import Name, setting
from ecomspark.features.digests import digest_of
from ecomspark.importing import ImportSettings, import_state
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import QUERY_ALIASES
from ecomspark.tables import Warehouse

JOB = "import_queries"

PUBLISHES = (QUERY_ALIASES,)

RULES = {"traffic_negative": "traffic < 0"}


class Config(ImportSettings):
    """`columns` maps to the columns of `query_aliases`; `source` is the constant `source_name`."""

    source_name: Name = setting(..., "what the queries' source is called; judgments and interactions refer to it")


def with_text_digest(aliases: DataFrame) -> DataFrame:
    """Aliases with the digest under which `texts` knows their text."""
    return aliases.withColumn("text_source_digest", digest_of(F.col("query_text")))


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    of_source = F.col("source") == config.source_name
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        target=config.source_name,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                import_state(
                    current,
                    config,
                    QUERY_ALIASES,
                    RULES,
                    finished=with_text_digest,
                    given={"source": config.source_name},
                    scope=of_source,
                )
    return current.summary()
