"""What a shopper has done, in numbers that a linear model weighs: of the session so far, and of all until a cut.

Counts and times are taken as ln(1 + x): the second click says more than the hundredth. Rows are those of
`features.histories.events_until`; a feature looks at nothing behind its own event, or at or behind its cut.
"""

from collections.abc import Mapping, Sequence
from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.features.histories import end_of

_SECONDS_A_DAY = 86_400.0
_MOST_OVERDUE = 5.0

_KINDS = {"clicks": "click", "carts": "cart", "favourites": "favourite", "purchases": "purchase"}


def session_features(events: DataFrame) -> DataFrame:
    """Of every event its session until then, itself included: (shopper_id, session_id, session_started_at, occurred_at,
    interaction_id, the names of `chances.SESSION_FEATURES`)."""
    in_time = ("occurred_at", "interaction_id")
    of_session = Window.partitionBy("session_id").orderBy(*in_time)
    so_far = of_session.rowsBetween(Window.unboundedPreceding, 0)
    of_item = Window.partitionBy("session_id", "item_id").orderBy(*in_time).rowsBetween(Window.unboundedPreceding, 0)
    counts = {name: F.count_if(F.col("kind") == kind).over(so_far) for name, kind in _KINDS.items()}
    passed = _seconds("occurred_at") - F.min(_seconds("occurred_at")).over(so_far)
    before = F.lag(_seconds("occurred_at")).over(of_session)
    is_last = {f"is_{kind}": (F.col("kind") == kind).cast("double") for kind in ("cart", "favourite", "purchase")}
    return events.select(
        "shopper_id", "session_id", "session_started_at", *in_time,
        F.log1p(F.count("*").over(so_far)).alias("events"),
        F.log1p(F.size(F.collect_set("item_id").over(so_far))).alias("items"),
        *(F.log1p(count).alias(name) for name, count in counts.items()),
        F.log1p(F.greatest(counts["carts"] - counts["purchases"], F.lit(0))).alias("carts_open"),
        F.log1p(F.count("*").over(of_item)).alias("item_events"),
        F.log1p(F.count_if(F.col("kind") == "cart").over(of_item)).alias("item_carts"),
        F.log1p(passed).alias("seconds"),
        F.log1p(F.coalesce(_seconds("occurred_at") - before, F.lit(0.0))).alias("pause"),
        *(value.alias(name) for name, value in is_last.items()),
    )  # fmt: skip


def goes_on(events: DataFrame) -> DataFrame:
    """(session_id, interaction_id, label): whether its session has a purchase behind an event, 1 or 0."""
    of_session = Window.partitionBy("session_id").orderBy("occurred_at", "interaction_id")
    behind = of_session.rowsBetween(1, Window.unboundedFollowing)
    label = F.coalesce(F.max((F.col("kind") == "purchase").cast("int")).over(behind), F.lit(0))
    return events.select("session_id", "interaction_id", label.alias("label"))


def last_of_shopper(rows: DataFrame) -> DataFrame:
    """Of the rows of `session_features` each shopper's last: their session as it stands."""
    newest = Window.partitionBy("shopper_id").orderBy(F.desc("occurred_at"), F.desc("interaction_id"))
    return rows.withColumn("_place", F.row_number().over(newest)).where("_place = 1").drop("_place")


def at_cuts(events: DataFrame, days: Sequence[date], time_zone: str) -> DataFrame:
    """Every event once for each cut, the end of a day: with `cut_at`, and with `days` from the event to the cut,
    negative behind it."""
    cuts = F.explode(F.array(*(end_of(day, time_zone) for day in days))).alias("cut_at")
    rows = events.select("*", cuts)
    return rows.withColumn("days", (_seconds("cut_at") - _seconds("occurred_at")) / _SECONDS_A_DAY)


def shopper_features(events: DataFrame) -> DataFrame:
    """Of every shopper seen before a cut: (cut_at, shopper_id, the names of `chances.SHOPPER_FEATURES`).

    `events`: as `at_cuts` gives them. A basket without an id is what was bought on one day, UTC.
    """
    is_purchase, is_return = F.col("kind") == "purchase", F.col("kind") == "return"
    basket = F.when(is_purchase, F.coalesce("basket_id", F.col("occurred_at").cast("date").cast("string")))

    def number(of: Column, within: int | None = None) -> Column:
        """How many different values there are, of the last so many days."""
        return F.size(F.collect_set(of if within is None else F.when(F.col("days") <= within, of)))

    seen = events.where("days > 0").groupBy("cut_at", "shopper_id").agg(
        F.count("*").alias("_events"), F.count_if(F.col("days") <= 30).alias("_events_30"),
        F.min("days").alias("_event"), F.max("days").alias("_first"),
        F.min(F.when(is_purchase, F.col("days"))).alias("_purchase"),
        F.max(F.when(is_purchase, F.col("days"))).alias("_first_purchase"),
        number(basket).alias("_baskets"), number(basket, 30).alias("_baskets_30"),
        number(basket, 90).alias("_baskets_90"),
        F.count_if(is_purchase).alias("_lines"), number(F.when(is_purchase, F.col("item_id"))).alias("_items"),
        F.count_if(is_return).alias("_returns"),
        F.count_if(is_return & (F.col("days") <= 90)).alias("_returns_90"),
        *(F.count_if(F.col("kind") == _KINDS[name]).alias(f"_{name}") for name in ("clicks", "carts", "favourites")),
    )  # fmt: skip
    between = (F.col("_first_purchase") - F.col("_purchase")) / (F.col("_baskets") - 1)
    # `least` passes over a null: what has no value is told apart first.
    is_regular = (F.col("_baskets") > 1) & (F.col("_first_purchase") > F.col("_purchase"))
    overdue = F.when(is_regular, F.least(F.col("_purchase") / between, F.lit(_MOST_OVERDUE)))
    grown = {
        "days_since_event": "_event", "days_since_purchase": "_purchase", "days_known": "_first", "events": "_events",
        "events_30": "_events_30", "baskets": "_baskets", "baskets_30": "_baskets_30", "baskets_90": "_baskets_90",
        "lines": "_lines", "items": "_items", "returns": "_returns", "returns_90": "_returns_90", "clicks": "_clicks",
        "carts": "_carts", "favourites": "_favourites",
    }  # fmt: skip
    of_lines = F.least(F.col("_returns") / F.col("_lines"), F.lit(1.0))
    returned = F.when(F.col("_lines") > 0, of_lines).otherwise((F.col("_returns") > 0).cast("double"))
    return seen.select(
        "cut_at", "shopper_id",
        *(F.log1p(F.coalesce(F.col(of).cast("double"), F.lit(0.0))).alias(name) for name, of in grown.items()),
        F.col("_purchase").isNotNull().cast("double").alias("has_bought"),
        F.coalesce(overdue, F.lit(0.0)).alias("overdue"),
        returned.alias("return_share"),
    )  # fmt: skip


def follows(events: DataFrame, kind: str, within: int) -> DataFrame:
    """(cut_at, shopper_id, label = 1) of those who did something of a kind in the days from a cut on.

    `events`: as `at_cuts` gives them.
    """
    is_such = (F.col("kind") == kind) & (F.col("days") <= 0) & (F.col("days") > -within)
    return events.where(is_such).select("cut_at", "shopper_id", F.lit(1).alias("label")).distinct()


def logit(terms: Mapping[str, tuple[float, float, float]], bias: float) -> Column:
    """A linear model over columns: `terms` has of each name its mean, its scale and the weight of what is between."""
    total = F.lit(bias)
    for name, (mean, scale, weight) in sorted(terms.items()):
        total = total + (F.col(name) - mean) / scale * weight
    return total


def _seconds(name: str) -> Column:
    return F.unix_micros(name) / 1e6
