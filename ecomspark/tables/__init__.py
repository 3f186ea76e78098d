"""The only package that knows Delta: `warehouse` is where tables are and how they are read, `commits` one commit and
the proof of it, `publish` how tables change, `changes` what changed since a version, `leases` who may publish,
`maintenance` fewer files and rows, `source` what is read from outside, `staging` what Python made for a state table.

Readers of state and log tables see a pinned version; memory tables are read at their newest version, because their
content cannot change an answer. Commits carry the run, the job and a nonce, never a row's value.
"""

from ecomspark.tables.changes import changes, ever_since
from ecomspark.tables.commits import Author, Commit
from ecomspark.tables.keeping import kept
from ecomspark.tables.leases import GIVEN_BACK, Lease, Leases, fence_off, give_back, read_leases, renew, take
from ecomspark.tables.maintenance import (
    collect,
    delete,
    file_count,
    has_small_files,
    keep_history,
    optimise,
    removals_known_since,
    vacuum,
    written_at,
)
from ecomspark.tables.publish import Change, append_log, append_memory, compare, drop, publish, put
from ecomspark.tables.source import MALFORMED, Source, Sourced, read_source
from ecomspark.tables.staging import stage, unstage, unstage_all
from ecomspark.tables.warehouse import (
    Snapshot,
    Warehouse,
    bucket_of,
    buckets_of,
    committed_at,
    conform,
    create,
    ddl,
    differences,
    empty,
    exists,
    jar_version,
    place_of,
    read,
    read_memory,
    snapshot,
)

__all__ = [
    "GIVEN_BACK", "MALFORMED", "Author", "Change", "Commit", "Lease", "Leases", "Snapshot", "Source", "Sourced",
    "Warehouse", "append_log", "append_memory", "bucket_of", "buckets_of", "changes", "collect", "committed_at",
    "compare", "conform", "create", "ddl", "delete", "differences", "drop", "empty", "ever_since",
    "exists", "fence_off", "file_count", "give_back", "has_small_files", "jar_version", "keep_history", "kept",
    "optimise", "place_of", "publish", "put", "read", "read_leases", "read_memory", "read_source",
    "removals_known_since", "renew", "snapshot", "stage", "take", "unstage", "unstage_all", "vacuum", "written_at",
]  # fmt: skip
