"""Which of a shop's ids are one shopper, from a table or files, into the log `shopper_links`.

A link says that an id (`other_id`) retires into another that stays (`shopper_id`): a visitor who logs in, two accounts
that became one. From the next run on, jobs that read behaviour derive one profile from both histories, under the id
that stays, and `withdraw_consents` removes what stands under the other. A log only grows: no link can be taken back.
"""

from datetime import date
from typing import Literal, Self

from pydantic import model_validator
from pyspark.sql import DataFrame, SparkSession

from ecomspark.config import setting
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
from ecomspark.schemas import SHOPPER_LINKS
from ecomspark.tables import Warehouse

JOB = "import_shopper_links"

PUBLISHES = (SHOPPER_LINKS,)

SHOPPERS = ("shopper_id", "other_id")


class Config(ImportSettings):
    """`columns` maps to the columns of `shopper_links`."""

    shoppers: Shoppers = setting(..., "the key that makes pseudonyms of shoppers' ids, as in import_interactions")
    mode: Literal["append"] = setting("append", "a log only grows: links that it does not have")

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
                import_log(current, find(current, config), SHOPPER_LINKS, config)
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
            counts=plan_log(current, find(current, config), SHOPPER_LINKS),
            fields={},
        )


def find(current: Run, config: Config) -> DataFrame:
    """The source's rows as `conform` leaves them, under pseudonyms, what says the same folded. Persisted."""
    sourced, columns = with_pseudonyms(current.sourced, config.columns, SHOPPERS, config.shoppers)
    return current.keep(folded(conformed_rows(sourced, columns, SHOPPER_LINKS, rules(current.as_of)), SHOPPER_LINKS))


def rules(as_of: date | None) -> dict[str, str]:
    """Reason to condition: an id linked to itself, and times that cannot be."""
    return {
        "self_link": "shopper_id = other_id",
        "at_out_of_range": f"at < '1970-01-01' OR at >= '{too_late(as_of)}'",
    }
