"""What shoppers said of being known, from a table or files, into the log `consents`: yes or no, for a purpose.

The newest row of a shopper and a purpose holds, and of a yes and a no at one time the no. Rows that say the same of the
same time in other words are one row. A yes of a day to come cannot be used; a no can, and holds at once. A row that
cannot be used is in quarantine, and is neither a yes nor a no: when the run counts any, look there before the next job.

What follows from a no is done by `withdraw_consents`, and by every job that reads behaviour, when they run next.
"""

from datetime import date
from typing import Literal, Self

from pydantic import model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark.config import NAME_PATTERN, setting
from ecomspark.features.conform import folded
from ecomspark.importing import (
    ImportSettings,
    conformed_rows,
    import_log,
    plan_log,
    refuse_unnamed,
    too_late,
    with_pseudonyms,
)
from ecomspark.plans import Plan, as_pins
from ecomspark.pseudonyms import Shoppers, check_key
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CONSENTS
from ecomspark.tables import Warehouse

JOB = "import_consents"

PUBLISHES = (CONSENTS,)

SHOPPERS = ("shopper_id",)


class Config(ImportSettings):
    """`columns` maps to the columns of `consents`; what was said of one purpose alone has it as a constant."""

    shoppers: Shoppers = setting(..., "the key that makes pseudonyms of shoppers' ids, as in import_interactions")
    mode: Literal["append"] = setting("append", "a log only grows: what is said later is a row of its own")

    @model_validator(mode="after")
    def _can_be_named(self) -> Self:
        refuse_unnamed(self.columns, SHOPPERS, self.shoppers)
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    """Raises ConfigError, before anything is read, when there is no key in `shoppers.key_file`."""
    check_key(config.shoppers)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        source=config.source,
        is_ordered=False,
        publishes=PUBLISHES,
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            with current.stage("import"):
                import_log(current, find(current, config), CONSENTS, config)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would append and set aside now, by the same search."""
    check_key(config.shoppers)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(
        warehouse, JOB, reads=(), publishes=PUBLISHES, covers={}, as_of=as_of, source=config.source, is_ordered=False
    ) as current:
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest().hex(),
            inputs=as_pins(current.inputs),
            covers={},
            counts=plan_log(current, find(current, config), CONSENTS),
            fields={},
        )


def find(current: Run, config: Config) -> DataFrame:
    """The source's rows as `conform` leaves them, under pseudonyms, what says the same folded. Persisted."""
    sourced, columns = with_pseudonyms(current.sourced, config.columns, SHOPPERS, config.shoppers)
    conformed = conformed_rows(sourced, columns, CONSENTS, rules(current.as_of))
    return current.keep(folded(conformed, CONSENTS, F.col("basis").asc_nulls_last()))


def rules(as_of: date | None) -> dict[str, str]:
    """Reason to condition: a purpose that no setting could name, and times that cannot be."""
    return {
        "purpose_unusable": f"NOT purpose RLIKE '{NAME_PATTERN}'",
        "at_out_of_range": f"at < '1970-01-01' OR (at >= '{too_late(as_of)}' AND is_given)",
    }
