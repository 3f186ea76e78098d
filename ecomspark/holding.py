"""The leases of a run while it lasts: taken before it opens, renewed beside its work, and seen when they are lost."""

import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date

from ecomspark import ledger, tables
from ecomspark.config import LeaseSettings
from ecomspark.errors import LeaseTaken, NewerPublished
from ecomspark.ledger import OVER, Past
from ecomspark.schemas import LEASES, Table
from ecomspark.tables import Author, Snapshot, Warehouse

log = logging.getLogger("ecomspark")

_LOOK_AGAIN_SECONDS = 5.0
_TRIES = 20


class Holding:
    """The leases of a run under way."""

    def __init__(self, warehouse: Warehouse, publishes: Sequence[Table]) -> None:
        self.warehouse, self.publishes = warehouse, publishes
        self.names = tuple(table.name for table in publishes)
        self.nonce, self.epoch = uuid.uuid4().hex, 0
        self.at: Snapshot | None = None

    def take(
        self, author: Author, target: str | None, settings_digest: bytes, as_of: date | None, asked: LeaseSettings
    ) -> Past:
        """What `runs` says, once the leases are ours; for a run that is over no lease is taken."""
        give_up = time.monotonic() + asked.wait_seconds
        tries = 0
        while True:
            leases = tables.read_leases(self.warehouse) if self.publishes else None
            former = [leases.rows[name] for name in self.names if name in leases.rows] if leases else []
            past = ledger.look(self.warehouse, author, target, former)
            if past.mine is not None and past.mine["status"] not in ("failed", "planned"):
                ledger.refuse_changed(author, past.mine, settings_digest, as_of)
                if past.mine["status"] in OVER:
                    return past
            if leases is None:
                return past
            try:
                ledger.refuse_taken(author, former, past)
                self.epoch, self.at = tables.take(self.warehouse, leases, self.names, author, self.nonce, asked.seconds)
                break
            except LeaseTaken as taken:
                if time.monotonic() >= give_up:
                    raise
                log.info("%s: waiting: %s", author.job, taken)
                time.sleep(min(_LOOK_AGAIN_SECONDS, max(0.0, give_up - time.monotonic())))
            except NewerPublished:  # somebody took another lease at the same moment
                tries += 1
                if tries == _TRIES:
                    raise
        asleep = {lease.table_name for lease in former if ledger.ended_badly(lease, past)}
        if asleep:
            log.warning("%s: taking over from a run that did not end: %s", author.job, ", ".join(sorted(asleep)))
            holder = Author(author.job, author.run_id, self.epoch, self.names)
            try:
                tables.fence_off(self.warehouse, [table for table in self.publishes if table.name in asleep], holder)
            except Exception:
                # Ended, not given back: whoever comes next must fence off the sleeper, too.
                tables.renew(self.warehouse, self.nonce, author, 0)
                raise
        return past

    @contextmanager
    def kept(self, author: Author, seconds: float) -> Iterator[None]:
        """Renew the leases while the block lasts, in a session and a scheduler pool of their own."""
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(author, seconds, ended), daemon=True)
        if self.publishes:
            beat.start()
        try:
            yield
        finally:
            ended.set()
            if self.publishes:
                beat.join()

    def _beat(self, author: Author, seconds: float, ended: threading.Event) -> None:
        session = None
        while not ended.wait(seconds / 3):
            try:
                if session is None:
                    session = self.warehouse.spark.newSession()
                    # Beside a stage of thousands of tasks, first come first served would let this wait for its end.
                    session.sparkContext.setLocalProperty("spark.scheduler.pool", "leases")
                mine = Warehouse(session, self.warehouse.location, self.warehouse.buckets)
                if not tables.renew(mine, self.nonce, author, seconds):
                    log.warning("%s: the lease was taken over; nothing more will be published", author.job)
                    return
            except Exception as error:  # the next beat may do better; what is published is safe without any
                log.warning("%s: the lease could not be renewed (%s)", author.job, type(error).__name__)

    def give_back(self, author: Author) -> None:
        """Let go of the leases of a run that was never opened."""
        if self.at is not None:
            tables.give_back(self.warehouse, self.nonce, author)

    def usurper(self) -> tables.Lease | None:
        """The lease of ours that another has now."""
        if not self.publishes or tables.snapshot(self.warehouse, LEASES) == self.at:
            return None
        rows = tables.read_leases(self.warehouse).rows
        return next((rows[name] for name in self.names if rows[name].nonce != self.nonce), None)
