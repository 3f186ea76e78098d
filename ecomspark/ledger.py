"""The rows of `runs`: what a new run must know of the earlier ones, and whether it may start.

Order among runs is that of their epochs, which rise with every lease: no clock decides which was later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from pyspark.sql import Row
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.errors import ConfigError, LeaseTaken, NewerPublished
from ecomspark.schemas import RUNS
from ecomspark.tables import Author, Lease, Snapshot, Warehouse

OVER = ("published", "nothing_to_do")
_ENDED = (*OVER, "failed")
_LOOKED_AT = 200  # runs of a job; what the last of so many did not cover is compared whole


@dataclass(frozen=True)
class Watermark:
    """Up to where a run has brought something: what it read, at which versions, the day that it took for today, the
    versions at which it left what it published, and what it counted."""

    run_id: str
    inputs: Mapping[str, Snapshot]
    as_of: date | None
    left: Mapping[str, int]
    rows: Mapping[str, int]


@dataclass(frozen=True)
class Past:
    """`mine`: the run's own row; `over`: the runs of its job and target that are over, the latest first; `begun`: those
    that failed after they had published a part; `ended`: which of the leases' holders are no more."""

    mine: Row | None = None
    over: tuple[Row, ...] = ()
    begun: tuple[Row, ...] = ()
    ended: frozenset[tuple[str, str, int]] = frozenset()

    def watermark(self, covered: str, digest: str) -> Watermark | None:
        """That of the last run that covered `covered`; None if there is none, or if other things decided then."""
        for row in self.over:
            if covered in (row["covers"] or {}):
                is_alike = row["covers"][covered] == digest
                left = {name: at["after"] for name, at in row["published"].items()}
                mark = Watermark(row["run_id"], pinned(row), row["as_of"], left, row["rows"])
                return mark if is_alike else None
        return None


def look(warehouse: Warehouse, author: Author, target: str | None, leases: Sequence[Lease] = ()) -> Past:
    """What `runs` says now of the run itself, of earlier ones, and of those that hold `leases`."""
    at = tables.snapshot(warehouse, RUNS)
    if at is None:
        return Past()
    is_mine = (F.col("job") == author.job) & (F.col("run_id") == author.run_id)
    is_holder = F.lit(False)
    for job, run_id in {(lease.job, lease.run_id) for lease in leases}:
        is_holder |= (F.col("job") == job) & (F.col("run_id") == run_id)
    is_begun = (F.col("status") == "failed") & (F.size("published") > 0)
    is_past = (F.col("job") == author.job) & (F.col("status").isin(list(OVER)) | is_begun)
    is_past &= F.col("target").eqNullSafe(F.lit(target))
    # One job's runs of years are some thousand rows: put in order here, they take one task and no shuffle.
    rows = tables.read(warehouse, RUNS, at).where(is_mine | is_holder | is_past).collect()
    of_job = [row for row in rows if row["job"] == author.job]
    over = [row for row in of_job if row["status"] in OVER and row["target"] == target]
    begun = tuple(row for row in of_job if row["status"] == "failed" and row["published"] and row["target"] == target)
    over.sort(key=lambda row: (row["epoch"] or 0, row["started_at"]), reverse=True)
    own = [row for row in of_job if row["run_id"] == author.run_id]
    mine = max(own, key=lambda row: row["epoch"] or 0, default=None)
    # By the epoch, too: a run that failed and was started again has not ended, though its row may still say so.
    ended = frozenset((row["job"], row["run_id"], row["epoch"] or 0) for row in rows if row["status"] in _ENDED)
    return Past(mine, tuple(over[:_LOOKED_AT]), begun, ended)


def pinned(row: Row) -> dict[str, Snapshot]:
    """The inputs of a run, by table."""
    return {name: Snapshot(at["table_id"], at["version"]) for name, at in row["inputs"].items()}


def refuse_changed(author: Author, earlier: Row, settings_digest: bytes, as_of: date | None) -> None:
    """A run_id names one execution: the same settings, the same day. Raises ConfigError."""
    place = f"{author.job}: run {author.run_id}"
    how = "ended" if earlier["status"] in OVER else "was cut off"
    if bytes(earlier["settings_digest"]) != settings_digest:
        raise ConfigError(
            f"{place} {how} with settings {bytes(earlier['settings_digest']).hex()}, "
            f"asked for now with {settings_digest.hex()}; give the changed run another run_id"
        )
    if as_of is not None and as_of != earlier["as_of"]:
        raise ConfigError(
            f"{place} {how} as of {earlier['as_of']}, asked for now as of {as_of}; give it another run_id"
        )


def refuse_older(
    author: Author, as_of: date | None, inputs: Mapping[str, Snapshot | None], cut_off: Row | None, past: Past
) -> None:
    """Raises NewerPublished when a run of a later day, of later versions, or one that was opened later is over."""
    newest = max((row["as_of"] for row in (*past.over, *past.begun) if row["as_of"]), default=None)
    if newest is not None and as_of is not None and as_of < newest:
        raise NewerPublished(f"{author.job}: asked for {as_of}, but {newest} is published already; nothing was done")
    last = past.over[0] if past.over else None
    if last is None:
        return
    if cut_off is not None and (last["epoch"] or 0) > (cut_off["epoch"] or 0):
        raise NewerPublished(
            f"{author.job}: run {author.run_id} was cut off, and a later run has ended since; nothing was done; "
            "start a run with a new run_id"
        )
    for name, at in pinned(last).items():
        mine = inputs.get(name)
        if mine is not None and mine.table_id == at.table_id and mine.version < at.version:
            raise NewerPublished(
                f"{author.job}: asked for {name} at version {mine.version}, but version {at.version} is published "
                "already; nothing was done; make a new plan, or start a run without one"
            )


def refuse_taken(author: Author, leases: Sequence[Lease], past: Past) -> None:
    """Raises LeaseTaken when another run that lives, as far as can be known, holds one of the leases.

    The run's own earlier try does not count: who starts it again says that it is dead.
    """
    for lease in leases:
        is_mine = (lease.job, lease.run_id) == (author.job, author.run_id)
        if not is_mine and ended_badly(lease, past) and lease.expires_at > datetime.now(UTC):
            raise LeaseTaken(
                f"{lease.table_name}: {lease.job}, run {lease.run_id}, may publish to it until it ends, and if it is "
                f"dead until {lease.expires_at:%Y-%m-%d %H:%M:%S} UTC; run again then, or set leases.wait_seconds"
            )


def ended_badly(lease: Lease, past: Past) -> bool:
    """Whether a lease's holder was never heard to end: it may only be asleep."""
    return lease.nonce != tables.GIVEN_BACK and (lease.job, lease.run_id, lease.epoch) not in past.ended
