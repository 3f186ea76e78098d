"""What shoppers did, from a table or files, into the log `interactions`. Returns are kept as returns."""

from datetime import date
from typing import Literal

from pyspark.sql import SparkSession

from ecomspark import tables
from ecomspark.config import setting
from ecomspark.features.conform import usable
from ecomspark.importing import ImportSettings, conformed_rows, set_aside
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import INTERACTIONS
from ecomspark.tables import Warehouse

JOB = "import_interactions"

PUBLISHES = (INTERACTIONS,)

KINDS = ("impression", "click", "cart", "favourite", "purchase", "return", "review")
RULES = {
    "kind_unknown": f"kind NOT IN {KINDS}",
    "quantity_not_positive": "quantity <= 0",
    "price_negative": "price < 0",
    "position_not_positive": "position < 1",
    "rating_off_scale": "rating NOT BETWEEN 1 AND 5",
    "dwell_seconds_negative": "dwell_seconds < 0",
}


class Config(ImportSettings):
    """`columns` maps to the columns of `interactions`. Who the shopper was is not taken over."""

    mode: Literal["append"] = setting("append", "a log only grows: interactions whose id it does not have")


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        is_ordered=False,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                conformed = conformed_rows(current.sourced, config.columns, INTERACTIONS, RULES).persist()
                set_aside(current, conformed, INTERACTIONS, config.max_quarantined_share)
                commit = tables.append_log(warehouse, INTERACTIONS, usable(conformed), current.author)
                current.count(appended=commit.inserted)
                current.commit(commit)
                conformed.unpersist()
    return current.summary()
