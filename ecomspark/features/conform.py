"""From a source's rows to a table's: columns renamed and cast, texts made valid, what cannot be used told apart.

All in Spark SQL and with `try_` functions: under ANSI rules a bad cast would end the job with the value in its message.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark import schemas
from ecomspark.config import Section, setting
from ecomspark.features.digests import digest_of
from ecomspark.schemas import QUARANTINE, Table

ID_MAX_BYTES = 512
_QUARANTINED_CHARACTERS = 2_000
_REASONS = "array<string>"
_CONTROL = r"[\p{Cc}&&[^\t\n\r]]"
_WHOLE_TYPES = ("tinyint", "smallint", "int", "integer", "bigint", "long")
_EPOCHS = {"epoch_seconds": (1, F.timestamp_seconds), "epoch_milliseconds": (1_000, F.timestamp_millis)}
_YEAR_9999 = 253_402_300_799  # its last second; beyond, the functions above end the job


class ColumnMap(Section):
    """Where a column of ours comes from. `title: product_title` is short for `title: {from: product_title}`."""

    source: str | Annotated[list[str], Field(min_length=2)] | None = setting(
        None,
        "the source's column; written `from`. A list: all of these columns joined, nothing where one has nothing",
        alias="from",
    )
    separator: str = setting("-", "what stands between the values of a list of columns", min_length=1)
    constant: str | int | float | bool | None = setting(None, "this value in every row, instead of `from`")
    default: str | int | float | bool | None = setting(None, "this value where the source has none")
    cast: str | None = setting(None, "a type of Spark's to go through before ours, such as bigint for 17850.0")
    format: str | None = setting(
        None, "of a time: a pattern such as dd/MM/yyyy HH:mm, or epoch_seconds, or epoch_milliseconds"
    )
    values: dict[str, str | int | float | bool] | None = setting(
        None, "the source's word to our value, such as E: 3; another word cannot be used"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"from": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> "ColumnMap":
        if (self.source is None) == (self.constant is None):
            raise ValueError("name either `from` (a column of the source) or `constant` (a value)")
        return self

    @property
    def sources(self) -> list[str]:
        """The source's columns that it is made of."""
        return [self.source] if isinstance(self.source, str) else self.source or []


def differences(source: DataFrame, columns: Mapping[str, ColumnMap], table: Table) -> list[str]:
    """Every difference between a source and what is expected of it; none if it can be conformed."""
    found = {field.name: field.dataType.simpleString() for field in source.schema.fields}
    ours = {column.name: column for column in _imported(table)}
    faults = [f"columns.{name}: not a column of {table.name} that is imported" for name in columns if name not in ours]
    for name, column in ours.items():
        if name not in columns and not column.is_nullable:
            faults.append(f"columns.{name}: expected a mapping ({column.meaning})")
        for origin in columns[name].sources if name in columns else []:
            if origin not in found:
                faults.append(f"columns.{name}: expected a column {origin}, found {', '.join(sorted(found))}")
            elif not _is_castable(found[origin], column.type, isinstance(columns[name].source, list)):
                faults.append(f"columns.{name}: {origin} is {found[origin]}, which cannot become {column.type}")
    return faults


def conform(
    source: DataFrame,
    columns: Mapping[str, ColumnMap],
    table: Table,
    rules: Mapping[str, str],
    malformed: str | None = None,
) -> DataFrame:
    """The table's columns, with `_reasons` (why a row cannot be used), `_is_twin` (alike to a row before it),
    `_cleaned` (columns whose text was mended), and `_row` (the row as given, JSON, for quarantine).

    `rules`: reason to a condition over the table's columns, in SQL. Besides these, by column: `<column>_missing` where
    a value must be, `<column>_unusable` where it is not of the type, `<column>_too_long` for an id of over 512 bytes;
    and `duplicate_key` for all rows of a key that are not alike. `malformed`: the source's column that holds a line
    which could not be read as a row; its only reason is `malformed`. Digests and `changed_by` are not made here.
    """
    ours = _imported(table)
    line = F.col(malformed) if malformed else F.lit(None).cast("string")
    raw = source.select(
        F.struct(*(_raw(columns.get(c.name), c.type).alias(c.name) for c in ours)).alias("_raw"), line.alias("_line")
    )
    given = raw.select(
        "_raw", "_line", F.struct(*(_given(columns.get(c.name), c).alias(c.name) for c in ours)).alias("_given")
    )
    typed = given.select(
        *(_typed(columns.get(c.name), c).alias(c.name) for c in ours),
        "_given",
        "_line",
        F.coalesce(F.make_valid_utf8("_line"), F.to_json("_given")).alias("_row"),
        _present([_mended(c) for c in ours if c.type == "string"]).alias("_cleaned"),
    )
    broken = [F.when(F.expr(condition), reason) for reason, condition in rules.items()]
    reasons = F.when(F.col("_line").isNotNull(), F.array(F.lit("malformed"))).otherwise(
        _present([*_type_reasons(ours, table), *broken])
    )
    judged = typed.withColumn("_reasons", reasons).drop("_given", "_line")
    return _without_doubles(judged, table)


def folded(conformed: DataFrame, table: Table, *best_first: Column) -> DataFrame:
    """Rows of one key that are not alike, one of them kept: for a table whose key says all that counts, so that rows of
    one key differ in how they are spelled, or in a word beside it. The first by `best_first`, then by the row as given.
    """
    say_the_same = F.col("_reasons") == F.array(F.lit("duplicate_key"))
    # Those that cannot be used for another reason stand behind: they must not take the first place.
    place = F.row_number().over(Window.partitionBy(*table.key).orderBy(F.desc(say_the_same), *best_first, "_row"))
    marked = conformed.withColumn("_is_twin", F.col("_is_twin") | (say_the_same & (place > 1)))
    return marked.withColumn("_reasons", F.when(~say_the_same, F.col("_reasons")).otherwise(F.array().cast(_REASONS)))


def usable(conformed: DataFrame) -> DataFrame:
    """The rows that can be used, each key once, without the marks."""
    kept = conformed.where((F.size("_reasons") == 0) & ~F.col("_is_twin"))
    return kept.drop("_reasons", "_is_twin", "_cleaned", "_row")


def quarantined(conformed: DataFrame, table: Table) -> DataFrame:
    """Rows for `quarantine`: one a row and reason."""
    rows = conformed.withColumn("reason", F.explode("_reasons"))
    return quarantine_rows(rows, table, F.col("_row"))


def quarantine_rows(rows: DataFrame, table: Table, row: Column) -> DataFrame:
    """Rows for `quarantine` from rows that have the table's key and a `reason`; `row` is how they are kept."""
    return rows.select(
        F.lit(table.name).alias("table_name"),
        source_key(table),
        digest_of(row).alias("row_digest"),
        "reason",
        F.substring(row, 1, _QUARANTINED_CHARACTERS).alias("row"),
        F.lit(1).alias("tries"),
        F.lit(None).cast("timestamp").alias("resolved_at"),
    ).dropDuplicates(list(QUARANTINE.key))  # rows of one digest and reason are alike in every column


def source_key(table: Table) -> Column:
    """The key of a row as `quarantine` names it."""
    key = F.concat_ws("/", *(F.coalesce(_as_text(table, name), F.lit("")) for name in table.key))
    return F.substring(key, 1, _QUARANTINED_CHARACTERS).alias("source_key")


def healed(there: DataFrame, passing: DataFrame, failing: DataFrame) -> DataFrame:
    """The rows of `quarantine` that are open although their key passes now, and does not fail besides."""
    keys = ["table_name", "source_key"]
    mended = there.where(F.col("resolved_at").isNull()).join(passing, on="source_key", how="left_semi")
    return mended.join(failing.select(*keys).distinct(), on=keys, how="left_anti").select(*there.columns)


def reopened(failing: DataFrame, there: DataFrame) -> DataFrame:
    """Rows for `quarantine`, with how often they were tried: once more when the same row had been resolved."""
    before = there.select(
        *QUARANTINE.key, F.col("tries").alias("_tries"), F.col("resolved_at").isNotNull().alias("_was_resolved")
    )
    joined = failing.join(before, on=list(QUARANTINE.key), how="left")
    tries = F.coalesce(F.col("_tries") + F.col("_was_resolved").cast("int"), F.col("tries"))
    return joined.withColumn("tries", tries).select(*failing.columns)


def _imported(table: Table) -> list[schemas.Column]:
    """The columns that a source gives: all but digests, and who changed the row."""
    return [c for c in table.columns if c.type != "binary" and c != schemas.CHANGED_BY]


def _is_castable(found: str, wanted: str, is_joined: bool) -> bool:
    if wanted.startswith("map<"):
        return found == wanted and not is_joined
    return not found.startswith(("array<", "map<", "struct<"))


def _raw(column: ColumnMap | None, type_name: str) -> Column:
    """What the source says: text, but for maps. Text keeps the last digit of 2^53 + 1, and no cast of it can fail."""
    if column is None:
        return F.lit(None).cast(type_name if type_name.startswith("map<") else "string")
    if column.source is None:
        return F.lit(str(column.constant).lower() if isinstance(column.constant, bool) else str(column.constant))
    parts = [F.col("`" + name.replace("`", "``") + "`") for name in column.sources]
    parts = [cast_as(part, column.cast) if column.cast else part for part in parts]
    if type_name.startswith("map<"):
        return parts[0]
    texts = [part.cast("string") for part in parts]
    if len(texts) == 1:
        return texts[0]
    # Half an id names something else: where one part is missing, the whole is.
    given = [F.when(F.length(F.trim(text)) > 0, text) for text in texts]
    return F.concat(given[0], *(part for text in given[1:] for part in (F.lit(column.separator), text)))


def cast_as(value: Column, to: str) -> Column:
    """A value of another type, null where it is none. A whole number may be written with a point: 17850.0."""
    cast = value.try_cast(to)
    if to.lower() not in _WHOLE_TYPES:
        return cast
    exact = F.trim(value.cast("string")).try_cast("decimal(38,9)")
    return F.coalesce(cast, F.when(exact == F.floor(exact), exact).try_cast(to))


def _field(struct: str, column: schemas.Column) -> Column:
    return F.col(f"{struct}.{column.name}")


def _given(column: ColumnMap | None, ours: schemas.Column) -> Column:
    """What was said, as valid text without control characters; the default where nothing was."""
    said = _field("_raw", ours)
    if ours.type.startswith("map<"):
        return _clean_map(said)
    valid = clean(said)
    if column is None or column.default is None:
        return valid
    return F.when(F.length(F.trim(valid)) > 0, valid).otherwise(F.lit(str(column.default)))


def _mended(ours: schemas.Column) -> Column:
    """The column's name where its text was invalid or had control characters."""
    said = _field("_raw", ours)
    return F.when(said != clean(said), ours.name)


def clean(text: Column) -> Column:
    """A text as valid UTF-8 without control characters but tabs and line ends."""
    return F.regexp_replace(F.make_valid_utf8(text), _CONTROL, "")


def _clean_map(texts: Column) -> Column:
    """A map with clean keys and values; of keys that became alike the first stays."""
    entries = F.transform(
        F.map_entries(texts), lambda e: F.struct(clean(e["key"]).alias("key"), clean(e["value"]).alias("value"))
    )
    keys = F.transform(entries, lambda e: e["key"])
    return F.map_from_entries(F.filter(entries, lambda e, place: F.array_position(keys, e["key"]) == place + 1))


def _typed(column: ColumnMap | None, ours: schemas.Column) -> Column:
    """What was given as a value of our type; null where nothing was given or it cannot be such a value."""
    given = _field("_given", ours)
    if ours.type.startswith("map<"):
        return given
    given = F.when(F.length(F.trim(given)) > 0, given)
    if column is not None and column.values is not None:
        ours_by_word = F.create_map(*(F.lit(str(part)) for pair in column.values.items() for part in pair))
        given = F.element_at(ours_by_word, given)
    if ours.type == "string":
        return given
    if ours.type == "timestamp" and column is not None and column.format in _EPOCHS:
        a_second, of_number = _EPOCHS[column.format]
        number = given.try_cast("bigint")
        return of_number(F.when(F.abs(number) <= _YEAR_9999 * a_second, number))
    if ours.type == "timestamp" and column is not None and column.format:
        return F.try_to_timestamp(given, F.lit(column.format))
    if ours.type in ("int", "bigint"):
        exact = F.trim(given).try_cast("decimal(38,9)")
        return F.when(exact == F.floor(exact), exact).try_cast(ours.type)
    if ours.type == "double" or ours.type.startswith("decimal"):
        number = F.trim(given).try_cast("double")
        is_finite = ~F.isnan(number) & (F.abs(number) != float("inf"))
        return F.when(is_finite, F.trim(given).try_cast(ours.type))
    if ours.type == "timestamp":
        # A time without a date would be taken for today's: nothing is now.
        given = F.when(given.rlike(r"^\s*\d{4}"), given)
    return F.trim(given).try_cast(ours.type)


def _type_reasons(ours: Sequence[schemas.Column], table: Table) -> list[Column]:
    reasons = []
    for column in ours:
        value, given = F.col(column.name), _field("_given", column)
        is_given = given.isNotNull() if column.type.startswith("map<") else F.length(F.trim(given)) > 0
        reasons.append(F.when(is_given & value.isNull(), f"{column.name}_unusable"))
        if not column.is_nullable:
            reasons.append(F.when(~F.coalesce(is_given, F.lit(False)), f"{column.name}_missing"))
        if column.name in table.key and column.type == "string":
            reasons.append(F.when(F.octet_length(value) > ID_MAX_BYTES, f"{column.name}_too_long"))
    return reasons


def _without_doubles(judged: DataFrame, table: Table) -> DataFrame:
    """Rows of one key: if they are alike, all but one are twins; if they are not, none of them can be trusted."""
    of_key = Window.partitionBy(*table.key)
    is_keyed = ~F.exists("_reasons", lambda reason: (reason == "malformed") | F.endswith(reason, F.lit("_missing")))
    row = F.when(is_keyed, F.col("_row"))  # a broken copy of a line says nothing against the line
    differ = (F.min(row).over(of_key) != F.max(row).over(of_key)) & is_keyed
    marked = judged.withColumn("_differ", differ)
    place = F.row_number().over(of_key.orderBy(F.desc(is_keyed), "_row"))
    return (
        marked.withColumn("_is_twin", ~F.col("_differ") & is_keyed & (place > 1))
        .withColumn("_reasons", F.concat("_reasons", _present([F.when(F.col("_differ"), "duplicate_key")])))
        .drop("_differ")
    )


def _as_text(table: Table, name: str) -> Column:
    return F.lower(F.hex(name)) if table.column(name).type == "binary" else F.col(name).cast("string")


def _present(values: Sequence[Column]) -> Column:
    return F.array_compact(F.array(*values))
