"""Items of a shop, from a table or files, into `items`."""

from datetime import date

from pyspark.sql import SparkSession

from ecomspark.features.texts import with_source_digest
from ecomspark.importing import ImportSettings, import_state
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import ITEMS
from ecomspark.tables import Warehouse

JOB = "import_items"

PUBLISHES = (ITEMS,)

RULES = {
    "price_negative": "price < 0",
    "currency_missing": "price IS NOT NULL AND currency IS NULL",
    "sold_count_negative": "sold_count < 0",
    "rating_off_scale": "rating NOT BETWEEN 1 AND 5",
    "rating_count_negative": "rating_count < 0",
}


class Config(ImportSettings):
    """`columns` maps to the columns of `items`; item_id, locale and title must be among them."""


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        publishes=PUBLISHES,
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                import_state(current, config, ITEMS, RULES, finished=with_source_digest)
    return current.summary()
