"""Two checkpoints over the same pairs, by hand: the same queries for both, ties, what is left out, what is not shown."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ecomspark import metrics
from ecomspark.errors import ContractError
from ecomspark.evaluation import Measures
from ecomspark.paired import Comparison, as_table, compare, not_shown

GAINS = {0: 0.0, 1: 1 / 7, 2: 3 / 7, 3: 1.0}
MEASURES = Measures(GAINS, k=2, grade_threshold=2, resamples=400, shuffles=0, seed=1)

# query, item, grade, a, b
PAIRS = pd.DataFrame(
    [
        ("q1", "x", 3, 0.1, 0.9), ("q1", "y", 0, 0.5, 0.2), ("q1", "z", 1, 0.3, 0.3), ("q1", "gone", 3, None, 9.0),
        ("q2", "x", 0, 0.7, 0.4), ("q2", "y", 2, 0.7, 0.6),
        ("q3", "x", 0, 0.2, 0.1), ("q3", "y", 0, 0.1, 0.2),
    ],
    columns=["query_id", "item_id", "grade", "a", "b"],
)  # fmt: skip
EVERY = {"all": pd.Series(True, index=PAIRS.index)}


def found(pairs: pd.DataFrame = PAIRS, **slices: pd.Series) -> dict[tuple[str, str], Comparison]:
    compared = compare(pairs, {**EVERY, **slices}, MEASURES, min_queries=1)
    return {(of.slice, of.metric): of for of in compared.comparisons}


def test_figures_by_hand() -> None:
    # A orders q1 y, z, x and q2 x, y (a tie: by item_id); B orders q1 x, z, y and q2 y, x. The item without a score of A
    # is in neither order and in the ideal, of which two places count.
    ideal = 1 + 1 / math.log2(3)
    a = ((1 / 7) / math.log2(3) / ideal, 1 / math.log2(3))
    b = ((1 + (1 / 7) / math.log2(3)) / ideal, 1.0)
    ndcg = found()["all", "ndcg@2"]
    assert ndcg.a.mean == pytest.approx(sum(a) / 2, abs=1e-4)
    assert ndcg.b.mean == pytest.approx(sum(b) / 2, abs=1e-4)
    assert ndcg.difference.mean == pytest.approx((b[0] - a[0] + b[1] - a[1]) / 2, abs=1e-4)
    assert (ndcg.query_count, ndcg.omitted_count) == (2, 1), "nothing judged for q3 has a gain"

    # The interval of the difference is that of each query's own difference.
    drawn = metrics.bootstrap([b[0] - a[0], b[1] - a[1]], MEASURES.resamples, MEASURES.seed)
    assert (ndcg.difference.low, ndcg.difference.high) == (round(drawn.low, 4), round(drawn.high, 4))

    mrr, recall, auc = (found()["all", name] for name in ("mrr", "recall@2", "auc"))
    assert (mrr.a.mean, mrr.b.mean) == (pytest.approx((1 / 3 + 1 / 2) / 2, abs=1e-4), 1.0)
    assert (recall.a.mean, recall.b.mean) == (pytest.approx((0 + 1) / 2), pytest.approx((1 / 2 + 1) / 2))
    assert (auc.a.mean, auc.b.mean) == (0.0, 1.0), "only q1 and q2 have items on both sides"
    assert found()["all", "precision@2"].query_count == 3


def test_the_pooled_auc_is_scikit_learns_with_ties_and_its_interval_resamples_queries() -> None:
    scored = PAIRS[PAIRS["a"].notna()]
    pooled = found()["all", "pooled_auc"]
    is_relevant = scored["grade"] >= 2
    assert pooled.a.mean == pytest.approx(roc_auc_score(is_relevant, scored["a"]), abs=1e-4)
    assert pooled.b.mean == pytest.approx(roc_auc_score(is_relevant, scored["b"]), abs=1e-4)
    assert pooled.difference.mean == pytest.approx(pooled.b.mean - pooled.a.mean, abs=2e-4)
    assert pooled.query_count == 3

    # A query drawn twice counts like its rows written twice.
    weights = np.where(scored["query_id"] == "q1", 2, 1)
    twice = pd.concat([scored, scored[scored["query_id"] == "q1"]])
    weighted = metrics.pooled_auc(list(scored["a"]), list(is_relevant))(weights)
    assert weighted == pytest.approx(roc_auc_score(twice["grade"] >= 2, twice["a"]))
    assert metrics.pooled_auc([0.1, 0.2], [True, True])(np.ones(2)) is None


def test_a_slice_of_items_has_an_ideal_of_its_own() -> None:
    is_in = PAIRS["item_id"] != "gone"
    whole, part = found(**{"items=new": is_in})["all", "ndcg@2"], found(**{"items=new": is_in})["items=new", "ndcg@2"]
    best = 1 + (1 / 7) / math.log2(3)
    assert part.b.mean == pytest.approx((best / best + 1) / 2, abs=1e-4)
    assert part.b.mean > whole.b.mean


def test_a_slice_of_few_queries_is_left_out_and_named_and_all_queries_never_are() -> None:
    slices = {**EVERY, "words=1": PAIRS["query_id"] == "q1", "words=2": PAIRS["query_id"] != "q1"}
    compared = compare(PAIRS, slices, MEASURES, min_queries=2)
    assert compared.left_out == ("words=1",)
    by_slice = {of.slice for of in compared.comparisons}
    assert by_slice == {"all", "words=2"}
    of_two = {of.metric for of in compared.comparisons if of.slice == "words=2"}
    assert of_two == {"precision@2", "pooled_auc"}, "q3 has no gain and no relevant item: a figure over q2 alone"
    assert [of.slice for of in compared.comparisons] == ["all"] * 6 + ["words=2"] * 2
    assert compare(PAIRS, EVERY, MEASURES, min_queries=99).left_out == ()


def test_the_order_of_the_rows_changes_nothing_and_grades_may_be_fractions() -> None:
    shuffled = PAIRS.sample(frac=1, random_state=5)
    slices = {"all": pd.Series(True, index=shuffled.index), "words=1": shuffled["query_id"] == "q1"}
    assert found(shuffled, **slices) == found(**{"words=1": PAIRS["query_id"] == "q1"})
    assert found(PAIRS.assign(grade=PAIRS["grade"].astype(float))) == found()


def test_a_checkpoint_does_not_differ_from_itself_and_that_is_said() -> None:
    alike = compare(PAIRS.assign(a=PAIRS["b"]), {**EVERY, "words=1": PAIRS["query_id"] == "q1"}, MEASURES, 1)
    assert {of.difference.mean for of in alike.comparisons} == {0.0}
    said = not_shown(alike.comparisons)
    assert (
        said[0]
        == "not shown by these queries: that B differs from A in ndcg@2 (all, words=1); the interval includes zero"
    )
    assert len(said) == 6, "one sentence a metric, and nothing to say of chance"
    auc = found()["all", "auc"]
    assert not any(" auc (" in line for line in not_shown([auc])), "of both queries B is right and A wrong"


def test_the_table_names_both_and_shows_every_figure() -> None:
    comparisons = list(found(**{"words=1": PAIRS["query_id"] == "q1"}).values())
    lines = as_table(comparisons, "base", "tuned")
    assert lines[0].startswith("A: base; B: tuned;")
    assert len(lines) == 2 + len(comparisons)
    assert all(line.count("[") == 3 for line in lines[2:])
    assert lines[2].split()[:3] == ["all", "ndcg@2", "2"]


def test_nothing_that_has_a_value_is_an_error_not_a_figure() -> None:
    with pytest.raises(ContractError, match="no metric has a value for any query"):
        compare(PAIRS.iloc[:0], {"all": pd.Series(dtype=bool)}, MEASURES, 1)
