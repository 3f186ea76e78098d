"""Which side a query is on. By query, never by row; a query keeps its side when others come or go."""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ecomspark.features.digests import digest_of


def sides(queries: DataFrame, split: str, seed: int, train: float, validation: float) -> DataFrame:
    """Rows for `splits` of (query_id, leader_id, side): the side given, else the one that leader_id draws.

    The draw is made of the digest of split, seed and leader_id, which is the query_id itself unless near-duplicates
    go together. The shares are met on average, not exactly: that is the price of a side that never changes.
    """
    draw = _draw(split, seed, "leader_id")
    side = F.when(draw < train, "train").when(draw < train + validation, "validation").otherwise("test")
    return queries.select(F.lit(split).alias("split"), "query_id", F.coalesce("side", side).alias("side"))


def given_sides(rows: DataFrame, split: str, seed: int, validation: float) -> DataFrame:
    """Rows for `splits`, and `is_on_two_sides`, from sides that a source gives: (query_id, side), a row an alias.

    A query that it puts on several sides, because its aliases normalise alike, is on the test side if that is among
    them, else on the validation side: nothing that is tested on is learnt from. Of the queries on the training side,
    the share `validation` goes over to validation, each by its own draw, as in `sides`.
    """
    of_query = rows.groupBy("query_id").agg(F.collect_set("side").alias("_sides"))
    strictest = F.when(F.array_contains("_sides", "test"), "test").when(
        F.array_contains("_sides", "validation"), "validation"
    )
    drawn = F.when(_draw(split, seed, "query_id") < validation, "validation")
    side = F.coalesce(strictest, drawn, F.lit("train"))
    return of_query.select(
        F.lit(split).alias("split"), "query_id", side.alias("side"), (F.size("_sides") > 1).alias("is_on_two_sides")
    )


def _draw(split: str, seed: int, of: str) -> Column:
    """A number from 0 to 1, below 1, that what is in the column `of` keeps."""
    drawn = digest_of(F.lit(split), F.lit(str(seed)), F.hex(of))
    return F.conv(F.hex(F.substring(drawn, 1, 6)), 16, 10).cast("double") / float(2**48)
