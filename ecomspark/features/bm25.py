"""BM25 over several fields, as Spark expressions over `terms`.

Robertson, Zaragoza & Taylor 2004 (BM25F): term frequencies of the fields are weighted and normalised by field length,
summed, and then saturate together. The inverse document frequency is Lucene's, ln(1 + (N - n + 0.5) / (n + 0.5)),
never negative. Sums are of decimals: exact, so that no partitioning changes a score or breaks a tie.
"""

from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.config import Bm25
from ecomspark.features.digests import digest_of
from ecomspark.features.texts import analyser_digest
from ecomspark.text import Analyser

_EXACT = "decimal(28,10)"


def item_terms(items: DataFrame, terms: DataFrame, analysers: Mapping[str, Analyser], bm25: Bm25) -> DataFrame:
    """(locale, item_id, field, terms) for every searched field that is not empty and whose terms are made."""
    fields = F.explode(
        F.array(*(F.struct(F.lit(f).alias("field"), F.col(f).alias("text")) for f in bm25.field_weights))
    )
    of_items = items.select("locale", "item_id", fields.alias("of")).select("locale", "item_id", "of.*")
    return _with_terms(of_items.where(F.length("text") > 0), terms, analysers).select(
        "locale", "item_id", "field", "terms"
    )


def query_terms(queries: DataFrame, terms: DataFrame, analysers: Mapping[str, Analyser]) -> DataFrame:
    """(query_id, locale, term, repetitions): the distinct terms of each query."""
    of_queries = queries.select("query_id", "locale", F.col("query_text").alias("text"))
    exploded = _with_terms(of_queries, terms, analysers).select("query_id", "locale", F.explode("terms").alias("term"))
    return exploded.groupBy("query_id", "locale", "term").agg(F.count("*").alias("repetitions"))


def statistics(item_terms: DataFrame, version: int) -> DataFrame:
    """Rows for `collection_statistics`: items with a term, by locale; under the empty term all items and the mean
    count of terms by field, over the items that have the field."""
    exploded = item_terms.select("locale", "item_id", F.explode("terms").alias("term")).distinct()
    of_term = exploded.groupBy("locale", "term").agg(F.count("*").alias("item_count"))
    lengths = item_terms.groupBy("locale", "field").agg(F.avg(F.size("terms")).alias("length"))
    averages = lengths.groupBy("locale").agg(
        F.map_from_entries(F.sort_array(F.collect_list(F.struct("field", "length")))).alias("average_lengths")
    )
    items = item_terms.groupBy("locale").agg(F.countDistinct("item_id").alias("item_count"))
    of_all = items.join(averages, on="locale", how="inner").withColumn("term", F.lit(""))
    return of_term.unionByName(of_all, allowMissingColumns=True).withColumn("statistics_version", F.lit(version))


def postings(item_terms: DataFrame, statistics: DataFrame, bm25: Bm25) -> DataFrame:
    """(locale, item_id, term, weight): what one occurrence of the term in a query adds to the item's score.

    A term that the statistics do not know, new since they were made, counts as if one item had it.
    """
    weight, average = F.lit(None).cast("double"), F.col("average_lengths")[F.col("field")]
    for field, value in bm25.field_weights.items():
        weight = F.when(F.col("field") == field, F.lit(value)).otherwise(weight)
    all_items = statistics.where("term = ''").select("locale", "average_lengths", F.col("item_count").alias("all"))
    norm = 1.0 - bm25.b + bm25.b * F.size("terms") / F.coalesce(average, F.size("terms").cast("double"))
    frequencies = (
        item_terms.join(F.broadcast(all_items), on="locale", how="inner")
        .select("locale", "item_id", "all", (weight / norm).alias("worth"), F.explode("terms").alias("term"))
        .groupBy("locale", "item_id", "all", "term")
        .agg(F.sum(F.col("worth").cast(_EXACT)).cast("double").alias("frequency"))
    )
    known = statistics.where("term <> ''").select("locale", "term", "item_count")
    joined = frequencies.join(known, on=["locale", "term"], how="left")
    saturated = F.col("frequency") * (bm25.k1 + 1.0) / (F.col("frequency") + bm25.k1)
    return joined.select("locale", "item_id", "term", (_idf() * saturated).cast(_EXACT).alias("weight"))


def best_items(
    query_terms: DataFrame, postings: DataFrame, statistics: DataFrame, count: int, max_proposing_share: float
) -> DataFrame:
    """(query_id, item_id, score, place): the best `count` items of each query in its locale, place 1 first.

    A term that more than `max_proposing_share` of the items have proposes no item, it only adds to the scores of
    those that another term proposes; but the rarest term of a query always proposes. Ties: by item_id.
    """
    all_items = statistics.where("term = ''").select("locale", F.col("item_count").alias("all"))
    known = statistics.where("term <> ''").select("locale", "term", "item_count")
    terms = query_terms.join(known, on=["locale", "term"], how="left").join(
        F.broadcast(all_items), on="locale", how="inner"
    )
    # A term that no item has would be the rarest and propose nothing.
    rarest_first = Window.partitionBy("query_id").orderBy(F.col("item_count").asc_nulls_last(), "term")
    is_rare = F.coalesce("item_count", F.lit(1)) <= max_proposing_share * F.col("all")
    proposing = terms.withColumn("_rarity", F.row_number().over(rarest_first)).where(is_rare | (F.col("_rarity") == 1))
    proposed = (
        proposing.select("query_id", "locale", "term")
        .join(postings, on=["locale", "term"], how="inner")
        .select("query_id", "item_id")
        .distinct()
    )
    best_first = Window.partitionBy("query_id").orderBy(F.desc("score"), "item_id")
    scored = scores_of(proposed, query_terms, postings)
    return scored.withColumn("place", F.row_number().over(best_first)).where(F.col("place") <= count)


def scores_of(pairs: DataFrame, query_terms: DataFrame, postings: DataFrame) -> DataFrame:
    """(query_id, item_id, score) of the pairs of `pairs` that share a term; scores rounded to 1e-6."""
    return (
        pairs.select("query_id", "item_id")
        .join(query_terms, on="query_id", how="inner")
        .join(postings, on=["locale", "item_id", "term"], how="inner")
        .groupBy("query_id", "item_id")
        .agg(F.round(F.sum(F.col("weight") * F.col("repetitions")), 6).cast("double").alias("score"))
    )


def _idf() -> Column:
    count = F.coalesce("item_count", F.lit(1))
    return F.log1p((F.col("all") - count + 0.5) / (count + 0.5))


def _with_terms(fields: DataFrame, terms: DataFrame, analysers: Mapping[str, Analyser]) -> DataFrame:
    named = fields.withColumn("field_text_digest", digest_of(F.col("text"))).withColumn(
        "analyser_digest", analyser_digest(F.col("locale"), analysers)
    )
    return named.join(terms, on=["field_text_digest", "analyser_digest"], how="inner")
