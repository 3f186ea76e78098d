"""What finds items for queries: terms, checked, for BM25; and the nearest items by an encoder's vectors, searched in
executors, the same wherever they run and however they are cut.

Distinct vectors of a locale are cut into parts that fit a task's memory. A task has one part of the items, and queries
stream past it as Arrow batches; it gives the best of its part, which `nearest` proves; the best of all parts together
are then expanded to the items and queries that have these vectors. A vector goes by the least of their ids, so that
the best vectors of a query hold its best items whatever share a vector.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import Accumulator
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from ecomspark import parts, tables
from ecomspark.config import Bm25, Name, Section, setting
from ecomspark.embedding import Role, vectors_of
from ecomspark.errors import ConfigError, ContractError, without_values
from ecomspark.features import bm25 as lexical
from ecomspark.features.candidates import EMBEDDING
from ecomspark.features.texts import lacking_terms, searched_fields
from ecomspark.models.checkpoint import Checkpoint
from ecomspark.nearest import Block, Index, Room, indexed_vectors
from ecomspark.resources import use_cores_of_task
from ecomspark.runs import Run
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, TERMS, TEXTS
from ecomspark.text import Analyser

_QUERIES_A_TASK = 256  # fewer are not worth sending a part of the items for
_TASKS_A_SLOT = 2


class Search(Section):
    """How items near in meaning are found: by the vectors of one encoder, those of its scorer_digest and no others."""

    encoder: Name | None = setting(
        None, "whose vectors: a folder in models_folder; embed_texts makes them. Needed where `embedding` proposes"
    )
    count: int = setting(100, "items that it proposes for a query; evaluate_retrieval goes by `ks`", unit="items", ge=1)
    approximate_above: int | None = setting(
        500_000,
        "distinct item vectors of a locale above which an approximate index is searched, and its recall of the exact "
        "search's items measured; null: never",
        unit="vectors",
        ge=0,
    )
    block_mib: int = setting(
        256, "memory of a task that searches exactly, beside Arrow's batches", unit="MiB", decides=False, ge=1
    )
    index_mib: int = setting(
        2_048, "memory of a task that searches an index, likewise; more in an index", unit="MiB", ge=1
    )
    index_links: int = setting(32, "of an index: links of a vector (HNSW's M)", ge=2, le=256)
    index_breadth: int = setting(
        256, "of an index: candidates that a search looks at; more find more and take longer", ge=1
    )
    sampled_queries: int = setting(
        200, "queries whose approximate results are compared with exact ones", unit="queries", decides=False, ge=1
    )


def checked_item_terms(current: Run, analysers: Mapping[str, Analyser], bm25: Bm25) -> DataFrame:
    """The terms of every item. Raises ContractError when those of a query or a searched field are not made yet."""
    items, terms = current.read(ITEMS), tables.read_memory(current.warehouse, TERMS)
    fields = searched_fields(items).unionByName(
        current.read(QUERIES).select("locale", F.col("query_text").alias("text"))
    )
    if lacking := lacking_terms(fields, terms, analysers).count():
        raise ContractError(
            f"terms: expected those of every query and searched field under the settings' languages, found {lacking:,} "
            "texts without; run build_texts first"
        )
    return lexical.item_terms(items, terms, analysers, bm25)


def nearest_items(
    current: Run, queries: DataFrame, items: DataFrame, encoder: Checkpoint, how: Search, places: int
) -> DataFrame:
    """(query_id, item_id, score, place): the best `places` items of each query in its locale by cosine, place 1 first;
    scores rounded to 1e-6, ties by item_id. Landed once, to be read as often as one likes.

    `queries`: query_id, locale, text_source_digest; `items`: item_id, locale, source_digest. Counts distinct vectors
    and how often a query was done again (`widened`); where an index was searched, its recall in parts per million of
    the exact search's items, over so many sampled queries. Raises ContractError when texts or vectors are missing.
    """
    of_queries = queries.select("locale", F.col("query_id").alias("key"), F.col("text_source_digest").alias("source"))
    of_items = items.select(
        "locale", F.col("item_id").cast("binary").alias("key"), F.col("source_digest").alias("source")
    )
    asked = _vectors(current, of_queries, "query", encoder)
    offered = _vectors(current, of_items, "passage", encoder)
    if faults := [*asked.faults, *offered.faults]:
        raise ContractError("\n".join(faults))
    current.count(query_vectors=asked.count, item_vectors=offered.count)
    widened = current.warehouse.spark.sparkContext.accumulator(0)
    found = _search(asked, offered, places, how, widened)
    rows = _expanded(found, asked, offered, places).select(
        F.col("query").alias("query_id"),
        F.col("item").cast("string").alias("item_id"),
        F.create_map(F.lit(EMBEDDING), "score").alias("sources"),
    )
    landed = current.staged(CANDIDATES, rows).select("query_id", "item_id", F.col("sources")[EMBEDDING].alias("score"))
    current.count(widened=widened.value)
    if indexed := [locale for locale in offered.by_locale if offered.is_indexed(locale, how)]:
        _measure(current, landed, asked, offered, indexed, places, how)
    best_first = Window.partitionBy("query_id").orderBy(F.desc("score"), "item_id")
    return landed.withColumn("place", F.row_number().over(best_first))


@dataclass(frozen=True)
class _Vectors:
    """`distinct`: (locale, id, vector, place), each vector of a locale once, under the least key that has it.
    `members`: (locale, id, key), every key. `by_locale`: distinct vectors by locale and place. `faults`: what stops a
    search, a sentence each."""

    distinct: DataFrame
    members: DataFrame
    by_locale: dict[str, list[tuple[int, int]]]
    dimensions: int
    faults: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(map(self.count_of, self.by_locale))

    def count_of(self, locale: str) -> int:
        return sum(count for _, count in self.by_locale[locale])

    def is_indexed(self, locale: str, how: Search) -> bool:
        return how.approximate_above is not None and self.count_of(locale) > how.approximate_above


def _vectors(current: Run, keys: DataFrame, role: Role, encoder: Checkpoint) -> _Vectors:
    """The vectors of some keys (locale, key, source); `faults` when one has no text or no vector, or when vectors are
    of several lengths."""
    texts = tables.read_memory(current.warehouse, TEXTS)
    is_mine = (F.col("role") == role) & (F.col("recipe_digest") == F.lit(encoder.card.recipe.digest))
    of_source = texts.where(is_mine).select(F.col("source_digest").alias("source"), "text_digest")
    digests = current.keep(keys.join(of_source, on="source", how="left").select("locale", "key", "text_digest"))
    of_text = digests.groupBy("locale", "text_digest").agg(F.min("key").alias("first"), F.count("*").alias("keys"))
    with_vectors = of_text.join(vectors_of(current, encoder.scorer_digest, role), on="text_digest", how="left")
    same = Window.partitionBy("locale", "vector")
    named = current.keep(
        with_vectors.select("locale", "text_digest", "vector", "first", "keys", F.min("first").over(same).alias("id"))
    )
    faults = _lacking(named, role, encoder)
    # Two bytes of a digest: a part is a range of these places, so it is of known size, and the same whoever cuts.
    place = F.conv(F.substring(F.md5("id"), 1, 4), 16, 10).cast("int")
    is_first = (F.col("first") == F.col("id")) & F.col("vector").isNotNull()
    distinct = named.where(is_first).select("locale", "id", "vector", place.alias("place"))
    counted = distinct.groupBy("locale", "place").agg(
        F.count("*").alias("count"), F.min(F.size("vector")).alias("least"), F.max(F.size("vector")).alias("most")
    )
    by_locale: dict[str, list[tuple[int, int]]] = {}
    sizes = set()
    for row in counted.collect():
        by_locale.setdefault(row["locale"], []).append((row["place"], row["count"]))
        sizes |= {row["least"], row["most"]}
    if len(sizes) > 1 and not faults:
        faults.append(
            f"embeddings: expected vectors of one length by {encoder.name}, found some of {sorted(sizes)}; "
            "import the encoder under another name and run embed_texts"
        )
    members = digests.join(named.select("locale", "text_digest", "id"), on=["locale", "text_digest"], how="inner")
    return _Vectors(distinct, members.select("locale", "id", "key"), by_locale, max(sizes, default=1), tuple(faults))


def _lacking(named: DataFrame, role: Role, encoder: Checkpoint) -> list[str]:
    """What is said of keys without a text and texts without a vector."""
    no_text, no_vector = F.col("text_digest").isNull(), F.col("text_digest").isNotNull() & F.col("vector").isNull()
    said = named.agg(
        F.coalesce(F.sum(F.when(no_text, F.col("keys"))), F.lit(0)).alias("no_text"),
        F.count_if(no_vector).alias("no_vector"),
    ).collect()[0]
    what = "items" if role == "passage" else "queries"
    faults = []
    if said["no_text"]:
        faults.append(
            f"texts: expected a text for all {what} under the recipe of {encoder.name} "
            f"({encoder.card.recipe.digest.hex()}), found {said['no_text']:,} without; run build_texts with that "
            "recipe first"
        )
    if said["no_vector"]:
        faults.append(
            f"embeddings: expected the vectors of all {what} by {encoder.name} ({encoder.scorer_digest.hex()}), found "
            f"{said['no_vector']:,} texts without; run embed_texts first"
        )
    return faults


def _search(
    asked: _Vectors, offered: _Vectors, places: int, how: Search, widened: "Accumulator[int]", is_exact: bool = False
) -> DataFrame:
    """(locale, query, id, score): of every part of the items the best `places` vectors for each of the queries'."""
    spark = offered.distinct.sparkSession
    room = Room.of(how.block_mib, offered.dimensions)
    slots = spark.sparkContext.defaultParallelism
    tiles: list[tuple[int, str, int, int]] = []
    facts: dict[int, tuple[int, bool]] = {}
    cuts: dict[str, tuple[list[parts.Part], list[parts.Part]]] = {}
    for locale in sorted(offered.by_locale.keys() & asked.by_locale.keys()):
        is_indexed = offered.is_indexed(locale, how) and not is_exact
        most = indexed_vectors(how.index_mib, offered.dimensions, how.index_links) if is_indexed else room.vectors
        item_parts = parts.cut(offered.by_locale[locale], most)
        if max(part.count for part in item_parts) > most:
            raise ConfigError("block_mib, index_mib: too little memory to cut so many items into parts; raise them")
        # An index is built once: all queries go past it. A part that is searched exactly is sent to several tasks.
        chunks = 1 if is_indexed else math.ceil(_TASKS_A_SLOT * slots / len(item_parts))
        most = max(_QUERIES_A_TASK, math.ceil(asked.count_of(locale) / chunks))
        chunked = parts.cut(asked.by_locale[locale], most)
        cuts[locale] = item_parts, chunked
        for number, part in enumerate(item_parts):
            for chunk in range(len(chunked)):
                facts[len(tiles)] = part.count, is_indexed
                tiles.append((len(tiles), locale, number, chunk))
    schema = "tile int, query binary, id binary, score double"
    if not tiles:
        return spark.createDataFrame([], "locale string, query binary, id binary, score double")
    named = F.broadcast(spark.createDataFrame(tiles, "tile int, locale string, part int, chunk int"))
    of_items = _cut(offered.distinct, {locale: cut for locale, (cut, _) in cuts.items()}, "part")
    of_queries = _cut(asked.distinct, {locale: cut for locale, (_, cut) in cuts.items()}, "chunk")
    columns = ("tile", "is_query", "id", "vector")
    items = of_items.join(named, on=["locale", "part"], how="inner").withColumn("is_query", F.lit(0)).select(*columns)
    past = of_queries.join(named, on=["locale", "chunk"], how="inner").withColumn("is_query", F.lit(1)).select(*columns)
    # The number of a tile is that of its partition: no two share a task, and none is spread over two.
    streams = items.unionByName(past).repartitionById(len(tiles), "tile").sortWithinPartitions("is_query", "id")
    dimensions, links, breadth = offered.dimensions, how.index_links, how.index_breadth

    def search(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        use_cores_of_task()
        tile, ids, block = -1, [], Block(0, dimensions)
        searched: Block | Index | None = None
        for batch in batches:
            if not batch.num_rows:
                continue
            with without_values():
                if tile < 0:
                    tile = batch.column("tile")[0].as_py()
                    block = Block(facts[tile][0], dimensions)
                first_query = int(np.searchsorted(batch.column("is_query").to_numpy(), 1))
                if first_query:
                    block.put(_matrix(batch.column("vector").slice(0, first_query), dimensions))
                    ids.append(batch.column("id").slice(0, first_query))
                queries = batch.slice(first_query)
                if not queries.num_rows:
                    continue
                if searched is None:
                    ids = [pa.concat_arrays(ids)]
                    searched = Index(block, links, breadth) if facts[tile][1] else block
                found = searched.nearest(_matrix(queries.column("vector"), dimensions), places, room.rows)
                widened.add(found.widened)
                columns = [
                    pa.array(np.full(len(found.places), tile, np.int32)),
                    queries.column("id").take(pa.array(found.queries)),
                    ids[0].take(pa.array(found.places)),
                    pa.array(found.scores),
                ]
            yield pa.RecordBatch.from_arrays(columns, names=["tile", "query", "id", "score"])

    found = streams.mapInArrow(search, schema)
    of_locale = named.select("tile", "locale")
    return found.join(of_locale, on="tile", how="inner").select("locale", "query", "id", "score")


def _cut(vectors: DataFrame, cuts: dict[str, list[parts.Part]], name: str) -> DataFrame:
    """The vectors with the number of the part that their place is in."""
    rows = [(locale, part.first, part.last, number) for locale, cut in cuts.items() for number, part in enumerate(cut)]
    ranges = vectors.sparkSession.createDataFrame(rows, f"locale string, first int, last int, {name} int")
    within = F.col("place").between(F.col("first"), F.col("last"))
    joined = vectors.alias("v").join(
        F.broadcast(ranges).alias("r"), on=(F.col("v.locale") == F.col("r.locale")) & within, how="inner"
    )
    return joined.select("v.locale", "id", "vector", name)


def _matrix(vectors: pa.ListArray, dimensions: int) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = vectors.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dimensions)


def _expanded(found: DataFrame, asked: _Vectors, offered: _Vectors, places: int) -> DataFrame:
    """(query, item, score): the best `places` items of every query, of the best vectors of each part."""
    best_vectors = Window.partitionBy("locale", "query").orderBy(F.desc("score"), "id")
    vectors = found.withColumn("_place", F.row_number().over(best_vectors)).where(F.col("_place") <= places)
    # Of the items that share a vector the first by id come first: no more than are asked for can be among the best.
    by_id = Window.partitionBy("locale", "id").orderBy("key")
    shared = offered.members.withColumn("_place", F.row_number().over(by_id)).where(F.col("_place") <= places)
    items = vectors.drop("_place").join(shared.drop("_place"), on=["locale", "id"], how="inner")
    best_items = Window.partitionBy("locale", "query").orderBy(F.desc("score"), "key")
    best = items.withColumn("_place", F.row_number().over(best_items)).where(F.col("_place") <= places)
    of_vectors = best.select("locale", F.col("query").alias("id"), F.col("key").alias("item"), "score")
    same = asked.members.withColumnRenamed("key", "query")
    return of_vectors.join(same, on=["locale", "id"], how="inner").select("query", "item", "score")


def _measure(
    current: Run, landed: DataFrame, asked: _Vectors, offered: _Vectors, indexed: list[str], places: int, how: Search
) -> None:
    """Count what share of the exact search's items the index found for some queries, in parts per million."""
    of_indexed = asked.distinct.where(F.col("locale").isin(indexed))
    sampled = current.keep(of_indexed.orderBy("place", "locale", "id").limit(how.sampled_queries))
    counts: dict[str, list[tuple[int, int]]] = {}
    for row in sampled.groupBy("locale", "place").count().collect():
        counts.setdefault(row["locale"], []).append((row["place"], row["count"]))
    some = _Vectors(sampled, sampled.select("locale", "id", F.col("id").alias("key")), counts, asked.dimensions)
    nothing = current.warehouse.spark.sparkContext.accumulator(0)
    exact = _expanded(_search(some, offered, places, how, nothing, is_exact=True), some, offered, places)
    pairs = exact.select(F.col("query").alias("query_id"), F.col("item").cast("string").alias("item_id"))
    both = pairs.join(landed.withColumn("_found", F.lit(1)), on=["query_id", "item_id"], how="left")
    said = both.agg(
        F.count("*").alias("wanted"), F.count("_found").alias("found"), F.count_distinct("query_id").alias("queries")
    ).collect()[0]
    if said["wanted"]:
        recall = round(1e6 * said["found"] / said["wanted"])
        current.count(index_recall_ppm=recall, index_recall_queries=said["queries"])
