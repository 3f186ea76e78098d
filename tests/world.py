"""A world of a few tables, without files and imports: what scoring and ranking read is published as a test says it.

The texts of a title and a query are themselves, so that a test sees in the traces of the fake scorer what was read.
"""

import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import tiny
from conftest import build_rows
from fakes import Traced

from ecomspark import tables, text
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.pipelines import rank_candidates, score_candidates
from ecomspark.runs import Summary
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, RANKINGS, TEXTS, Table
from ecomspark.tables import Author, Warehouse

TODAY = date(2026, 11, 1)
NO_FEED = ("off", "vacuumed", "expired", "recreated")


@dataclass(frozen=True)
class Item:
    title: str
    price: float = 1.0
    sold: int = 0
    listed: date = date(2020, 1, 1)


@dataclass
class World:
    """`items`, `queries`: by id; `pairs`: the candidates, (query, item), all of them if None."""

    spark: Any
    folder: Path
    buckets: int = 2
    items: dict[str, Item] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    pairs: set[tuple[str, str]] | None = None
    sources: dict[str, float] = field(default_factory=lambda: {"bm25": 1.0})
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: str = "tiny"
    published: int = 0

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), self.buckets)

    @property
    def scorer(self) -> Traced:
        return Traced(str(self.folder))

    def opened(self) -> Checkpoint:
        models = self.folder / "models"
        if not (models / self.checkpoint).exists():
            tiny.checkpoint(models, self.checkpoint, seed=len(list(models.glob("*"))) if models.exists() else 0)
        return open_checkpoint(models, self.checkpoint, "cross_encoder")

    def copy(self, folder: Path) -> "World":
        """The same world as it is now, in a folder of its own."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        own = {name: value.copy() for name, value in vars(self).items() if isinstance(value, dict | set)}
        return replace(self, folder=folder, **own)

    def edit(self, item_id: str, **changes: Any) -> None:
        self.items[item_id] = replace(self.items[item_id], **changes)

    def publish(self, *only: Table) -> None:
        """Bring the tables to what the world says; only real changes reach them."""
        self.published += 1
        author = Author("world", f"w{self.published}")
        rows = {
            ITEMS: [
                {"item_id": i, "title": item.title, "price": Decimal(str(item.price)), "currency": "GBP", "sold_count": item.sold,
                 "listed_at": datetime.combine(item.listed, datetime.min.time(), UTC), "source_digest": text.digest(item.title),
                 "brand": None, "rating": None}
                for i, item in self.items.items()
            ],
            QUERIES: [
                {"query_id": query_id(q), "query_text": words, "text_source_digest": text.digest(words)}
                for q, words in self.queries.items()
            ],
            CANDIDATES: [{"query_id": query_id(q), "item_id": i, "sources": self.sources} for q, i in self.candidates()],
        }  # fmt: skip
        for table in only or tuple(rows):
            frame = build_rows(self.spark, table, *rows[table]).drop("changed_by")
            change = tables.compare(self.warehouse, table, frame, author)
            tables.publish(self.warehouse, change, author)
        self._publish_texts(author)

    def publish_without_feed(self, fault: str) -> None:
        """Publish the items so that what changed cannot be read from their change feed."""
        path, of_log = self.folder / "warehouse" / ITEMS.name, self.spark._jvm.org.apache.spark.sql.delta.DeltaLog
        if fault == "off":
            properties = "('delta.enableChangeDataFeed' = 'false')"
            self.spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES {properties}")
        if fault == "recreated":
            shutil.rmtree(path)
            of_log.clearCache()
        self.publish(ITEMS)
        if fault == "vacuumed":
            for file in path.glob("_change_data/*.parquet"):
                file.unlink()
        if fault == "expired":
            self.spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ('a' = 'b')")
            of_log.forTable(self.spark._jsparkSession, str(path)).checkpoint()
            *old, _ = sorted(path.glob("_delta_log/*.json"))  # Delta cannot do without the newest
            for commit in old:
                commit.unlink()
            of_log.clearCache()

    def candidates(self) -> set[tuple[str, str]]:
        return {(q, i) for q in self.queries for i in self.items} if self.pairs is None else self.pairs

    def _publish_texts(self, author: Author) -> None:
        recipe = self.opened().card.recipe.digest
        known = {bytes(row["source_digest"]) for row in tables.read_memory(self.warehouse, TEXTS).collect()}
        made = [("query", words) for words in self.queries.values()]
        made += [("passage", item.title) for item in self.items.values()]
        new = [
            {"source_digest": text.digest(words), "role": role, "recipe_digest": recipe, "text": words, "text_digest": text.digest(words)}
            for role, words in dict.fromkeys(made)
            if text.digest(words) not in known
        ]  # fmt: skip
        if new:
            tables.append_memory(self.warehouse, TEXTS, build_rows(self.spark, TEXTS, *new), author)

    def score_config(self, **changes: Any) -> score_candidates.Config:
        return score_candidates.Config(
            **{**self._shared(), "max_failed_share": 1.0, **self.settings.get("score", {}), **changes}
        )

    def rank_config(self, **changes: Any) -> rank_candidates.Config:
        return rank_candidates.Config(
            **{**self._shared(), "max_failed_share": 1.0, **self.settings.get("rank", {}), **changes}
        )

    def _shared(self) -> dict[str, Any]:
        return {
            "warehouse": self.warehouse.location,
            "buckets": self.buckets,
            "models_folder": self.folder / "models",
            "checkpoint": self.checkpoint,
        }

    def score(self, run_id: str, scorer: Any = None, as_of: date = TODAY, **changes: Any) -> Summary:
        config, checkpoint = self.score_config(**changes), self.opened()
        return score_candidates.run_with(self.spark, config, run_id, checkpoint, scorer or self.scorer, as_of)

    def rank(self, run_id: str, as_of: date = TODAY, **changes: Any) -> Summary:
        self.opened()
        return rank_candidates.run(self.spark, self.rank_config(**changes), run_id, as_of)

    def rows(self, table: Table) -> Any:
        if table.kind == "memory":
            return tables.read_memory(self.warehouse, table)
        return tables.read(self.warehouse, table, tables.snapshot(self.warehouse, table))

    def versions(self) -> dict[str, int]:
        """The newest version of every table but those that each run writes to."""
        folder = self.folder / "warehouse"
        names = [path.name for path in folder.iterdir() if path.name not in ("runs", "leases")]
        return {name: len(list((folder / name / "_delta_log").glob("*.json"))) for name in names}

    def shown(self, variant: str = "main") -> dict[str, list[str]]:
        """The items of each query in the order in which search shows them."""
        names = {query_id(q): q for q in self.queries}
        found: dict[str, list[str]] = {}
        for row in self.rows(RANKINGS).where(f"variant = '{variant}'").orderBy("rank").collect():
            found.setdefault(names.get(bytes(row["query_id"]), "gone"), []).append(row["item_id"])
        return found

    def feed(self, table: Table, after: int) -> list[Any]:
        """The change feed's rows of a table after a version."""
        newest = tables.snapshot(self.warehouse, table)
        if newest is None or newest.version <= after:
            return []
        reader = self.spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", after + 1)
        rows: list[Any] = reader.load(self.warehouse.path(table)).collect()
        return rows


def query_id(name: str) -> bytes:
    return text.digest(f"query {name}")
