"""What changed in a table between two of its versions, and what was ever there, by its change feed while that can be
read."""

import logging
import re
from collections.abc import Sequence

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark.schemas import Table
from ecomspark.tables.keeping import kept
from ecomspark.tables.warehouse import Snapshot, Warehouse, newest, read

log = logging.getLogger("ecomspark")

_GOES = ("update_preimage", "delete")
_STAYS = ("update_postimage", "insert")


def changes(
    warehouse: Warehouse, table: Table, since: Snapshot | None, until: Snapshot | None, columns: tuple[str, ...] = ()
) -> DataFrame | None:
    """The keys that were inserted, that are gone, or of which one of `columns` differs, each once and net: what was
    changed and changed back is not among them. Persisted.

    (key columns, `old` and `new`: structs of `columns`, of a map its sorted entries; `old` is null for a key that came,
    `new` for one that went.) In a log keys only come. In a memory table they go when nothing refers to them; there one
    that came and went is among them with both null, because who made it takes it for there.

    None when the feed cannot say it: the table was recreated or is not the one that was pinned, the feed was off, its
    files were vacuumed, the log is expired, the columns changed. Then the table as it is must be compared with what our
    own tables recorded of it. Executes the reading of the feed: that its files are gone shows only when they are read.
    """
    if until is None:
        return None
    if since is None or since.table_id != until.table_id:
        return _unknown(table, "it is not the table that was read last time")
    if since.version > until.version:
        return _unknown(table, "it was read at a later version last time")
    try:
        if since.version == until.version:
            return kept(net(table, _no_feed(warehouse, table), columns))
        changed = kept(net(table, _feed(warehouse, table, since, until), columns))
        changed.count()
    except (PySparkException, Py4JJavaError) as error:
        return _unknown(table, _condition(error))
    return changed


def ever_since(warehouse: Warehouse, table: Table, since: Snapshot, columns: Sequence[str]) -> DataFrame | None:
    """The values of some columns of a state table that any of its versions from `since` until now had, each once.

    Rows that came and went in between are among them. None when the change feed cannot say it (see `changes`).
    Executes the reading of what went.
    """
    now = newest(warehouse, table)
    there = read(warehouse, table, now).select(*columns)
    if since == now:
        return there.distinct()
    if since.table_id != now.table_id:
        return None
    try:
        feed = _feed(warehouse, table, since, now)
        went = kept(feed.where(F.col("_change_type").isin(*_GOES)).select(*columns).distinct())
        went.count()
    except (PySparkException, Py4JJavaError):
        return None
    return there.unionByName(went).distinct()


def _feed(warehouse: Warehouse, table: Table, since: Snapshot, until: Snapshot) -> DataFrame:
    reader = warehouse.spark.read.format("delta").option("readChangeFeed", "true")
    reader = reader.option("startingVersion", since.version + 1).option("endingVersion", until.version)
    path = warehouse.path(table)
    return reader.table(warehouse.name(table)) if path is None else reader.load(path)


def net(table: Table, feed: DataFrame, columns: tuple[str, ...]) -> DataFrame:
    """A change feed's rows folded to one a key: what it was before the first, what it is after the last.

    `feed`: the table's columns, _change_type, _commit_version.
    """
    values = F.struct(*(_comparable(table, name).alias(name) for name in columns), F.lit(True).alias("is_there"))
    # Within a commit what an update replaced comes before what it put there.
    order = F.struct("_commit_version", F.when(F.col("_change_type").isin(*_GOES), 0).otherwise(1))
    event = F.struct(F.col("_change_type").alias("type"), values.alias("values"))
    ends = feed.groupBy(*table.key).agg(F.min_by(event, order).alias("first"), F.max_by(event, order).alias("last"))
    old = F.when(F.col("first.type").isin(*_GOES), F.col("first.values"))
    new = F.when(F.col("last.type").isin(*_STAYS), F.col("last.values"))
    both = ends.select(*table.key, old.alias("old"), new.alias("new"))
    return both.where(_differ(table, columns))


def _differ(table: Table, columns: tuple[str, ...]) -> Column:
    differ = F.col("old").isNull() != F.col("new").isNull()
    for name in columns:
        differ |= ~F.col(f"old.{name}").eqNullSafe(F.col(f"new.{name}"))
    # A key that came and went between the two versions was never seen; but who made a row of a memory table knows it.
    is_seen = F.col("old").isNotNull() | F.col("new").isNotNull()
    return differ | ~is_seen if table.kind == "memory" else differ & is_seen


def _comparable(table: Table, name: str) -> Column:
    """A column as it can be compared: a map by its sorted entries."""
    return F.array_sort(F.map_entries(name)) if table.column(name).type.startswith("map<") else F.col(name)


def _no_feed(warehouse: Warehouse, table: Table) -> DataFrame:
    columns = ", ".join(f"`{column.name}` {column.type}" for column in table.columns)
    return warehouse.spark.createDataFrame([], f"{columns}, _change_type string, _commit_version bigint")


def _condition(error: PySparkException | Py4JJavaError) -> str:
    """The error's name as Spark and Delta number their errors: of the message no more, which may quote a row."""
    if isinstance(error, PySparkException):
        return error.getCondition() or type(error).__name__
    named = re.search(r"\[([A-Z][A-Z_.]+)\]", str(error.java_exception.toString()))
    return named[1] if named else type(error).__name__


def _unknown(table: Table, why: str) -> DataFrame | None:
    log.warning("%s: what changed cannot be read from its change feed (%s): all of it is compared", table.name, why)
    return None
