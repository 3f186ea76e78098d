"""Where the tables are, whether they are what `schemas.py` declares, and reading them at a version."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from delta.tables import DeltaTable
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from ecomspark.errors import ConfigError, ContractError
from ecomspark.schemas import Table

BUCKET = "bucket"
_BUCKETS_PROPERTY = "ecomspark.buckets"
_FEW_BUCKETS = 4
_CATALOG = re.compile(r"catalog:(?P<name>\w+(\.\w+){1,2})")


@dataclass(frozen=True)
class Warehouse:
    """Where tables are. `location`: a folder or prefix, or `catalog:NAME.SCHEMA`; `buckets`: for tables made anew.

    Raises ConfigError when `location` starts like a catalog's but does not go on like one.
    """

    spark: SparkSession
    location: str
    buckets: int = 64

    def __post_init__(self) -> None:
        if self.location.startswith("catalog:") and not _CATALOG.fullmatch(self.location):
            raise ConfigError(f"warehouse: expected catalog:NAME.SCHEMA, found {self.location}")

    def name(self, table: Table) -> str:
        """The table in a statement: quoted parts of a catalog's name, or delta.`path`."""
        if found := _CATALOG.fullmatch(self.location):
            return ".".join(quoted(part) for part in [*found["name"].split("."), table.name.replace("/", "_")])
        return f"delta.{quoted(self.path(table) or '')}"

    def path(self, table: Table) -> str | None:
        """The table's folder; None in a catalog. A relative one is taken from the working directory."""
        if self.location.startswith("catalog:"):
            return None
        location = self.location if "://" in self.location else str(Path(self.location).absolute())
        return f"{location.rstrip('/')}/{table.name}"


@dataclass(frozen=True)
class Snapshot:
    """A table at a version. The id tells a recreated table, whose versions start at 0 again, from the one meant."""

    table_id: str
    version: int


def exists(warehouse: Warehouse, table: Table) -> bool:
    """Whether the table has been made."""
    path = warehouse.path(table)
    if path is not None:
        return bool(DeltaTable.isDeltaTable(warehouse.spark, path))
    return bool(warehouse.spark.catalog.tableExists(warehouse.name(table)))


def delta(warehouse: Warehouse, table: Table) -> DeltaTable:
    """Delta's own handle of a table that exists."""
    path = warehouse.path(table)
    return (
        DeltaTable.forName(warehouse.spark, warehouse.name(table))
        if path is None
        else DeltaTable.forPath(warehouse.spark, path)
    )


def snapshot(warehouse: Warehouse, table: Table) -> Snapshot | None:
    """The table's id and newest version; None while it has not been made."""
    return newest(warehouse, table) if exists(warehouse, table) else None


def committed_at(warehouse: Warehouse, table: Table, version: int) -> datetime:
    """When `version` was committed, UTC. Raises ContractError when the history no longer has it."""
    found = delta(warehouse, table).history().where(F.col("version") == version).select("timestamp").collect()
    if not found:
        raise ContractError(f"{table.name}: version {version} is not in its history; start a run with a new run_id")
    return utc(found[0]["timestamp"])


def create(warehouse: Warehouse, table: Table) -> Snapshot:
    """Make the table if it is not there; if it is, see that it is what its declaration says. Its newest snapshot.

    A nullable column that the declaration gained is added. Anything else (a type changed, a column gone or renamed,
    nullability flipped) raises ContractError with every difference, before anything is written.
    """
    if not exists(warehouse, table):
        try:
            _make(warehouse, table)
        except PySparkException:
            if not exists(warehouse, table):
                raise  # else another run has made it at the same moment
        else:
            return newest(warehouse, table)
    faults, added = differences(warehouse, table)
    raise_faults(
        f"{table.name}: the table is not what schemas.py declares; migrate it or name another warehouse", faults
    )
    if added:
        warehouse.spark.sql(f"ALTER TABLE {warehouse.name(table)} ADD COLUMNS ({', '.join(added)})")
    return newest(warehouse, table)


def differences(warehouse: Warehouse, table: Table) -> tuple[list[str], list[str]]:
    """How a table that exists differs from its declaration: what `create` would refuse, and the nullable columns that
    it would add, as a statement spells them. Nothing is changed."""
    found = {field.name: field for field in whole(warehouse, table).schema.fields}
    faults, added = [], []
    for column in table.columns:
        field = found.get(column.name)
        if field is None and column.is_nullable:
            added.append(f"{quoted(column.name)} {column.type} COMMENT {literal(column.meaning)}")
        elif field is None:
            faults.append(f"{column.name}: expected {column.type}, found no such column")
        elif field.dataType.simpleString() != column.type:
            faults.append(f"{column.name}: expected {column.type}, found {field.dataType.simpleString()}")
        elif field.nullable != column.is_nullable:
            faults.append(f"{column.name}: expected {_nullness(column.is_nullable)}, found {_nullness(field.nullable)}")
    faults += [f"{name}: found, but not declared" for name in found if name not in {*table.column_names, BUCKET}]
    return faults, added


def read(warehouse: Warehouse, table: Table, at: Snapshot | None, buckets: Sequence[int] | None = None) -> DataFrame:
    """The declared columns of a state or log table at a pinned version; no rows if it was not there when pinned.

    `buckets`: only the files of these parts are read (see `buckets_of`); None: of all. Raises ContractError when
    another table has taken the place of the one that was pinned.
    """
    if table.kind == "memory":
        raise ValueError(f"{table.name}: a memory table is read with read_memory")
    if at is None:
        return empty(warehouse, table)
    now = snapshot(warehouse, table)
    if now is None or now.table_id != at.table_id:
        raise ContractError(
            f"{table.name}: expected the table that was pinned, found {'another' if now else 'none'} in its place; "
            "start a run with a new run_id"
        )
    # A column that the declaration gained and the table has not yet is null in every row.
    rows = _of_buckets(whole(warehouse, table, at.version), buckets)
    return rows.select(
        *(
            F.col(c.name) if c.name in rows.columns or not c.is_nullable else F.lit(None).cast(c.type).alias(c.name)
            for c in table.columns
        )
    )


def read_memory(
    warehouse: Warehouse, table: Table, wanted: DataFrame | None = None, buckets: Sequence[int] | None = None
) -> DataFrame:
    """A memory table at its newest version, one row a key: one with a result before one with an error, then the
    earliest commit. So a doubled append doubles nothing behind it.

    `wanted`: values of some key columns; only rows with these are looked at. `buckets`: only the files of these parts
    are read; None: of all.
    """
    if table.kind != "memory":
        raise ValueError(f"{table.name}: not a memory table")
    if not exists(warehouse, table):
        return empty(warehouse, table)
    has_error = F.col("error").isNotNull() if "error" in table.column_names else F.lit(False)
    best_first = Window.partitionBy(*table.key).orderBy(has_error, "_committed", "_row")
    # By its number: of two reads of 'the newest' Spark takes the second from a cache that still holds the first.
    rows = _of_buckets(whole(warehouse, table, newest(warehouse, table).version), buckets).select(
        *table.column_names,
        F.col("_metadata.row_commit_version").alias("_committed"),
        F.col("_metadata.row_id").alias("_row"),
    )
    rows = rows if wanted is None else rows.join(wanted, on=wanted.columns, how="left_semi")
    return rows.withColumn("_place", F.row_number().over(best_first)).where("_place = 1").select(*table.column_names)


def empty(warehouse: Warehouse, table: Table) -> DataFrame:
    """No rows, with the declared columns."""
    return warehouse.spark.createDataFrame([], ddl(table))


def conform(rows: DataFrame, table: Table) -> DataFrame:
    """The declared columns in order. Raises ContractError with every column that is missing or of another type."""
    found = {field.name: field.dataType.simpleString() for field in rows.schema.fields}
    faults = [
        f"{column.name}: expected {column.type}, found {found.get(column.name, 'no such column')}"
        for column in table.columns
        if found.get(column.name) != column.type
    ]
    raise_faults(f"{table.name}: the rows to publish are not what schemas.py declares", faults)
    return rows.select(*table.column_names)


def raise_faults(headline: str, faults: Sequence[str]) -> None:
    """Raise ContractError with a headline and a line a fault; nothing if there is none."""
    if faults:
        raise ContractError("\n".join([headline, *(f"  {fault}" for fault in faults)]))


def whole(warehouse: Warehouse, table: Table, version: int | None = None) -> DataFrame:
    """Every column that a table has, the bucket too."""
    reader = warehouse.spark.read.format("delta")
    reader = reader if version is None else reader.option("versionAsOf", version)
    path = warehouse.path(table)
    return reader.table(warehouse.name(table)) if path is None else reader.load(path)


def with_bucket(warehouse: Warehouse, table: Table, rows: DataFrame) -> DataFrame:
    """`rows` with the part of the table that each belongs to; as they are if the table has none."""
    if not table.bucketed_by:
        return rows
    return rows.withColumn(BUCKET, bucket_of(F.col(table.bucketed_by), buckets_in(warehouse, table)))


def buckets_of(warehouse: Warehouse, table: Table, rows: DataFrame) -> list[int] | None:
    """The parts of a table in which rows of some digests can be; None when that is all of them, or the table is not
    there. Delta skips no files by a join, so they go into reads and merges as literals. Executes `rows`.

    `rows`: one column of digests, of the kind that the table is laid out by.
    """
    if not exists(warehouse, table):
        return None
    buckets = buckets_in(warehouse, table)
    if buckets < _FEW_BUCKETS:
        return None  # to find out which would cost more than reading them all
    digest = F.col(rows.columns[0])
    found = rows.where(digest.isNotNull()).select(bucket_of(digest, buckets).alias(BUCKET)).distinct().collect()
    return sorted(int(row[BUCKET]) for row in found) if len(found) < buckets else None


def place_of(warehouse: Warehouse, table: Table, digest: Column) -> Column:
    """Where the rows of a digest lie in a table that is laid out in buckets: the bucket, and within it the digest's
    second byte. A number; long work is cut into ranges of it, and such a range touches few buckets."""
    second = F.conv(F.hex(F.substring(digest, 2, 1)), 16, 10).cast("int")
    return bucket_of(digest, buckets_in(warehouse, table)) * 256 + second


def _of_buckets(rows: DataFrame, buckets: Sequence[int] | None) -> DataFrame:
    return rows if buckets is None else rows.where(F.col(BUCKET).isin(list(buckets)))


def bucket_of(digest: Column, buckets: int) -> Column:
    """The part that a digest's rows are in: its first byte modulo the count of buckets."""
    return F.conv(F.hex(F.substring(digest, 1, 1)), 16, 10).cast("int") % F.lit(buckets)


def buckets_in(warehouse: Warehouse, table: Table) -> int:
    """How many parts a table that has any is laid out in."""
    return int(log_of(warehouse, table).metadata().configuration().apply(_BUCKETS_PROPERTY))


def ddl(table: Table) -> str:
    """The declared columns as Spark spells a schema."""
    return ", ".join(f"{quoted(column.name)} {column.type}" for column in table.columns)


def utc(collected: datetime) -> datetime:
    """A collected timestamp with its zone: Spark hands it to Python bare, in the zone of this process."""
    return collected.astimezone(UTC)


def log_of(warehouse: Warehouse, table: Table) -> Any:
    """The newest snapshot in a table's log: `version()`, `metadata().id()`, `metadata().configuration()`.

    An inner part of the pinned delta-spark, reached through its handle in the JVM. The public `detail()` and
    `history()` start Spark jobs: 0.35 s a time where this takes 5 ms, and the smallest run asks nine times.
    """
    nothing = warehouse.spark._jvm.scala.Option.empty()  # type: ignore[union-attr]
    return delta(warehouse, table)._jdt.deltaLog().update(False, nothing, nothing)


def newest(warehouse: Warehouse, table: Table) -> Snapshot:
    """The newest snapshot of a table that exists."""
    log = log_of(warehouse, table)
    return Snapshot(log.metadata().id(), log.version())


def _make(warehouse: Warehouse, table: Table) -> None:
    columns = [
        f"{quoted(c.name)} {c.type}{'' if c.is_nullable else ' NOT NULL'} COMMENT {literal(c.meaning)}"
        for c in table.columns
    ]
    properties = {"delta.enableChangeDataFeed": "true"}  # of appends alone it is the appended files themselves
    properties |= {"delta.enableRowTracking" if table.kind == "memory" else "delta.enableDeletionVectors": "true"}
    # The smallest and largest value of a column stay in the log for long: only columns named as harmless go there.
    if table.statistics:
        properties["delta.dataSkippingStatsColumns"] = ",".join(table.statistics)
    else:
        properties["delta.dataSkippingNumIndexedCols"] = "0"
    partitioned = ""
    if table.bucketed_by:
        columns.append(f"{BUCKET} int NOT NULL COMMENT {literal(f'first byte of {table.bucketed_by} modulo buckets')}")
        properties[_BUCKETS_PROPERTY] = str(warehouse.buckets)
        partitioned = f"PARTITIONED BY ({BUCKET}) "
    spelled = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in properties.items())
    warehouse.spark.sql(
        f"CREATE TABLE IF NOT EXISTS {warehouse.name(table)} ({', '.join(columns)}) USING delta {partitioned}"
        f"COMMENT {literal(table.one_row)} TBLPROPERTIES ({spelled})"
    )


def _nullness(is_nullable: bool) -> str:
    return "nullable" if is_nullable else "not null"


def jar_version(spark: SparkSession) -> str | None:
    """The version of Delta's jar that the session loaded; None where it found none."""
    try:
        return str(spark._jvm.io.delta.package.VERSION())  # type: ignore[union-attr]
    except TypeError:  # what py4j takes for a package cannot be called
        return None


def quoted(name: str) -> str:
    """A name as it may stand in a statement, whatever is in it."""
    return "`" + name.replace("`", "``") + "`"


def literal(text: str) -> str:
    """A text as it may stand in a statement, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
