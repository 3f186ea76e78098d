"""Two checkpoints over the same judged pairs: figures of both and their paired difference, by slice. Plain pandas."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecomspark import metrics
from ecomspark.errors import ContractError
from ecomspark.evaluation import Measures, metrics_by_name
from ecomspark.metrics import Interval
from ecomspark.slices import ALL, FAMILIES

POOLED = "pooled_auc"
_METRICS = ("ndcg", "mrr", "precision", "recall", "auc", POOLED)  # the order in which they are shown


@dataclass(frozen=True)
class Comparison:
    """One metric in one slice: its mean over the queries for A and for B, and B's less A's over the same queries, each
    with its 95 % bootstrap interval over resampled queries. `omitted_count`: queries for which it has no value.

    Of `pooled_auc`, which is no mean over queries, `query_count` are the queries whose pairs are pooled.
    """

    slice: str
    metric: str
    a: Interval
    b: Interval
    difference: Interval
    query_count: int
    omitted_count: int


@dataclass(frozen=True)
class Compared:
    """The comparisons, and the slices that have none because too few queries are in them."""

    comparisons: tuple[Comparison, ...]
    left_out: tuple[str, ...]


def compare(pairs: pd.DataFrame, slices: Mapping[str, pd.Series], measures: Measures, min_queries: int) -> Compared:
    """Every metric in every slice. A figure over fewer than `min_queries` queries is left out, but for those of `all`.

    `pairs`: query_id, item_id, grade, `a` and `b`: what the two said, higher is better; ties are broken by item_id. A
    pair that one of them has no score for is left out for both, but is in the ideal. `slices`: as `slices.slices_of`
    gives them. Raises ContractError when no metric has a value for any query.
    """
    in_order = pairs.sort_values(["query_id", "item_id"])
    found: list[Comparison] = []
    left_out: list[str] = []
    for name, is_in in slices.items():
        part = in_order[is_in.loc[in_order.index]]
        of_slice = [*_by_query(name, part, measures), *_pooled(name, part, measures)]
        enough = [of for of in of_slice if name == ALL or of.query_count >= min_queries]
        found += enough
        if not enough:
            left_out.append(name)
    if ALL in left_out:
        raise ContractError("judgments: no metric has a value for any query; are there grades above the lowest?")
    return Compared(tuple(in_reading_order(found)), tuple(left_out))


def in_reading_order(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """`all` first, then family by family; within a slice the metrics as in `evaluation`."""

    def place(of: Comparison) -> tuple[int, str, int]:
        family, metric = of.slice.partition("=")[0], of.metric.partition("@")[0]
        return FAMILIES.index(family), of.slice, _METRICS.index(metric)

    return sorted(comparisons, key=place)


def as_table(comparisons: Sequence[Comparison], a: str, b: str) -> list[str]:
    """The comparisons as lines of text."""
    wide = max([5, *(len(of.slice) for of in comparisons)])
    interval = "95 % interval"
    lines = [
        f"A: {a}; B: {b}; every interval is over resampled queries, that of B - A over pairs of figures",
        f"{'slice':{wide}}  {'metric':13}{'queries':>7}  {'A':>7}  {interval:17} {'B':>7}  {interval:17} "
        f"{'B - A':>8}  {interval}",
    ]
    for of in comparisons:
        sides = " ".join(f"{side.mean:7.4f}  {f'[{side.low:.4f}, {side.high:.4f}]':17}" for side in (of.a, of.b))
        lead = f"{of.difference.mean:+8.4f}  [{of.difference.low:+.4f}, {of.difference.high:+.4f}]"
        lines.append(f"{of.slice:{wide}}  {of.metric:13}{of.query_count:7d}  {sides} {lead}")
    return lines


def not_shown(comparisons: Sequence[Comparison]) -> list[str]:
    """What the comparisons do not show, a sentence a metric, and how often chance alone would show something."""
    is_open = [of for of in comparisons if of.difference.low <= 0 <= of.difference.high]
    by_metric = sorted(is_open, key=lambda of: _METRICS.index(of.metric.partition("@")[0]))
    lines = [
        f"not shown by these queries: that B differs from A in {metric} ({', '.join(of.slice for of in group)}); "
        "the interval includes zero"
        for metric, group in groupby(by_metric, key=lambda of: of.metric)
    ]
    shown = len(comparisons) - len(is_open)
    if shown and len(comparisons) > 1:
        lines.append(
            f"{shown} of {len(comparisons)} intervals exclude zero; of two checkpoints that are alike one in 20 would"
        )
    return lines


def _by_query(name: str, part: pd.DataFrame, measures: Measures) -> list[Comparison]:
    """The metrics that are means over queries; those without a value for any are left out. `part`: in order."""
    values: dict[str, list[tuple[float | None, float | None]]] = {}
    for _, of_query in part.groupby("query_id", sort=True):
        grades = of_query["grade"].to_numpy()
        a, b = (of_query[side].to_numpy(dtype=float) for side in ("a", "b"))
        is_scored = ~(np.isnan(a) | np.isnan(b))
        ranked = [grades[is_scored][_falling(side[is_scored])].tolist() for side in (a, b)]
        for metric, of in metrics_by_name(measures, grades.tolist()).items():
            values.setdefault(metric, []).append((of(ranked[0]), of(ranked[1])))
    found = []
    for metric, of_metric in values.items():
        present = [(x, y) for x, y in of_metric if x is not None and y is not None]
        if present:
            of_a, of_b, difference = (
                _rounded(metrics.bootstrap(column, measures.resamples, measures.seed))
                for column in ([x for x, _ in present], [y for _, y in present], [y - x for x, y in present])
            )
            omitted = len(of_metric) - len(present)
            found.append(Comparison(name, metric, of_a, of_b, difference, len(present), omitted))
    return found


def _falling(scores: NDArray[Any]) -> NDArray[np.intp]:
    """The order of falling scores; of equal ones that of the rows."""
    return np.argsort(-scores, kind="stable")


def _pooled(name: str, part: pd.DataFrame, measures: Measures) -> list[Comparison]:
    """AUC over the pairs of all queries together, intervals over resampled queries; nothing where it has no value."""
    scored = part[part["a"].notna() & part["b"].notna()]
    query_of, queries = pd.factorize(scored["query_id"])
    is_relevant = (scored["grade"] >= measures.grade_threshold).to_numpy()
    a, b = (metrics.pooled_auc(scored[side].to_numpy(), is_relevant) for side in ("a", "b"))
    evenly = np.ones(len(scored))
    whole_a, whole_b = a(evenly), b(evenly)
    if whole_a is None or whole_b is None:
        return []
    generator = np.random.default_rng(measures.seed)
    drawn = []
    for _ in range(measures.resamples):
        times = np.bincount(generator.integers(0, len(queries), len(queries)), minlength=len(queries))
        of_a, of_b = a(times[query_of]), b(times[query_of])
        if of_a is not None and of_b is not None:  # else the draw has relevant pairs only, or none
            drawn.append((of_a, of_b, of_b - of_a))
    if not drawn:
        return []
    means = (whole_a, whole_b, whole_b - whole_a)
    ends = np.percentile(np.array(drawn), [2.5, 97.5], axis=0).T.tolist()
    figure_a, figure_b, difference = (_rounded(Interval(mean, *of)) for mean, of in zip(means, ends, strict=True))
    return [Comparison(name, POOLED, figure_a, figure_b, difference, len(queries), 0)]


def _rounded(interval: Interval) -> Interval:
    return Interval(round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4))
