"""How tables change: state by merging the rows that differ, memory and logs by appending."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import schemas
from ecomspark.errors import NewerPublished
from ecomspark.schemas import Table
from ecomspark.tables.commits import (
    WRITE,
    Author,
    Commit,
    after_maintenance,
    append,
    committed,
    session_settings,
    turn,
    write,
)
from ecomspark.tables.keeping import kept
from ecomspark.tables.warehouse import (
    BUCKET,
    Snapshot,
    Warehouse,
    conform,
    create,
    ddl,
    delta,
    literal,
    quoted,
    raise_faults,
    read,
    whole,
    with_bucket,
)

_CHANGE = "_change"
_COUNT = "_count"
_CONFLICT_TRIES = 10


@dataclass(frozen=True)
class Change:
    """What publishing would do to a state table: the rows that differ and nothing else, and the version compared."""

    table: Table
    rows: DataFrame
    at: Snapshot
    inserted: int
    updated: int
    deleted: int
    given: int  # rows that were handed over
    before: int  # rows that they were compared with; counted only when some of them are gone

    @property
    def is_empty(self) -> bool:
        return not (self.inserted or self.updated or self.deleted)


def compare(
    warehouse: Warehouse,
    table: Table,
    rows: DataFrame,
    author: Author,
    *,
    scope: Column | None = None,
    within: DataFrame | None = None,
    keep: DataFrame | None = None,
    deletes: bool = True,
    buckets: Sequence[int] | None = None,
) -> Change:
    """What publishing `rows` would change in a state table: a full outer join on its key, the rows that differ kept.

    `rows` has the declared columns but `changed_by`. `scope`: a condition on what is there; rows outside it are left
    alone. `within`, `keep`: values of some key columns; rows there without, with these values are left alone.
    `deletes`: whether a key in scope that `rows` lacks is gone. `buckets`: the parts of the table that all of this is
    about, if it is known (see `buckets_of`). Raises ContractError, naming all faults, when columns are not as declared,
    a key is null or given twice, or a column that must have a value has none. Hand the result to `publish` or `drop`.
    """
    if table.kind != "state":
        raise ValueError(f"{table.name}: only a state table is compared")
    at = create(warehouse, table)
    if schemas.CHANGED_BY in table.columns:
        rows = rows.withColumn(schemas.CHANGED_BY.name, F.lit(author.run_id))
    rows = kept(conform(rows, table))
    try:
        given = _check_rows(rows, table)
        there = read(warehouse, table, at, buckets)
        there = there if scope is None else there.where(scope)
        there = there if within is None else there.join(within, on=within.columns, how="left_semi")
        there = there if keep is None else there.join(keep, on=keep.columns, how="left_anti")
        changed = kept(_difference(table, rows, there, deletes))
        counts = {row[_CHANGE]: int(row["count"]) for row in changed.groupBy(_CHANGE).count().collect()}
        inserted, updated, deleted = (counts.get(kind, 0) for kind in ("insert", "update", "delete"))
        before = there.count() if deleted else 0
    finally:
        rows.unpersist()
    return Change(table, changed, at, inserted, updated, deleted, given, before)


def publish(warehouse: Warehouse, change: Change, author: Author) -> Commit:
    """Put a change into its table in one commit; none at all when nothing differs.

    Maintenance that came in between changes no row: the commit is tried again behind it. Raises NewerPublished when
    rows moved since the change was found, because what differs must be found anew, and when the author's lease on the
    table was taken over.
    """
    table, at = change.table, change.at
    try:
        if change.is_empty:
            return Commit(table, at.version, at.version)
        for left in reversed(range(_CONFLICT_TRIES)):
            now = after_maintenance(warehouse, table, at)
            if now is None:
                raise NewerPublished(f"{table.name}: somebody published after version {at.version} was read; run again")
            try:
                after = _put_in(warehouse, table, with_bucket(warehouse, table, change.rows), now, author)
                return Commit(table, at.version, after, change.inserted, change.updated, change.deleted)
            except NewerPublished:
                if not left or after_maintenance(warehouse, table, at) in (None, now):
                    raise
        raise AssertionError("the loop returns or raises")
    finally:
        drop(change)


def _put_in(warehouse: Warehouse, table: Table, rows: DataFrame, at: Snapshot, author: Author) -> int:
    options = turn(warehouse, table, at, author)
    if at.version == 0:
        # Nothing was ever published here: an append makes the same commit at a fraction of a merge's work.
        new = rows.drop(_CHANGE)
        return committed(warehouse, table, author, lambda: append(warehouse, table, new, options))[0]
    return committed(warehouse, table, author, lambda: _merge(warehouse, table, rows, options))[0]


def drop(change: Change) -> None:
    """Let go of a change, published or not."""
    change.rows.unpersist()


def put(warehouse: Warehouse, table: Table, values: Mapping[str, Any], author: Author, is_new: bool = False) -> None:
    """Insert or replace one row of a small state table, whatever is there; for `runs`, which nobody compares.

    `is_new`: the caller knows that the key is not there, and an append will do. Otherwise the key's row is overwritten
    where it lies: half the time of a merge.
    """
    create(warehouse, table)
    row = warehouse.spark.createDataFrame([tuple(values[c.name] for c in table.columns)], ddl(table)).coalesce(1)
    if is_new:
        committed(warehouse, table, author, lambda: write(warehouse, table, row))
        return
    of_key = " AND ".join(f"{quoted(name)} = {literal(str(values[name]))}" for name in table.key)
    for left in reversed(range(_CONFLICT_TRIES)):
        try:
            committed(
                warehouse, table, author, lambda: write(warehouse, table, row, {"replaceWhere": of_key}, "overwrite")
            )
            return
        except NewerPublished:
            if not left:
                raise
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - so that two who met do not meet again


def append_memory(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author) -> Commit:
    """Append what Python made, evaluating `rows` exactly once. A null where none may be fails the whole commit.

    Raises NewerPublished, before anything is evaluated, when the author's lease on the table was taken over.

    Keys are not looked for twice: that would evaluate `rows` again, and a doubled key is folded by the reader.
    """
    if table.kind != "memory":
        raise ValueError(f"{table.name}: not a memory table")
    at, rows = create(warehouse, table), conform(rows, table)
    # Rows of two writers at once do no harm here, so only the holder of a lease is bound to a turn.
    options = turn(warehouse, table, at, author) if table.name in author.leased else {}
    return _appended(warehouse, table, rows, author, at, options)


def append_log(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author) -> Commit:
    """Append the rows whose key the log does not have. Raises ContractError on a null or doubled key in `rows`."""
    if table.kind != "log":
        raise ValueError(f"{table.name}: not a log")
    at = create(warehouse, table)
    rows = kept(conform(rows, table))
    try:
        _check_rows(rows, table)
        there = whole(warehouse, table, at.version).select(*table.key)
        news = rows.join(there, on=list(table.key), how="left_anti")
        if news.isEmpty():
            return Commit(table, at.version, at.version)
        return _appended(
            warehouse, table, news.select(*table.column_names), author, at, turn(warehouse, table, at, author)
        )
    finally:
        rows.unpersist()


def _check_rows(rows: DataFrame, table: Table) -> int:
    """How many rows there are. Raises ContractError when values are missing or keys are doubled."""
    needed = [column.name for column in table.columns if not column.is_nullable]
    nulls = (F.count_if(F.col(name).isNull()).alias(name) for name in needed)
    by_key = rows.groupBy(*(F.col(name).alias(f"_{name}") for name in table.key)).agg(
        F.count("*").alias(_COUNT), *nulls
    )
    totals = (F.coalesce(F.sum(name), F.lit(0)).alias(name) for name in (*needed, _COUNT))
    found = by_key.agg(*totals, F.count_if(F.col(_COUNT) > 1).alias("_doubled")).collect()[0]
    faults = [f"{name}: expected a value in every row, found {found[name]:,} without" for name in needed if found[name]]
    if found["_doubled"]:
        keys = ", ".join(table.key)
        faults.append(f"{keys}: expected each key once, found {found['_doubled']:,} given more than once")
    raise_faults(f"{table.name}: nothing was published", faults)
    return int(found[_COUNT])


def _difference(table: Table, rows: DataFrame, there: DataFrame, deletes: bool) -> DataFrame:
    """The rows that are new, differ, or (if `deletes`) are gone, each with its `_change`."""
    new = rows.select(*table.key, F.struct(*table.column_names).alias("new"))
    old = there.select(*table.key, F.struct(*table.column_names).alias("old"))  # a join may have put the key first
    differs = reduce(Column.__or__, (_differs(c) for c in table.columns if c.name not in table.key), F.lit(False))
    change = (
        F.when(F.col("old").isNull(), "insert")
        .when(F.col("new").isNull(), "delete" if deletes else F.lit(None))
        .when(differs, "update")
    )
    both = new.join(old, on=list(table.key), how="full_outer")
    marked = both.select(F.coalesce("new", "old").alias("row"), change.alias(_CHANGE))
    return marked.where(F.col(_CHANGE).isNotNull()).select("row.*", _CHANGE)


def _differs(column: schemas.Column) -> Column:
    old, new = F.col(f"old.{column.name}"), F.col(f"new.{column.name}")
    if column.difference == "never":
        return F.lit(False)
    if isinstance(column.difference, float):
        return F.coalesce(F.abs(new - old) > column.difference, old.isNull() != new.isNull())
    if column.difference == "keys":
        old, new = F.array_sort(F.map_keys(old)), F.array_sort(F.map_keys(new))
    elif column.type.startswith("map<"):
        old, new = F.array_sort(F.map_entries(old)), F.array_sort(F.map_entries(new))
    return ~old.eqNullSafe(new)


def _appended(
    warehouse: Warehouse,
    table: Table,
    rows: DataFrame,
    author: Author,
    at: Snapshot,
    options: Mapping[str, str],
) -> Commit:
    rows = with_bucket(warehouse, table, rows)
    after, written = committed(warehouse, table, author, lambda: append(warehouse, table, rows, options))
    return Commit(table, at.version, after, inserted=written)


def _merge(warehouse: Warehouse, table: Table, rows: DataFrame, options: Mapping[str, str]) -> None:
    condition = " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
    if table.bucketed_by:
        # Delta skips no files by a join: the touched buckets must stand in the condition as literals.
        touched = sorted(int(row[BUCKET]) for row in rows.select(BUCKET).distinct().collect())
        condition = f"t.{BUCKET} IN ({', '.join(map(str, touched))}) AND {condition}"
    values = {f"`{name}`": f"s.`{name}`" for name in rows.columns if name != _CHANGE}
    merge = (
        delta(warehouse, table)
        .alias("t")
        .merge(rows.alias("s"), condition)
        .whenMatchedDelete(f"s.{_CHANGE} = 'delete'")
        .whenMatchedUpdate(set=dict(values))
        .whenNotMatchedInsert(f"s.{_CHANGE} <> 'delete'", values=dict(values))
    )
    with session_settings(warehouse, {f"{WRITE}.{name}": value for name, value in options.items()}):
        merge.execute()
