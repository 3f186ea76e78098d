"""What is read from outside: Delta tables not ours, Parquet, CSV, JSON Lines. Pinned and dated like a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from delta.tables import DeltaTable
from pydantic import Field
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark.config import Section, setting
from ecomspark.errors import ContractError
from ecomspark.tables.warehouse import Snapshot, utc
from ecomspark.text import digest

MALFORMED = "_malformed"
_BYTE_ORDER_MARK = "\ufeff"
_CHARSETS = {"utf-8": "UTF-8", "latin-1": "ISO-8859-1"}


Value = str | int | float | bool


class Files(Section):
    """Where rows come from: files or a table, and how their text is written."""

    format: Literal["delta", "parquet", "csv", "jsonl"] = setting(..., "what it is")
    path: str = setting(..., "folder, file or object-store prefix; of a Delta table also its name in a catalog")
    version: int | None = setting(None, "of a Delta table: which version; null: the newest when the run starts")
    separator: str = setting(",", 'of CSV: what stands between two values; a tab is "\\t"', min_length=1)
    encoding: Literal["utf-8", "latin-1"] = setting("utf-8", "of CSV: how its characters are written")


class Beside(Files):
    """A second source: what the first one lacks of its rows."""

    by: Annotated[list[str], Field(min_length=1)] = setting(
        ..., "columns of both that name a row of the second; its other columns are added where these are alike"
    )


class Source(Files):
    """Where rows come from, which of them, and what stands beside them in other files."""

    where: dict[str, Value | list[Value]] = setting(
        {}, "only rows with this value, or one of these, in a column of the source: small_version: 1"
    )
    beside: Beside | None = setting(None, "a second source whose columns are added; null: none")


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

    Lines that could not be read as rows are among them whatever `where` asks for, those of the source beside it too.
    Raises ContractError when there is nothing to read, and when a column that `where` or `beside` names is not there.
    """
    sourced = _opened(spark, source)
    rows = _those(sourced.rows, source)
    if source.beside is None:
        return Sourced(rows, sourced.snapshot, sourced.dated)
    second = _opened(spark, source.beside)
    content = digest(*(f"{at.table_id} {at.version}" for at in (sourced.snapshot, second.snapshot)))
    whole = Snapshot(content.hex(), sourced.snapshot.version)
    return Sourced(_beside(rows, second.rows, source.beside), whole, max(sourced.dated, second.dated))


def _those(rows: DataFrame, source: Source) -> DataFrame:
    """The rows that `where` asks for."""
    _check_columns(rows, source.path, "where", source.where)
    for name, wanted in source.where.items():
        found = F.col(_quoted(name))
        is_wanted = F.coalesce(_is_any(found, wanted if isinstance(wanted, list) else [wanted]), F.lit(False))
        rows = rows.where(is_wanted | _is_malformed(rows))
    return rows


def _is_any(found: Column, wanted: list[Value]) -> Column:
    """Whether a column has one of these values: numbers by what they are worth, others by how they are spelled."""
    numbers = [float(value) for value in wanted if isinstance(value, int | float) and not isinstance(value, bool)]
    words = [
        str(value).lower() if isinstance(value, bool) else value for value in wanted if isinstance(value, str | bool)
    ]
    text = found.cast("string")
    return text.isin(words) | F.coalesce(text.try_cast("double").isin(numbers), F.lit(False))


def _beside(first: DataFrame, second: DataFrame, beside: Beside) -> DataFrame:
    """The first source's rows with the second's other columns, and the second's lines that could not be read."""
    for rows, place in ((first, "source"), (second, beside.path)):
        _check_columns(rows, place, "beside.by", dict.fromkeys(beside.by))
    added = [name for name in second.columns if name not in first.columns]
    keys = {name: F.col(_quoted(name)).cast("string") for name in beside.by}
    known = second.where(~_is_malformed(second)).select(
        *(key.alias(f"_beside_{place}") for place, key in enumerate(keys.values())), *map(_quoted, added)
    )
    are_alike = [key == F.col(f"_beside_{place}") for place, key in enumerate(keys.values())]
    joined = first.join(known, on=are_alike, how="left").select(*map(_quoted, first.columns), *map(_quoted, added))
    if MALFORMED not in second.columns:
        return joined
    # With the names of its row: Spark refuses to read the line that could not be read, and nothing beside it.
    names = [F.col(_quoted(name)).try_cast(first.schema[name].dataType).alias(name) for name in beside.by]
    lines = second.where(_is_malformed(second)).select(*names, *map(_quoted, {*added, MALFORMED}))
    return joined.unionByName(lines, allowMissingColumns=True)


def _is_malformed(rows: DataFrame) -> Column:
    return F.col(MALFORMED).isNotNull() if MALFORMED in rows.columns else F.lit(False)


def _check_columns(rows: DataFrame, place: str, key: str, names: Mapping[str, object]) -> None:
    if lacking := sorted(set(names) - set(rows.columns)):
        raise ContractError(
            f"source {place}: expected columns {', '.join(lacking)}, as source.{key} says, found "
            f"{', '.join(sorted(set(rows.columns) - {MALFORMED}))}"
        )


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _opened(spark: SparkSession, source: Files) -> Sourced:
    try:
        return _delta(spark, source) if source.format == "delta" else _files(spark, source)
    except AnalysisException as error:
        reason = error.getCondition() or "cannot be read"
        raise ContractError(f"source {source.path}: expected {source.format}, but {reason}; see source.path") from None


def _delta(spark: SparkSession, source: Files) -> Sourced:
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


def _files(spark: SparkSession, source: Files) -> Sourced:
    rows = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[source.format](spark, source)
    columns = ("file_path", "file_size", "file_modification_time")
    files = sorted(rows.select(*(f"_metadata.{name}" for name in columns)).distinct().collect())
    if not files:
        raise ContractError(f"source {source.path}: expected rows, found none; see source.path")
    content = digest(*(f"{file['file_path']} {file['file_size']} {file['file_modification_time']}" for file in files))
    newest = max(file["file_modification_time"] for file in files)
    return Sourced(rows, Snapshot(content.hex(), 0), utc(newest))


def _parquet(spark: SparkSession, source: Files) -> DataFrame:
    return spark.read.parquet(source.path)


def _csv(spark: SparkSession, source: Files) -> DataFrame:
    path = source.path
    reader = spark.read.option("header", "true").option("escape", '"').option("multiLine", "true")
    reader = reader.option("sep", source.separator).option("encoding", _CHARSETS[source.encoding])
    headers = {tuple(reader.csv(file).columns) for file in spark.read.text(path).inputFiles()}
    if len(headers) != 1 or not all(headers):
        # Spark takes the names from one file and reads the others by position.
        raise ContractError(
            f"source {path}: expected files with one and the same header line, found {len(headers)} different ones "
            "or an empty file; see source.path"
        )
    names = [*headers.pop()]
    schema = ", ".join(f"{_quoted(name)} string" for name in [*names, MALFORMED])
    rows = reader.schema(schema).option("columnNameOfCorruptRecord", MALFORMED).csv(path)
    return rows.withColumnRenamed(names[0], names[0].removeprefix(_BYTE_ORDER_MARK))


def _jsonl(spark: SparkSession, source: Files) -> DataFrame:
    reader = spark.read.option("primitivesAsString", "true").option("columnNameOfCorruptRecord", MALFORMED)
    rows = reader.json(source.path)
    return rows if MALFORMED in rows.columns else rows.withColumn(MALFORMED, F.lit(None).cast("string"))
