"""`text.digest` in Spark SQL: the same 128 bits for the same parts."""

from pyspark.sql import Column
from pyspark.sql import functions as F

from ecomspark.text import DIGEST_BYTES


def digest_of(*parts: Column) -> Column:
    """sha256 over `<bytes>:<text>` for each part, `-` for null, cut to 128 bits, as binary. Parts are strings."""
    spelled = [
        F.coalesce(F.concat(F.octet_length(part).cast("string"), F.lit(":"), part), F.lit("-")) for part in parts
    ]
    return F.unhex(F.substring(F.sha2(F.concat(*spelled), 256), 1, 2 * DIGEST_BYTES))


def digest_of_list(texts: Column) -> Column:
    """`text.digest` of the elements of an array of strings, in order; none of them is null."""
    spelled = F.transform(texts, lambda one: F.concat(F.octet_length(one).cast("string"), F.lit(":"), one))
    return F.unhex(F.substring(F.sha2(F.array_join(spelled, ""), 256), 1, 2 * DIGEST_BYTES))
