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
