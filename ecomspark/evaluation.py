"""Figures of rankings over queries: means, intervals, the final ranking's lead. Plain pandas: no Spark, no models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from ecomspark import metrics
from ecomspark.errors import ContractError

RANKERS = ("final", "model", "bm25", "cosine")
UNJUDGED = -1.0


@dataclass(frozen=True)
class Measures:
    """What is measured, and how surely."""

    gains: Mapping[int, float]
    k: int | None  # None: all places
    grade_threshold: float
    resamples: int
    shuffles: int
    seed: int


@dataclass(frozen=True)
class Figure:
    """One metric of one ranker: the mean over queries, its 95 % bootstrap interval, and by how much the final ranking
    and the model's own order lead over the same queries, with paired intervals (None for themselves, and for
    `published`, which shows other items)."""

    metric: str
    ranker: str
    value: float
    low: float
    high: float
    query_count: int
    omitted_count: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    model_difference: float | None = None
    model_difference_low: float | None = None
    model_difference_high: float | None = None


def judged_figures(orders: pd.DataFrame, measures: Measures) -> list[Figure]:
    """Figures of every ranker over the same judged items, and of chance.

    `orders`: query_id, item_id, grade, and a column for each ranker that is there, higher is better; ties are broken
    by item_id, as in the rankings. An item without `final` is left out for all rankers alike, but is in the ideal.
    Raises ContractError when a metric has no value for any query.
    """
    rankers = [name for name in RANKERS if name in orders]
    values: dict[str, dict[str, list[float | None]]] = {}
    in_order = orders.sort_values(["query_id", "item_id"])  # so that chance draws the same, whatever the rows' order
    for place, (_, of_query) in enumerate(in_order.groupby("query_id", sort=True)):
        ranked = of_query[of_query["final"].notna()]
        for name, metric in metrics_by_name(measures, list(of_query["grade"])).items():
            for ranker in rankers:
                order = ranked.sort_values([ranker, "item_id"], ascending=[False, True])
                values.setdefault(name, {}).setdefault(ranker, []).append(metric(list(order["grade"])))
            drawn = metrics.chance(metric, list(ranked["grade"]), measures.shuffles, [measures.seed, place])
            values[name].setdefault("chance", []).append(drawn)
    return [
        _figure(
            name,
            ranker,
            of_ranker,
            measures,
            final=by_ranker["final"] if ranker != "final" else None,
            model=by_ranker.get("model") if ranker not in ("final", "model") else None,
        )
        for name, by_ranker in values.items()
        for ranker, of_ranker in by_ranker.items()
    ]


def published_figures(published: pd.DataFrame, orders: pd.DataFrame, measures: Measures) -> list[Figure]:
    """Figures of the published ranking: an item that nobody judged is worth nothing, and judged@k says how often one
    is shown. `published`: query_id, rank, grade (null: unjudged). A query of `orders` for which
    nothing is published counts with nothing shown.
    """
    values: dict[str, list[float | None]] = {}
    by_query = dict(list(published.sort_values("rank").groupby("query_id")))
    for query_id, of_query in orders.groupby("query_id", sort=True):
        shown = by_query.get(query_id)
        grades = [] if shown is None else list(shown["grade"].fillna(UNJUDGED))
        for name, metric in metrics_by_name(measures, list(of_query["grade"])).items():
            if name != "auc":  # it compares judged items only
                values.setdefault(name, []).append(metric(grades))
        if measures.k is not None:
            is_judged = sum(grade != UNJUDGED for grade in grades[: measures.k])
            values.setdefault(f"judged@{measures.k}", []).append(is_judged / measures.k)
    return [_figure(name, "published", of_published, measures) for name, of_published in values.items()]


def recall_figures(
    pairs: pd.DataFrame,
    sources: Sequence[str],
    slices: Mapping[str, "pd.Series[bool]"],
    ks: Sequence[int],
    measures: Measures,
    min_queries: int = 1,
) -> dict[str, list[Figure]]:
    """First-stage recall@k by slice: of each query's judged relevant items the share among the first k of a source,
    its mean over the queries that have any. The last of `sources` is the leader that the others are compared with.

    `pairs`: query_id, grade, and for each source the rank at which it found the item, null where it did not. Slices
    with fewer such queries than `min_queries` are left out.
    """
    found: dict[str, list[Figure]] = {}
    relevant = pairs[pairs["grade"] >= measures.grade_threshold]
    for name, members in slices.items():
        of_slice = relevant[members.loc[relevant.index]]
        count = pairs.loc[members, "query_id"].nunique()
        if of_slice["query_id"].nunique() < min_queries:
            continue
        by_query = of_slice.groupby("query_id", sort=True)
        for k in ks:
            shares = {source: (of_slice[source] <= k).groupby(of_slice["query_id"]).mean() for source in sources}
            for source in sources:
                leader = None if source == sources[-1] else list(shares[sources[-1]])
                figure = _figure(f"recall@{k}", source, list(shares[source]), measures, final=leader)
                found.setdefault(name, []).append(replace(figure, omitted_count=count - by_query.ngroups))
    return found


def as_table(figures: Sequence[Figure]) -> list[str]:
    """The figures as lines of text."""
    interval = "95 % interval"
    lines = [
        f"{'metric':13}{'ranker':10}{'mean':>7}  {interval:17} {'queries':>7}  {'final leads':>11}  {interval:18} "
        f"{'model leads':>11}  {interval}"
    ]
    for of in figures:
        line = f"{of.metric:13}{of.ranker:10}{of.value:7.4f}  {f'[{of.low:.4f}, {of.high:.4f}]':17} {of.query_count:7d}"
        line += _lead(of.difference, of.difference_low, of.difference_high)
        line += _lead(of.model_difference, of.model_difference_low, of.model_difference_high)
        lines.append(line.rstrip())
    if of_ndcg := next((figure for figure in figures if figure.metric.startswith("ndcg")), None):
        lines.append(f"{of_ndcg.omitted_count} queries are left out of ndcg: nothing judged for them has a gain")
    return lines


def not_shown(figures: Sequence[Figure]) -> list[str]:
    """What the figures do not show: the leads whose interval includes zero, a sentence a ranking and metric."""
    found: dict[tuple[str, str], list[str]] = {}
    for of in figures:
        for leader, low, high in (
            ("final", of.difference_low, of.difference_high),
            ("model", of.model_difference_low, of.model_difference_high),
        ):
            if low is not None and high is not None and low <= 0 <= high:
                found.setdefault((leader, of.metric), []).append(of.ranker)
    return [
        f"not shown by these queries: that {leader} differs from {', '.join(rankers)} in {metric}; "
        "the interval includes zero"
        for (leader, metric), rankers in found.items()
    ]


def _lead(value: float | None, low: float | None, high: float | None) -> str:
    return f"  {'':11}  {'':18}" if value is None else f"  {value:+11.4f}  {f'[{low:+.4f}, {high:+.4f}]':18}"


def metrics_by_name(measures: Measures, judged: Sequence[float]) -> dict[str, metrics.Metric]:
    """Metric by name, each from the grades of one query's items in rank order. Of all places, precision and recall
    would be the same in any order: they are left out then."""
    k, threshold = measures.k, measures.grade_threshold
    ideal = [_worth(grade, measures) for grade in judged]

    def ndcg(grades: Sequence[float]) -> float | None:
        return metrics.ndcg([_worth(grade, measures) for grade in grades], ideal, k)

    def mrr(grades: Sequence[float]) -> float | None:
        is_answerable = any(grade >= threshold for grade in judged)
        return metrics.reciprocal_rank(grades, threshold) if is_answerable else None

    auc = partial(metrics.auc, threshold=threshold)
    if k is None:
        return {"ndcg": ndcg, "mrr": mrr, "auc": auc}
    return {
        f"ndcg@{k}": ndcg,
        "mrr": mrr,
        f"precision@{k}": partial(metrics.precision, threshold=threshold, k=k),
        f"recall@{k}": partial(metrics.recall, judged=judged, threshold=threshold, k=k),
        "auc": auc,
    }


def _worth(grade: float, measures: Measures) -> float:
    """The gain of a grade; nothing for an item that nobody judged. Raises ContractError for a grade off the scale."""
    try:
        return 0.0 if grade == UNJUDGED else metrics.gain_of(grade, measures.gains)
    except ValueError:
        low, high = min(measures.gains), max(measures.gains)
        raise ContractError(
            f"judgments: expected grades from {low} to {high}, as `gains` has them, found another; mend `gains` or "
            "import the judgments again"
        ) from None


def _figure(
    metric: str,
    ranker: str,
    values: Sequence[float | None],
    measures: Measures,
    final: Sequence[float | None] | None = None,
    model: Sequence[float | None] | None = None,
) -> Figure:
    present = [value for value in values if value is not None]
    if not present:
        raise ContractError(f"judgments: {metric} has no value for any query; are there grades above the lowest?")
    whole = metrics.bootstrap(present, measures.resamples, measures.seed)
    leads = [_paired(leader, values, measures) for leader in (final, model)]
    return Figure(metric, ranker, *_rounded(whole), len(present), len(values) - len(present), *leads[0], *leads[1])


def _paired(
    leader: Sequence[float | None] | None, values: Sequence[float | None], measures: Measures
) -> tuple[float, float, float] | tuple[None, None, None]:
    """By how much the leader leads, over the queries for which both have a value."""
    if leader is None:
        return (None, None, None)
    both = [(mine, other) for mine, other in zip(leader, values, strict=True) if mine is not None and other is not None]
    return _rounded(metrics.bootstrap([mine - other for mine, other in both], measures.resamples, measures.seed))


def _rounded(interval: metrics.Interval) -> tuple[float, float, float]:
    return round(interval.mean, 4), round(interval.low, 4), round(interval.high, 4)
