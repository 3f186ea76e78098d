"""What a shopper's behaviour says of them."""

from datetime import date
from itertools import pairwise

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F


def newest_profiles(profiles: DataFrame, as_of: date) -> DataFrame:
    """Each shopper's profile as of a day: the newest of a day not later."""
    newest = Window.partitionBy("shopper_id").orderBy(F.desc("as_of_date"))
    known = profiles.where(F.col("as_of_date") <= F.lit(as_of))
    return known.withColumn("_place", F.row_number().over(newest)).where("_place = 1").drop("_place")


def price_band(price: Column, edges: list[float]) -> Column:
    """The name of a price's band, such as 2-5, of rising edges: an edge belongs to the band that it opens. Null for no
    price."""
    below = [0.0, *edges]
    name = F.lit(f"{below[-1]:g}+")
    for low, high in reversed(list(pairwise(below))):
        name = F.when(price < high, f"{low:g}-{high:g}").otherwise(name)
    return F.when(price.isNotNull(), name)
