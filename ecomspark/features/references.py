"""Which rows of memory tables something refers to, and since when nothing does.

What refers are rows of items, queries, aliases, candidates, rankings and next items, as they are or as an earlier
version that is kept had them. Rows that may be referred to are counted in: too much is kept rather than too little.
"""

from collections.abc import Mapping, Sequence
from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark.features.digests import digest_of
from ecomspark.features.scores import PAIR
from ecomspark.features.texts import analyser_digest, searched_fields
from ecomspark.schemas import SCORES, TERMS, TEXTS, Table
from ecomspark.text import IDENTITY_RECIPE_DIGEST, Analyser


def of_texts(items: DataFrame, queries: DataFrame, aliases: DataFrame, recipes: Sequence[bytes]) -> DataFrame:
    """The keys of `texts` of every item and query under each recipe, and of every alias under identity recipe 1."""
    under = F.explode(F.array(*map(F.lit, recipes))).alias("recipe_digest")
    asked = F.col("text_source_digest").alias("source_digest")
    passages = items.select("source_digest", F.lit("passage").alias("role"), under)
    texts = queries.select(asked, F.lit("query").alias("role"), under)
    identities = aliases.select(
        asked, F.lit("query").alias("role"), F.lit(IDENTITY_RECIPE_DIGEST).alias("recipe_digest")
    )
    return passages.unionByName(texts).unionByName(identities).select(*TEXTS.key).distinct()


def of_terms(items: DataFrame, queries: DataFrame, analysers: Mapping[str, Analyser]) -> DataFrame:
    """The keys of `terms` of every query and searched field under its locale's analyser."""
    fields = searched_fields(items).unionByName(queries.select("locale", F.col("query_text").alias("text")))
    made_by = analyser_digest(F.col("locale"), analysers).alias("analyser_digest")
    return fields.select(digest_of(F.col("text")).alias("field_text_digest"), made_by).select(*TERMS.key).distinct()


def of_scores(
    keys: DataFrame,
    candidates: DataFrame,
    queries: DataFrame,
    items: DataFrame,
    texts: DataFrame,
    rankings: DataFrame,
    scorers: Sequence[bytes],
) -> DataFrame:
    """Those of `keys`, of `scores`, that a ranking shows, and those of a candidate's texts (under any recipe) that one
    of `scorers` or a scorer of a ranking made. All attempts at a pair alike."""
    asked = texts.where("role = 'query'").select(
        F.col("source_digest").alias("text_source_digest"), "recipe_digest", F.col("text_digest").alias("query_digest")
    )
    offered = texts.where("role = 'passage'").select(
        "source_digest", "recipe_digest", F.col("text_digest").alias("passage_digest")
    )
    pairs = (
        candidates.join(queries.select("query_id", "text_source_digest"), on="query_id", how="inner")
        .join(items.select("item_id", "source_digest"), on="item_id", how="inner")
        .join(asked, on="text_source_digest", how="inner")
        .join(offered, on=["source_digest", "recipe_digest"], how="inner")
    )
    shown = [*PAIR, "scorer_digest"]
    named = keys.sparkSession.createDataFrame([(scorer,) for scorer in scorers], "scorer_digest binary")
    alive = rankings.select("scorer_digest").unionByName(named).distinct()
    of_pairs = keys.join(pairs.select(*PAIR).distinct(), on=PAIR, how="left_semi")
    of_alive = of_pairs.join(alive, on="scorer_digest", how="left_semi").select(*SCORES.key)
    of_rankings = keys.join(rankings.select(*shown).distinct(), on=shown, how="left_semi").select(*SCORES.key)
    return of_alive.unionByName(of_rankings).distinct()


def of_embeddings(keys: DataFrame, texts: DataFrame, encoders: Sequence[bytes]) -> DataFrame:
    """Those of `keys`, of `embeddings`, whose text is in `texts` and whose encoder is one of `encoders`."""
    there = keys.join(texts.select("text_digest").distinct(), on="text_digest", how="left_semi")
    return there.where(F.col("scorer_digest").isin(*map(F.lit, encoders))) if encoders else there.limit(0)


def unreferenced(table: Table, keys: DataFrame, referenced: DataFrame, known: DataFrame, as_of: date) -> DataFrame:
    """The keys that nothing refers to, with key_digest and since_date: what `known`, rows of the table unreferenced,
    says of them, or `as_of`."""
    parts = (F.hex(name) if table.column(name).type == "binary" else F.col(name).cast("string") for name in table.key)
    marked = keys.join(referenced, on=list(table.key), how="left_anti").withColumn("key_digest", digest_of(*parts))
    before = known.select("key_digest", "since_date")
    since = F.coalesce("since_date", F.lit(as_of))
    return marked.join(before, on="key_digest", how="left").withColumn("since_date", since)
