"""Ranking terms and the order of a query's items: every number of it explained by a column.

    final_score = availability + band + (relevance + price + sold + rating + freshness terms) / sum of weights

The model decides the band, a step of calibrated relevance; within a band the weighted terms decide. The sum is at
most 1, so no other term lifts an item over a band, and an item that cannot be bought stands behind all that can.
"""

from datetime import date
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.config import Section, setting
from ecomspark.features.candidates import JUDGED, Proposer

LOGIT_DECIMALS = 4
SCORE_DECIMALS = 6

Share = Annotated[float, Field(ge=0)]


class Weights(Section):
    """What the terms count for against each other within a band; only their proportions matter."""

    relevance: Share = setting(0.6, "the model's calibrated relevance")
    price: Share = setting(0.1, "cheaper than the query's other candidates of its category and currency")
    sold: Share = setting(0.2, "units sold")
    rating: Share = setting(0.05, "mean stars, shrunk by their count")
    freshness: Share = setting(0.05, "newly listed")


class Policy(Section):
    """How one variant is ranked."""

    proposed_by: list[Proposer] | None = setting(
        None, "rank candidates that one of these sources proposed; null: any source but `judged`"
    )
    weights: Weights = setting(Weights(), "weights of the terms")
    bands: list[float] = setting(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "lower edges of the relevance bands above the lowest, rising, in expected gain",
    )
    unavailable: Literal["last", "out"] = setting("last", "items that cannot be bought: behind the others, or left out")
    sold_cap: int = setting(10_000, "units sold that count for the whole term", unit="units", gt=0)
    rating_prior: float = setting(3.5, "mean that an item without ratings is taken to have", unit="stars", ge=1, le=5)
    rating_prior_count: float = setting(10.0, "ratings that the prior is worth", unit="ratings", gt=0)
    freshness: dict[int, Annotated[float, Field(ge=0, le=1)]] = setting(
        {30: 1.0, 90: 0.5}, "days since listing, at most, to what the term is then; older: 0", unit="days"
    )

    @field_validator("bands")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or any(not 0 < edge < 1 for edge in value):
            raise ValueError("edges must rise, each between 0 and 1")
        return value

    @field_validator("weights")
    @classmethod
    def _some(cls, value: Weights) -> Weights:
        if not sum(value.model_dump().values()) > 0:
            raise ValueError("one weight at least must be more than 0")
        return value


def expected_gain(logit: Column, points: list[tuple[float, float]]) -> Column:
    """A logit through a calibration, as `metrics.expected_gain`: linear between points, strictly rising beyond."""
    (low, bottom), (high, top) = points[0], points[-1]
    gain = 1.0 - (1.0 - top) * F.exp(high - logit)
    for (left, below), (right, above) in reversed(list(pairwise(points))):
        gain = F.when(logit <= right, below + (above - below) / (right - left) * (logit - left)).otherwise(gain)
    return F.when(logit <= low, bottom * F.exp(logit - low)).otherwise(gain)


def of_policy(candidates: DataFrame, policy: Policy) -> DataFrame:
    """The candidates that a policy ranks. What only an assessor proposed is not among them unless it is named:
    their knowledge must not lift the published ranking."""
    if policy.proposed_by is None:
        return candidates.where(F.exists(F.map_keys("sources"), lambda source: source != JUDGED))
    return candidates.where(F.arrays_overlap(F.map_keys("sources"), F.array(*map(F.lit, policy.proposed_by))))


def scored_shares(candidates: DataFrame) -> DataFrame:
    """How far each query's candidates are scored: (query_id, expected_count, scored_count, unread_count); candidates
    with a lasting error are not expected to be, and those without a text cannot be read yet.

    `candidates`: query_id, query_digest, passage_digest, logit, error_kind.
    """
    is_expected = F.col("logit").isNotNull() | ~F.coalesce(F.col("error_kind") == "lasting", F.lit(False))
    is_unread = F.col("query_digest").isNull() | F.col("passage_digest").isNull()
    return candidates.groupBy("query_id").agg(
        F.count_if(is_expected).cast("int").alias("expected_count"),
        F.count_if(F.col("logit").isNotNull()).cast("int").alias("scored_count"),
        F.count_if(is_unread).alias("unread_count"),
    )


def incomplete(shares: DataFrame, min_scored_share: float) -> DataFrame:
    """The queries to look at again whatever changes: (query_id, expected_count, scored_count, is_kept_back).

    Kept back are those of which too few candidates are scored. The others are shown, but without a candidate that has
    no text yet: one that comes late may find its score there already.
    """
    too_few = F.col("scored_count") < min_scored_share * F.col("expected_count")
    marked = shares.withColumn("is_kept_back", too_few)
    return marked.where(F.col("is_kept_back") | (F.col("unread_count") > 0)).drop("unread_count")


def closed_up(rankings: DataFrame) -> DataFrame:
    """Rows of `rankings`, of which some were left out, with ranks that leave none out; without `changed_by`."""
    in_order = Window.partitionBy("variant", "query_id").orderBy("rank", "item_id")
    return rankings.withColumn("rank", F.row_number().over(in_order)).drop("changed_by")


def ranked(
    candidates: DataFrame, variant: str, policy: Policy, calibration: list[tuple[float, float]], as_of: date
) -> DataFrame:
    """Rank each query's scored candidates under a policy: rows for `rankings` without the digests of the policy.

    `candidates`: query_id, item_id, query_digest, passage_digest, logit, and of the item price, currency, category,
    sold_count, rating, rating_count, is_in_stock, listed_at. Those without a logit are left out.
    """
    scored = candidates.where(F.col("logit").isNotNull())
    is_out = F.coalesce(~F.col("is_in_stock"), F.lit(False))
    scored = scored.where(~is_out) if policy.unavailable == "out" else scored
    total = sum(policy.weights.model_dump().values())
    weighted = {
        name: F.round(value * (getattr(policy.weights, name) / total), SCORE_DECIMALS).alias(f"{name}_term")
        for name, value in _terms(policy, as_of).items()
    }
    with_relevance = scored.withColumn("logit", F.round("logit", LOGIT_DECIMALS)).withColumn(
        "relevance", F.round(expected_gain(F.col("logit"), calibration), SCORE_DECIMALS)
    )
    band = sum((F.when(F.col("relevance") >= edge, 1).otherwise(0) for edge in policy.bands), F.lit(0))
    availability = F.when(is_out, -float(len(policy.bands) + 1)).otherwise(0.0)
    with_terms = with_relevance.select(
        "*", *weighted.values(), band.cast("int").alias("band"), availability.alias("availability")
    )
    terms = sum((F.col(f"{name}_term") for name in weighted), F.lit(0.0))
    best_first = Window.partitionBy("query_id").orderBy(
        F.desc("availability"), F.desc("band"), F.desc("final_score"), "item_id"
    )
    return (
        with_terms.withColumn(
            "final_score", F.round(F.col("availability") + F.col("band") + terms, SCORE_DECIMALS)
        )
        .withColumn("rank", F.row_number().over(best_first))
        .select(
            F.lit(variant).alias("variant"),
            "query_id", "item_id", "rank", "final_score", "availability", "band", "relevance",
            *(f"{name}_term" for name in weighted),
            "logit", "query_digest", "passage_digest",
        )
    )  # fmt: skip


def _terms(policy: Policy, as_of: date) -> dict[str, Column]:
    """Each term on its scale from 0 to 1, higher is better, never null. Formulas: the columns of `rankings`."""
    comparable = Window.partitionBy("query_id", "category", "currency", F.col("price").isNull())
    # Among equals, or alone, a price says nothing; otherwise the cheapest has 1 and the dearest 0.
    place = F.percent_rank().over(comparable.orderBy("price"))
    says_something = F.min("price").over(comparable) != F.max("price").over(comparable)
    price = F.when(F.col("price").isNotNull() & says_something, 1.0 - place).otherwise(0.5)
    share = F.log1p(F.col("sold_count")) / F.log1p(F.lit(float(policy.sold_cap)))
    sold = F.when(share > 1.0, 1.0).otherwise(share)  # least() would make 1 of a null
    count = F.when(F.col("rating").isNull(), 0).otherwise(F.coalesce("rating_count", F.lit(1)))
    mean = (F.coalesce("rating", F.lit(0.0)) * count + policy.rating_prior * policy.rating_prior_count) / (
        count + policy.rating_prior_count
    )
    return {
        "relevance": F.col("relevance"),
        "price": price,
        "sold": F.coalesce(sold, F.lit(0.0)),
        "rating": (mean - 1.0) / 4.0,
        "freshness": _freshness(policy, as_of),
    }


def aged(items: DataFrame, policy: Policy, then: date, now: date) -> DataFrame:
    """(item_id) of the items that crossed a step of freshness between two days."""
    crossed = _freshness(policy, then) != _freshness(policy, now)
    return items.where(crossed if policy.weights.freshness else F.lit(False)).select("item_id")


def _freshness(policy: Policy, as_of: date) -> Column:
    days = F.date_diff(F.lit(as_of), F.col("listed_at").cast("date"))
    step = F.lit(0.0)
    for limit, value in sorted(policy.freshness.items(), reverse=True):
        step = F.when(days <= limit, value).otherwise(step)
    return F.when(days.isNull() | (days < 0), 0.0).otherwise(step)
