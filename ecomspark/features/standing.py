"""Rows of a shopper that stand from their day on until a newer day has some: which are in force, which go."""

from datetime import date

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def in_force(rows: DataFrame, as_of: date) -> DataFrame:
    """Each shopper's rows of the newest as_of_date that is not later than a day."""
    of_shopper = Window.partitionBy("shopper_id")
    known = rows.where(F.col("as_of_date") <= F.lit(as_of))
    marked = known.withColumn("_newest", F.max("as_of_date").over(of_shopper))
    return marked.where(F.col("as_of_date") == F.col("_newest")).drop("_newest")


def gone_dates(rows: DataFrame, kept: DataFrame, news: DataFrame, as_of: date, keeps_dates: int) -> DataFrame:
    """(shopper_id, as_of_date) of the rows that go: of shoppers who are not in `kept`, and of days older than the
    newest `keeps_dates` of a shopper; the day itself is one for those in `news`. Both: (shopper_id)."""
    dates = rows.select("shopper_id", "as_of_date").distinct()
    today = news.select("shopper_id", F.lit(as_of).alias("as_of_date"))
    newest = Window.partitionBy("shopper_id").orderBy(F.desc("as_of_date"))
    placed = dates.unionByName(today).distinct().withColumn("_place", F.row_number().over(newest))
    too_old = placed.where(F.col("_place") > keeps_dates).drop("_place")
    lost = dates.join(kept.select("shopper_id"), on="shopper_id", how="left_anti")
    return too_old.unionByName(lost.select("shopper_id", "as_of_date")).distinct()
