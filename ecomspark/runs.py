"""A run: one execution of one job. Its row in `runs` is opened at the start and closed at the end; what it read is
pinned, what it did is counted, timed, and shown while it lasts."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession, Window
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import is_name
from ecomspark.errors import ConfigError, ContractError, NewerPublished
from ecomspark.models.costs import Costs
from ecomspark.schemas import RUNS, Table
from ecomspark.tables import Author, Commit, Snapshot, Source, Sourced, Warehouse, read_source

log = logging.getLogger("ecomspark")

_PROGRESS_SECONDS = 5.0
_SOURCE = "source"
_OVER = ("published", "nothing_to_do")


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
    """A run under way: pinned inputs, counts, seconds, commits. Made by `open_run`."""

    warehouse: Warehouse
    author: Author
    as_of: date | None
    is_replayed: bool
    inputs: Mapping[str, Snapshot | None]
    source: Sourced | None = None
    target: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commits: dict[str, dict[str, int]] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    model_seconds: float = 0.0

    @property
    def sourced(self) -> Sourced:
        """The source that this run imports."""
        if self.source is None:
            raise ValueError(f"{self.author.job} was opened without a source")
        return self.source

    def read(self, table: Table) -> DataFrame:
        """A pinned state or log table. Raises ContractError when it was not there: an earlier job has to run."""
        at = self.inputs[table.name]
        if at is None:
            raise ContractError(f"{table.name}: expected the table, found none; run the job that publishes it first")
        return tables.read(self.warehouse, table, at)

    def read_if_there(self, table: Table) -> DataFrame:
        """A pinned state or log table, or no rows when it was not there."""
        return tables.read(self.warehouse, table, self.inputs[table.name])

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
        counted = [f"{n - before.get(what, 0):,} {what}" for what, n in self.rows.items() if n != before.get(what, 0)]
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
    source: Source | None = None,
    target: str | None = None,
    is_ordered: bool = True,
    settings_digest: bytes,
    as_of: date | None = None,
) -> Iterator[Run]:
    """Open a run, pin what it `reads` and the `source` outside that it imports, and close it at the end.

    `target`: the part of a table that the run publishes, where a job has several (a source, a judgment set).
    `is_ordered`: false for a job that only adds to a log, where an older day may come after a newer one.

    A run that is over already comes back as replayed: do nothing then. A run that died is resumed with what it had
    pinned; one that failed starts over. Without `as_of` it is the UTC date of the newest input. Raises ConfigError
    when the run is not safely named, or is over or was cut off with other settings or another `as_of`; ContractError
    when a died run's source is no longer what it was; and NewerPublished when the job already ran for a later day, or
    another run of it was opened and ended after this one was cut off.
    """
    if not is_name(run_id):
        raise ConfigError("run_id: expected letters, digits and _ . = - only, 128 at most")
    author = Author(job, run_id)
    earlier, newest = _look(warehouse, author, target)
    if earlier is not None and earlier["status"] != "failed":
        _refuse_changed(author, earlier, settings_digest, as_of)
    if earlier is not None and earlier["status"] in _OVER:
        log.info("%s: run %s is done already", job, run_id)
        yield _replayed(warehouse, author, earlier)
        return
    is_resumed = earlier is not None and earlier["status"] == "open"
    pinned = _pinned(earlier) if earlier is not None and is_resumed else {}
    sourced = _sourced(warehouse, source, pinned.get(_SOURCE)) if source else None
    if earlier is not None and is_resumed:
        log.warning("%s: run %s was cut off; resuming with what it had pinned", job, run_id)
        inputs, as_of = {table.name: pinned.get(table.name) for table in reads}, earlier["as_of"]
    else:
        inputs = {table.name: tables.snapshot(warehouse, table) for table in reads}
        as_of = as_of or _newest_date(warehouse, reads, inputs, sourced)
    if is_ordered:
        _refuse_older(author, as_of, earlier if is_resumed else None, newest)
    if sourced:
        inputs[_SOURCE] = sourced.snapshot
    run = Run(warehouse, author, as_of, False, inputs, sourced, target)
    started = datetime.now(UTC)
    _write(run, started, "open", settings_digest, is_new=earlier is None)
    try:
        yield run
    except Exception as error:
        _close_failed(run, started, settings_digest, error)
        raise
    _write(run, started, run.summary().status, settings_digest, ended=datetime.now(UTC))


@dataclass(frozen=True)
class _Newest:
    """Of the runs of a job that are over: the latest day, and when the last of them was opened."""

    as_of: date | None
    started_at: datetime | None


def _look(warehouse: Warehouse, author: Author, target: str | None) -> tuple[Row | None, _Newest]:
    """The run's row, if there is one, and what is newest among the runs of the job and target that are over."""
    at = tables.snapshot(warehouse, RUNS)
    if at is None:
        return None, _Newest(None, None)
    of_job = tables.read(warehouse, RUNS, at).where(F.col("job") == author.job)
    is_mine = F.col("run_id") == author.run_id
    is_over = F.col("status").isin(list(_OVER)) & F.col("target").eqNullSafe(F.lit(target))
    whole = Window.partitionBy("job")
    newest = {name: F.max(F.when(is_over, F.col(name))).over(whole) for name in ("as_of", "started_at")}
    rows = of_job.withColumns({f"_{name}": value for name, value in newest.items()})
    found = rows.orderBy(F.desc(is_mine)).limit(1).collect()
    if not found:
        return None, _Newest(None, None)
    mine = found[0] if found[0]["run_id"] == author.run_id else None
    return mine, _Newest(found[0]["_as_of"], found[0]["_started_at"])


def _refuse_changed(author: Author, earlier: Row, settings_digest: bytes, as_of: date | None) -> None:
    """A run_id names one execution: the same settings, the same day."""
    place = f"{author.job}: run {author.run_id}"
    how = "ended" if earlier["status"] in _OVER else "was cut off"
    if bytes(earlier["settings_digest"]) != settings_digest:
        raise ConfigError(
            f"{place} {how} with settings {bytes(earlier['settings_digest']).hex()}, "
            f"asked for now with {settings_digest.hex()}; give the changed run another run_id"
        )
    if as_of is not None and as_of != earlier["as_of"]:
        raise ConfigError(
            f"{place} {how} as of {earlier['as_of']}, asked for now as of {as_of}; give it another run_id"
        )


def _refuse_older(author: Author, as_of: date | None, cut_off: Row | None, newest: _Newest) -> None:
    if newest.as_of is not None and as_of is not None and as_of < newest.as_of:
        raise NewerPublished(
            f"{author.job}: asked for {as_of}, but {newest.as_of} is published already; nothing was done"
        )
    if cut_off is not None and newest.started_at is not None and newest.started_at > cut_off["started_at"]:
        raise NewerPublished(
            f"{author.job}: run {author.run_id} was cut off, and a later run has ended since; nothing was done; "
            "start a run with a new run_id"
        )


def _pinned(earlier: Row) -> dict[str, Snapshot]:
    return {name: Snapshot(at["table_id"], at["version"]) for name, at in earlier["inputs"].items()}


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
        if at := inputs[table.name]:
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
    started: datetime,
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
        "started_at": started,
        "ended_at": ended,
        "settings_digest": settings_digest,
        "inputs": {name: (at.table_id, at.version) for name, at in run.inputs.items() if at},
        "rows": run.rows,
        "seconds": run.seconds,
        "published": {name: (at["before"], at["after"]) for name, at in run.commits.items()},
        "error": error or None,
    }
    tables.put(run.warehouse, RUNS, row, run.author, is_new)


def _close_failed(run: Run, started: datetime, settings_digest: bytes, error: Exception) -> None:
    try:
        _write(run, started, "failed", settings_digest, ended=datetime.now(UTC), error=type(error).__name__)
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
