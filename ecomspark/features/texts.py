"""Texts and terms of sources, and the queries that aliases are: what build_texts makes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import arrow_udf

from ecomspark import text
from ecomspark.errors import without_values
from ecomspark.features.digests import digest_of
from ecomspark.text import IDENTITY_RECIPE_DIGEST, Analyser, TextRecipe

_MOST = 2**63 - 1

ITEM_FIELDS = ("title", "brand", "category", "attributes", "description")
# Why a row that was imported may still make no query and no judgment.
LATER_REASONS = ("empty_query", "unknown_query", "conflict")
SEARCHED_FIELDS = ("title", "brand", "category")


def attributes_text(attributes: Column) -> Column:
    """A map as `name: value, …`, sorted by name, entries without a value left out; null for null."""
    entries = F.filter(F.array_sort(F.map_entries(attributes)), lambda entry: F.length(entry["value"]) > 0)
    spelled = F.transform(entries, lambda entry: F.concat(entry["key"], F.lit(": "), entry["value"]))
    return F.when(attributes.isNotNull(), F.concat_ws(", ", spelled))


def with_source_digest(items: DataFrame) -> DataFrame:
    """Items with the digest of the fields that a model may read, in the order of `ITEM_FIELDS`."""
    fields = (attributes_text(F.col(f)) if f == "attributes" else F.col(f) for f in ITEM_FIELDS)
    return items.withColumn("source_digest", digest_of(*fields))


def alias_sources(aliases: DataFrame) -> DataFrame:
    """What `identity` makes texts of: source_digest and fields of every alias."""
    return aliases.select(F.col("text_source_digest").alias("source_digest"), F.struct("query_text").alias("fields"))


def query_sources(queries: DataFrame) -> DataFrame:
    """What `query_texts` makes texts of: source_digest and fields of every query."""
    return alias_sources(queries)


def item_sources(items: DataFrame) -> DataFrame:
    """What `passages` makes texts of: source_digest and fields of every item."""
    fields = F.struct(*(attributes_text(F.col(f)).alias(f) if f == "attributes" else F.col(f) for f in ITEM_FIELDS))
    return items.select("source_digest", fields.alias("fields"))


def lacking(sources: DataFrame, texts: DataFrame, role: str, recipe_digest: bytes) -> DataFrame:
    """The sources that `texts` lacks in a role under a recipe, each once."""
    there = texts.where((F.col("role") == role) & (F.col("recipe_digest") == F.lit(recipe_digest)))
    # Two sources of one digest have the same fields: any of the two will do.
    distinct = sources.dropDuplicates(["source_digest"])
    return distinct.join(there.select("source_digest"), on="source_digest", how="left_anti")


def identities(sources: DataFrame) -> DataFrame:
    """Rows for `texts`: queries under identity recipe 1."""
    return _made(sources, "query", IDENTITY_RECIPE_DIGEST, _identity)


def query_texts(sources: DataFrame, recipe: TextRecipe) -> DataFrame:
    """Rows for `texts`: queries as a model reads them."""
    return _made(sources, "query", recipe.digest, lambda row: text.query(row["query_text"], recipe))


def passages(sources: DataFrame, recipe: TextRecipe) -> DataFrame:
    """Rows for `texts`: items as a model reads them."""
    return _made(sources, "passage", recipe.digest, lambda row: text.passage(row, recipe))


def searched_fields(items: DataFrame) -> DataFrame:
    """locale and text of every field of an item that BM25 searches."""
    fields = F.explode(F.array(*SEARCHED_FIELDS)).alias("text")
    return items.select("locale", fields).where(F.length("text") > 0)


def lacking_terms(fields: DataFrame, terms: DataFrame, analysers: Mapping[str, Analyser]) -> DataFrame:
    """Those of `fields` (locale, text) that `terms` lacks under their locale's analyser, each once."""
    key = ["field_text_digest", "analyser_digest"]
    named = fields.select(
        digest_of(F.col("text")).alias("field_text_digest"),
        analyser_digest(F.col("locale"), analysers).alias("analyser_digest"),
        "text",
        "locale",
    )
    # Two rows of one key have one text, and locales of one analyser digest one analyser: any will do.
    return named.dropDuplicates(key).join(terms.select(*key), on=key, how="left_anti")


def made_terms(fields: DataFrame, analysers: Mapping[str, Analyser]) -> DataFrame:
    """Rows for `terms` of what `lacking_terms` found."""

    def made(batches: Iterator[tuple[pa.Array, pa.Array]]) -> Iterator[pa.Array]:
        for values, locales in batches:
            pairs = zip(values.to_pylist(), locales.to_pylist(), strict=True)
            with without_values():
                found = [text.terms(value, analysers.get(locale, Analyser())) for value, locale in pairs]
            yield pa.array(found, type=pa.list_(pa.string()))

    once = arrow_udf(made, "array<string>").asNondeterministic()  # type: ignore[call-overload]
    return fields.select("field_text_digest", "analyser_digest", once("text", "locale").alias("terms"))


def analyser_digest(locale: Column, analysers: Mapping[str, Analyser]) -> Column:
    """The digest of a locale's analyser; that of one without stems for a locale that is not among them."""
    digest = F.lit(Analyser().digest)
    for name, analyser in analysers.items():
        digest = F.when(locale == name, F.lit(analyser.digest)).otherwise(digest)
    return digest


def queries_by_alias(aliases: DataFrame, texts: DataFrame) -> DataFrame:
    """(source, source_query_id, query_id) of every alias of which something is left when normalised."""
    known = _normalised(aliases, texts).where(F.length("text") > 0)
    return known.select("source", "source_query_id", "query_id")


def queries_of(aliases: DataFrame, texts: DataFrame) -> DataFrame:
    """The distinct queries of a locale, traffic summed; aliases of which nothing is left when normalised make none."""
    return (
        _normalised(aliases, texts)
        .where(F.length("text") > 0)
        .groupBy("query_id", "locale", F.col("text").alias("query_text"))
        .agg(F.sum(F.coalesce("traffic", F.lit(0)).cast("decimal(38,0)")).alias("traffic"))
        .withColumn("traffic", F.least("traffic", F.lit(_MOST)).cast("bigint"))
        .withColumn("text_source_digest", digest_of(F.col("query_text")))
    )


def empty_aliases(aliases: DataFrame, texts: DataFrame) -> DataFrame:
    """The aliases of which nothing is left when normalised."""
    return _normalised(aliases, texts).where(F.length("text") == 0).select(*aliases.columns)


def judgments_of(judgment_aliases: DataFrame, aliases: DataFrame, texts: DataFrame) -> DataFrame:
    """Judgments under query_id, with `reason` where one cannot be used: unknown_query, empty_query, or conflict (the
    aliases of one query were judged differently for one item; none of the grades is taken). One row an alias."""
    of_query = _normalised(aliases, texts).select("source", "source_query_id", "query_id", "text")
    known = judgment_aliases.join(of_query, on=["source", "source_query_id"], how="left")
    key = ["judgment_set", "query_id", "item_id"]
    grades = known.groupBy(*key).agg(F.min("grade").alias("lowest"), F.max("grade").alias("highest"))
    reason = (
        F.when(F.col("query_id").isNull(), "unknown_query")
        .when(F.length("text") == 0, "empty_query")
        .when(F.col("lowest") != F.col("highest"), "conflict")
    )
    judged = known.join(grades, on=key, how="left")
    return judged.select(*judgment_aliases.columns, "query_id", reason.alias("reason"))


def _normalised(aliases: DataFrame, texts: DataFrame) -> DataFrame:
    """Aliases with their text under identity recipe 1 and its query_id."""
    identity = texts.where((F.col("role") == "query") & (F.col("recipe_digest") == F.lit(IDENTITY_RECIPE_DIGEST)))
    of_alias = identity.select(F.col("source_digest").alias("text_source_digest"), "text")
    joined = aliases.join(of_alias, on="text_source_digest", how="inner")
    return joined.withColumn("query_id", digest_of(F.col("locale"), F.col("text")))


def _identity(row: Mapping[str, Any]) -> tuple[str, int]:
    normalised = text.normalise_query(row["query_text"])
    return normalised, max(0, len(row["query_text"]) - text.IDENTITY_MAX_CHARACTERS)


def _made(
    sources: DataFrame, role: str, recipe_digest: bytes, make: Callable[[Mapping[str, Any]], tuple[str, int]]
) -> DataFrame:
    """Rows for `texts` of sources (source_digest, fields), each evaluated once."""

    def made(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        for batch in batches:
            with without_values():
                rows = [make(row) for row in batch.to_pylist()]
            texts, cuts = pa.array([t for t, _ in rows], pa.string()), pa.array([c for _, c in rows], pa.int64())
            yield pa.StructArray.from_arrays([texts, cuts], names=["text", "cut_characters"])

    once = arrow_udf(made, "text string, cut_characters long").asNondeterministic()  # type: ignore[call-overload]
    return sources.withColumn("made", once("fields")).select(
        "source_digest",
        F.lit(role).alias("role"),
        F.lit(recipe_digest).alias("recipe_digest"),
        F.col("made.text").alias("text"),
        digest_of(F.col("made.text")).alias("text_digest"),
        F.col("made.cut_characters").alias("cut_characters"),
    )
