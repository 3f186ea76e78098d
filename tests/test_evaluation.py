"""Figures over queries: the same items for all rankers, the ideal from all that was judged, what was left out."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from sklearn.metrics import ndcg_score

from ecomspark.errors import ContractError
from ecomspark.evaluation import (
    Measures,
    as_table,
    judged_figures,
    not_shown,
    published_figures,
    recall_figures,
)

GAINS = {0: 0.0, 1: 1 / 7, 2: 3 / 7, 3: 1.0}
MEASURES = Measures(GAINS, k=3, grade_threshold=2, resamples=300, shuffles=50, seed=1)

# query, item, grade, final (minus rank), bm25
ORDERS = pd.DataFrame(
    [
        ("q1", "a", 3, -1.0, 0.0), ("q1", "b", 0, -2.0, 5.0), ("q1", "c", 1, -3.0, 5.0), ("q1", "gone", 3, None, 9.0),
        ("q2", "a", 0, -2.0, 2.0), ("q2", "b", 2, -1.0, 1.0),
        ("q3", "a", 0, -1.0, 1.0), ("q3", "b", 0, -2.0, 2.0),
    ],
    columns=["query_id", "item_id", "grade", "final", "bm25"],
)  # fmt: skip


def figure(metric: str, ranker: str):  # type: ignore[no-untyped-def]
    return next(f for f in judged_figures(ORDERS, MEASURES) if (f.metric, f.ranker) == (metric, ranker))


def test_ndcg_by_hand_with_the_delisted_item_in_the_ideal_only() -> None:
    ideal = 1 + 1 / math.log2(3) + (1 / 7) / 2
    q1_final = (1 + (1 / 7) / 2) / ideal
    # bm25 of q1: b and c tie at 5, b first by id; then a. The item that left the shop is in no order.
    q1_bm25 = (0 + (1 / 7) / math.log2(3) + 1 / 2) / ideal
    assert figure("ndcg@3", "final").value == pytest.approx((q1_final + 1) / 2, abs=1e-4)
    assert figure("ndcg@3", "bm25").value == pytest.approx((q1_bm25 + 1 / math.log2(3)) / 2, abs=1e-4)


def test_a_query_without_gain_is_left_out_and_counted() -> None:
    found = figure("ndcg@3", "final")
    assert (found.query_count, found.omitted_count) == (2, 1)
    assert figure("precision@3", "final").query_count == 3, "precision has a value there, too"


def test_the_lead_is_paired_and_the_final_ranking_has_none() -> None:
    final, lexical = figure("ndcg@3", "final"), figure("ndcg@3", "bm25")
    assert final.difference is None
    assert lexical.difference == pytest.approx(final.value - lexical.value, abs=1e-4)
    assert lexical.difference_low is not None
    assert lexical.difference_low <= lexical.difference


def test_agrees_with_an_independent_implementation_where_all_items_are_ranked() -> None:
    whole = ORDERS[(ORDERS["query_id"] != "q3") & ORDERS["final"].notna()]
    expected = [
        ndcg_score([[GAINS[g] for g in of["grade"]]], [list(of["final"])], k=3) for _, of in whole.groupby("query_id")
    ]
    found = next(f for f in judged_figures(whole, MEASURES) if (f.metric, f.ranker) == ("ndcg@3", "final"))
    assert found.value == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_the_published_ranking_gains_nothing_from_unjudged_items_and_says_how_many_there_are() -> None:
    published = pd.DataFrame(
        [("q1", 1, None), ("q1", 2, 3), ("q1", 3, None), ("q2", 1, 2)], columns=["query_id", "rank", "grade"]
    )
    found = {f.metric: f for f in published_figures(published, ORDERS, MEASURES)}
    ideal = 1 + 1 / math.log2(3) + (1 / 7) / 2
    assert found["ndcg@3"].value == pytest.approx((1 / math.log2(3) / ideal + 1) / 2, abs=1e-4)
    assert found["judged@3"].value == pytest.approx((1 / 3 + 1 / 3 + 0) / 3, abs=1e-4)
    assert found["recall@3"].value == pytest.approx((0.5 + 1) / 2, abs=1e-4)
    assert "auc" not in found


def test_figures_are_the_same_again_and_in_any_order_of_rows() -> None:
    shuffled = ORDERS.sample(frac=1, random_state=3)
    assert judged_figures(shuffled, MEASURES) == judged_figures(ORDERS, MEASURES)


def test_nothing_worth_anything_is_an_error_not_a_figure() -> None:
    with pytest.raises(ContractError, match="no value for any query"):
        judged_figures(ORDERS.assign(grade=0), MEASURES)


def test_the_table_shows_every_figure_with_its_interval() -> None:
    lines = as_table(judged_figures(ORDERS, MEASURES))
    assert len(lines) == 1 + 5 * 3 + 1
    assert lines[-1].startswith("1 queries are left out of ndcg")
    assert any(line.startswith("ndcg@3       bm25") and line.count("[") == 2 for line in lines)


def test_the_models_own_lead_tells_what_fine_tuning_did() -> None:
    orders = ORDERS.assign(model=[3, 1, 2, 0, 1, 2, 1, 2], cosine=[1, 3, 2, 0, 2, 1, 1, 2])
    found = {(f.metric, f.ranker): f for f in judged_figures(orders, MEASURES)}
    model, cosine = found["ndcg@3", "model"], found["ndcg@3", "cosine"]
    assert model.model_difference is None
    assert found["ndcg@3", "final"].model_difference is None
    assert cosine.model_difference == pytest.approx(model.value - cosine.value, abs=1e-4)
    assert cosine.model_difference > 0
    assert found["ndcg@3", "chance"].model_difference_low is not None


def test_a_lead_whose_interval_includes_zero_is_said_to_be_none() -> None:
    orders = ORDERS.assign(model=ORDERS["final"], cosine=[1, 3, 2, 0, 2, 1, 1, 2])
    said = not_shown(judged_figures(orders, MEASURES))
    assert any("that final differs from model" in line and "in ndcg@3" in line for line in said)
    assert not any("cosine" in line for line in said if "ndcg@3" in line), "of two queries both are better"


def test_of_all_places_ndcg_counts_each_judged_item_and_precision_is_left_out() -> None:
    found = {(f.metric, f.ranker): f for f in judged_figures(ORDERS, replace(MEASURES, k=None))}
    assert {metric for metric, _ in found} == {"ndcg", "mrr", "auc"}
    # q1 shows 3, 0, 1 where 3, 3, 1, 0 was judged: by hand, to the last place; q2 shows the better item first.
    ideal = 1 + 1 / math.log2(3) + (1 / 7) / 2
    assert found["ndcg", "final"].value == pytest.approx(((1 + (1 / 7) / 2) / ideal + 1) / 2, abs=1e-4)
    long = pd.DataFrame([("q", f"{i:02}", int(i == 11), -float(i)) for i in range(12)], columns=ORDERS.columns[:4])
    whole = judged_figures(long.assign(grade=long["grade"] * 3), replace(MEASURES, k=None))
    assert whole[0].value == pytest.approx(1 / math.log2(13), abs=1e-4), "the twelfth place counts, too"


def test_grades_that_are_means_are_worth_what_lies_between_and_others_are_refused() -> None:
    means = ORDERS.assign(grade=ORDERS["grade"] / 2)
    low = replace(MEASURES, grade_threshold=1.5)
    found = next(f for f in judged_figures(means, low) if (f.metric, f.ranker) == ("ndcg@3", "final"))
    of_half, of_one_and_half = (1 / 7) / 2, (1 / 7 + 3 / 7) / 2
    ideal = of_one_and_half * (1 + 1 / math.log2(3)) + of_half / 2
    assert found.value == pytest.approx(((of_one_and_half + of_half / 2) / ideal + 1) / 2, abs=1e-4)
    with pytest.raises(ContractError, match="expected grades from 0 to 3"):
        judged_figures(ORDERS.assign(grade=4.0), MEASURES)


def test_recall_of_the_first_stage_is_of_judged_relevant_items_by_slice() -> None:
    pairs = pd.DataFrame(
        [
            ("q1", 3, 1, None, 2), ("q1", 2, 7, 1, 1), ("q1", 0, 2, 2, 3), ("q2", 2, None, 9, 9), ("q3", 1, 1, 1, 1),
        ],
        columns=["query_id", "grade", "bm25", "embedding", "fused"],
    )  # fmt: skip
    of_q1 = pairs["query_id"] == "q1"
    slices = {"all": pd.Series(True, index=pairs.index), "words=1": of_q1, "words=2": pairs["query_id"] == "q3"}
    measures = Measures({0: 0.0, 3: 1.0}, None, 2, 200, 0, 1)
    found = recall_figures(pairs, ["bm25", "embedding", "fused"], slices, [2, 10], measures)
    assert set(found) == {"all", "words=1"}, "q3 has nothing relevant"
    values = {(of.ranker, of.metric): of for of in found["all"]}
    assert {key: of.value for key, of in values.items()} == {
        ("bm25", "recall@2"): 0.25, ("embedding", "recall@2"): 0.25, ("fused", "recall@2"): 0.5,
        ("bm25", "recall@10"): 0.5, ("embedding", "recall@10"): 0.75, ("fused", "recall@10"): 1.0,
    }  # fmt: skip
    assert (values["bm25", "recall@2"].query_count, values["bm25", "recall@2"].omitted_count) == (2, 1)
    assert values["bm25", "recall@2"].difference == 0.25, "by so much the fused order leads"
    assert values["fused", "recall@2"].difference is None
    assert set(recall_figures(pairs, ["bm25", "fused"], slices, [2], measures, min_queries=2)) == {"all"}
