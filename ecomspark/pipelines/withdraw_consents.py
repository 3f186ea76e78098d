"""Remove what was derived from the behaviour of shoppers who may not be known any more, or stands under a retired id.

Who may be known under the purpose is said by `consents` and `shopper_links`, as everywhere (`features.consents`):
unknown means no, a no of one id is a no of the person, and only the id that stays has rows. All rows of other ids leave
the tables of sessions, profiles, next items, outlooks, and of personal rankings those that are a shopper's; so do the
states in the memory table `sequence_states` to which no next items of a shopper who may be known refer: also those of
histories that others have outgrown, which would be made again if they came back.

What this does NOT do. Older versions of the tables keep the rows until `maintain` deletes their files, `rollback_days`
later. The interactions themselves, what was said of consent, quarantine, rankings for segments,
counts by item, and models that were trained on the behaviour stay as they are. So this is no erasure.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.features.consents import consenting, of_others, remaining, states_of_nobody
from ecomspark.ledger import Watermark
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import (
    CONSENTS,
    NEXT_ITEMS,
    OUTLOOKS,
    PERSONAL_RANKINGS,
    PROFILES,
    SEQUENCE_STATES,
    SESSIONS,
    SHOPPER_LINKS,
    Table,
)
from ecomspark.tables import Snapshot, Warehouse
from ecomspark.text import settings_digest

log = logging.getLogger("ecomspark")

JOB = "withdraw_consents"

# What has rows of shoppers, with the column that names them.
DERIVED = {
    SESSIONS: "shopper_id",
    PROFILES: "shopper_id",
    NEXT_ITEMS: "shopper_id",
    OUTLOOKS: "shopper_id",
    PERSONAL_RANKINGS: "audience",
}

READS = (CONSENTS, SHOPPER_LINKS, *DERIVED)

PUBLISHES = (*DERIVED, SEQUENCE_STATES)


class Config(Settings):
    """Under which purpose shoppers may be known."""

    purpose: Name = setting("personalisation", "the purpose that a shopper must have consented to")
    full: bool = setting(False, "look at all shoppers although nothing has changed: `--full`", decides=False)


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    """Raises LeaseTaken when another run may publish to one of the tables now."""
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
            with current.stage("look"):
                work = find(current, config)
                current.count(**work.counts)
            # What a run of score_next_items that died has left of everybody's lists; none is at work now.
            tables.unstage_all(warehouse, NEXT_ITEMS)
            if any(work.counts.values()):
                with current.stage("remove"):
                    _remove(current, work)
                _say(work, config)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would remove now, by the same search."""
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    covers = _covers(config)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest().hex(),
            inputs=as_pins(current.inputs),
            covers=covers,
            counts=dict(find(current, config).counts),
            fields={},
        )


def _covers(config: Config) -> dict[str, str]:
    return {config.purpose: settings_digest({"purpose": config.purpose}).hex()}


@dataclass(frozen=True)
class Work:
    """What must go. `rows`: by table the ids whose rows do; `states`: keys of `sequence_states`, None if there are
    none; all persisted. `counts`: of shoppers, and of rows by table."""

    rows: Mapping[Table, DataFrame]
    states: DataFrame | None
    counts: Mapping[str, int]


def find(current: Run, config: Config) -> Work:
    """The rows of shoppers who may not be known now. Tables that are not there are left out.

    All tables are read as they are, whatever a plan or a try that was cut off had pinned: a no that came since counts,
    and so does a yes.
    """
    at = {table: tables.snapshot(current.warehouse, table) for table in READS}
    there = [table for table in DERIVED if at[table] is not None]
    has_states = NEXT_ITEMS in there and tables.exists(current.warehouse, SEQUENCE_STATES)
    counts = {"shoppers": 0, **{_removed(table): 0 for table in (*there, *([SEQUENCE_STATES] if has_states else []))}}
    since = None if config.full else current.watermark(config.purpose)
    if since is not None and all(_is_as_left(table, at[table], since) for table in READS):
        return Work({}, None, counts)
    now = {table: tables.read(current.warehouse, table, at[table]) for table in READS}
    allowed = current.settle(consenting(now[CONSENTS], now[SHOPPER_LINKS], config.purpose))
    mine = current.keep(remaining(allowed))
    rows, states = {}, None
    for table in there:
        if (
            table == PERSONAL_RANKINGS
        ):  # an id that retired may be named there: its ranking is that of the one that stays
            shoppers, may_stay = now[table].where("audience_kind = 'shopper'"), allowed.select("shopper_id")
        else:
            shoppers, may_stay = now[table], mine
        found = current.keep(of_others(shoppers, may_stay, DERIVED[table]))
        counts[_removed(table)] = int(found.agg(F.coalesce(F.sum("count"), F.lit(0))).collect()[0][0])
        if counts[_removed(table)]:
            rows[table] = found.select("shopper_id")
    if rows:
        counts["shoppers"] = reduce(DataFrame.unionByName, rows.values()).distinct().count()
    if has_states:
        kept = tables.read_memory(current.warehouse, SEQUENCE_STATES).select(*SEQUENCE_STATES.key)
        states = current.keep(states_of_nobody(kept, now[NEXT_ITEMS], mine))
        counts[_removed(SEQUENCE_STATES)] = states.count()
    return Work(rows, states, counts)


def _removed(table: Table) -> str:
    return f"{table.name}_removed"


def _is_as_left(table: Table, now: Snapshot | None, since: Watermark) -> bool:
    """Whether a table is as a run left it: at the version that it read, or at the one that it made."""
    then = since.inputs.get(table.name)
    if now is None or then is None:
        return now is None
    return now.table_id == then.table_id and now.version == since.left.get(table.name, then.version)


def _remove(current: Run, work: Work) -> None:
    warehouse, author = current.warehouse, current.author
    if work.states is not None:
        # Before the rows by which they are found: a run that dies in between finds them again.
        current.commit(tables.collect(warehouse, SEQUENCE_STATES, work.states, author))
    for table, shoppers in work.rows.items():
        none = tables.empty(warehouse, table).drop("changed_by")
        scope = F.col("audience_kind") == "shopper" if table == PERSONAL_RANKINGS else None
        within = shoppers.withColumnRenamed("shopper_id", DERIVED[table])
        change = tables.compare(warehouse, table, none, author, scope=scope, within=within)
        current.commit(tables.publish(warehouse, change, author))


def _say(work: Work, config: Config) -> None:
    counts = {name.removesuffix("_removed").replace("_", " "): count for name, count in work.counts.items() if count}
    shoppers = counts.pop("shoppers")
    log.info(
        "%s: removed of %s shoppers who may not be known under %s, or under an id that retired: %s",
        JOB,
        f"{shoppers:,}",
        config.purpose,
        ", ".join(f"{count:,} {name}" for name, count in counts.items()),
    )
