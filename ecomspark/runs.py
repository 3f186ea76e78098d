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
from ecomspark.errors import ConfigError, ContractError, NewerPublished
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
    rows: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    commits: dict[str, dict[str, int]] = field(default_factory=dict)

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
    settings_digest: bytes,
    as_of: date | None = None,
) -> Iterator[Run]:
    """Open a run, pin what it `reads` and the `source` outside that it imports, and close it at the end.

    A run that is over already comes back as replayed: do nothing then. A run that died is resumed with what it had
    pinned; one that failed starts over. Without `as_of` it is the UTC date of the newest input. Raises ConfigError
    when the run is over with other settings, ContractError when a died run's source is no longer what it was, and
    NewerPublished when the job already published for a later day.
    """
    author = Author(job, run_id)
    earlier, newest = _look(warehouse, author)
    if earlier is not None and earlier["status"] in _OVER:
        if bytes(earlier["settings_digest"]) != settings_digest:
            raise ConfigError(
                f"{job}: run {run_id} ended with settings {bytes(earlier['settings_digest']).hex()}, "
                f"asked for now with {settings_digest.hex()}; give the changed run another run_id"
            )
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
        if newest is not None and as_of is not None and as_of < newest:
            raise NewerPublished(f"{job}: asked for {as_of}, but {newest} is published already; nothing was done")
    if sourced:
        inputs[_SOURCE] = sourced.snapshot
    run = Run(warehouse, author, as_of, False, inputs, sourced)
    started = datetime.now(UTC)
    _write(run, started, "open", settings_digest, is_new=earlier is None)
    try:
        yield run
    except Exception as error:
        _close_failed(run, started, settings_digest, error)
        raise
    _write(run, started, run.summary().status, settings_digest, ended=datetime.now(UTC))


def _look(warehouse: Warehouse, author: Author) -> tuple[Row | None, date | None]:
    """The run's row, if there is one, and the latest day for which the job has published."""
    at = tables.snapshot(warehouse, RUNS)
    if at is None:
        return None, None
    of_job = tables.read(warehouse, RUNS, at).where(F.col("job") == author.job)
    is_mine = F.col("run_id") == author.run_id
    newest = F.max(F.when(F.col("status") == "published", F.col("as_of"))).over(Window.partitionBy("job"))
    rows = of_job.withColumn("_newest", newest).orderBy(F.desc(is_mine)).limit(1).collect()
    if not rows:
        return None, None
    return (rows[0] if rows[0]["run_id"] == author.run_id else None), rows[0]["_newest"]


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
    return Run(warehouse, author, earlier["as_of"], True, {}, None, earlier["rows"], earlier["seconds"], commits)


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
