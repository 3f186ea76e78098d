"""Maintenance: many small files made few, files that no version needs deleted, rows deleted that nothing refers to.

What it does to files changes no row of any version that it is told to keep. VACUUM goes by the times of files and by
the log's list of removed ones, so by clocks; and a file that the log no longer lists as removed is deleted whoever
needs it. So removals are listed for longer than any version is kept, and where they were not, nothing is deleted.
"""

import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark.errors import NewerPublished
from ecomspark.schemas import Table
from ecomspark.tables.commits import WRITE, Author, Commit, committed, info_of, session_settings, signed, turn
from ecomspark.tables.keeping import kept
from ecomspark.tables.warehouse import (
    BUCKET,
    Snapshot,
    Warehouse,
    buckets_in,
    delta,
    literal,
    log_of,
    newest,
    whole,
    with_bucket,
)

_SMALL = 32 * 2**20
_IS_FILE = r"\.[a-z]+$"  # folders that are empty are listed, too
_TRIES = 5
_KNOWN_SINCE = "ecomspark.removalsKnownSince"
_FILES = "delta.deletedFileRetentionDuration"
_LOG = "delta.logRetentionDuration"
_SAFETY = "spark.databricks.delta.retentionDurationCheck.enabled"
_GOES_BY_TABLE = "spark.databricks.delta.vacuum.retentionWindowIgnore.enabled"


def file_count(warehouse: Warehouse, table: Table) -> int:
    """How many files the newest version has."""
    return int(log_of(warehouse, table).numOfFiles())


def has_small_files(warehouse: Warehouse, table: Table, most: int) -> bool:
    """Whether the newest version has more than `most` files a bucket (a table without: in all), of less than 32 MiB on
    average."""
    log = log_of(warehouse, table)
    count = int(log.numOfFiles())
    parts = buckets_in(warehouse, table) if table.bucketed_by else 1
    return count > most * parts and int(log.sizeInBytes()) < _SMALL * count


def optimise(warehouse: Warehouse, table: Table, author: Author) -> Commit:
    """Put small files together. Raises NewerPublished when somebody published at the same moment, five times."""
    return _tried(warehouse, table, author, lambda: warehouse.spark.sql(f"OPTIMIZE {warehouse.name(table)}"))


def keep_history(warehouse: Warehouse, table: Table, days: int, author: Author) -> Commit:
    """See that Delta's own cleaning of the log keeps versions and removals for `days`; no commit if it does."""
    wanted = dict.fromkeys((_FILES, _LOG), f"interval {days} days")
    if all(_property(warehouse, table, name) == value for name, value in wanted.items()):
        at = newest(warehouse, table).version
        return Commit(table, at, at)
    wanted[_KNOWN_SINCE] = removals_known_since(warehouse, table).isoformat()
    spelled = ", ".join(f"{literal(name)} = {literal(value)}" for name, value in wanted.items())
    statement = f"ALTER TABLE {warehouse.name(table)} SET TBLPROPERTIES ({spelled})"
    return _tried(warehouse, table, author, lambda: warehouse.spark.sql(statement))


def removals_known_since(warehouse: Warehouse, table: Table) -> datetime:
    """From when on the log is sure to list every file that was removed, UTC. To keep removals for longer from now on
    brings none back: the time that `keep_history` began to is kept in the table."""
    of_log: Any = warehouse.spark._jvm.org.apache.spark.sql.delta.DeltaLog  # type: ignore[union-attr]
    kept = of_log.tombstoneRetentionMillis(log_of(warehouse, table).metadata())
    back = datetime.now(UTC) - timedelta(milliseconds=int(kept))
    stated = _property(warehouse, table, _KNOWN_SINCE)
    return max(back, datetime.fromisoformat(stated)) if stated else back


def written_at(warehouse: Warehouse, table: Table, at: Snapshot) -> datetime:
    """When a version was written, UTC: files removed before are not needed to read it or what changed since. Of one
    that the log no longer has, the time of the first after it."""
    for version in range(at.version, newest(warehouse, table).version + 1):
        if (info := info_of(warehouse, table, version)) is not None:
            return datetime.fromtimestamp(info.timestamp().getTime() / 1000, UTC)
    raise AssertionError(f"{table.name}: a log without its newest commit")


def vacuum(warehouse: Warehouse, table: Table, since: datetime, author: Author) -> int:
    """Delete the files that no version later than `since` needs, and those that no version has; how many.

    Nothing is written to the log where there is none to delete; empty folders go with the next files. Delta's own
    refusal of short times is put aside, and its habit to go by the table's property instead of by the hours
    that it is told: what must be kept is known here. It goes by whole hours, and would round a part of one down:
    files live up to an hour longer than asked for.
    """
    hours = math.ceil((datetime.now(UTC) - since) / timedelta(hours=1))
    statement = f"VACUUM {warehouse.name(table)} RETAIN {hours} HOURS"
    with session_settings(warehouse, {_SAFETY: "false", _GOES_BY_TABLE: "false", **signed(author, uuid.uuid4().hex)}):
        found = warehouse.spark.sql(f"{statement} DRY RUN").where(F.col("path").rlike(_IS_FILE)).count()
        if found:
            warehouse.spark.sql(statement)
    return found


def collect(warehouse: Warehouse, table: Table, keys: DataFrame, author: Author) -> Commit:
    """Delete the rows of some keys, each given once, from a memory table; a doubled row goes with its double.

    Raises NewerPublished when the author's lease on the table was taken over.
    """
    if table.kind != "memory":
        raise ValueError(f"{table.name}: not a memory table")
    at = newest(warehouse, table)
    keys = kept(with_bucket(warehouse, table, keys.select(*table.key)))
    try:
        count = keys.count()
        if not count:
            return Commit(table, at.version, at.version)
        touched = sorted(int(row[BUCKET]) for row in keys.select(BUCKET).distinct().collect())
        condition = f"t.{BUCKET} IN ({', '.join(map(str, touched))}) AND "
        condition += " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
        merge = delta(warehouse, table).alias("t").merge(keys.alias("s"), condition).whenMatchedDelete()
        options = {f"{WRITE}.{name}": value for name, value in turn(warehouse, table, at, author).items()}
        with session_settings(warehouse, options):
            after = committed(warehouse, table, author, merge.execute)[0]
        return Commit(table, at.version, after, deleted=count)
    finally:
        keys.unpersist()


def delete(warehouse: Warehouse, table: Table, condition: Column, author: Author) -> Commit:
    """Delete the rows of a small table that a condition holds for; no commit where there is none.

    Raises NewerPublished when somebody published at the same moment, five times.
    """
    at = newest(warehouse, table)
    found = whole(warehouse, table, at.version).where(condition).count()
    if not found:
        return Commit(table, at.version, at.version)
    commit = _tried(warehouse, table, author, lambda: delta(warehouse, table).delete(condition))
    return replace(commit, deleted=found)


def _tried(warehouse: Warehouse, table: Table, author: Author, write: Callable[[], object]) -> Commit:
    """One commit, tried again when somebody publishes meanwhile."""
    before = newest(warehouse, table).version
    for left in reversed(range(_TRIES)):
        try:
            return Commit(table, before, committed(warehouse, table, author, write)[0])
        except NewerPublished:
            if not left:
                raise
    raise AssertionError("the loop returns or raises")


def _property(warehouse: Warehouse, table: Table, name: str) -> str | None:
    found = log_of(warehouse, table).metadata().configuration().get(name)
    return str(found.get()) if found.isDefined() else None
