"""What belongs together by what shoppers bought: counts of items and queries, without the ids of those who bought."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F


def bought_together(interactions: DataFrame, min_count: int, per_item: int, max_basket: int) -> DataFrame:
    """(item_id, other_id, baskets): of each item the `per_item` others nearest to it by the cosine of the baskets that
    held them (Sarwar et al. 2001): what sells with everything is near to nothing.

    `interactions`: rows of `interactions`. Both directions of a pair are there, each by its own item's order; ties: by
    other_id. `baskets`: those that held both. A pair of fewer than `min_count` of them is left out, as are baskets of
    more than `max_basket` items: they are of resellers, and their pairs grow with the square of them; how often an item
    was bought at all is counted over every basket. What was returned counts as bought.
    """
    bought = interactions.where("kind = 'purchase' AND basket_id IS NOT NULL").select("basket_id", "item_id").distinct()
    sizes = bought.groupBy("basket_id").agg(F.count("*").alias("_size"))
    shared = sizes.where((F.col("_size") > 1) & (F.col("_size") <= max_basket)).select("basket_id")
    in_baskets = bought.join(shared, on="basket_id", how="inner")
    others = in_baskets.select("basket_id", F.col("item_id").alias("other_id"))
    pairs = in_baskets.join(others, on="basket_id", how="inner").where("item_id <> other_id")
    counted = pairs.groupBy("item_id", "other_id").agg(F.count("*").alias("baskets"))
    of_other = bought.groupBy(F.col("item_id").alias("other_id")).agg(F.count("*").alias("_of_other"))
    counted = counted.join(of_other, on="other_id", how="inner")
    # Of one item's others; its own count, the same for all of them, is left out.
    nearest = F.col("baskets") / F.sqrt("_of_other")
    most_first = Window.partitionBy("item_id").orderBy(nearest.desc(), "other_id")
    placed = counted.where(F.col("baskets") >= min_count).withColumn("_place", F.row_number().over(most_first))
    return placed.where(F.col("_place") <= per_item).select("item_id", "other_id", "baskets")


def asked_and_bought(interactions: DataFrame, known: DataFrame, min_count: int, per_query: int) -> DataFrame:
    """(query_id, item_id, purchases): of each query the `per_query` items that it most often led to the purchase of.

    `interactions`: rows of `interactions`; `known`: (source, source_query_id, query_id). A purchase whose query is not
    known or is gone is left out, as are items of fewer than `min_count` purchases. Ties: by item_id.
    """
    bought = interactions.where("kind = 'purchase'").select("source", "source_query_id", "item_id")
    asked = bought.join(known, on=["source", "source_query_id"], how="inner")
    counted = asked.groupBy("query_id", "item_id").agg(F.count("*").alias("purchases"))
    most_first = Window.partitionBy("query_id").orderBy(F.desc("purchases"), "item_id")
    placed = counted.where(F.col("purchases") >= min_count).withColumn("_place", F.row_number().over(most_first))
    return placed.where(F.col("_place") <= per_query).select("query_id", "item_id", "purchases")
