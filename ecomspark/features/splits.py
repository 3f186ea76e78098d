"""Which side a query is on. By query, never by row; a query keeps its side when others come or go."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark.features.digests import digest_of


def sides(queries: DataFrame, split: str, seed: int, train: float, validation: float) -> DataFrame:
    """Rows for `splits`: each query_id by its own draw, from the digest of split, seed and query_id.

    The shares are met on average, not exactly: that is the price of a side that never changes.
    """
    drawn = digest_of(F.lit(split), F.lit(str(seed)), F.hex("query_id"))
    draw = F.conv(F.hex(F.substring(drawn, 1, 6)), 16, 10).cast("double") / float(2**48)
    side = F.when(draw < train, "train").when(draw < train + validation, "validation").otherwise("test")
    return queries.select(F.lit(split).alias("split"), "query_id", side.alias("side"))
