"""Put small files together, delete old files and what nothing refers to, and keep all that a run may still read.

Three things, for each table. Rows of memory tables to which nothing has referred for `memory_retention_days` are
deleted: not a row of a state table, now or at any version since the last maintenance or since one that is kept. Small
files are put together. Files are deleted that no version needs but such as nobody will read again.

Kept are the versions that runs of the last `rollback_days` read or published, so each of these nights can be put back;
those that open runs and saved plans have pinned; and those of the runs that set a hold. An open run that a later one of
its job has overtaken can never go on, and keeps nothing.

Days are counted back from the run's as_of, and no clock decides which rows are collected. Only the deletion of files
goes by their times: `rollback_days` of the clock at least, and more where a version that is kept is older.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import get_args

from pydantic import field_validator
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from ecomspark import ledger, tables
from ecomspark.config import Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features import references
from ecomspark.models.checkpoint import DataType, cards
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import (
    CANDIDATES,
    COLLECTION_STATISTICS,
    CONSENTS,
    EMBEDDINGS,
    HOLDS,
    INTERACTIONS,
    ITEMS,
    JUDGMENT_ALIASES,
    JUDGMENTS,
    KEPT_BACK,
    LEASES,
    NEXT_ITEMS,
    OUTLOOKS,
    PERSONAL_RANKINGS,
    PROFILES,
    QUERIES,
    QUERY_ALIASES,
    RANKINGS,
    RUN_METRICS,
    RUNS,
    SCORES,
    SEQUENCE_STATES,
    SESSIONS,
    SHOPPER_LINKS,
    SPLITS,
    TABLES,
    TERMS,
    TEXTS,
    UNREFERENCED,
    UNSERVED_QUERIES,
    Table,
)
from ecomspark.tables import Commit, Snapshot, Warehouse
from ecomspark.text import Analyser, settings_digest

log = logging.getLogger("ecomspark")

JOB = "maintain"

# What refers to rows of memory tables, with the columns that it does so by.
_REFER = {
    ITEMS: ("item_id", "source_digest", "locale", "title", "brand", "category"),
    QUERIES: ("query_id", "text_source_digest", "locale", "query_text"),
    QUERY_ALIASES: ("text_source_digest",),
    CANDIDATES: ("query_id", "item_id"),
    RANKINGS: ("query_digest", "passage_digest", "scorer_digest"),
    NEXT_ITEMS: ("history_digest", "scorer_digest"),
}

READS = tuple(_REFER)

# What each job reads, and what it publishes of it: while a table is maintained, none that reads it may run. The other
# import jobs read no table but the one that they publish.
USES: dict[str, tuple[tuple[Table, ...], tuple[Table, ...]]] = {
    "build_texts": ((ITEMS, QUERY_ALIASES, JUDGMENT_ALIASES, TEXTS, TERMS), (QUERIES, JUDGMENTS, TEXTS, TERMS)),
    "pretrain_encoder": ((QUERIES, ITEMS, SPLITS, TEXTS), ()),
    "finetune_sequence": ((SESSIONS, CONSENTS, SHOPPER_LINKS, ITEMS, TEXTS, EMBEDDINGS), ()),
    "import_splits": ((QUERY_ALIASES, SPLITS, TEXTS), (SPLITS,)),
    "finetune_cross_encoder": ((JUDGMENTS, QUERIES, ITEMS, SPLITS, CANDIDATES, TEXTS, EMBEDDINGS), (SPLITS,)),
    "finetune_embedder": (
        (JUDGMENTS, QUERIES, ITEMS, SPLITS, INTERACTIONS, QUERY_ALIASES, TEXTS, EMBEDDINGS),
        (SPLITS,),
    ),
    "build_candidates": (
        (
            QUERIES,
            ITEMS,
            CANDIDATES,
            COLLECTION_STATISTICS,
            JUDGMENTS,
            INTERACTIONS,
            QUERY_ALIASES,
            SPLITS,
            TERMS,
            TEXTS,
            EMBEDDINGS,
        ),
        (CANDIDATES, COLLECTION_STATISTICS),
    ),
    "embed_texts": ((ITEMS, QUERIES, TEXTS, EMBEDDINGS), (EMBEDDINGS,)),
    "evaluate_retrieval": (
        (JUDGMENTS, SPLITS, QUERIES, ITEMS, COLLECTION_STATISTICS, TERMS, TEXTS, EMBEDDINGS),
        (RUN_METRICS, UNSERVED_QUERIES),
    ),
    "build_sessions": ((INTERACTIONS, CONSENTS, SHOPPER_LINKS, SESSIONS), (SESSIONS,)),
    "build_profiles": (
        (
            INTERACTIONS,
            CONSENTS,
            SHOPPER_LINKS,
            ITEMS,
            SESSIONS,
            NEXT_ITEMS,
            SEQUENCE_STATES,
            TEXTS,
            EMBEDDINGS,
            PROFILES,
        ),
        (PROFILES,),
    ),
    "score_candidates": ((CANDIDATES, QUERIES, ITEMS, SCORES, TEXTS, RANKINGS), (SCORES,)),
    "rank_candidates": (
        (CANDIDATES, QUERIES, ITEMS, SCORES, TEXTS, RANKINGS, KEPT_BACK, HOLDS),
        (RANKINGS, KEPT_BACK),
    ),
    "evaluate_rankings": (
        (JUDGMENTS, SPLITS, QUERIES, ITEMS, RANKINGS, COLLECTION_STATISTICS, TERMS, TEXTS, EMBEDDINGS),
        (RUN_METRICS, EMBEDDINGS),
    ),
    "train_chances": ((INTERACTIONS, SESSIONS, CONSENTS, SHOPPER_LINKS), ()),
    "score_next_items": (
        (
            INTERACTIONS,
            SESSIONS,
            CONSENTS,
            SHOPPER_LINKS,
            ITEMS,
            TEXTS,
            EMBEDDINGS,
            SEQUENCE_STATES,
            NEXT_ITEMS,
            OUTLOOKS,
        ),
        (SEQUENCE_STATES, NEXT_ITEMS, OUTLOOKS),
    ),
    "compare_checkpoints": (
        (JUDGMENTS, SPLITS, QUERIES, ITEMS, TEXTS, SCORES, EMBEDDINGS),
        (SCORES, EMBEDDINGS, RUN_METRICS),
    ),
    "withdraw_consents": (
        (CONSENTS, SHOPPER_LINKS, SESSIONS, PROFILES, NEXT_ITEMS, OUTLOOKS, PERSONAL_RANKINGS, SEQUENCE_STATES),
        (SESSIONS, PROFILES, NEXT_ITEMS, OUTLOOKS, PERSONAL_RANKINGS, SEQUENCE_STATES),
    ),
    "personalise_rankings": (
        (
            RANKINGS,
            PROFILES,
            SESSIONS,
            CONSENTS,
            SHOPPER_LINKS,
            ITEMS,
            QUERIES,
            TEXTS,
            EMBEDDINGS,
            PERSONAL_RANKINGS,
            HOLDS,
        ),
        (PERSONAL_RANKINGS,),
    ),
}

# Read at their newest version only, and written without a lease by runs that are under way: their properties are left
# alone, because to change them would end such a run.
_LEDGERS = (RUNS, LEASES, HOLDS)

_RULES = settings_digest({"references": 2})  # raise it with the rules: what was seen under others does not count
_MARGIN = timedelta(hours=1)  # clocks of hosts and of stores differ
_AHEAD = 30  # days that the log keeps more than is needed now


class Config(Settings):
    """Which tables, and how long what nobody needs is kept."""

    tables: list[str] | None = setting(None, "which tables; null: all that there are", decides=False)
    rollback_days: int = setting(
        14,
        "for so long each run's versions can be read, and rankings put back to it",
        unit="days",
        decides=False,
        ge=0,
    )
    memory_retention_days: int = setting(
        90,
        "rows of memory tables (texts, terms, scores, embeddings) go when nothing has referred to them for so long",
        unit="days",
        decides=False,
        ge=1,
    )
    plan_retention_days: int = setting(
        7, "how long a saved plan keeps the versions that it names", unit="days", decides=False, ge=0
    )
    small_files: int = setting(
        16,
        "files a bucket (a table without: in all), small ones on average, above which they are put together",
        unit="files",
        decides=False,
        ge=1,
    )

    @field_validator("tables")
    @classmethod
    def _known_tables(cls, value: list[str] | None) -> list[str] | None:
        if unknown := sorted(set(value or []) - set(TABLES)):
            raise ValueError(f"no table named {', '.join(unknown)}; there are {', '.join(TABLES)}")
        return value


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    """Collect, put together, delete, table by table; it holds the leases of all of them and of what their readers
    publish. Raises LeaseTaken when a run under way has one: name fewer tables, wait, or run again."""
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    chosen = _chosen(warehouse, config)
    memory = [table for table in chosen if table.kind == "memory"]
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=leased(chosen),
        covers={table.name: _RULES.hex() for table in memory},
        dated_by=READS,  # it publishes to nearly all of them
        settings_digest=config.deciding_digest(),
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed and chosen:
            if current.as_of is None:
                raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
            if memory:
                tables.create(warehouse, UNREFERENCED)
            kept = _kept(current, config, current.as_of)
            if memory:
                with current.stage("references"):
                    found = _references(current, config, kept, current.as_of, memory)
                for table in memory:
                    with current.stage(f"collect {table.name}"):
                        _collect(current, table, found, config.memory_retention_days, current.as_of)
            # Not looked for again: a table that came meanwhile is nobody's that this run has a lease on.
            for table in dict.fromkeys((*chosen, UNREFERENCED) if memory else chosen):
                with current.stage(table.name):
                    _tidy(current, table, kept, config)
    return current.summary()


def _chosen(warehouse: Warehouse, config: Config) -> list[Table]:
    """The tables to maintain that there are."""
    asked = [table for name, table in TABLES.items() if config.tables is None or name in config.tables]
    return [table for table in asked if tables.exists(warehouse, table)]


def leased(chosen: Iterable[Table]) -> tuple[Table, ...]:
    """The tables whose leases maintenance of some tables takes: theirs, and of what those publish that read them."""
    names = {table.name for table in chosen if table not in _LEDGERS}
    readers = [publishes for reads, publishes in USES.values() if names & {table.name for table in reads}]
    names |= {table.name for publishes in readers for table in publishes}
    if any(table.kind == "memory" for table in chosen):
        names.add(UNREFERENCED.name)
    return tuple(table for name, table in TABLES.items() if name in names)


@dataclass(frozen=True)
class _Kept:
    """`runs`: the rows of `runs` whose versions are kept; `oldest`: of each table that is there the oldest of these."""

    runs: Sequence[Row]
    oldest: Mapping[str, Snapshot]


def _kept(current: Run, config: Config, as_of: date) -> _Kept:
    runs = tables.read(current.warehouse, RUNS, tables.snapshot(current.warehouse, RUNS))
    held = tables.snapshot(current.warehouse, HOLDS)
    set_by = [row["set_by"] for row in tables.read(current.warehouse, HOLDS, held).collect()]
    is_recent = F.col("status").isin(list(ledger.OVER)) & (_day() >= as_of - timedelta(config.rollback_days))
    is_planned = (F.col("status") == "planned") & (_day() >= as_of - timedelta(config.plan_retention_days))
    is_open = F.col("status") == "open"
    rows = runs.where(is_recent | is_planned | is_open | F.col("run_id").isin(set_by)).collect()
    rows = [row for row in rows if row["run_id"] in set_by or not _is_overtaken(row, rows)]
    snapshots = {name: tables.snapshot(current.warehouse, table) for name, table in TABLES.items()}
    return _Kept(rows, oldest(rows, {name: at for name, at in snapshots.items() if at}))


def _day() -> Column:
    """The day of a run, for one without the day on which it started."""
    return F.coalesce("as_of", F.to_date("started_at"))


def _is_overtaken(row: Row, rows: Iterable[Row]) -> bool:
    """Whether an open run can never go on, because a later one of its job and target is over."""
    later = (
        other
        for other in rows
        if other["status"] in ledger.OVER and (other["job"], other["target"]) == (row["job"], row["target"])
    )
    return row["status"] == "open" and any((other["epoch"] or 0) > (row["epoch"] or 0) for other in later)


def oldest(rows: Iterable[Row], now: Mapping[str, Snapshot]) -> dict[str, Snapshot]:
    """Of each table in `now` the oldest version that runs read or published; the one it is at if there is none.

    What was read of a table that was recreated since is no more.
    """
    found = dict(now)
    for row in rows:
        versions = [(name, at.version) for name, at in ledger.pinned(row).items() if _is_of(at, now.get(name))]
        versions += [(name, at["after"]) for name, at in row["published"].items() if name in now]
        for name, version in versions:
            if version < found[name].version:
                found[name] = Snapshot(now[name].table_id, version)
    return found


def _is_of(at: Snapshot, now: Snapshot | None) -> bool:
    return now is not None and at.table_id == now.table_id


@dataclass(frozen=True)
class _References:
    """`rows`: what refers, by table, as it is and as every version that counts had it. `is_known`: of each memory
    table, whether these are all since it was last maintained; if not, the days begin anew."""

    rows: Mapping[str, DataFrame]
    is_known: Mapping[str, bool]
    recipes: Sequence[bytes]
    encoders: Sequence[bytes]
    scorers: Sequence[bytes]
    analysers: Mapping[str, Analyser]


def _references(current: Run, config: Config, kept: _Kept, as_of: date, memory: Sequence[Table]) -> _References:
    marks = {table.name: current.watermark(table.name) for table in memory}
    is_known = {name: mark is not None for name, mark in marks.items()}
    rows = {}
    for table, columns in _REFER.items():
        since = kept.oldest.get(table.name)
        if since is None:
            rows[table.name] = tables.empty(current.warehouse, table).select(*columns)
            continue
        for name, mark in marks.items():
            if mark is None:
                continue
            at = mark.inputs.get(table.name, Snapshot(since.table_id, 0))  # it was not there yet
            if at.table_id != since.table_id:
                is_known[name] = False
            elif at.version < since.version:
                since = at
        found = tables.ever_since(current.warehouse, table, since, columns)
        if found is None:
            log.warning("%s: %s: what referred since version %d cannot be read", JOB, table.name, since.version)
            is_known = dict.fromkeys(is_known, False)
            found = tables.read(current.warehouse, table, tables.snapshot(current.warehouse, table)).select(*columns)
        rows[table.name] = found
    of_models = cards(config.models_folder)
    types = get_args(DataType)
    encoders = [card for card in of_models.values() if card.kind == "encoder"]
    return _References(
        rows,
        is_known,
        sorted({config.recipe.digest, *(card.recipe.digest for card in of_models.values())}),
        sorted({card.model_copy(update={"data_type": each}).scorer_digest for card in encoders for each in types}),
        _scorers(current, as_of - timedelta(config.memory_retention_days)),
        config.analysers,
    )


def _scorers(current: Run, since: date) -> list[bytes]:
    """The scorers that a run of a day from `since` on covered, was to cover, or is planned to."""
    runs = tables.read(current.warehouse, RUNS, tables.snapshot(current.warehouse, RUNS))
    is_mine = (F.col("job") == "score_candidates") & ((_day() >= since) | F.col("status").isin("open", "planned"))
    named = runs.where(is_mine & F.col("covers").isNotNull()).select(F.explode(F.map_keys("covers")).alias("scorer"))
    return sorted(bytes.fromhex(row["scorer"]) for row in named.distinct().collect())


def _collect(current: Run, table: Table, found: _References, days: int, as_of: date) -> None:
    """Delete the rows to which nothing has referred for so many days, and keep since when nothing has to others."""
    warehouse = current.warehouse
    keys = tables.read_memory(warehouse, table).select(*table.key)
    at = tables.snapshot(warehouse, UNREFERENCED)
    known = tables.read(warehouse, UNREFERENCED, at).where(F.col("table_name") == table.name)
    seen = known if found.is_known[table.name] else known.limit(0)
    lonely = references.unreferenced(table, keys, _referenced(current, table, keys, found), seen, as_of)
    lonely = tables.kept(lonely)
    is_due = F.col("since_date") <= as_of - timedelta(days)
    commit = tables.collect(warehouse, table, lonely.where(is_due), current.author)
    current.commit(commit)
    marks = lonely.where(~is_due).select(F.lit(table.name).alias("table_name"), "key_digest", "since_date")
    in_table = F.col("table_name") == table.name
    change = tables.compare(warehouse, UNREFERENCED, marks, current.author, scope=in_table)
    current.count(**{f"{table.name}_marked": change.given, f"{table.name}_collected": commit.deleted})
    current.commit(tables.publish(warehouse, change, current.author))
    lonely.unpersist()


def _referenced(current: Run, table: Table, keys: DataFrame, found: _References) -> DataFrame:
    """The keys of a memory table that something refers to."""
    rows = found.rows
    if table == TEXTS:
        return references.of_texts(rows[ITEMS.name], rows[QUERIES.name], rows[QUERY_ALIASES.name], found.recipes)
    if table == TERMS:
        return references.of_terms(rows[ITEMS.name], rows[QUERIES.name], found.analysers)
    texts = tables.read_memory(current.warehouse, TEXTS)
    if table == EMBEDDINGS:
        return references.of_embeddings(keys, texts, found.encoders)
    if table == SEQUENCE_STATES:
        return rows[NEXT_ITEMS.name].select(*SEQUENCE_STATES.key).distinct()
    if table != SCORES:
        raise AssertionError(f"{table.name}: a memory table whose references are not declared")
    candidates, queries, items = rows[CANDIDATES.name], rows[QUERIES.name], rows[ITEMS.name]
    return references.of_scores(keys, candidates, queries, items, texts, rows[RANKINGS.name], found.scorers)


def _tidy(current: Run, table: Table, kept: _Kept, config: Config) -> None:
    """Put small files together, and delete files that no version needs that is kept."""
    warehouse, author = current.warehouse, current.author
    before = tables.file_count(warehouse, table)
    if table == RUNS and current.as_of is not None:
        is_stale = (F.col("status") == "planned") & (_day() < current.as_of - timedelta(config.plan_retention_days))
        plans = tables.delete(warehouse, RUNS, is_stale, author)
        current.count(plans_dropped=plans.deleted)
        current.commit(plans)
    if tables.has_small_files(warehouse, table, config.small_files):
        current.commit(tables.optimise(warehouse, table, author))
        _count(current, table, files_before=before, files_after=tables.file_count(warehouse, table))
    now = datetime.now(UTC)
    # With the margin: a file that is younger may be of a commit under way.
    since, at = now - timedelta(config.rollback_days) - _MARGIN, tables.snapshot(warehouse, table)
    if table not in _LEDGERS:
        oldest = kept.oldest[table.name]
        written = tables.written_at(warehouse, table, oldest) - _MARGIN
        if oldest != at:  # the newest needs no file that was ever removed
            since = min(since, written)
        # Its commit must stay in the log, also of one that is the newest now and will not be when a run still reads it.
        # In months: so the property moves seldom, and always long before the oldest version would be forgotten.
        days = 30 * -(-((now - min(since, written)).days + 1 + _AHEAD) // 30)
        known_since = tables.removals_known_since(warehouse, table)
        current.commit(tables.keep_history(warehouse, table, days, author))
        if known_since > since:
            log.info(
                "%s: %s: versions are kept from before its log lists every removed file: none is deleted",
                JOB,
                table.name,
            )
            return
    deleted = tables.vacuum(warehouse, table, since, author)
    after = tables.snapshot(warehouse, table)
    if deleted and at and after:
        current.commit(Commit(table, at.version, after.version))
        _count(current, table, files_deleted=deleted)


def _count(current: Run, table: Table, **counts: int) -> None:
    current.count(**{f"{table.name}_{what}": number for what, number in counts.items() if number})
