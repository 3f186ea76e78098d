"""A run: one execution of one job. Its row in `runs` is opened at the start and closed at the end; what it read is
pinned, what it did is counted, timed, and shown while it lasts."""

import gc
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row, SparkSession

from ecomspark import ledger, tables
from ecomspark.config import LeaseSettings, is_name
from ecomspark.errors import ConfigError, ContractError, LeaseTaken, NewerPublished
from ecomspark.holding import Holding
from ecomspark.ledger import OVER, Past, Watermark
from ecomspark.models.costs import Costs
from ecomspark.plans import Plan, as_pins, read_pins
from ecomspark.schemas import RUNS, Table
from ecomspark.tables import Author, Commit, Snapshot, Source, Sourced, Warehouse, read_source
from ecomspark.text import settings_digest

log = logging.getLogger("ecomspark")

_PROGRESS_SECONDS = 5.0
# Of all of a run's model stages together, as `Run.spent` keeps them: what one stage adds to them says nothing.
_RATES = ("tokens_per_second", "peak_memory_mib", "seconds_a_million")
_SOURCE = "source"
# What Spark and Delta say when files or a log of a version are no more.
_GONE = ("FILE_NOT_EXIST", "DELTA_FILE_NOT_FOUND", "DELTA_LOG_FILE_NOT_FOUND", "DELTA_VERSION", "DELTA_CANNOT_RECREATE",
         "DELTA_STATE_RECOVER", "DELTA_TIMESTAMP_EARLIER", "DELTA_CHANGE_DATA_FILE_NOT_FOUND")  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a run did, for its caller and for the last line on stdout."""

    job: str
    run_id: str
    status: str  # published, nothing_to_do or replayed
    as_of: date | None
    rows: dict[str, int]
    tables: dict[str, dict[str, int]]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "as_of": self.as_of.isoformat() if self.as_of else None}


@dataclass
class Run:
    """A run under way: pinned inputs, counts, seconds, commits. Made by `open_run` or `planned_run`."""

    warehouse: Warehouse
    author: Author
    as_of: date | None
    is_replayed: bool
    inputs: dict[str, Snapshot | None]
    source: Sourced | None = None
    target: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commits: dict[str, dict[str, int]] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    model_seconds: float = 0.0
    past: Past = field(default_factory=Past)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    persisted: list[DataFrame] = field(default_factory=list)
    covers: dict[str, str] = field(default_factory=dict)
    staged_for: list[Table] = field(default_factory=list)

    @property
    def sourced(self) -> Sourced:
        """The source that this run imports."""
        if self.source is None:
            raise ValueError(f"{self.author.job} was opened without a source")
        return self.source

    def read(self, table: Table, buckets: Sequence[int] | None = None) -> DataFrame:
        """A pinned state or log table, or some parts of it (see `tables.buckets_of`). Raises ContractError when it was
        not there: an earlier job has to run."""
        at = self.inputs[table.name]
        if at is None:
            raise ContractError(f"{table.name}: expected the table, found none; run the job that publishes it first")
        return tables.read(self.warehouse, table, at, buckets)

    def read_of_queries(self, table: Table, query_ids: DataFrame) -> DataFrame:
        """Those rows of a pinned table that are of some queries, out of the files that they can be in.

        `query_ids`: (query_id), persisted: it is executed here and again by what reads the rows.
        """
        rows = self.read(table, tables.buckets_of(self.warehouse, table, query_ids))
        return rows.join(query_ids, on="query_id", how="left_semi")

    def read_if_there(self, table: Table) -> DataFrame:
        """A pinned state or log table, or no rows when it was not there."""
        return tables.read(self.warehouse, table, self.inputs[table.name])

    def watermark(self, covered: str) -> Watermark | None:
        """Up to where an earlier run has brought what this one covers too; None when it must be done whole."""
        return self.past.watermark(covered, self.covers[covered])

    def is_as_it_was(self, table: Table, since: Watermark) -> bool:
        """Whether a table is at the version that it had at a watermark."""
        return self.inputs[table.name] is not None and self.inputs[table.name] == since.inputs.get(table.name)

    def changes(self, table: Table, since: Watermark, columns: tuple[str, ...] = ()) -> DataFrame | None:
        """What changed in a table that the run reads since a watermark; see `tables.changes`."""
        return self.between(table, since.inputs.get(table.name), self.inputs[table.name], columns)

    def between(
        self, table: Table, since: Snapshot | None, until: Snapshot | None, columns: tuple[str, ...] = ()
    ) -> DataFrame | None:
        """What changed in a table between two of its versions; see `tables.changes`."""
        changed = tables.changes(self.warehouse, table, since, until, columns)
        if changed is not None:
            self.persisted.append(changed)
        return changed

    def keep(self, rows: DataFrame) -> DataFrame:
        """Persist a frame until the run ends, however it does (see `tables.kept`): in a session that lives on, it would
        stay for good."""
        self.persisted.append(tables.kept(rows))
        return self.persisted[-1]

    def settle(self, rows: DataFrame) -> DataFrame:
        """Rows computed now and cut from how they came about. For what is joined again and again with what was made of
        it: Spark analyses a plan's history as often as it stands in it, which takes minutes however few the rows are.

        They lie on the executors alone: a run that loses one of these ends, and is started again.
        """
        return rows.localCheckpoint()

    def staged(self, table: Table, rows: DataFrame) -> DataFrame:
        """Rows that Python made for a state table, landed once beside it until the run ends (see `tables.stage`)."""
        self.staged_for.append(table)
        return tables.stage(self.warehouse, table, rows, self.author)

    def let_go(self) -> None:
        """Let go of what was staged and what `keep` persisted, and of the plans that Python holds in the JVM: py4j's
        objects stand in cycles, so a session that lives on would keep hundreds of each run until Python's collector
        came by."""
        while self.persisted:
            self.persisted.pop().unpersist()
        while self.staged_for:
            tables.unstage(self.warehouse, self.staged_for.pop(), self.author)
        gc.collect()

    def count(self, **rows: int) -> None:
        """Add to the run's counts, by what was counted."""
        for name, number in rows.items():
            self.rows[name] = self.rows.get(name, 0) + number

    def spent(self, stage: str, costs: Costs, seconds: float) -> None:
        """Keep and say what a model cost: `costs` over all workers, in a stage that took so many seconds.

        Of a run with several such stages, `rows` has what they came to together.
        """
        self.costs, self.model_seconds = self.costs + costs, self.model_seconds + seconds
        self.rows |= {
            "model_tokens": self.costs.tokens,
            "padding_tokens": self.costs.padding,
            "text_bytes": self.costs.text_bytes,
            "model_loads": self.costs.loads,
            "tokens_per_second": round(self.costs.tokens / self.model_seconds),
            "peak_memory_mib": self.costs.peak_memory // 2**20,
            "seconds_a_million": round(1e6 * self.model_seconds / max(1, self.costs.rows)),
        }
        pace = costs.rows / seconds
        for part in ("reading", "tokenising", "waiting", "forward", "loading"):
            name = f"{stage}.{part}"
            self.seconds[name] = round(self.seconds.get(name, 0.0) + getattr(costs, part), 3)
        log.info(
            "%s: %s: %s rows, %s tokens and %.1f %% padding, %s tokens a second; worker seconds: %.1f tokenising, "
            "%.1f waiting, %.1f forward, %.1f in %d model loads; %d MiB at most; a million rows would take %s",
            self.author.job,
            stage,
            f"{costs.rows:,}",
            f"{costs.tokens:,}",
            100 * costs.padding_share,
            f"{costs.tokens / seconds:,.0f}",
            costs.tokenising,
            costs.waiting,
            costs.forward,
            costs.loading,
            costs.loads,
            costs.peak_memory // 2**20,
            f"{1e6 / pace / 3600:,.1f} hours at this pace" if pace else "unknown time",
        )
        if costs.out_of_memory:
            log.warning(
                "%s: %s: memory ran out %d times; batches were halved", self.author.job, stage, costs.out_of_memory
            )

    def made(self, checkpoint: str) -> None:
        """Keep that a checkpoint was made: something was published, though it is in no table."""
        log.info("%s: made the checkpoint %s", self.author.job, checkpoint)
        self.count(checkpoints=1)

    def commit(self, commit: Commit) -> None:
        """Keep what a publication did. A table published twice keeps its first version before and its last after."""
        name = commit.table.name
        if name in self.inputs and self.inputs[name] is None:
            # This run made the table: for the next one it has read it as it was before its first row.
            made = tables.snapshot(self.warehouse, commit.table)
            self.inputs[name] = made and Snapshot(made.table_id, 0)
        before = self.commits[name]["before"] if name in self.commits else commit.before
        self.commits[name] = {"before": before, "after": commit.after}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the run; say what it counted when it ends, and how far it is every few seconds until then."""
        before, start, ended = dict(self.rows), time.monotonic(), threading.Event()
        place = f"{self.author.job}: {name}"
        watcher = threading.Thread(target=_watch, args=(self.warehouse.spark, place, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
        took = time.monotonic() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
        counted = [
            f"{n if what in _RATES else n - before.get(what, 0):,} {what}"
            for what, n in self.rows.items()
            if n != before.get(what, 0)
        ]
        log.info("%s: %s%.1f s", place, "".join(f"{part}, " for part in counted).replace("_", " "), took)

    def summary(self) -> Summary:
        is_changed = any(versions["before"] != versions["after"] for versions in self.commits.values())
        is_changed |= self.rows.get("checkpoints", 0) > 0
        status = "replayed" if self.is_replayed else "published" if is_changed else "nothing_to_do"
        return Summary(self.author.job, self.author.run_id, status, self.as_of, self.rows, self.commits, self.seconds)


@contextmanager
def open_run(
    warehouse: Warehouse,
    job: str,
    run_id: str,
    *,
    reads: Sequence[Table] = (),
    publishes: Sequence[Table] = (),
    covers: Mapping[str, str] | None = None,
    source: Source | None = None,
    target: str | None = None,
    is_ordered: bool = True,
    is_pinned: bool = False,
    dated_by: Sequence[Table] | None = None,
    settings_digest: bytes,
    as_of: date | None = None,
    leases: LeaseSettings | None = None,
    plan: Path | None = None,
) -> Iterator[Run]:
    """Open a run, take the leases of what it `publishes`, pin what it `reads` and the `source` outside that it imports,
    and close it at the end.

    `reads`: state and log tables, and the memory tables whose growth since the last run the job goes by. `covers`: what
    the run brings up to date, to the digest of all that decides it (see `Run.watermark`). `target`: the part of a table
    that the run publishes, where a job has several (a source, a judgment set). `is_ordered`: false for a job that only
    adds to a log, where an older day may come after a newer one. `is_pinned`: it reads versions of long ago.
    `dated_by`: the tables whose newest commit gives the day; None: those that it reads and does not publish. `plan`: a
    saved plan, whose versions are read.

    A run that is over already comes back as replayed: do nothing then. A run that died is resumed with what it had
    pinned; one that failed starts over. Without `as_of` it is the UTC date of the newest input. Raises ConfigError
    when the run is not safely named, or is over or was cut off with other settings or another `as_of`; LeaseTaken when
    another run publishes, or has taken over the leases since; ContractError when a died run's source or what it had
    pinned is no longer there; and NewerPublished when the job already ran for a later day or later versions, or
    another run of it was opened and ended after this one was cut off.
    """
    if not is_name(run_id):
        raise ConfigError("run_id: expected letters, digits and _ . = - only, 128 at most")
    asked, holding = leases or LeaseSettings(), Holding(warehouse, publishes)
    past = holding.take(Author(job, run_id), target, settings_digest, as_of, asked)
    if past.mine is not None and past.mine["status"] in OVER:
        log.info("%s: run %s is done already", job, run_id)
        yield _replayed(warehouse, Author(job, run_id), past.mine)
        return
    is_resumed = past.mine is not None and past.mine["status"] == "open"
    is_pinned |= is_resumed or plan is not None
    try:
        pins, as_of = _pins(past, job, settings_digest, as_of, plan)
        sourced = _sourced(warehouse, source, pins.get(_SOURCE) if pins else None) if source else None
        inputs = _inputs(warehouse, reads, pins)
        if as_of is None and not is_resumed:
            dated_by = [table for table in reads if table not in publishes] if dated_by is None else dated_by
            as_of = _newest_date(warehouse, dated_by, inputs, sourced)
        if is_ordered:
            ledger.refuse_older(Author(job, run_id), as_of, inputs, past.mine if is_resumed else None, past)
        if sourced:
            inputs[_SOURCE] = sourced.snapshot
        facts = {"inputs": as_pins(inputs), "covers": dict(covers or {})}
        author = Author(job, run_id, holding.epoch, holding.names, facts)
        run = Run(warehouse, author, as_of, False, inputs, sourced, target, past=past, covers=dict(covers or {}))
        _write(run, "open", settings_digest, is_new=past.mine is None)
    except Exception:
        holding.give_back(Author(job, run_id))
        raise
    with holding.kept(run.author, asked.seconds):
        try:
            yield run
        except Exception as error:
            usurper = holding.usurper()
            found = _explained(error, usurper, is_pinned)
            if usurper is None or (usurper.job, usurper.run_id) != (job, run_id):
                _close_failed(run, settings_digest, found)
            if found is error:
                raise
            raise found from None
        except BaseException:
            # A signal: the row stays open for the same run to go on, and others need not wait for the lease to end.
            with suppress(Exception):
                tables.renew(warehouse, holding.nonce, run.author, 0)
            raise
        finally:
            run.let_go()
    usurper = holding.usurper()
    if usurper is not None and (usurper.job, usurper.run_id) == (job, run_id):
        raise LeaseTaken(f"{job}: run {run_id} was started again elsewhere meanwhile; that one goes on")
    _write(run, run.summary().status, settings_digest, ended=datetime.now(UTC))


def _pins(
    past: Past, job: str, settings_digest: bytes, as_of: date | None, plan: Path | None
) -> tuple[dict[str, Snapshot] | None, date | None]:
    """The versions and the day that a run is bound to: those of its try that was cut off, else those of a plan; None:
    to no versions."""
    mine = past.mine
    if mine is not None and mine["status"] == "open":
        log.warning("%s: run %s was cut off; resuming with what it had pinned", job, mine["run_id"])
        return ledger.pinned(mine), mine["as_of"]
    return (None, as_of) if plan is None else read_pins(plan, job, settings_digest, as_of)


def _inputs(
    warehouse: Warehouse, reads: Sequence[Table], pins: Mapping[str, Snapshot] | None
) -> dict[str, Snapshot | None]:
    """What a run reads, at which versions; memory tables always at their newest."""
    return {
        table.name: tables.snapshot(warehouse, table)
        if pins is None or table.kind == "memory"
        else pins.get(table.name)
        for table in reads
    }


def _explained(error: Exception, usurper: tables.Lease | None, is_pinned: bool) -> Exception:
    """What an error really was: a lease taken over, a pinned version that cannot be read any more, or itself."""
    if isinstance(error, NewerPublished) and usurper is not None:
        return LeaseTaken(
            f"{usurper.table_name}: the lease of this run was taken over by {usurper.job}, run {usurper.run_id}; "
            "nothing more was published"
        )
    condition = error.getCondition() if isinstance(error, PySparkException) else None
    if is_pinned and any(sign in f"{condition} {error}" for sign in _GONE):
        return ContractError(
            "a version that the run had pinned can no longer be read: its files were vacuumed or its log is expired; "
            "nothing more was published; start a run with a new run_id and without the plan"
        )
    return error


@contextmanager
def planned_run(
    warehouse: Warehouse,
    job: str,
    *,
    reads: Sequence[Table],
    publishes: Sequence[Table],
    covers: Mapping[str, str],
    as_of: date | None,
    source: Source | None = None,
    is_ordered: bool = True,
) -> Iterator[Run]:
    """What a run would find if it was opened now; it takes no lease, writes no row, and may not publish."""
    author, inputs = Author(job, "plan"), _inputs(warehouse, reads, None)
    sourced = _sourced(warehouse, source, None) if source else None
    as_of = as_of or _newest_date(warehouse, [table for table in reads if table not in publishes], inputs, sourced)
    past = ledger.look(warehouse, author, None)
    if is_ordered:
        ledger.refuse_older(author, as_of, inputs, None, past)
    if sourced:
        inputs[_SOURCE] = sourced.snapshot
    run = Run(warehouse, author, as_of, False, inputs, sourced, past=past, covers=dict(covers))
    try:
        yield run
    finally:
        run.let_go()


def keep_plan(warehouse: Warehouse, plan: Plan) -> None:
    """Put a saved plan's versions into `runs`, so that maintenance keeps them."""
    inputs = {name: Snapshot(str(at["table_id"]), int(at["version"])) for name, at in plan.inputs.items()}
    author = Author(plan.job, f"plan-{settings_digest(plan.as_json()).hex()}")
    run = Run(warehouse, author, plan.as_of, False, dict(inputs), covers=dict(plan.covers))
    _write(run, "planned", bytes.fromhex(plan.settings_digest))


def _sourced(warehouse: Warehouse, source: Source, pinned: Snapshot | None) -> Sourced:
    if pinned and source.format == "delta":
        source = source.model_copy(update={"version": pinned.version})
    sourced = read_source(warehouse.spark, source)
    if pinned and sourced.snapshot != pinned:
        raise ContractError(f"source {source.path}: changed since the run was cut off; start a run with a new run_id")
    return sourced


def _newest_date(
    warehouse: Warehouse, reads: Sequence[Table], inputs: Mapping[str, Snapshot | None], sourced: Sourced | None
) -> date | None:
    times = [sourced.dated] if sourced else []
    for table in reads:
        if table.kind != "memory" and (at := inputs[table.name]):
            times.append(tables.committed_at(warehouse, table, at.version))
    return max(times).date() if times else None


def _replayed(warehouse: Warehouse, author: Author, earlier: Row) -> Run:
    commits = {name: {"before": at["before"], "after": at["after"]} for name, at in earlier["published"].items()}
    return Run(
        warehouse,
        author,
        earlier["as_of"],
        True,
        {},
        None,
        earlier["target"],
        earlier["rows"],
        earlier["seconds"],
        commits,
    )


def _write(
    run: Run,
    status: str,
    settings_digest: bytes,
    *,
    ended: datetime | None = None,
    error: str = "",
    is_new: bool = False,
) -> None:
    row = {
        "job": run.author.job,
        "run_id": run.author.run_id,
        "target": run.target,
        "status": status,
        "as_of": run.as_of,
        "started_at": run.started_at,
        "ended_at": ended,
        "settings_digest": settings_digest,
        "inputs": {name: (at.table_id, at.version) for name, at in run.inputs.items() if at},
        "rows": run.rows,
        "seconds": run.seconds,
        "published": {name: (at["before"], at["after"]) for name, at in run.commits.items()},
        "error": error or None,
        "epoch": run.author.epoch or None,
        "covers": run.covers or None,
    }
    tables.put(run.warehouse, RUNS, row, run.author, is_new)


def _close_failed(run: Run, settings_digest: bytes, error: Exception) -> None:
    try:
        _write(run, "failed", settings_digest, ended=datetime.now(UTC), error=type(error).__name__)
    except Exception as second:  # the first error is the one to report
        log.warning("%s: the run's row could not be closed (%s)", run.author.job, type(second).__name__)


def _watch(spark: SparkSession, place: str, ended: threading.Event) -> None:
    start = time.monotonic()
    while not ended.wait(_PROGRESS_SECONDS):
        tracker = spark.sparkContext.statusTracker()
        stages = [info for stage in tracker.getActiveStageIds() if (info := tracker.getStageInfo(stage)) is not None]
        if stages:
            done, total = sum(info.numCompletedTasks for info in stages), sum(info.numTasks for info in stages)
            log.info("%s: %d of %d tasks, %.0f s so far", place, done, total, time.monotonic() - start)
