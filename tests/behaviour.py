"""A few shoppers' behaviour as tables, without files and imports: what the jobs of shoppers read is published as a test
says it. Sessions are given by their events; days are counted from DAY_0, an event's place in its session by minutes."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from conftest import build_rows

from ecomspark import tables, text
from ecomspark.schemas import CONSENTS, INTERACTIONS, ITEMS, SESSIONS, SHOPPER_LINKS, Table
from ecomspark.tables import Author, Warehouse

DAY_0 = date(2026, 3, 1)
PURPOSE = "personalisation"


def day(number: int) -> date:
    return DAY_0 + timedelta(days=number)


def moment(days: float) -> datetime:
    return datetime.combine(DAY_0, datetime.min.time(), UTC) + timedelta(days=days)


@dataclass
class Behaviour:
    """`sessions`: (shopper, day it begins, what was done: (kind, item), a minute apart, bot rule or None)."""

    spark: Any
    folder: Path
    items: dict[str, bool | None] = field(default_factory=dict)
    sessions: list[tuple[str, float, list[tuple[str, str]], str | None]] = field(default_factory=list)
    consents: list[tuple[str, float, bool]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    published: int = 0

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), 2)

    def publish(self) -> None:
        """Bring the tables to what is said; of the logs what is new is appended."""
        self.published += 1
        author = Author("behaviour", f"b{self.published}")
        events, whole = [], []
        for shopper, begins, done, bot in self.sessions:
            times = [moment(begins) + timedelta(minutes=n) for n in range(len(done))]
            name = f"{shopper}-{begins}"
            for n, (kind, item) in enumerate(done):
                events.append({"interaction_id": f"{name}-{n:03}", "kind": kind, "item_id": item,
                               "occurred_at": times[n], "shopper_id": shopper,
                               "basket_id": name if kind == "purchase" else None})  # fmt: skip
            whole.append({"session_id": text.digest(name), "shopper_id": shopper, "session_date": times[0].date(),
                          "started_at": times[0], "ended_at": times[-1], "bot_rule": bot})  # fmt: skip
        said = [
            {"shopper_id": who, "purpose": PURPOSE, "at": moment(at), "is_given": is_given}
            for who, at, is_given in self.consents
        ]
        linked = [{"shopper_id": stays, "other_id": other, "at": moment(0)} for stays, other in self.links]
        items = [
            {"item_id": item, "is_in_stock": is_there, "source_digest": text.digest(item)}
            for item, is_there in self.items.items()
        ]
        for log, rows in ((INTERACTIONS, events), (CONSENTS, said), (SHOPPER_LINKS, linked)):
            tables.append_log(self.warehouse, log, build_rows(self.spark, log, *rows), author)
        for state, rows in ((SESSIONS, whole), (ITEMS, items)):
            frame = build_rows(self.spark, state, *rows).drop("changed_by")
            tables.publish(self.warehouse, tables.compare(self.warehouse, state, frame, author), author)

    def rows(self, table: Table) -> list[Any]:
        if table.kind == "memory":
            found = tables.read_memory(self.warehouse, table)
        else:
            found = tables.read(self.warehouse, table, tables.snapshot(self.warehouse, table))
        collected: list[Any] = found.collect()
        return collected
