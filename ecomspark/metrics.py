"""Ranking metrics on plain sequences, graded, and their uncertainty. Pure: no Spark, no models.

A query's ranking is given as the gains, or grades, of its items in rank order. An item nobody judged counts as 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import fsum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[Sequence[float]], float | None]
Id = TypeVar("Id", str, int)


def gain_of(grade: float, gains: Mapping[int, float]) -> float:
    """What a grade is worth: its own gain, or for a mean of several judges what lies on the line between the two whole
    grades around it. Raises ValueError below the lowest and above the highest grade of `gains`, and for NaN.

    >>> gain_of(2.5, {1: 0.0, 2: 0.5, 3: 1.0})
    0.75
    """
    own = gains.get(grade)  # type: ignore[call-overload]  # 2.0 finds 2
    if own is not None:
        return float(own)
    for low, high in pairwise(sorted(gains)):
        if low < grade < high:
            return gains[low] + (gains[high] - gains[low]) * (grade - low) / (high - low)
    raise ValueError(f"expected a grade from {min(gains)} to {max(gains)}")


def ndcg(gains: Sequence[float], judged: Sequence[float], k: int | None) -> float | None:
    """NDCG@k of one query (Järvelin & Kekäläinen 2002): `gains` in rank order against the best order of `judged`.

    `k` None: of all places, as trec_eval's `ndcg`. None if nothing judged is worth anything.
    An unjudged item has gain 0. Gains are linear: map grades first.

    >>> round(ndcg([0.0, 1.0], judged=[1.0, 0.0], k=2), 4)
    0.6309
    """
    best = _dcg(sorted(judged, reverse=True), k)
    return _dcg(gains, k) / best if best > 0 else None


def reciprocal_rank(grades: Sequence[float], threshold: float) -> float:
    """1 / rank of the first item of at least the threshold grade; 0 if there is none.

    >>> reciprocal_rank([0, 1, 3], threshold=2)
    0.3333333333333333
    """
    return next((1.0 / rank for rank, grade in enumerate(grades, start=1) if grade >= threshold), 0.0)


def precision(grades: Sequence[float], threshold: float, k: int) -> float:
    """Share of the first k places held by items of at least the threshold grade; empty places count against it.

    >>> precision([3, 0, 2], threshold=2, k=4)
    0.5
    """
    return sum(grade >= threshold for grade in grades[:k]) / k


def recall(grades: Sequence[float], judged: Sequence[float], threshold: float, k: int) -> float | None:
    """Share of all judged items of at least the threshold grade that are among the first k; None if there are none.

    >>> recall([3, 0, 2], judged=[3, 0, 2, 2], threshold=2, k=2)
    0.3333333333333333
    """
    wanted = sum(grade >= threshold for grade in judged)
    return sum(grade >= threshold for grade in grades[:k]) / wanted if wanted else None


def auc(grades: Sequence[float], threshold: float) -> float | None:
    """Chance that an item of at least the threshold grade stands above one below it, within one query's order.

    Mann & Whitney 1947. None unless there are items on both sides.

    >>> auc([3, 0, 2, 1], threshold=2)
    0.75
    """
    positives = negatives = above = 0
    for grade in grades:
        if grade >= threshold:
            positives += 1
        else:
            negatives += 1
            above += positives
    return above / (positives * negatives) if positives and negatives else None


def pooled_auc(
    scores: Sequence[float] | NDArray[Any], is_relevant: Sequence[bool] | NDArray[Any]
) -> Callable[[NDArray[Any]], float | None]:
    """AUC over pairs of all queries together, as a function of each pair's weight: the chance that a relevant pair has
    a higher score than another one, ties counting half (Mann & Whitney 1947). Resampled queries are weights.

    The function gives None unless both sides have weight. `scores`: finite, as many as `is_relevant`.

    >>> pooled_auc([0.1, 0.4, 0.4, 0.9], [False, True, False, True])(np.ones(4))
    0.875
    """
    values, positive = np.array(scores, dtype=float), np.array(is_relevant, dtype=bool)
    rising = np.argsort(values, kind="stable")
    in_order = values[rising]
    starts = np.flatnonzero(np.r_[True, in_order[1:] > in_order[:-1]]) if len(values) else np.array([], dtype=int)
    is_positive = positive[rising]

    def of(weights: NDArray[Any]) -> float | None:
        placed = np.asarray(weights, dtype=float)[rising]
        if not len(placed):
            return None
        wins = np.add.reduceat(placed * is_positive, starts)  # by equal scores, from the lowest
        losses = np.add.reduceat(placed * ~is_positive, starts)
        whole = wins.sum() * losses.sum()
        below = np.cumsum(losses) - losses
        return float((wins * (below + losses / 2)).sum() / whole) if whole > 0 else None

    return of


def chance(metric: Metric, values: Sequence[float], shuffles: int, seed: Sequence[int]) -> float | None:
    """The metric's mean over seeded random orders of one query's items; None where the metric has no value."""
    generator = np.random.default_rng(list(seed))
    order = np.array(values, dtype=float)
    drawn = [metric(generator.permutation(order).tolist()) for _ in range(shuffles)]
    return None if drawn[0] is None else float(np.mean([value for value in drawn if value is not None]))


def quadratic_kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """How far two assessors agree beyond chance, far grades weighing more (Cohen 1968, quadratic weights).

    >>> quadratic_kappa([0, 1, 2, 3], [0, 1, 2, 3])
    1.0
    """
    one, other = np.array(first, dtype=float), np.array(second, dtype=float)
    expected = np.mean((one[:, None] - other[None, :]) ** 2)
    return float(1.0 - np.mean((one - other) ** 2) / expected)


def reciprocal_rank_fusion(ranks: Sequence[Mapping[Id, int]], constant: int = 60) -> dict[Id, float]:
    """Several rankings of one query as one (Cormack, Clarke & Büttcher 2009): an item's score is the sum of
    1 / (constant + rank) over the rankings that have it. Best first, ties by id.

    `ranks`: of each ranking the rank by item, 1 is best.

    >>> list(reciprocal_rank_fusion([{"mug": 1, "cup": 2}, {"cup": 1, "jug": 2}]))
    ['cup', 'mug', 'jug']
    """
    parts: dict[Id, list[float]] = {}
    for ranking in ranks:
        for item, rank in ranking.items():
            parts.setdefault(item, []).append(1.0 / (constant + rank))
    # Rounded: equal sums of other parts (1/84 + 1/84 is 1/63 + 1/126) are a tie, whatever the order of adding.
    scores = {item: round(fsum(of_item), 12) for item, of_item in parts.items()}
    return dict(sorted(scores.items(), key=lambda entry: (-entry[1], entry[0])))


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile bootstrap interval (Efron 1979), 95 %."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """The mean of one value a query, and its interval over resampled queries. Differences give a paired interval.

    The same seed and count of queries draw the same queries for every ranker. Raises ValueError without values.
    """
    if not values:
        raise ValueError("no query to take a mean over")
    array = np.array(values, dtype=float)
    generator = np.random.default_rng(seed)
    drawn = (array[generator.integers(0, len(array), len(array))].mean() for _ in range(resamples))
    low, high = np.percentile(np.fromiter(drawn, dtype=float), [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def expected_gain(logit: float, points: Sequence[tuple[float, float]]) -> float:
    """A logit through a calibration: linear between its points, strictly rising towards 0 and 1 beyond them.

    `features.ranking.expected_gain` is the same in Spark SQL.

    >>> round(expected_gain(0.5, [(0.0, 0.2), (1.0, 0.4)]), 4)
    0.3
    """
    (low, bottom), (high, top) = points[0], points[-1]
    if logit <= low:
        return bottom * float(np.exp(logit - low))
    if logit >= high:
        return 1.0 - (1.0 - top) * float(np.exp(high - logit))
    return float(np.interp(logit, [x for x, _ in points], [y for _, y in points]))


def _dcg(gains: Sequence[float], k: int | None) -> float:
    return float(sum(gain / np.log2(rank + 1) for rank, gain in enumerate(gains[:k], start=1)))
