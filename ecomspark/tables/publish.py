"""How tables change: state by merging the rows that differ, memory and logs by appending, staging for Python's rows."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any

from delta.exceptions import DeltaConcurrentModificationException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark import schemas
from ecomspark.errors import NewerPublished
from ecomspark.schemas import Table, column
from ecomspark.tables.warehouse import (
    BUCKET,
    Snapshot,
    Warehouse,
    conform,
    create,
    ddl,
    delta,
    exists,
    literal,
    quoted,
    raise_faults,
    read,
    snapshot,
    whole,
    with_bucket,
)

_CHANGE = "_change"
_COUNT = "_count"
_CONFLICT_TRIES = 5
_HISTORY_DEPTH = 100
_WRITE = "spark.databricks.delta.write"
_USER_METADATA = "spark.databricks.delta.commitInfo.userMetadata"


@dataclass(frozen=True)
class Author:
    """Who publishes: written into every commit, and into the rows of state tables that it changes."""

    job: str
    run_id: str


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
    before: int  # rows that they were compared with

    @property
    def is_empty(self) -> bool:
        return not (self.inserted or self.updated or self.deleted)


@dataclass(frozen=True)
class Commit:
    """What a publication did: the table's version before and after (equal when nothing was written), and its rows."""

    table: Table
    before: int
    after: int
    inserted: int = 0
    updated: int = 0
    deleted: int = 0


def compare(
    warehouse: Warehouse,
    table: Table,
    rows: DataFrame,
    author: Author,
    *,
    scope: Column | None = None,
    keep: DataFrame | None = None,
    deletes: bool = True,
) -> Change:
    """What publishing `rows` would change in a state table: a full outer join on its key, the rows that differ kept.

    `rows` has the declared columns but `changed_by`. `scope`: a condition on what is there; rows outside it are left
    alone. `keep`: values of some key columns; rows there with these values are left alone. `deletes`: whether a key
    in scope that `rows` lacks is gone. Raises ContractError, naming all faults, when columns are not as declared, a
    key is null or given twice, or a column that must have a value has none. Hand the result to `publish` or `drop`.
    """
    if table.kind != "state":
        raise ValueError(f"{table.name}: only a state table is compared")
    at = create(warehouse, table)
    if schemas.CHANGED_BY in table.columns:
        rows = rows.withColumn(schemas.CHANGED_BY.name, F.lit(author.run_id))
    rows = conform(rows, table).persist()
    try:
        given = _check_rows(rows, table)
        there = read(warehouse, table, at)
        there = there if scope is None else there.where(scope)
        there = there if keep is None else there.join(keep, on=keep.columns, how="left_anti")
        changed = _difference(table, rows, there, deletes).persist()
        counts = {row[_CHANGE]: int(row["count"]) for row in changed.groupBy(_CHANGE).count().collect()}
        before = there.count()
    finally:
        rows.unpersist()
    inserted, updated, deleted = (counts.get(kind, 0) for kind in ("insert", "update", "delete"))
    return Change(table, changed, at, inserted, updated, deleted, given, before)


def publish(warehouse: Warehouse, change: Change, author: Author) -> Commit:
    """Put a change into its table in one commit; none at all when nothing differs.

    Raises NewerPublished when the table moved since the change was found: what differs must be found anew.
    """
    table, at = change.table, change.at
    try:
        if change.is_empty:
            return Commit(table, at.version, at.version)
        if snapshot(warehouse, table) != at:
            raise NewerPublished(f"{table.name}: somebody published after version {at.version} was read; run again")
        rows = with_bucket(warehouse, table, change.rows)
        if at.version == 0:
            # Nothing was ever published here: an append makes the same commit at a fraction of a merge's work.
            after, _ = _committed(
                warehouse, table, author, lambda: _append(warehouse, table, rows.drop(_CHANGE), _turn(table, at))
            )
        else:
            after, _ = _committed(warehouse, table, author, lambda: _merge(warehouse, table, rows, at))
        return Commit(table, at.version, after, change.inserted, change.updated, change.deleted)
    finally:
        drop(change)


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
        _committed(warehouse, table, author, lambda: _write(warehouse, table, row))
        return
    of_key = " AND ".join(f"{quoted(name)} = {literal(str(values[name]))}" for name in table.key)
    for left in reversed(range(_CONFLICT_TRIES)):
        try:
            _committed(warehouse, table, author, lambda: _write(warehouse, table, row, {"replaceWhere": of_key}))
            return
        except NewerPublished:
            if not left:
                raise


def append_memory(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author) -> Commit:
    """Append what Python made, evaluating `rows` exactly once. A null where none may be fails the whole commit.

    Keys are not looked for twice: that would evaluate `rows` again, and a doubled key is folded by the reader.
    """
    if table.kind != "memory":
        raise ValueError(f"{table.name}: not a memory table")
    at = create(warehouse, table)
    return _appended(warehouse, table, conform(rows, table), author, at)


def append_log(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author) -> Commit:
    """Append the rows whose key the log does not have. Raises ContractError on a null or doubled key in `rows`."""
    if table.kind != "log":
        raise ValueError(f"{table.name}: not a log")
    at = create(warehouse, table)
    rows = conform(rows, table).persist()
    try:
        _check_rows(rows, table)
        there = whole(warehouse, table, at.version).select(*table.key)
        news = rows.join(there, on=list(table.key), how="left_anti")
        if news.isEmpty():
            return Commit(table, at.version, at.version)
        return _appended(warehouse, table, news.select(*table.column_names), author, at, _turn(table, at))
    finally:
        rows.unpersist()


def stage(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author, part: str) -> str:
    """Append what Python made for a state or log table to `staging/<table>`; the nonce under which it landed.

    A merge may evaluate its source more than once, so it must not read Python: it reads what `read_staged` gives.
    """
    staging, nonce = _staging(table), uuid.uuid4().hex
    at = create(warehouse, staging)
    marks = {"job": author.job, "run_id": author.run_id, "part": part, "nonce": nonce}
    staged = rows.withColumns({name: F.lit(value) for name, value in marks.items()})
    _appended(warehouse, staging, conform(staged, staging), author, at)
    return nonce


def read_staged(warehouse: Warehouse, table: Table, nonces: Sequence[str]) -> DataFrame:
    """The rows of the parts that landed under `nonces`; what a dead try left is not among them."""
    staged = whole(warehouse, _staging(table)).where(F.col("nonce").isin(list(nonces)))
    return staged.select(*(name for name in _staging(table).column_names if name in table.column_names))


def drop_staged(warehouse: Warehouse, table: Table, author: Author) -> None:
    """Delete all that a run staged for a table, when the run closes."""
    if exists(warehouse, _staging(table)):
        is_mine = (F.col("job") == author.job) & (F.col("run_id") == author.run_id)
        delta(warehouse, _staging(table)).delete(is_mine)


def _staging(table: Table) -> Table:
    marks = (
        column("job", "string", "the job that staged the row"),
        column("run_id", "string", "its run"),
        column("part", "string", "the part of its work"),
        column("nonce", "string", "names one try at the part"),
    )
    columns = tuple(c for c in table.columns if c != schemas.CHANGED_BY)
    return Table(
        f"staging/{table.name}", f"staged for {table.name}: {table.one_row}", "log", table.key, columns + marks,
        table.bytes_a_row,
    )  # fmt: skip


def _check_rows(rows: DataFrame, table: Table) -> int:
    """How many rows there are. Raises ContractError when values are missing or keys are doubled."""
    needed = [column.name for column in table.columns if not column.is_nullable]
    counts = (F.count_if(F.col(name).isNull()).alias(name) for name in needed)
    nulls = rows.select(F.count("*").alias(_COUNT), *counts).collect()[0]
    faults = [f"{name}: expected a value in every row, found {nulls[name]:,} without" for name in needed if nulls[name]]
    doubled = rows.groupBy(*table.key).count().where("count > 1").count()
    if doubled:
        faults.append(f"{', '.join(table.key)}: expected each key once, found {doubled:,} given more than once")
    raise_faults(f"{table.name}: nothing was published", faults)
    return int(nulls[_COUNT])


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


def _append(
    warehouse: Warehouse, table: Table, rows: DataFrame, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    # One file a bucket, and the shuffle keeps what Python made: a write that is tried again does not make it again.
    _write(warehouse, table, rows.repartition(BUCKET) if table.bucketed_by else rows, options)


def _write(
    warehouse: Warehouse, table: Table, rows: DataFrame, options: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Append rows; with `replaceWhere` among the options, in the place of those that it describes."""
    mode = "overwrite" if "replaceWhere" in options else "append"
    writer = rows.write.format("delta").mode(mode).options(**options)
    path = warehouse.path(table)
    if path is None:
        writer.saveAsTable(warehouse.name(table))
    else:
        writer.save(path)


def _appended(
    warehouse: Warehouse,
    table: Table,
    rows: DataFrame,
    author: Author,
    at: Snapshot,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Commit:
    rows = with_bucket(warehouse, table, rows)
    after, written = _committed(warehouse, table, author, lambda: _append(warehouse, table, rows, options))
    return Commit(table, at.version, after, inserted=written)


def _turn(table: Table, at: Snapshot) -> dict[str, str]:
    """Options that let one writer only follow a version: two that compared with the same one name the same turn, and
    Delta leaves the later one out (found by its nonce) or ends it in a conflict, though appends do not conflict."""
    return {"txnAppId": f"ecomspark {table.name}", "txnVersion": str(at.version + 1)}


def _merge(warehouse: Warehouse, table: Table, rows: DataFrame, at: Snapshot) -> None:
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
    with _session(warehouse, {f"{_WRITE}.{name}": value for name, value in _turn(table, at).items()}):
        merge.execute()


def _committed(warehouse: Warehouse, table: Table, author: Author, write: Callable[[], None]) -> tuple[int, int]:
    """The version that `write` made, proven by a nonce in the history, and the rows that it wrote.

    Raises NewerPublished when it made none, because somebody else published at the same moment.
    """
    nonce = uuid.uuid4().hex
    metadata = json.dumps({"job": author.job, "run_id": author.run_id, "nonce": nonce})
    newer = NewerPublished(f"{table.name}: somebody published at the same moment; run again")
    try:
        with _session(warehouse, {_USER_METADATA: metadata}):
            write()
    except DeltaConcurrentModificationException:
        raise newer from None
    for depth in (1, _HISTORY_DEPTH):  # mine is the last one, unless somebody came after me at once
        history = delta(warehouse, table).history(depth).select("version", "operationMetrics", "userMetadata").collect()
        for row in history:
            if nonce in (row["userMetadata"] or ""):
                return int(row["version"]), int(row["operationMetrics"].get("numOutputRows", 0))
    raise newer


@contextmanager
def _session(warehouse: Warehouse, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of the session for one write: MERGE has no options, neither for metadata nor for transactions."""
    conf = warehouse.spark.conf
    for name, value in settings.items():
        conf.set(name, value)
    try:
        yield
    finally:
        for name in settings:
            conf.unset(name)
