"""Rows that Python made for a state or log table, on their way there: a merge may evaluate its source more than once,
so it must not read Python."""

import uuid
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark import schemas
from ecomspark.schemas import Table, column
from ecomspark.tables.commits import Author, append, committed
from ecomspark.tables.warehouse import Warehouse, conform, create, delta, exists, whole


def stage(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author, part: str) -> str:
    """Append what Python made for a state or log table to `staging/<table>`; the nonce under which it landed.

    A merge may evaluate its source more than once, so it must not read Python: it reads what `read_staged` gives.
    """
    staging, nonce = staging_of(table), uuid.uuid4().hex
    create(warehouse, staging)
    marks = {"job": author.job, "run_id": author.run_id, "part": part, "nonce": nonce}
    staged = rows.withColumns({name: F.lit(value) for name, value in marks.items()})
    committed(warehouse, staging, author, lambda: append(warehouse, staging, conform(staged, staging)))
    return nonce


def read_staged(warehouse: Warehouse, table: Table, nonces: Sequence[str]) -> DataFrame:
    """The rows of the parts that landed under `nonces`; what a dead try left is not among them."""
    staged = whole(warehouse, staging_of(table)).where(F.col("nonce").isin(list(nonces)))
    return staged.select(*(name for name in staging_of(table).column_names if name in table.column_names))


def drop_staged(warehouse: Warehouse, table: Table, author: Author) -> None:
    """Delete all that a run staged for a table, when the run closes."""
    if exists(warehouse, staging_of(table)):
        is_mine = (F.col("job") == author.job) & (F.col("run_id") == author.run_id)
        delta(warehouse, staging_of(table)).delete(is_mine)


def staging_of(table: Table) -> Table:
    """The declaration of what is staged for a table."""
    marks = (
        column("job", "string", "the job that staged the row"),
        column("run_id", "string", "its run"),
        column("part", "string", "the part of its work"),
        column("nonce", "string", "names one try at the part"),
    )
    columns = tuple(c for c in table.columns if c != schemas.CHANGED_BY)
    return Table(
        f"staging/{table.name}", f"staged for {table.name}: {table.one_row}", "log", table.key, columns + marks,
        table.bytes_a_row,
    )  # fmt: skip
