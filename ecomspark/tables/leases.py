"""Leases: who may publish to a table. One row a table, taken for a time and renewed; each taking raises the epoch.

A lease is safe without trusting any clock: the epoch rides in every commit of its holder (see `commits`), so a holder
that slept through its own end cannot publish. Clocks only decide how long others wait for one that died, and should
agree to a small part of that time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ecomspark.errors import NewerPublished
from ecomspark.schemas import LEASES, TABLES, Table
from ecomspark.tables.commits import Author, committed, epoch_of, fence, info_of, turn, write
from ecomspark.tables.warehouse import Snapshot, Warehouse, create, ddl, read, utc

GIVEN_BACK = ""  # in the place of a nonce
_TRIES = 20
_ROWS = "leases"


@dataclass(frozen=True)
class Lease:
    """A row of `leases`."""

    table_name: str
    epoch: int
    job: str
    run_id: str
    nonce: str
    expires_at: datetime


@dataclass(frozen=True)
class Leases:
    """All rows at a version: what the next writer of the table follows."""

    at: Snapshot
    rows: Mapping[str, Lease]

    @property
    def epoch(self) -> int:
        """The highest epoch that any lease ever had."""
        return max((lease.epoch for lease in self.rows.values()), default=0)


def read_leases(warehouse: Warehouse) -> Leases:
    """Every lease, current or not."""
    at = create(warehouse, LEASES)
    rows = _written(warehouse, at)
    if rows is None:  # the newest commit is not one of ours: maintenance, or the making of the table
        found = read(warehouse, LEASES, at).collect() if at.version else []
        rows = [Lease(**{**row.asDict(), "expires_at": utc(row["expires_at"])}) for row in found]
    return Leases(at, {lease.table_name: lease for lease in rows})


def take(
    warehouse: Warehouse, leases: Leases, names: Sequence[str], author: Author, nonce: str, seconds: float
) -> tuple[int, Snapshot]:
    """Put the author's name on the leases of some tables, in one commit: their epoch, higher than any before, and the
    version of `leases` that says so.

    Whether they are free is for the caller to say. Raises NewerPublished when the leases moved since they were read:
    read them again.
    """
    # Also above what the tables have seen: `leases` itself may have been lost.
    epoch = 1 + max([leases.epoch, *(epoch_of(warehouse, TABLES[name]) for name in names)])
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    mine = {name: Lease(name, epoch, author.job, author.run_id, nonce, until) for name in names}
    version = _write(warehouse, leases, {**leases.rows, **mine}, author)
    return epoch, Snapshot(leases.at.table_id, version)


def renew(warehouse: Warehouse, nonce: str, author: Author, seconds: float) -> bool:
    """Put off the end of all leases that carry `nonce`; false when none does any more: they were taken over."""
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return _changed(warehouse, nonce, author, {"expires_at": until})


def give_back(warehouse: Warehouse, nonce: str, author: Author) -> None:
    """End all leases that carry `nonce`, for a run that never opened: no row in `runs` will say that it is over."""
    _changed(warehouse, nonce, author, {"expires_at": datetime.now(UTC), "nonce": GIVEN_BACK})


def _changed(warehouse: Warehouse, nonce: str, author: Author, values: Mapping[str, Any]) -> bool:
    for left in reversed(range(_TRIES)):
        leases = read_leases(warehouse)
        mine = {name: lease for name, lease in leases.rows.items() if lease.nonce == nonce}
        if not mine:
            return False
        changed = {name: Lease(**{**vars(lease), **values}) for name, lease in mine.items()}
        try:
            _write(warehouse, leases, {**leases.rows, **changed}, author)
            return True
        except NewerPublished:
            if not left:
                raise
    return False


def fence_off(warehouse: Warehouse, tables: Sequence[Table], author: Author) -> None:
    """See that the former holder of leases that did not end well can no longer publish to their tables."""
    for table in tables:
        for left in reversed(range(_TRIES)):
            try:
                create(warehouse, table)  # so that the former holder cannot be the first to publish to it, either
                fence(warehouse, table, author)
                break
            except NewerPublished:  # the former holder has just published once more
                if not left:
                    raise


def _written(warehouse: Warehouse, at: Snapshot) -> list[Lease] | None:
    """The rows as the commit that wrote them has them in its metadata, too: read in 5 ms, where a Spark job takes half
    a second. None when a commit does not say them."""
    info = info_of(warehouse, LEASES, at.version)
    try:
        said = json.loads(info.userMetadata().get()) if info is not None and info.userMetadata().isDefined() else {}
    except ValueError:
        return None
    if not isinstance(said, dict) or _ROWS not in said:
        return None
    return [Lease(**{**row, "expires_at": datetime.fromisoformat(row["expires_at"])}) for row in said[_ROWS]]


def _write(warehouse: Warehouse, leases: Leases, rows: Mapping[str, Lease], author: Author) -> int:
    """All rows anew, if nobody wrote since they were read: a handful of rows, and one small file a commit."""
    values = [tuple(vars(lease)[column.name] for column in LEASES.columns) for lease in rows.values()]
    frame = warehouse.spark.createDataFrame(values, ddl(LEASES)).coalesce(1)
    options = turn(warehouse, LEASES, leases.at, author)
    said = [{**vars(lease), "expires_at": lease.expires_at.isoformat()} for lease in rows.values()]
    author = Author(author.job, author.run_id, facts={_ROWS: said})
    return committed(warehouse, LEASES, author, lambda: write(warehouse, LEASES, frame, options, "overwrite"))[0]
