"""The world that nights are tried on: a first night that went well, and what the shop changed before the second."""

import os
import signal
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from fakes import Traced, TracedScorer
from world import Item, World

FIRST, SECOND = date(2026, 11, 1), date(2026, 11, 2)
_TITLES = ("red mug", "blue mug", "glass teapot", "wall clock", "red mug", "paper bag", "cake stand", "candle holder")
_QUERIES = {"mug": "red mug", "pot": "tea pot", "clock": "clock", "gift": "gift bag"}


@dataclass(frozen=True)
class Deadly(Traced):
    """A scorer that kills the driver's processes the first time a batch holds `trigger`."""

    drivers: tuple[int, ...] = ()

    def load(self) -> TracedScorer:
        super().load()
        return _Deadly(self)


@dataclass(frozen=True)
class _Deadly(TracedScorer):
    def score(self, queries: Any, passages: Any) -> Any:
        if any(self.of.trigger in passage for passage in passages):
            for process in reversed(self.of.drivers):  # type: ignore[attr-defined]
                os.kill(process, signal.SIGKILL)
        return super().score(queries, passages)


def first_night(spark: Any, folder: Path) -> World:
    """Eight items, four queries, all pairs; scored, ranked; and the tables as the second night finds them."""
    items = {f"i{n}": Item(title, 2.0 + n, 10 * n) for n, title in enumerate(_TITLES)}
    world = World(spark, folder, items=items, queries=dict(_QUERIES))
    world.publish()
    world.score("first", as_of=FIRST)
    world.rank("first", FIRST)
    world = second_night(spark, folder)
    world.publish()
    return world


def second_night(spark: Any, folder: Path) -> World:
    """Titles, prices, an item that went, one that came, a query that came; nothing is published by this."""
    items = {f"i{n}": Item(title, 9.0 - n, 10 * n) for n, title in enumerate(_TITLES)}
    world = World(spark, folder, items=items, queries={**_QUERIES, "cake": "cake tin"})
    world.edit("i1", title="green mug")
    world.edit("i3", title="killer clock")
    del world.items["i5"]
    world.items["i8"] = Item("cake tin", 4.0)
    return world
