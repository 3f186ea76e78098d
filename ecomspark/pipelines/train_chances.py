"""From behaviour to chances: of a purchase before a session is over, of a purchase and of a return within some days.

Examples are looked at as of several earlier days, the cuts: what was known then, and what came in the days after. The
latest cuts calibrate and judge. Of sessions every event is an example, and the sessions that began last are the later
ones. Small linear models are fitted in the driver on a capped sample; they are applied by score_next_items.
"""

import logging
import math
from datetime import date, timedelta
from typing import Any, Literal

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark.behaviour import allowed_now
from ecomspark.chances import FEATURES, Chances, Kind, Linear, fit, open_chances, seal_chances
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.features.chances import at_cuts, follows, goes_on, session_features, shopper_features
from ecomspark.features.histories import end_of, events_until
from ecomspark.features.sessions import TimeZone
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CONSENTS, INTERACTIONS, SESSIONS, SHOPPER_LINKS, Table
from ecomspark.tables import Warehouse
from ecomspark.text import settings_digest

log = logging.getLogger("ecomspark")

JOB = "train_chances"

READS = (INTERACTIONS, SESSIONS, CONSENTS, SHOPPER_LINKS)

PUBLISHES: tuple[Table, ...] = ()

_OWN = ("kinds", "purpose", "time_zone", "gap_minutes", "days", "cuts", "validation_share", "max_examples")


class Config(Settings):
    """Which chances, from which days."""

    name: Name = setting(..., "what the set of models is called; it never changes, so a new training takes a new name")
    kinds: list[Literal["session_purchase", "purchase", "return"]] = setting(
        ["session_purchase", "purchase", "return"], "which chances", min_length=1
    )
    purpose: Name = setting("personalisation", "what shoppers must have consented to")
    time_zone: TimeZone = setting("UTC", "in which a day ends, such as Europe/London")
    gap_minutes: int = setting(30, "that of build_sessions: for so long a session may go on", unit="minutes", ge=1)
    days: int = setting(30, "within which a purchase or a return is meant, and between two cuts", unit="days", ge=1)
    cuts: int = setting(6, "earlier days that are looked at, the last one `days` before as_of", ge=2, le=60)
    validation_share: float = setting(0.3, "of the cuts, or of the sessions, the latest: to calibrate on", gt=0, lt=1)
    max_examples: int = setting(
        200_000, "examples of a kind that are read into the driver, drawn by a digest", unit="examples", ge=100
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            training = _training_digest(current, config)
            if not _is_trained(config, training):
                with current.stage("examples"):
                    rows = {kind: _sides(current, config, kind, of) for kind, of in examples(current, config).items()}
                with current.stage("fit"):
                    models = _fitted(rows)
                read = {name: vars(at) for name, at in current.inputs.items() if at}
                settings = config.model_dump(mode="json", include=set(_OWN))
                made = Chances(days=config.days, models=models, data=read, settings=settings, training_digest=training)
                seal_chances(config.models_folder, config.name, made)
                current.made(config.name)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would do now: how many examples it would look at, and how many of them with what is foreseen."""
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers={}, as_of=as_of) as current:
        counts: dict[str, int | None] = {}
        is_trained = _is_trained(config, _training_digest(current, config))
        for kind, rows in {} if is_trained else examples(current, config).items():
            found = rows.agg(F.count("*").alias("examples"), F.sum("label").alias("with")).collect()[0]
            counts |= {f"{kind}_examples": int(found["examples"]), f"{kind}_with": int(found["with"] or 0)}
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest().hex(),
            inputs=as_pins(current.inputs),
            covers={},
            counts={"sets_to_make": 0 if is_trained else 1, **counts},
            fields={},
        )


def _training_digest(current: Run, config: Config) -> str:
    """Names all that a training follows from."""
    own = config.model_dump(mode="json", include=set(_OWN))
    return settings_digest({"inputs": as_pins(current.inputs), "as_of": str(current.as_of), **own}).hex()


def _is_trained(config: Config, training: str) -> bool:
    """Whether the set is there, of this very training. Raises CheckpointError when it is there, of another."""
    if not (config.models_folder / config.name).exists():
        return False
    if open_chances(config.models_folder, config.name).training_digest != training:
        raise CheckpointError(
            f"{config.name}: trained from other data or settings; a set never changes: set {JOB}.name to another name"
        )
    log.info("%s: %s is there already, of the same training", JOB, config.name)
    return True


def examples(current: Run, config: Config) -> dict[Kind, DataFrame]:
    """Of each kind its examples: the features, `label`, `group` (who or whose session), `at` (when)."""
    as_of = current.as_of
    if as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    current.read(CONSENTS)  # without any nobody may be learnt from: said before anything is looked for
    allowed = current.settle(allowed_now(current, config.purpose))
    end = end_of(as_of, config.time_zone)
    events = current.keep(
        events_until(current.read(INTERACTIONS), current.read(SESSIONS), allowed, end, config.gap_minutes)
    )
    found: dict[Kind, DataFrame] = {}
    if "session_purchase" in config.kinds:
        features = session_features(events).join(goes_on(events), on=["session_id", "interaction_id"], how="inner")
        group = F.hex("session_id").alias("group")
        found["session_purchase"] = features.select(
            *FEATURES["session_purchase"], "label", group, F.col("session_started_at").alias("at"), "interaction_id"
        )
    cuts = [as_of - timedelta(config.days * back) for back in range(config.cuts, 0, -1)]
    at_each = at_cuts(events, cuts, config.time_zone)
    for kind, done in (("purchase", "purchase"), ("return", "return")):
        if kind in config.kinds:
            came = follows(at_each, done, config.days)
            rows = shopper_features(at_each).join(came, on=["cut_at", "shopper_id"], how="left")
            label = F.coalesce("label", F.lit(0)).alias("label")
            found[kind] = rows.select(
                *FEATURES["purchase"], label, F.col("shopper_id").alias("group"), F.col("cut_at").alias("at"),
                F.lit("").alias("interaction_id"),
            )  # fmt: skip
    return found


def _sides(current: Run, config: Config, kind: Kind, rows: DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and the later rows, of a sample that a digest draws, the same whatever the partitioning."""
    rows = current.keep(rows)
    count = rows.count()
    drawn = F.pmod(F.xxhash64("group", "at", "interaction_id"), F.lit(1_000_000)) / 1e6
    sample = rows.where(drawn < config.max_examples / max(1, count)) if count > config.max_examples else rows
    frame = sample.toPandas().sort_values(["at", "group", "interaction_id"], ignore_index=True)
    later = is_later(frame, config.validation_share, by_group=kind == "session_purchase")
    current.count(**{f"{kind}_examples": count, f"{kind}_with": int(frame["label"].sum())})
    return frame[~later], frame[later]


def is_later(rows: pd.DataFrame, share: float, by_group: bool) -> Any:
    """Which rows are of the latest share of the times in `at`: of its different values, or of groups that began then.
    Of one time alone, all are."""
    columns = ["group", "at"] if by_group else ["at"]
    times = rows[columns].drop_duplicates()["at"].sort_values()
    if times.empty:
        return rows["at"].notna()
    first = min(len(times) - 1, math.ceil(len(times) * (1 - share)))
    return rows["at"] >= times.iloc[first]


def _fitted(rows: dict[Kind, tuple[pd.DataFrame, pd.DataFrame]]) -> dict[Kind, Linear]:
    """Raises ContractError, naming every kind that cannot be learnt."""
    models: dict[Kind, Linear] = {}
    faults = []
    for kind, (train, later) in rows.items():
        try:
            models[kind] = fit(train, later, kind)
        except ContractError as error:
            faults.append(str(error))
            continue
        said = ", ".join(f"{name} {value:.4g}" for name, value in models[kind].metrics.items())
        log.info("%s: %s: %s", JOB, kind, said)
        if models[kind].metrics["brier"] >= models[kind].metrics["brier_of_rate"]:
            log.warning("%s: %s: says no more than the rate of those before", JOB, kind)
    if faults:
        raise ContractError("\n".join(faults))
    return models
