"""What shoppers did, from a table or files, into the log `interactions`. Returns are kept as returns.

Who a shopper was is taken over as a pseudonym, where there is a key for it (`shoppers`). A log only grows: interactions
that were imported without stay without.
"""

from datetime import date
from typing import Literal

from pyspark.sql import SparkSession

from ecomspark.config import setting
from ecomspark.importing import BehaviourSettings, conformed_rows, declare_consents, import_log, with_pseudonyms
from ecomspark.pseudonyms import check_key
from ecomspark.runs import Summary, open_run
from ecomspark.schemas import CONSENTS, INTERACTIONS
from ecomspark.tables import Warehouse

JOB = "import_interactions"

PUBLISHES = (INTERACTIONS, CONSENTS)

KINDS = ("impression", "click", "cart", "favourite", "purchase", "return", "review")
RULES = {
    "kind_unknown": f"kind NOT IN {KINDS}",
    "quantity_not_positive": "quantity <= 0",
    "price_negative": "price < 0",
    "position_not_positive": "position < 1",
    "rating_off_scale": "rating NOT BETWEEN 1 AND 5",
    "dwell_seconds_negative": "dwell_seconds < 0",
}


class Config(BehaviourSettings):
    """`columns` maps to the columns of `interactions`; `shopper_id` needs `shoppers`."""

    mode: Literal["append"] = setting("append", "a log only grows: interactions whose id it does not have")


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    """Raises ConfigError, before anything is read, when there is no key in `shoppers.key_file`."""
    if config.shoppers is not None:
        check_key(config.shoppers)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    digest = config.deciding_digest()
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        is_ordered=False,
        publishes=PUBLISHES if config.consent else (INTERACTIONS,),
        settings_digest=digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                sourced, columns = current.sourced, config.columns
                if config.shoppers is not None:
                    sourced, columns = with_pseudonyms(sourced, columns, ("shopper_id",), config.shoppers)
                conformed = current.keep(conformed_rows(sourced, columns, INTERACTIONS, RULES))
                interactions = import_log(current, conformed, INTERACTIONS, config)
            if config.consent is not None:
                with current.stage("consents"):
                    declare_consents(current, config.consent, interactions)
    return current.summary()
