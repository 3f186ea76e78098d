"""Metrics against independent implementations (scikit-learn's), and by hand where there is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, ndcg_score, precision_score, recall_score, roc_auc_score

from ecomspark import metrics

GRADES = st.lists(st.integers(0, 3), min_size=2, max_size=30)


@given(GRADES, st.integers(1, 12))
def test_ndcg_is_scikit_learns(grades: list[int], k: int) -> None:
    gains = [(2**grade - 1) / 7 for grade in grades]
    found = metrics.ndcg(gains, gains, k)
    if max(grades) == 0:
        assert found is None
        return
    assert found == pytest.approx(ndcg_score([gains], [list(range(len(gains), 0, -1))], k=k), abs=1e-9)


@given(GRADES)
def test_auc_is_scikit_learns(grades: list[int]) -> None:
    relevant = [grade >= 2 for grade in grades]
    found = metrics.auc(grades, threshold=2)
    if len(set(relevant)) < 2:
        assert found is None
        return
    assert found == pytest.approx(roc_auc_score(relevant, list(range(len(grades), 0, -1))))


@given(GRADES, st.integers(1, 12))
def test_precision_and_recall_are_scikit_learns(grades: list[int], k: int) -> None:
    relevant = [grade >= 2 for grade in grades]
    shown = [place < k for place in range(len(grades))]
    if k <= len(grades):
        assert metrics.precision(grades, 2, k) == pytest.approx(precision_score(relevant, shown, zero_division=0))
    if any(relevant):
        assert metrics.recall(grades, grades, 2, k) == pytest.approx(recall_score(relevant, shown))
    else:
        assert metrics.recall(grades, grades, 2, k) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=40))
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len(set(first)) > 1 and len(set(second)) > 1:
        theirs = cohen_kappa_score(first, second, labels=[0, 1, 2, 3], weights="quadratic")
        assert metrics.quadratic_kappa(first, second) == pytest.approx(theirs)


def test_reciprocal_rank_by_hand() -> None:
    assert metrics.reciprocal_rank([0, 1, 2], 2) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank([0, 1], 2) == 0.0


def test_the_ideal_is_of_all_that_was_judged_not_of_what_is_shown() -> None:
    # One of two perfect items is shown, first: DCG 1 against 1 + 1/log2(3).
    assert metrics.ndcg([1.0], judged=[1.0, 1.0], k=10) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_chance_is_the_mean_over_seeded_orders() -> None:
    gains = [1.0, 0.0, 0.0]
    drawn = metrics.chance(lambda order: metrics.ndcg(order, gains, 3), gains, shuffles=2_000, seed=[1])
    assert drawn == pytest.approx((1 + 1 / np.log2(3) + 0.5) / 3, abs=0.02)
    again = metrics.chance(lambda order: metrics.ndcg(order, gains, 3), gains, shuffles=2_000, seed=[1])
    assert drawn == again


def test_the_bootstrap_covers_the_mean_of_a_known_distribution() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(100):
        interval = metrics.bootstrap(generator.normal(0.5, 0.1, 60).tolist(), resamples=400, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    assert 86 <= covered <= 100, "95 % intervals: 95 expected; below 86 or so once in 10,000 sets of trials"


def test_one_seed_draws_the_same_queries_for_every_ranker() -> None:
    values = [0.1, 0.5, 0.9, 0.3]
    shifted = [value + 0.05 for value in values]
    one, other = metrics.bootstrap(values, 500, seed=3), metrics.bootstrap(shifted, 500, seed=3)
    assert other.low - one.low == pytest.approx(0.05)
    assert metrics.bootstrap([0.05] * 4, 500, seed=3).high == pytest.approx(0.05), "a constant lead is certain"
    with pytest.raises(ValueError, match="no query"):
        metrics.bootstrap([], 500, seed=3)


@given(st.floats(-40, 40), st.floats(1e-3, 5))
def test_expected_gain_rises_strictly_within_0_and_1(logit: float, step: float) -> None:
    points = [(-2.0, 0.05), (0.5, 0.051), (3.0, 0.9)]
    low, high = metrics.expected_gain(logit, points), metrics.expected_gain(logit + step, points)
    assert 0 <= low <= high <= 1
    if logit > -20 and logit + step < 20:
        assert low < high


@pytest.mark.parametrize(("grade", "gain"), [(1, 0.0), (2.0, 0.2), (3, 1.0), (1.5, 0.1), (2.33, 0.2 + 0.8 * 0.33)])
def test_a_mean_of_judges_is_worth_what_lies_between_its_neighbours(grade: float, gain: float) -> None:
    assert metrics.gain_of(grade, {3: 1.0, 1: 0.0, 2: 0.2}) == pytest.approx(gain)


@pytest.mark.parametrize("grade", [0.99, 3.01, float("nan"), float("inf")])
def test_a_grade_off_the_scale_is_worth_nothing_that_is_known(grade: float) -> None:
    with pytest.raises(ValueError, match="from 1 to 3"):
        metrics.gain_of(grade, {1: 0.0, 2: 0.2, 3: 1.0})


def test_fused_ranks_are_the_sums_of_their_reciprocals_and_ties_are_broken_by_id() -> None:
    fused = metrics.reciprocal_rank_fusion([{"b": 1, "a": 2, "c": 3}, {"a": 1, "b": 2, "d": 3}])
    assert list(fused) == ["a", "b", "c", "d"], "a and b are tied, and so are c and d"
    assert fused["a"] == fused["b"] == pytest.approx(1 / 61 + 1 / 62)
    assert metrics.reciprocal_rank_fusion([]) == {}


@given(st.permutations([{1: 1, 2: 2, 3: 3}, {3: 1, 1: 7, 2: 9}, {2: 1, 3: 5, 1: 4}]), st.integers(0, 100))
def test_the_order_of_the_fused_rankings_is_no_matter(ranks: list[dict[int, int]], constant: int) -> None:
    one, other = (metrics.reciprocal_rank_fusion(of, constant) for of in (ranks, ranks[::-1]))
    assert list(one.items()) == list(other.items())
