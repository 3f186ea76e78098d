"""How far a shopper's last sessions lie from what came before them, and how sure that is.

    drift = 1 - L·E / (|L|' |E|')     L: mean vector of the last sessions, E: recency-weighted mean of the earlier ones

Means of few sessions that differ among themselves point apart even where nothing has changed. So from the squared
length of each mean what its sessions' spread adds to it is taken off (|L|'² = |L|² - sum |v - L|² / n(n - 1), and with
weights w that sum to 1, |E|'² = |E|² - sum w² |v - E|² / (1 - sum w²)): both squares, and L·E, are then unbiased.

The interval is that of the infinitesimal jackknife over sessions (Jaeckel 1972; Efron 1982, chapter 6): the squared
influences of the sessions, summed within the last and the earlier ones, with Student's t of the last ones less one.
On simulated sessions it covered in 92 to 99 % (tests/features/test_drift.py has some of them).
"""

from collections.abc import Callable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

LEAST_EARLIER = 3  # sessions before the last ones: of fewer the spread is not known

_MOST_EARLIER = 200  # older ones have next to no weight, and a shopper's vectors must fit into one row
_DECIMALS = 6


def session_vectors(events: DataFrame, vectors: DataFrame) -> DataFrame:
    """(shopper_id, session_id, session_started_at, vector): the mean of the vectors of a session's items, in float64.

    `events`: as `features.histories.events_until` gives them; those whose item has no vector do not count.
    """
    session = ("shopper_id", "session_id", "session_started_at")
    read = events.join(vectors.select("item_id", "vector"), on="item_id", how="inner")
    # In one order, whatever the partitioning: sums of floats depend on it.
    in_order = F.sort_array(F.collect_list(F.struct("occurred_at", "interaction_id", "vector")))
    gathered = read.groupBy(*session).agg(F.transform(in_order, lambda one: one["vector"]).alias("vectors"))
    return gathered.select(*session, _scaled(_sum("vectors"), 1.0 / F.size("vectors")).alias("vector"))


def drift(sessions: DataFrame, last: int, half_life_days: float, quantile: float) -> DataFrame:
    """(shopper_id, drift, drift_low, drift_high), 0 to 2, for those with `last` sessions and LEAST_EARLIER before them.

    `sessions`: as `session_vectors` gives them. An earlier session counts half for every `half_life_days` by which it
    began before the shopper's newest. `quantile`: standard errors to each side. A shopper whose sessions have no
    direction in common has no row.
    """
    newest_first = Window.partitionBy("shopper_id").orderBy(F.desc("session_started_at"), F.desc("session_id"))
    age = (
        F.max(F.unix_micros("session_started_at")).over(Window.partitionBy("shopper_id"))
        - F.unix_micros("session_started_at")
    ) / (86_400 * 1e6)
    placed = sessions.withColumn("place", F.row_number().over(newest_first)).withColumn("age", age)
    placed = placed.where(F.col("place") <= last + _MOST_EARLIER)
    weight = F.when(F.col("place") <= last, F.lit(1.0)).otherwise(F.pow(F.lit(0.5), F.col("age") / half_life_days))
    in_order = F.sort_array(F.collect_list(F.struct("place", weight.alias("weight"), "vector")))
    whole = placed.groupBy("shopper_id").agg(in_order.alias("all")).where(F.size("all") >= last + LEAST_EARLIER)
    parts = whole.select(
        "shopper_id", F.slice("all", 1, last).alias("late"), F.expr(f"slice(all, {last + 1}, size(all))").alias("early")
    )
    shared = parts.select("shopper_id", _with_shares("late").alias("late"), _with_shares("early").alias("early"))
    means = shared.select("*", _mean("late").alias("l"), _mean("early").alias("e"))
    # From here on numbers alone: of each session its share, and its products with both means and with itself.
    products = means.select(
        "shopper_id",
        _products("late").alias("late"),
        _products("early").alias("early"),
        *(_dot(F.col(one), F.col(other)).alias(one + other) for one, other in (("l", "l"), ("l", "e"), ("e", "e"))),
    )
    lengths = products.select("*", _length("late", "vl", "ll").alias("l2"), _length("early", "ve", "ee").alias("e2"))
    scaled = lengths.where("l2 > 0 AND e2 > 0").withColumn("both", F.sqrt(F.col("l2") * F.col("e2")))
    cosine = scaled.withColumn("cosine", F.col("le") / F.col("both"))
    error = F.sqrt(_variance("late", "ve", "vl", "ll", "l2") + _variance("early", "vl", "ve", "ee", "e2"))
    return cosine.select("shopper_id", (1.0 - F.col("cosine")).alias("at"), (error * quantile).alias("half")).select(
        "shopper_id",
        _between(F.col("at")).alias("drift"),
        _between(F.col("at") - F.col("half")).alias("drift_low"),
        _between(F.col("at") + F.col("half")).alias("drift_high"),
    )


def _length(sessions: str, along: str, square: str) -> Column:
    """The square of a mean's length, less what its sessions' spread adds to it."""
    spread = _total(sessions, lambda one: one["share"] * one["share"] * (one["vv"] - 2 * one[along] + F.col(square)))
    return F.col(square) - spread / _left(sessions)


def _variance(sessions: str, across: str, along: str, square: str, length: str) -> Column:
    """What the sessions on one side add to the variance of the cosine: their squared influences. A session's influence
    is what it adds to the product of both means, less what it adds to the length of its own mean."""

    def influence(one: Column) -> Column:
        grown = F.col("cosine") * (one[along] - F.col(square)) / F.col(length)
        return one["share"] * ((one[across] - F.col("le")) / F.col("both") - grown)

    return _total(sessions, lambda one: influence(one) * influence(one)) / _left(sessions)


def _between(value: Column) -> Column:
    return F.round(F.greatest(F.least(value, F.lit(2.0)), F.lit(0.0)), _DECIMALS)


def _with_shares(sessions: str) -> Column:
    total = F.aggregate(sessions, F.lit(0.0), lambda sum_, one: sum_ + one["weight"])
    return F.transform(
        sessions, lambda one: F.struct((one["weight"] / total).alias("share"), one["vector"].alias("vector"))
    )


def _mean(sessions: str) -> Column:
    return _sum(F.transform(sessions, lambda one: _scaled(one["vector"], one["share"])))


def _products(sessions: str) -> Column:
    return F.transform(
        sessions,
        lambda one: F.struct(
            one["share"].alias("share"),
            _dot(one["vector"], one["vector"]).alias("vv"),
            _dot(one["vector"], F.col("l")).alias("vl"),
            _dot(one["vector"], F.col("e")).alias("ve"),
        ),
    )


def _left(sessions: str) -> Column:
    """1 less the sum of squared shares: (n - 1) / n of n sessions that count alike."""
    return 1.0 - _total(sessions, lambda one: one["share"] * one["share"])


def _total(sessions: str, of: Callable[[Column], Column]) -> Column:
    return F.aggregate(sessions, F.lit(0.0), lambda total, one: total + of(one))


def _sum(vectors: Column | str) -> Column:
    """The sum of an array of vectors, at least one, of one length."""
    first = F.transform(F.element_at(vectors, 1), lambda _: F.lit(0.0))
    return F.aggregate(vectors, first, lambda total, one: F.zip_with(total, one, lambda x, y: x + y.cast("double")))


def _scaled(vector: Column, by: Column) -> Column:
    return F.transform(vector, lambda x: x * by)


def _dot(one: Column, other: Column) -> Column:
    return F.aggregate(F.zip_with(one, other, lambda x, y: x * y), F.lit(0.0), lambda total, x: total + x)
