"""Sequences of items to learn from: sessions by themselves, or all that a shopper did, split in two by a moment."""

from collections.abc import Sequence
from typing import Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F


def sequences(
    sessions: DataFrame, of: Literal["sessions", "shoppers"], validation_from: Column, kinds: Sequence[str]
) -> DataFrame:
    """(item_ids, side, ends_at, sequence_id): what ended before a moment to train on, what began since to validate on.

    Of shoppers, the training sequence is all that they did before, and the validation sequence that and the one item
    that came next. Only what is of `kinds` counts. A session that lasts over the moment is on neither side, and so is a
    sequence of one item. Sessions of machines are left out. `sequence_id` puts sequences of one time in order; a
    shopper's two have the same.
    """
    done = F.arrays_zip(F.col("item_ids").alias("item_id"), F.col("kinds").alias("kind"))
    counted = F.filter(done, lambda one: one["kind"].isin(*kinds))
    of_people = sessions.where(F.col("bot_rule").isNull()).withColumn(
        "item_ids", F.transform(counted, lambda one: one["item_id"])
    )
    of_people = of_people.where(F.size("item_ids") > 0)
    side = F.when(F.col("ended_at") < validation_from, "train").when(
        F.col("started_at") >= validation_from, "validation"
    )
    sided = of_people.withColumn("side", side).where(F.col("side").isNotNull())
    if of == "sessions":
        found = sided.select(
            "item_ids", "side", F.col("ended_at").alias("ends_at"), F.col("session_id").alias("sequence_id")
        )
        return found.where(F.size("item_ids") > 1)
    in_order = F.array_sort(F.collect_list(F.struct("started_at", "session_id", "item_ids")))
    items = F.flatten(F.transform(in_order, lambda one: one["item_ids"]))
    before = (
        sided.where("side = 'train'")
        .groupBy("shopper_id")
        .agg(items.alias("item_ids"), F.max("ended_at").alias("ends_at"), F.min("session_id").alias("sequence_id"))
    )
    first = Window.partitionBy("shopper_id").orderBy("started_at", "session_id")
    since = sided.where("side = 'validation'").withColumn("_place", F.row_number().over(first)).where("_place = 1")
    since = since.select("shopper_id", F.slice("item_ids", 1, 1).alias("_next"), F.col("started_at").alias("_next_at"))
    judged = before.join(since, on="shopper_id", how="inner").select(
        F.concat("item_ids", "_next").alias("item_ids"),
        F.lit("validation").alias("side"),
        F.col("_next_at").alias("ends_at"),
        "sequence_id",
    )
    learnt = before.select("item_ids", F.lit("train").alias("side"), "ends_at", "sequence_id")
    return learnt.unionByName(judged).where(F.size("item_ids") > 1)
