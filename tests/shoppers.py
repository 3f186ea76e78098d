"""Shoppers: what they did and said is put straight into the logs, and the jobs on behaviour run over it."""

import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from conftest import build_rows

from ecomspark import tables
from ecomspark.pipelines import build_profiles, build_sessions
from ecomspark.runs import Summary
from ecomspark.schemas import CONSENTS, INTERACTIONS, ITEMS, SHOPPER_LINKS, Table
from ecomspark.tables import Author, Warehouse

KINDS = ("click", "cart", "purchase", "return", "review", "impression")


@dataclass
class Shoppers:
    """A warehouse of logs about shoppers, in a folder."""

    spark: Any
    folder: Path
    writes: int = 0

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), 2)

    def copy(self, folder: Path) -> "Shoppers":
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return replace(self, folder=folder)

    def _author(self) -> Author:
        self.writes += 1
        return Author("shoppers", f"w{self.writes}")

    def log(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        tables.append_log(self.warehouse, table, build_rows(self.spark, table, *rows), self._author())

    def memory(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        tables.append_memory(self.warehouse, table, build_rows(self.spark, table, *rows), self._author())

    def state(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        author, frame = self._author(), build_rows(self.spark, table, *rows).drop("changed_by")
        tables.publish(self.warehouse, tables.compare(self.warehouse, table, frame, author), author)

    def did(self, interactions: Iterable[dict[str, Any]]) -> None:
        self.log(INTERACTIONS, interactions)

    def said(self, is_given: bool, *shoppers: str, day: int = 1, purpose: str = "personalisation") -> None:
        at = datetime(2020, 1, day, tzinfo=UTC)
        rows = ({"shopper_id": who, "purpose": purpose, "at": at, "is_given": is_given} for who in shoppers)
        self.log(CONSENTS, rows)

    def linked(self, stays: str, retires: str) -> None:
        self.log(SHOPPER_LINKS, [{"shopper_id": stays, "other_id": retires, "at": datetime(2020, 1, 1, tzinfo=UTC)}])

    def items(self, *items: dict[str, Any]) -> None:
        self.state(ITEMS, items)

    def session_config(self, **changes: Any) -> build_sessions.Config:
        return build_sessions.Config(warehouse=self.warehouse.location, buckets=2, **changes)

    def sessions(self, run_id: str, as_of: date | None = None, **changes: Any) -> Summary:
        return build_sessions.run(self.spark, self.session_config(**changes), run_id, as_of)

    def profile_config(self, **changes: Any) -> build_profiles.Config:
        return build_profiles.Config(warehouse=self.warehouse.location, buckets=2, **changes)

    def profiles(self, run_id: str, as_of: date, **changes: Any) -> Summary:
        return build_profiles.run(self.spark, self.profile_config(**changes), run_id, as_of)

    def rows(self, table: Table) -> Any:
        return tables.read(self.warehouse, table, tables.snapshot(self.warehouse, table))

    def told(self, table: Table, *key: str) -> list[dict[str, Any]]:
        """The rows of a state table without who changed them last, in the order of their key."""
        rows = [row.asDict(recursive=True) for row in self.rows(table).drop("changed_by").collect()]
        return sorted(rows, key=lambda row: tuple(row[name] for name in key or table.key))

    def changed_since(self, table: Table, version: int) -> list[Any]:
        newest = tables.snapshot(self.warehouse, table)
        if newest is None or newest.version <= version:
            return []
        reader = self.spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", version + 1)
        rows: list[Any] = reader.load(self.warehouse.path(table)).collect()
        return rows


def did(shopper: str | None, name: str, at: str, kind: str = "click", item: str = "mug", **more: Any) -> dict[str, Any]:
    """One interaction, with its time in UTC."""
    when = datetime.fromisoformat(at).replace(tzinfo=UTC)
    return {"shopper_id": shopper, "interaction_id": name, "occurred_at": when, "kind": kind, "item_id": item, **more}


def random_interactions(seed: int, shoppers: int, count: int, start: datetime) -> list[dict[str, Any]]:
    """Interactions in bursts over four days, some of them of one moment, some an exact gap of 30 minutes apart."""
    chance = random.Random(seed)
    made, at = [], dict.fromkeys(range(shoppers), start)
    for n in range(count):
        who = chance.randrange(shoppers)
        at[who] += timedelta(
            minutes=chance.choice([0, 0, 1, 7, 29, 30, 30, 31, 45, 300]), microseconds=chance.randrange(2)
        )
        made.append(
            {
                "shopper_id": f"s{who}", "interaction_id": f"n{chance.randrange(10**9):09}-{n}", "occurred_at": at[who],
                "kind": chance.choice(KINDS), "item_id": f"i{chance.randrange(5)}",
            }
        )  # fmt: skip
    return made
