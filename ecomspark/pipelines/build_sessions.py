"""Sessions of the shoppers who agreed to it: interactions with no gap over a declared length, told from machines'.

What must be made anew is found from what changed since the last run: of a shopper with new interactions the sessions
that these lie in or near, on whatever days; of one whose consent or links changed all. Where that cannot be known, all
is made anew and compared.
"""

from dataclasses import dataclass
from datetime import date

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.behaviour import allowed_now, changes_of, is_as_left, whose_standing_changed
from ecomspark.config import Name, Settings, setting
from ecomspark.features.consents import of_people
from ecomspark.features.sessions import (
    SessionRules,
    counted,
    days_of,
    on_days,
    sessions_of,
    spans_of,
    stretches_of,
    touched_sessions,
    within_stretches,
)
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CONSENTS, INTERACTIONS, SESSIONS, SHOPPER_LINKS
from ecomspark.tables import Warehouse
from ecomspark.text import settings_digest

JOB = "build_sessions"

READS = (INTERACTIONS, CONSENTS, SHOPPER_LINKS, SESSIONS)

PUBLISHES = (SESSIONS,)

_STEP = ("shopper_id", "occurred_at", "kind")


class Config(SessionRules, Settings):
    """What a session is, and for which purpose consent is asked."""

    purpose: Name = setting("personalisation", "shoppers who agreed to it, by `consents`, have sessions; no others")
    full: bool = setting(False, "make all sessions anew, whatever changed: `--full`", decides=False)

    @property
    def rules(self) -> SessionRules:
        return SessionRules(**{name: getattr(self, name) for name in SessionRules.model_fields})


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=_covers(config),
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            with current.stage("find"):
                work = find(current, config)
                current.count(**{name: count for name, count in work.counts.items() if count is not None})
            if work.interactions is not None:
                with current.stage("publish"):
                    _publish(current, work.interactions, work, config)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would look at now, by the same search."""
    warehouse, covers = Warehouse(spark, config.warehouse, config.buckets), _covers(config)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        work = find(current, config)
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest().hex(),
            inputs=as_pins(current.inputs),
            covers=covers,
            counts=work.counts,
            fields=None if work.touched is None else {},
        )


def _digest(config: Config) -> bytes:
    return settings_digest({"rules": config.rules.model_dump(mode="json"), "purpose": config.purpose})


def _covers(config: Config) -> dict[str, str]:
    return {SESSIONS.name: _digest(config).hex()}


@dataclass(frozen=True)
class Work:
    """`interactions`: those to make sessions of, persisted; None: nothing changed. `touched`: the published sessions
    that these take the place of, persisted; None: all. `scope`: where in `sessions` they are."""

    interactions: DataFrame | None
    touched: DataFrame | None
    scope: Column | None
    counts: dict[str, int | None]


def find(current: Run, config: Config) -> Work:
    """Whose sessions, and which of them, must be made anew."""
    work = _changed(current, config)
    if work is not None:
        return work
    allowed = current.settle(_allowed(current, config))
    interactions = current.keep(counted(of_people(_steps(current), allowed), config.rules))
    counts = {"changed_shoppers": None, "interactions": interactions.count(), "sessions_looked_at": None}
    return Work(interactions, None, None, counts)


def _steps(current: Run) -> DataFrame:
    return current.read(INTERACTIONS).select(*_STEP, "interaction_id", "item_id")


def _allowed(current: Run, config: Config) -> DataFrame:
    return allowed_now(current, config.purpose)


def _changed(current: Run, config: Config) -> Work | None:
    """The work that changes since the last run make; None when that cannot be known."""
    since = None if config.full else current.watermark(SESSIONS.name)
    if since is None or not is_as_left(current, SESSIONS, since):
        return None
    changed = changes_of(current, since, {INTERACTIONS: _STEP, CONSENTS: (), SHOPPER_LINKS: ()})
    if changed is None:
        return None
    if not changed:
        none = current.read_if_there(SESSIONS).limit(0)
        return Work(None, none, None, {"changed_shoppers": 0, "interactions": 0, "sessions_looked_at": 0})
    whole = whose_standing_changed(current, changed, config.purpose)
    if whole is None:
        return None
    rules, allowed = config.rules, current.settle(_allowed(current, config))
    all_steps = _steps(current)
    moved = all_steps.limit(0).select(*_STEP)
    if INTERACTIONS.name in changed:
        # Keys of a log only come; should one have been erased, its time has changed all the same.
        moved = changed[INTERACTIONS.name].select(F.coalesce("new", "old").alias("step")).select("step.*")
    moved = of_people(counted(moved.select(*_STEP), rules), allowed).join(whole, on="shopper_id", how="left_anti")
    moved = current.settle(moved.select("shopper_id", "occurred_at").distinct())
    sessions = current.read_if_there(SESSIONS).select(
        "session_id", "shopper_id", "session_date", "started_at", "ended_at"
    )
    near = touched_sessions(sessions, moved, rules.gap_minutes)
    stretches = current.settle(stretches_of(near, moved))
    spans = spans_of(int(row["day"]) for row in days_of(stretches).collect())
    interactions = within_stretches(of_people(on_days(all_steps, spans), allowed), stretches)
    touched = near
    if not whole.isEmpty():
        of_whole = of_people(all_steps, allowed).join(whole, on="shopper_id", how="left_semi")
        interactions = interactions.unionByName(of_whole)
        touched = touched.unionByName(sessions.join(whole, on="shopper_id", how="left_semi").select(*sessions.columns))
    interactions, touched = current.keep(counted(interactions, rules)), current.keep(touched)
    found = touched.agg(F.count("*").alias("count"), F.min("session_date"), F.max("session_date")).collect()[0]
    shoppers = moved.select("shopper_id").unionByName(whole).distinct()
    counts: dict[str, int | None] = {
        "changed_shoppers": shoppers.count(),
        "interactions": interactions.count(),
        "sessions_looked_at": int(found["count"]),
    }
    scope = F.col("session_date").between(found[1], found[2]) if found["count"] else F.lit(False)
    return Work(interactions, touched, scope, counts)


def _publish(current: Run, interactions: DataFrame, work: Work, config: Config) -> None:
    rules = config.rules
    sessions = current.keep(sessions_of(interactions, rules).withColumn("settings_digest", F.lit(_digest(config))))
    for row in sessions.where("bot_rule IS NOT NULL").groupBy("bot_rule").count().collect():
        current.count(**{f"bots_{row['bot_rule']}": int(row["count"])})
    change = tables.compare(
        current.warehouse,
        SESSIONS,
        sessions,
        current.author,
        scope=work.scope,
        # A session made anew begins with what a touched one began with, or with an interaction that none began with.
        within=None if work.touched is None else work.touched.select("session_id"),
    )
    current.count(sessions=change.given, new=change.inserted, changed=change.updated, removed=change.deleted)
    current.commit(tables.publish(current.warehouse, change, current.author))
