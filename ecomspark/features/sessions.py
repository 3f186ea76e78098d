"""Sessions: what one shopper did with no gap over a declared length, and the rules by which a session is a machine's.

A session is decided by the set of interactions alone: whether they came late, in another order or in several imports
does not show in it. It is not cut at midnight; its day is that on which it began.
"""

from collections.abc import Iterable
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.config import Section, setting
from ecomspark.features.digests import digest_of

Kind = Literal["impression", "click", "cart", "favourite", "purchase", "return", "review"]

_MICROS = 1_000_000
_DAY = 86_400 * _MICROS
_HOUR = 3_600 * _MICROS
_PACED = 10  # of fewer interactions a pace says nothing: anybody opens three tabs within a second
_SPANS = 30  # of more, one that covers them all: a condition of thousands of dates costs more than it saves
# Python's zones that Java does not know: one is the machine's own, the other stands for none.
_NO_ZONES = {"localtime", "Factory"}


def _known_zone(name: str) -> str:
    if name not in available_timezones() - _NO_ZONES:
        raise ValueError("no time zone of that name; expected one such as UTC or Europe/London")
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


class BotRules(Section):
    """When a session is taken for a machine's. Purchases and returns do not count: an invoice has a thousand lines."""

    max_interactions_an_hour: int | None = setting(
        600, "more interactions than this within an hour; null: no such rule", unit="interactions", ge=1
    )
    max_items: int | None = setting(500, "more different items than this; null: no such rule", unit="items", ge=1)
    min_seconds_between: float | None = setting(
        1.0,
        f"fewer seconds than this from one to the next, on average over {_PACED} or more; null: no such rule",
        unit="seconds",
        gt=0,
    )


class SessionRules(Section):
    """What a session is."""

    gap_minutes: int = setting(
        30, "a longer time without an interaction ends a session", unit="minutes", ge=1, le=7 * 1440
    )
    time_zone: TimeZone = setting("UTC", "in which a session has its day, such as Europe/London")
    kinds: Annotated[list[Kind], Field(min_length=1)] = setting(
        ["click", "cart", "favourite", "purchase", "return", "review"], "which interactions count"
    )
    bots: BotRules = setting(BotRules(), "sessions that machines are taken to have had; their rows say by which rule")


def local_date(at: Column, time_zone: str) -> Column:
    """The day of a time in a time zone, whatever zone the Spark session is in. What lies beyond the calendar of four
    digits there (the evening of 9999-12-31 UTC, in Auckland) has its last day, or its first."""
    local = F.unix_seconds(F.from_utc_timestamp(at, time_zone))
    day = F.date_from_unix_date(F.floor(local / 86_400).cast("int"))
    return F.least(F.greatest(day, F.expr("DATE'0001-01-01'")), F.expr("DATE'9999-12-31'"))


def counted(interactions: DataFrame, rules: SessionRules) -> DataFrame:
    """The interactions that sessions are made of: of a declared kind and a known shopper."""
    return interactions.where(F.col("kind").isin(list(rules.kinds)) & F.col("shopper_id").isNotNull())


def sessions_of(interactions: DataFrame, rules: SessionRules) -> DataFrame:
    """The sessions of some people: all columns of `sessions` but settings_digest and changed_by.

    `interactions`: rows of `interactions` under the ids that stay (see `features.consents.of_people`), in any order; of
    one shopper all, or all of some stretches that are further than the gap from what was left out.
    """
    in_order = Window.partitionBy("shopper_id").orderBy("_at", "interaction_id")
    steps = counted(interactions, rules).withColumn("_at", F.unix_micros("occurred_at"))
    # Whole microseconds: neither a day of 23 hours nor the year 9999 is anything special.
    is_first = F.coalesce(F.col("_at") - F.lag("_at").over(in_order) > rules.gap_minutes * 60 * _MICROS, F.lit(True))
    begun = F.sum(F.col("_is_first").cast("int")).over(in_order.rowsBetween(Window.unboundedPreceding, 0))
    numbered = steps.withColumn("_is_first", is_first).withColumn("_number", begun)
    # What the rules for machines look at.
    act = ~F.col("kind").isin("purchase", "return")
    past_hour = Window.partitionBy("shopper_id", "_number").orderBy("_at").rangeBetween(1 - _HOUR, 0)
    paced = numbered.withColumn("_in_an_hour", F.count_if(act).over(past_hour))
    step = F.struct("_at", "interaction_id", "item_id", "kind")
    whole = paced.groupBy("shopper_id", "_number").agg(
        F.array_sort(F.collect_list(step)).alias("_steps"),
        F.min("occurred_at").alias("started_at"),
        F.max("occurred_at").alias("ended_at"),
        F.count("*").cast("int").alias("interaction_count"),
        F.count_if(F.col("kind") == "purchase").cast("int").alias("purchase_count"),
        F.max("_in_an_hour").alias("_in_an_hour"),
        F.size(F.collect_set(F.when(act, F.col("item_id")))).alias("_items"),
        F.count_if(act).alias("_acts"),
        (F.max(F.when(act, F.col("_at"))) - F.min(F.when(act, F.col("_at")))).alias("_lasted"),
    )
    return whole.select(
        digest_of(F.col("shopper_id"), F.col("_steps")[0]["interaction_id"]).alias("session_id"),
        "shopper_id",
        local_date(F.col("started_at"), rules.time_zone).alias("session_date"),
        "started_at",
        "ended_at",
        "interaction_count",
        "purchase_count",
        F.col("_steps.item_id").alias("item_ids"),
        F.col("_steps.kind").alias("kinds"),
        _bot_rule(rules.bots).alias("bot_rule"),
    )


def _bot_rule(bots: BotRules) -> Column:
    """The first rule, in the order of the settings, that holds."""
    rule = F.lit(None).cast("string")
    if bots.max_interactions_an_hour is not None:
        is_broken = F.col("_in_an_hour") > bots.max_interactions_an_hour
        rule = F.coalesce(rule, F.when(is_broken, "max_interactions_an_hour"))
    if bots.max_items is not None:
        rule = F.coalesce(rule, F.when(F.col("_items") > bots.max_items, "max_items"))
    if bots.min_seconds_between is not None:
        is_hurried = F.col("_lasted") < bots.min_seconds_between * _MICROS * (F.col("_acts") - 1)
        rule = F.coalesce(rule, F.when((F.col("_acts") >= _PACED) & is_hurried, "min_seconds_between"))
    return rule


def touched_sessions(sessions: DataFrame, moved: DataFrame, gap_minutes: int) -> DataFrame:
    """The sessions that an interaction which came or went may have changed: those that it lies in or within the gap of.

    `moved`: (shopper_id, occurred_at). What such an interaction joins to a session touches one that it touches itself:
    two sessions that none does lie further than the gap apart, as before.
    """
    gap, at = gap_minutes * 60 * _MICROS, F.unix_micros("_moved_at")
    is_near = at.between(F.unix_micros("started_at") - gap, F.unix_micros("ended_at") + gap)
    times = moved.select(F.col("shopper_id").alias("_moved_id"), F.col("occurred_at").alias("_moved_at"))
    return sessions.join(times, on=(F.col("shopper_id") == F.col("_moved_id")) & is_near, how="left_semi")


def stretches_of(touched: DataFrame, moved: DataFrame) -> DataFrame:
    """(shopper_id, started_at, ended_at): the times of sessions, and those of what came, whose interactions make up
    the sessions anew."""
    at = F.col("occurred_at")
    points = moved.select("shopper_id", at.alias("started_at"), at.alias("ended_at"))
    return touched.select(*points.columns).unionByName(points).distinct()


def within_stretches(interactions: DataFrame, stretches: DataFrame) -> DataFrame:
    """The interactions that lie in a stretch of their shopper."""
    own = stretches.withColumnRenamed("shopper_id", "_shopper_id")
    is_in = (F.col("shopper_id") == F.col("_shopper_id")) & F.col("occurred_at").between(
        F.col("started_at"), F.col("ended_at")
    )
    return interactions.join(own, on=is_in, how="left_semi")


def days_of(stretches: DataFrame) -> DataFrame:
    """(day): the days since 1970 in UTC that stretches touch, each once."""
    first, last = (F.floor(F.unix_seconds(end) / 86_400) for end in ("started_at", "ended_at"))
    return stretches.select(F.explode(F.sequence(first, last)).alias("day")).distinct()


def spans_of(days: Iterable[int]) -> list[tuple[int, int]]:
    """Days as spans of neighbours, both ends included; one span over all where they would be many.

    >>> spans_of([3, 1, 2, 7])
    [(1, 3), (7, 7)]
    """
    spans: list[tuple[int, int]] = []
    for day in sorted(days):
        if spans and day <= spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    return [(spans[0][0], spans[-1][1])] if len(spans) > _SPANS else spans


def on_days(interactions: DataFrame, spans: Iterable[tuple[int, int]]) -> DataFrame:
    """The interactions of some days, as conditions with literals: those by which Delta leaves whole files unread."""
    is_on = F.lit(False)
    for first, last in spans:
        since, until = (F.timestamp_micros(F.lit(day * _DAY)) for day in (first, last + 1))
        is_on |= (F.col("occurred_at") >= since) & (F.col("occurred_at") < until)
    return interactions.where(is_on)
