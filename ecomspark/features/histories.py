"""What shoppers did until a moment, session by session, and the items of it that a sequence model reads."""

from collections.abc import Sequence
from datetime import date
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.features.consents import of_people
from ecomspark.features.digests import digest_of_list

_DONE = ("occurred_at", "interaction_id", "kind", "item_id", "basket_id")

EVENT = ("shopper_id", "session_id", "session_started_at", *_DONE)


def end_of(day: date, time_zone: str) -> Column:
    """The moment, UTC, at which a day ends in a time zone."""
    return F.to_utc_timestamp(F.date_add(F.lit(day), 1).cast("timestamp"), time_zone)


def events_until(
    interactions: DataFrame, sessions: DataFrame, allowed: DataFrame, end: Column, gap_minutes: int
) -> DataFrame:
    """The interactions before a moment of those who allow it, each in its session: the columns of `EVENT`.

    `allowed`: as `features.consents.consenting` gives it. Those that no session holds yet are left out, and so are
    those of sessions that are taken for a machine's, but for one that may go on behind the moment (`gap_minutes`: that
    of `sessions`): what it is then taken for must not show before. Of such a session, what came before.
    """
    mine = of_people(interactions.where(F.col("occurred_at") < end), allowed)
    began = of_people(sessions.where(F.col("started_at") < end), allowed)
    of_session = F.struct("session_id", "started_at", "ended_at", "bot_rule")
    starts = began.select(
        "shopper_id", F.col("started_at").alias("_at"), F.lit(0).alias("_order"), F.hex("session_id").alias("_tie"),
        of_session.alias("_session"),
    )  # fmt: skip
    done = mine.select(
        "shopper_id", F.col("occurred_at").alias("_at"), F.lit(1).alias("_order"),
        F.col("interaction_id").alias("_tie"), F.struct(*_DONE).alias("_done"),
    )  # fmt: skip
    # One pass in order of time: an interaction is in the session that began last. A join by time would pair all
    # interactions of a shopper with all of their sessions.
    so_far = Window.partitionBy("shopper_id").orderBy("_at", "_order", "_tie").rowsBetween(Window.unboundedPreceding, 0)
    both = starts.unionByName(done, allowMissingColumns=True)
    placed = both.withColumn("_session", F.last("_session", ignorenulls=True).over(so_far)).where("_done IS NOT NULL")
    is_over = F.col("_session.ended_at") + F.make_dt_interval(mins=F.lit(gap_minutes)) < end
    is_bot = F.col("_session.bot_rule").isNotNull() & is_over
    held = placed.where((F.col("_at") <= F.col("_session.ended_at")) & ~is_bot)
    return held.select(
        "shopper_id", "_session.session_id", F.col("_session.started_at").alias("session_started_at"), "_done.*"
    )


def histories(
    events: DataFrame,
    spelled: DataFrame,
    *,
    of: Literal["sessions", "shoppers"],
    kinds: Sequence[str],
    max_items: int,
) -> DataFrame:
    """(shopper_id, item_ids, history_digest): the newest items of each shopper's last session, or of all they did.

    `spelled`: (item_id, spelling) of items that a digest names otherwise than by their id; the digest is over the
    spellings in order. A shopper without an interaction of `kinds` has no row.
    """
    chosen = events.where(F.col("kind").isin(*kinds))
    of_shopper = Window.partitionBy("shopper_id")
    if of == "sessions":
        session = F.struct("session_started_at", "session_id")
        marked = chosen.withColumn("_session", session).withColumn("_last", F.max(session).over(of_shopper))
        chosen = marked.where(F.col("_session") == F.col("_last")).drop("_session", "_last")
    newest = of_shopper.orderBy(F.desc("occurred_at"), F.desc("interaction_id"))
    read = chosen.withColumn("_place", F.row_number().over(newest)).where(F.col("_place") <= max_items)
    read = read.join(spelled, on="item_id", how="left")
    one = F.struct((-F.col("_place")).alias("place"), "item_id", F.coalesce("spelling", "item_id").alias("spelling"))
    in_order = read.groupBy("shopper_id").agg(F.sort_array(F.collect_list(one)).alias("read"))
    return in_order.select(
        "shopper_id",
        F.col("read.item_id").alias("item_ids"),
        digest_of_list(F.col("read.spelling")).alias("history_digest"),
    )


def told_by(events: DataFrame) -> DataFrame:
    """(shopper_id, history_digest): the digest of all interactions of a shopper, in order."""
    one = F.struct("occurred_at", "interaction_id")
    in_order = events.groupBy("shopper_id").agg(F.sort_array(F.collect_list(one)).alias("all"))
    return in_order.select("shopper_id", digest_of_list(F.col("all.interaction_id")).alias("history_digest"))


def bought(events: DataFrame) -> DataFrame:
    """(shopper_id, bought): the items that a shopper ever bought, in order of their ids."""
    purchases = events.where("kind = 'purchase'")
    return purchases.groupBy("shopper_id").agg(F.sort_array(F.collect_set("item_id")).alias("bought"))
