"""What stems are worth to BM25, and what it costs that frequent terms do not propose: recall of judged items.

    make recall

Recall@100: of the items that assessors found relevant for a query, the share among the first 100 by BM25 over titles,
mean over queries. On Home Depot's pairs (../shared/data, mean grade of at least 2.5 of 3) for 300 queries drawn with a
seed, and on the sample's (grade 2 or 3), whose pairs were pooled from BM25 among others, so that its level says little
and only the differences count. Deterministic: no times are taken.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ecomspark.config import Bm25
from ecomspark.demo_data import make_sample
from ecomspark.features import bm25
from ecomspark.features.texts import analyser_digest
from ecomspark.text import Analyser, digest, terms

ROOT = Path(__file__).parent.parent.parent
HOME_DEPOT = ROOT.parent / "shared" / "data" / "homedepot_judgments.parquet"

COUNT, QUERIES, SEED = 100, 300, 7
ENGLISH = {"us": Analyser(language="english")}


def plain_words(text: str) -> list[str]:
    """What a search without an analyser would count: lower-case words as they stand."""
    return re.findall(r"\w+", text.lower())


def stemmed(text: str) -> list[str]:
    return terms(text, ENGLISH["us"])


def home_depot() -> pd.DataFrame:
    pairs = pd.read_parquet(HOME_DEPOT)
    relevant = pairs.assign(is_relevant=pairs["grade"] >= 2.5)
    asked = relevant[relevant["is_relevant"]]["query_text"].drop_duplicates().sample(QUERIES, random_state=SEED)
    return relevant.assign(is_asked=relevant["query_text"].isin(set(asked)))


def sample() -> pd.DataFrame:
    """Judged pairs of the sample, and the items that nobody judged: they are in the way of the others."""
    judgments = pd.read_csv(make_sample.HERE / "judgments.csv")
    queries = pd.read_csv(make_sample.HERE / "queries.csv")
    judged = judgments.merge(queries, on="source_query_id").assign(is_asked=True)
    judged["is_relevant"] = judged["grade"] >= 2
    shop = make_sample.titles()
    judged["title"] = judged["item_id"].map(shop)
    rest = shop[~shop.index.isin(judged["item_id"])].rename_axis("item_id").reset_index(name="title")
    return pd.concat([judged, rest.assign(is_asked=False, is_relevant=False, query_text="")])


def recall(spark: SparkSession, pairs: pd.DataFrame, analyse: Callable[[str], list[str]], share: float) -> float:
    """Mean recall@100 over the asked queries that have a relevant item."""
    settings = Bm25(field_weights={"title": 1.0})
    titles = pairs.drop_duplicates("item_id")[["item_id", "title"]]
    wanted = pairs[pairs["is_asked"] & pairs["is_relevant"]].drop_duplicates(["query_text", "item_id"])
    asked = sorted(set(wanted["query_text"]))
    texts = sorted({*titles["title"], *asked})
    made = spark.createDataFrame(
        [(bytearray(digest(text)), analyse(text)) for text in texts], "field_text_digest binary, terms array<string>"
    ).withColumn("analyser_digest", analyser_digest(F.lit("us"), ENGLISH))
    items = spark.createDataFrame([("us", *map(str, row)) for row in titles.itertuples(index=False)],
                                  "locale string, item_id string, title string")  # fmt: skip
    queries = spark.createDataFrame(
        [(bytearray(digest(query)), "us", query) for query in asked],
        "query_id binary, locale string, query_text string",
    )
    item_terms = bm25.item_terms(items, made, ENGLISH, settings).persist()
    statistics = bm25.statistics(item_terms, 1).persist()
    postings = bm25.postings(item_terms, statistics, settings).persist()
    query_terms = bm25.query_terms(queries, made, ENGLISH).persist()
    best = bm25.best_items(query_terms, postings, statistics, COUNT, share)
    found = {(bytes(row["query_id"]), row["item_id"]) for row in best.select("query_id", "item_id").collect()}
    for frame in (item_terms, statistics, postings, query_terms):
        frame.unpersist()
    is_found = [(digest(row.query_text), str(row.item_id)) in found for row in wanted.itertuples()]
    return float(wanted.assign(is_found=is_found).groupby("query_text")["is_found"].mean().mean())


def main() -> int:
    sets: dict[str, Any] = {"sample": sample}
    if HOME_DEPOT.exists():
        sets["Home Depot"] = home_depot
    else:
        print(f"{HOME_DEPOT} is not there: the sample only")
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    warehouse = f"--conf spark.sql.warehouse.dir={tempfile.mkdtemp()}"
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {warehouse} pyspark-shell"
    spark = SparkSession.builder.appName("bm25_recall").getOrCreate()
    try:
        for name, read in sets.items():
            pairs = read()
            items, queries = pairs["item_id"].nunique(), pairs[pairs["is_asked"]]["query_text"].nunique()
            print(f"{name}: recall@{COUNT} over {queries:,} queries, {items:,} items")
            for analyser, share in ((plain_words, 0.1), (stemmed, 1.0), (stemmed, 0.1), (stemmed, 0.05),
                                    (stemmed, 0.02)):  # fmt: skip
                value = recall(spark, pairs, analyser, share)
                print(f"  {analyser.__name__:12} terms in at most {share:4.0%} of the items propose: {value:.4f}",
                      flush=True)  # fmt: skip
    finally:
        spark.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
