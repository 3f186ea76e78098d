"""One commit to a Delta table: who writes it, in whose turn, and the proof that it landed.

A commit carries a nonce in its metadata; only the nonce found in the log says that it landed, whatever the writer was
told. It also carries a turn, a transaction version that only rises: the epoch of the writer's lease above the version
that it follows. Of two writers that follow one version Delta lets one through; and a writer whose lease was taken over
stands below the new holder's first commit for ever.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from delta import exceptions
from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame

from ecomspark import __version__
from ecomspark.errors import NewerPublished
from ecomspark.schemas import Table
from ecomspark.tables.warehouse import BUCKET, Snapshot, Warehouse, exists, log_of, newest, whole

WRITE = "spark.databricks.delta.write"
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"
_EPOCH = 2**32  # turns of one epoch: more than a table will ever have versions
# What these do to files changes no row: a comparison with the version before them still holds.
_MAINTENANCE = ("OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "REORG", "COMPUTE STATS")
_NOTHING: Mapping[str, Any] = MappingProxyType({})
# Delta's Scala has one class above these, its Python has not: each must be named.
_CONFLICTS = (
    exceptions.ConcurrentAppendException,
    exceptions.ConcurrentDeleteDeleteException,
    exceptions.ConcurrentDeleteReadException,
    exceptions.ConcurrentTransactionException,
    exceptions.ConcurrentWriteException,
    exceptions.DeltaConcurrentModificationException,
    exceptions.MetadataChangedException,
    exceptions.ProtocolChangedException,
)


@dataclass(frozen=True)
class Author:
    """Who publishes: written into every commit, and into the rows of state tables that it changes.

    `epoch`: of the leases on the tables named in `leased`. `facts`: what else its commits say: digests and versions.
    """

    job: str
    run_id: str
    epoch: int = 0
    leased: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Commit:
    """What a publication did: the table's version before and after (equal when nothing was written), and its rows."""

    table: Table
    before: int
    after: int
    inserted: int = 0
    updated: int = 0
    deleted: int = 0


def committed(warehouse: Warehouse, table: Table, author: Author, write: Callable[[], object]) -> tuple[int, int]:
    """The version that `write` made, proven by a nonce in the log, and the rows that it wrote.

    A commit whose answer was lost is found all the same. Raises NewerPublished when there is none, because somebody
    else published at the same moment or the lease was taken over; what `write` raises when it failed for its own.
    """
    nonce, before = uuid.uuid4().hex, newest(warehouse, table).version
    refused = NewerPublished(f"{table.name}: somebody published at the same moment; run again")
    try:
        with session_settings(warehouse, signed(author, nonce)):
            write()
    except Exception as error:
        if (landed := _landed(warehouse, table, nonce, before)) is not None:
            return landed
        if isinstance(error, _CONFLICTS):
            raise refused from None
        raise
    landed = _landed(warehouse, table, nonce, before)
    if landed is None:
        raise refused
    return landed


def signed(author: Author, nonce: str) -> dict[str, str]:
    """Settings of a write that names its run."""
    about = {"job": author.job, "run_id": author.run_id, "nonce": nonce, "code": __version__, **author.facts}
    return {_USER_METADATA: json.dumps(about)}


def turn(warehouse: Warehouse, table: Table, at: Snapshot, author: Author) -> dict[str, str]:
    """Options of a write that follows the version `at`. Without a lease the writer stands in the epoch of the last
    commit: for a table whose writers take none, the order of its versions alone."""
    epoch = author.epoch if table.name in author.leased else epoch_of(warehouse, table)
    return {"txnAppId": _app(table), "txnVersion": str(epoch * _EPOCH + at.version + 1)}


def epoch_of(warehouse: Warehouse, table: Table) -> int:
    """The epoch of a table's last commit that had a turn; 0 when there is none."""
    if not exists(warehouse, table):
        return 0
    last = log_of(warehouse, table).transactions().get(_app(table))
    return int(last.get()) // _EPOCH if last.isDefined() else 0


def _app(table: Table) -> str:
    return f"ecomspark {table.name}"


def fence(warehouse: Warehouse, table: Table, author: Author) -> None:
    """An empty commit in the epoch of a lease that was taken over: from it on its former holder cannot publish."""
    at = newest(warehouse, table)
    nothing = warehouse.spark.createDataFrame([], whole(warehouse, table).schema)
    committed(warehouse, table, author, lambda: write(warehouse, table, nothing, turn(warehouse, table, at, author)))


def after_maintenance(warehouse: Warehouse, table: Table, at: Snapshot) -> Snapshot | None:
    """The newest snapshot, if nothing but maintenance came after `at`; None when rows may have changed."""
    now = newest(warehouse, table)
    if now.table_id != at.table_id:
        return None
    came = (info_of(warehouse, table, version) for version in range(at.version + 1, now.version + 1))
    return now if all(info is not None and info.operation() in _MAINTENANCE for info in came) else None


def append(warehouse: Warehouse, table: Table, rows: DataFrame, options: Mapping[str, str] = _NOTHING) -> None:
    # One file a bucket, and the shuffle keeps what Python made: a write that is tried again does not make it again.
    write(warehouse, table, rows.repartition(BUCKET) if table.bucketed_by else rows, options)


def write(
    warehouse: Warehouse, table: Table, rows: DataFrame, options: Mapping[str, str] = _NOTHING, mode: str = "append"
) -> None:
    """Append rows; or, by the mode `overwrite`, put them in the place of all others or of those that `replaceWhere`
    among the options describes."""
    writer = rows.write.format("delta").mode(mode).options(**options)
    path = warehouse.path(table)
    if path is None:
        writer.saveAsTable(warehouse.name(table))
    else:
        writer.save(path)


@contextmanager
def session_settings(warehouse: Warehouse, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session for one write: MERGE has no options, neither for metadata nor for transactions."""
    conf = warehouse.spark.conf
    for name, value in settings.items():
        conf.set(name, value)
    try:
        yield
    finally:
        for name in settings:
            conf.unset(name)


def _landed(warehouse: Warehouse, table: Table, nonce: str, before: int) -> tuple[int, int] | None:
    """The version after `before` that carries the nonce, and the rows that it wrote."""
    for version in range(newest(warehouse, table).version, before, -1):
        info = info_of(warehouse, table, version)
        if info is not None and info.userMetadata().isDefined() and nonce in info.userMetadata().get():
            metrics = info.operationMetrics()
            written = metrics.get().get("numOutputRows") if metrics.isDefined() else None
            return version, int(written.get()) if written is not None and written.isDefined() else 0
    return None


def info_of(warehouse: Warehouse, table: Table, version: int) -> Any:
    """What the log says of one commit; None where it does not. `history()` says the same with a Spark job: 0.13 s a
    time, where reading the one file takes 5 ms."""
    jvm: Any = warehouse.spark._jvm
    log = log_of(warehouse, table).deltaLog()
    path = jvm.org.apache.spark.sql.delta.util.FileNames.unsafeDeltaFile(log.logPath(), version)
    manager = jvm.org.apache.spark.sql.delta.DeltaHistoryManager
    try:
        found = manager.getCommitInfoOpt(log.store(), path, log.newDeltaHadoopConf())
    except Py4JJavaError as error:
        if error.java_exception.getClass().getName() != "java.io.FileNotFoundException":
            raise
        return None
    return found.get() if found.isDefined() else None
