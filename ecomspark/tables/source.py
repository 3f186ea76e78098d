"""What is read from outside: Delta tables not ours, Parquet, CSV, JSON Lines. Pinned and dated like a table."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark.config import Section, setting
from ecomspark.errors import ContractError
from ecomspark.tables.warehouse import Snapshot, utc
from ecomspark.text import digest

MALFORMED = "_malformed"
_BYTE_ORDER_MARK = "\ufeff"


class Source(Section):
    """Where rows come from."""

    format: Literal["delta", "parquet", "csv", "jsonl"] = setting(..., "what it is")
    path: str = setting(..., "folder, file or object-store prefix; of a Delta table also its name in a catalog")
    version: int | None = setting(None, "of a Delta table: which version; null: the newest when the run starts")


@dataclass(frozen=True)
class Sourced:
    """A source as a run sees it: its rows, what names its content, and the time of its newest part, UTC.

    CSV and JSON Lines have one column more, `_malformed`: the line where it could not be read as a row, else null.
    """

    rows: DataFrame
    snapshot: Snapshot
    dated: datetime


def read_source(spark: SparkSession, source: Source) -> Sourced:
    """Open a source. Values of CSV and JSON Lines come as text: no digit is lost to a guess at their type.

    Raises ContractError when there is nothing to read.
    """
    try:
        return _delta(spark, source) if source.format == "delta" else _files(spark, source)
    except AnalysisException as error:
        reason = error.getCondition() or "cannot be read"
        raise ContractError(f"source {source.path}: expected {source.format}, but {reason}; see source.path") from None


def _delta(spark: SparkSession, source: Source) -> Sourced:
    is_path = "/" in source.path
    handle = DeltaTable.forPath(spark, source.path) if is_path else DeltaTable.forName(spark, source.path)
    history = handle.history().select("version", "timestamp")
    wanted = history if source.version is None else history.where(F.col("version") == source.version)
    found = wanted.orderBy(F.desc("version")).limit(1).collect()
    if not found:
        raise ContractError(f"source {source.path}: expected version {source.version}, found none; see source.version")
    version, at = int(found[0]["version"]), found[0]["timestamp"]
    reader = spark.read.format("delta").option("versionAsOf", version)
    rows = reader.load(source.path) if is_path else reader.table(source.path)
    return Sourced(rows, Snapshot(handle.detail().select("id").collect()[0]["id"], version), utc(at))


def _files(spark: SparkSession, source: Source) -> Sourced:
    rows = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[source.format](spark, source.path)
    columns = ("file_path", "file_size", "file_modification_time")
    files = sorted(rows.select(*(f"_metadata.{name}" for name in columns)).distinct().collect())
    if not files:
        raise ContractError(f"source {source.path}: expected rows, found none; see source.path")
    content = digest(*(f"{file['file_path']} {file['file_size']} {file['file_modification_time']}" for file in files))
    newest = max(file["file_modification_time"] for file in files)
    return Sourced(rows, Snapshot(content.hex(), 0), utc(newest))


def _parquet(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.parquet(path)


def _csv(spark: SparkSession, path: str) -> DataFrame:
    reader = spark.read.option("header", "true").option("escape", '"').option("multiLine", "true")
    headers = {tuple(reader.csv(file).columns) for file in spark.read.text(path).inputFiles()}
    if len(headers) != 1 or not all(headers):
        # Spark takes the names from one file and reads the others by position.
        raise ContractError(
            f"source {path}: expected files with one and the same header line, found {len(headers)} different ones "
            "or an empty file; see source.path"
        )
    names = [*headers.pop()]
    schema = ", ".join(f"`{name.replace('`', '``')}` string" for name in [*names, MALFORMED])
    rows = reader.schema(schema).option("columnNameOfCorruptRecord", MALFORMED).csv(path)
    return rows.withColumnRenamed(names[0], names[0].removeprefix(_BYTE_ORDER_MARK))


def _jsonl(spark: SparkSession, path: str) -> DataFrame:
    reader = spark.read.option("primitivesAsString", "true").option("columnNameOfCorruptRecord", MALFORMED)
    rows = reader.json(path)
    return rows if MALFORMED in rows.columns else rows.withColumn(MALFORMED, F.lit(None).cast("string"))
