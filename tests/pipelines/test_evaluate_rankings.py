"""Evaluation end to end: the figures in run_metrics are those that scikit-learn finds in the same tables."""

from typing import Any

import numpy as np
import pytest
from pyspark.sql import functions as F
from shop import Shop
from sklearn.metrics import ndcg_score

from ecomspark.config import GAIN_PRESETS
from ecomspark.errors import ContractError
from ecomspark.schemas import EMBEDDINGS, JUDGMENTS, RANKINGS, RUN_METRICS, SPLITS


def figures(shop: Shop, run_id: str = "first") -> dict[tuple[str, str], Any]:
    return {
        (row["metric"], row["ranker"]): row for row in shop.rows(RUN_METRICS).where(f"run_id = '{run_id}'").collect()
    }


def test_every_ranker_is_judged_on_the_same_items(ranked_shop: Shop) -> None:
    found = figures(ranked_shop)
    assert {ranker for metric, ranker in found if metric == "ndcg@10"} == {
        "final", "model", "bm25", "cosine", "chance", "published",
    }  # fmt: skip
    assert {metric for metric, _ in found} == {"ndcg@10", "mrr", "precision@10", "recall@10", "auc", "judged@10"}
    counts = {row["query_count"] for (metric, ranker), row in found.items() if metric == "ndcg@10"}
    assert len(counts) == 1
    for row in found.values():
        assert row["low"] <= row["value"] <= row["high"]
        assert row["value"] == round(row["value"], 4)
    assert found["ndcg@10", "final"]["difference"] is None
    lead = found["ndcg@10", "final"]["value"] - found["ndcg@10", "bm25"]["value"]
    assert found["ndcg@10", "bm25"]["difference"] == pytest.approx(lead, abs=1e-4)


@pytest.mark.parametrize("ranker", ["final", "model"])
def test_ndcg_is_scikit_learns(ranked_shop: Shop, ranker: str) -> None:
    test = ranked_shop.rows(SPLITS).where("side = 'test'").select("query_id")
    ranked = ranked_shop.rows(RANKINGS).where("variant = 'judged'").select("query_id", "item_id", "rank", "logit")
    judged = ranked_shop.rows(JUDGMENTS).join(test, on="query_id", how="left_semi")
    frame = judged.join(ranked, on=["query_id", "item_id"], how="inner").select(
        F.hex("query_id").alias("query"), "item_id", "grade", (-F.col("rank")).alias("final"), F.col("logit").alias("model")
    ).toPandas()  # fmt: skip
    gains = frame["grade"].map(GAIN_PRESETS["exponential"])
    frame = frame.assign(gain=gains).sort_values("item_id")
    values = [
        ndcg_score([of_query["gain"]], [of_query[ranker]], k=10, ignore_ties=True)
        for _, of_query in frame.groupby("query")
    ]
    assert figures(ranked_shop)["ndcg@10", ranker]["value"] == pytest.approx(np.mean(values), abs=5e-5)


def test_vectors_are_made_once_and_figures_are_the_same_again(copied: Shop) -> None:
    vectors = copied.rows(EMBEDDINGS).count()
    again = copied.run("evaluate_rankings", "again")
    assert "embedded" not in again.rows
    assert copied.rows(EMBEDDINGS).count() == vectors > 0
    first, second = figures(copied), figures(copied, "again")
    assert {key: row["value"] for key, row in first.items()} == {key: row["value"] for key, row in second.items()}


def test_gains_are_declared_and_decide(copied: Shop) -> None:
    copied.run("evaluate_rankings", "esci", gains="esci", encoder=None)
    esci = figures(copied, "esci")
    assert ("ndcg@10", "cosine") not in esci
    assert esci["ndcg@10", "chance"]["value"] != figures(copied)["ndcg@10", "chance"]["value"]


@pytest.mark.nightly
def test_a_judgment_of_an_item_that_left_counts_in_the_ideal_only(copied: Shop) -> None:
    test = copied.rows(SPLITS).where("side = 'test'").select("query_id")
    judged = copied.rows(JUDGMENTS).where("grade > 0").join(test, on="query_id", how="left_semi")
    gone = judged.orderBy(F.desc("grade"), "item_id").collect()[0]["item_id"]
    before = figures(copied)["ndcg@10", "final"]["value"]
    from shop import ITEMS

    copied.write_items([item for item in ITEMS if item[0] != gone])
    for job in ("import_items", "build_candidates", "rank_candidates"):
        copied.run(job, "gone")
    summary = copied.run("evaluate_rankings", "gone")
    assert summary.rows["not_ranked"] > 0
    assert figures(copied, "gone")["ndcg@10", "final"]["value"] < before


def test_without_the_judged_variant_it_says_what_to_run(copied: Shop) -> None:
    with pytest.raises(ContractError, match=r"under the variant other, found none; build, score and rank"):
        copied.run("evaluate_rankings", "other", judged_variant="other")
