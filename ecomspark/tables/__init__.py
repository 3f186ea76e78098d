"""The only package that knows Delta: `warehouse` is where tables are and how they are read, `publish` how they
change, `source` what is read from outside.

Readers of state and log tables see a pinned version; memory tables are read at their newest version, because their
content cannot change an answer. Commits carry the run, the job and a nonce, never a row's value.
"""

from ecomspark.tables.publish import (
    Author,
    Change,
    Commit,
    append_log,
    append_memory,
    compare,
    drop,
    drop_staged,
    publish,
    put,
    read_staged,
    stage,
)
from ecomspark.tables.source import MALFORMED, Source, Sourced, read_source
from ecomspark.tables.warehouse import (
    Snapshot,
    Warehouse,
    committed_at,
    conform,
    create,
    ddl,
    empty,
    exists,
    read,
    read_memory,
    snapshot,
)

__all__ = [
    "MALFORMED", "Author", "Change", "Commit", "Snapshot", "Source", "Sourced", "Warehouse", "append_log",
    "append_memory", "committed_at", "compare", "conform", "create", "ddl", "drop", "drop_staged", "empty", "exists",
    "publish", "put", "read", "read_memory", "read_source", "read_staged", "snapshot", "stage",
]  # fmt: skip
