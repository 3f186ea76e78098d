"""Which side a query is on. By query, never by row; a query keeps its side when others come or go."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark.features.digests import digest_of


def sides(queries: DataFrame, split: str, seed: int, train: float, validation: float) -> DataFrame:
    """Rows for `splits` of (query_id, leader_id, side): the side given, else the one that leader_id draws.

    The draw is made of the digest of split, seed and leader_id, which is the query_id itself unless near-duplicates
    go together. The shares are met on average, not exactly: that is the price of a side that never changes.
    """
    drawn = digest_of(F.lit(split), F.lit(str(seed)), F.hex("leader_id"))
    draw = F.conv(F.hex(F.substring(drawn, 1, 6)), 16, 10).cast("double") / float(2**48)
    side = F.when(draw < train, "train").when(draw < train + validation, "validation").otherwise("test")
    return queries.select(F.lit(split).alias("split"), "query_id", F.coalesce("side", side).alias("side"))
