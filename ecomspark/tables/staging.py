"""Rows that Python made for a state table: landed once, then read, so that a merge never makes them again.

They stand in a table of their own beside the warehouse's, `staging/<table>/<name of the run>`, and go with their files
when the run is over. What a run left that died goes when it is started again.
"""

from dataclasses import replace

from pyspark.sql import DataFrame

from ecomspark import schemas
from ecomspark.errors import NewerPublished
from ecomspark.schemas import Table
from ecomspark.tables.commits import Author, append, committed
from ecomspark.tables.warehouse import Warehouse, conform, create, exists, newest, whole
from ecomspark.text import digest


def stage(warehouse: Warehouse, table: Table, rows: DataFrame, author: Author) -> DataFrame:
    """`rows`, of the columns of a state table but `changed_by`, evaluated exactly once and read back from where they
    landed. `unstage` takes them away; so does staging for the same table and run again."""
    landed = _staged(table, author)
    unstage(warehouse, table, author)
    create(warehouse, landed)
    rows = conform(rows, landed)
    try:
        version, _ = committed(warehouse, landed, author, lambda: append(warehouse, landed, rows))
    except NewerPublished:
        if newest(warehouse, landed).version > 0:
            raise
        version = 0  # where Python made no row, Delta makes no commit
    return whole(warehouse, landed, version).select(*landed.column_names)


def unstage(warehouse: Warehouse, table: Table, author: Author) -> None:
    """Take away what a run has staged for a table, files included; nothing if there is none."""
    landed = _staged(table, author)
    path = warehouse.path(landed)
    if path is None:
        warehouse.spark.sql(f"DROP TABLE IF EXISTS {warehouse.name(landed)}")
    elif exists(warehouse, landed):
        jvm, session = warehouse.spark._jvm, warehouse.spark._jsparkSession
        of_path = jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr]
        of_path.getFileSystem(session.sessionState().newHadoopConf()).delete(of_path, True)
        # Of this table alone: what Delta knows of the others need not be read again.
        jvm.org.apache.spark.sql.delta.DeltaLog.invalidateCache(session, of_path)  # type: ignore[union-attr]


def unstage_all(warehouse: Warehouse, table: Table) -> None:
    """Take away what any run has staged for a table: for a job that holds the table's lease, so that none is at it."""
    every = replace(table, name=f"staging/{table.name}")
    folder = warehouse.path(every)
    if folder is None:
        schema, _, name = warehouse.name(every).rpartition(".")
        for row in warehouse.spark.sql(f"SHOW TABLES IN {schema} LIKE '{name.strip('`')}_*'").collect():
            warehouse.spark.sql(f"DROP TABLE IF EXISTS {schema}.`{row['tableName']}`")
        return
    jvm, session = warehouse.spark._jvm, warehouse.spark._jsparkSession
    of_path = jvm.org.apache.hadoop.fs.Path(folder)  # type: ignore[union-attr]
    of_path.getFileSystem(session.sessionState().newHadoopConf()).delete(of_path, True)


def _staged(table: Table, author: Author) -> Table:
    if table.kind != "state":
        raise ValueError(f"{table.name}: only what a state table takes is staged")
    columns = tuple(column for column in table.columns if column != schemas.CHANGED_BY)
    name = f"staging/{table.name}/{digest(author.job, author.run_id).hex()[:16]}"
    return replace(table, name=name, kind="log", columns=columns, bucketed_by=None, statistics=())
