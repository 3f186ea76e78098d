"""The search by vectors in Spark: ids and order as plain float64 has them, however it is cut; twins, ties, locales."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import build_rows

from ecomspark import retrieval, tables
from ecomspark.errors import ContractError
from ecomspark.models.checkpoint import Checkpoint
from ecomspark.nearest import Room
from ecomspark.retrieval import Search, nearest_items
from ecomspark.runs import Run, planned_run
from ecomspark.schemas import EMBEDDINGS, ITEMS, QUERIES, TEXTS
from ecomspark.tables import Author, Warehouse
from ecomspark.text import digest

DIMENSIONS, ITEM_COUNT, QUERY_COUNT = 12, 90, 8


@dataclass(frozen=True)
class Vectors:
    """Texts with vectors of our own in a warehouse, and the items and queries that have them. Of the first query's
    items twelve share one text, eight more its vector under other texts, and twenty are tied to six places."""

    warehouse: Warehouse
    encoder: Checkpoint
    items: dict[tuple[str, str], tuple[str, np.ndarray[Any, Any]]]  # (locale, item_id): text, vector
    queries: dict[tuple[str, bytes], tuple[str, np.ndarray[Any, Any]]]

    def frames(self) -> tuple[Any, Any]:
        items = [{"item_id": i, "locale": at, "source_digest": digest(t)} for (at, i), (t, _) in self.items.items()]
        queries = [
            {"query_id": q, "locale": at, "text_source_digest": digest(t)} for (at, q), (t, _) in self.queries.items()
        ]
        spark = self.warehouse.spark
        return build_rows(spark, QUERIES, *queries), build_rows(spark, ITEMS, *items)

    def expected(self, count: int) -> dict[bytes, list[tuple[str, float]]]:
        found = {}
        for (locale, query_id), (_, query) in self.queries.items():
            scored = []
            for (of_locale, item_id), (_, item) in self.items.items():
                if of_locale == locale:
                    q, v = query.astype(float), item.astype(float)
                    scored.append((item_id, float(np.round(q @ v / np.sqrt((q @ q) * (v @ v)), 6))))
            found[query_id] = sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:count]
        return found


@pytest.fixture(scope="module")
def vectors(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    folder = tmp_path_factory.mktemp("vectors")
    encoder = tiny.checkpoint(folder / "models", "base", "encoder")
    generator = np.random.default_rng(3)
    drawn = generator.normal(size=(ITEM_COUNT + QUERY_COUNT, DIMENSIONS)).astype(np.float32)
    asked, offered = drawn[:QUERY_COUNT], drawn[QUERY_COUNT:]
    order = np.argsort(-(offered @ asked[0]) / np.linalg.norm(offered, axis=1))
    offered[order[3:23]] = offered[order[3]]
    near = offered[order[30]].astype(float)
    offered[order[30:50]] = near + generator.normal(size=(20, DIMENSIONS)) * 1e-7
    texts = [f"item {at}" for at in range(ITEM_COUNT)]
    for at in order[3:15]:
        texts[at] = texts[order[3]]
    names = [f"{'é' if at % 7 == 0 else 'i'}{generator.integers(10**6):06d}" for at in range(ITEM_COUNT)]
    items = {("uk", name): (text, v) for name, text, v in zip(names, texts, offered, strict=True)}
    items |= {("us", f"us{at}"): (f"us {at}", offered[at]) for at in range(5)}
    queries = {("uk", digest(f"q{at}")): (f"query {at}", v) for at, v in enumerate(asked)}
    queries[("uk", digest("twin"))] = ("query 0", asked[0])
    queries[("us", digest("us"))] = ("query us", asked[1])
    queries[("jp", digest("jp"))] = ("query jp", asked[1])  # a locale without items
    warehouse = Warehouse(spark, str(folder / "warehouse"), 2)
    author, recipe = Author("test", "1"), encoder.card.recipe.digest
    roles = (("passage", items), ("query", queries))
    made = {(role, text): v for role, of in roles for text, v in of.values()}  # type: ignore[attr-defined]
    texts_rows = [
        {"source_digest": digest(t), "role": r, "recipe_digest": recipe, "text": t, "text_digest": digest(t)}
        for r, t in made
    ]
    tables.append_memory(warehouse, TEXTS, build_rows(spark, TEXTS, *texts_rows), author)
    of_others = [(scorer, sign) for scorer, sign in ((encoder.scorer_digest, 1.0), (b"o" * 16, -1.0))]
    vector_rows = [
        {"text_digest": digest(t), "role": r, "scorer_digest": scorer, "vector": [float(x * sign) for x in v]}
        for (r, t), v in made.items()
        for scorer, sign in of_others
    ]
    tables.append_memory(warehouse, EMBEDDINGS, build_rows(spark, EMBEDDINGS, *vector_rows), author)
    return Vectors(warehouse, encoder, items, queries)


@contextmanager
def a_run(warehouse: Warehouse) -> Iterator[Run]:
    with planned_run(warehouse, "test", reads=(), publishes=(), covers={}, as_of=None) as current:
        yield current


def listed(rows: Any) -> dict[bytes, list[tuple[str, float]]]:
    found: dict[bytes, list[tuple[str, float]]] = {}
    for row in sorted(rows.collect(), key=lambda row: row["place"]):
        found.setdefault(bytes(row["query_id"]), []).append((row["item_id"], row["score"]))
        assert len(found[bytes(row["query_id"])]) == row["place"], "places have no gaps"
    return found


def test_ids_and_order_are_those_of_float64_however_it_is_cut(
    vectors: Vectors, monkeypatch: pytest.MonkeyPatch, spark: Any
) -> None:
    queries, items = vectors.frames()
    expected = {q: of for q, of in vectors.expected(10).items() if of}
    assert len({score for _, score in expected[digest("q0")]}) < 10, "there are ties"
    with a_run(vectors.warehouse) as current:
        found = nearest_items(current, queries, items, vectors.encoder, Search(), 10)
        assert listed(found) == expected
        distinct = {(locale, vector.tobytes()) for (locale, _), (_, vector) in vectors.items.items()}
        assert current.rows["item_vectors"] == len(distinct) < ITEM_COUNT - 10, "each vector once in a locale"
        assert current.rows["query_vectors"] == QUERY_COUNT + 2, "the twin is searched for once"

    cut: list[Any] = []
    of_parts = retrieval.parts.cut
    monkeypatch.setattr(retrieval.parts, "cut", lambda *given: cut.append(of_parts(*given)) or cut[-1])
    monkeypatch.setattr(retrieval, "_QUERIES_A_TASK", 2)
    monkeypatch.setattr(Room, "of", lambda mib, dimensions: Room(20, 2, dimensions))
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 7)
    try:
        with a_run(vectors.warehouse) as current:
            found = nearest_items(current, queries.repartition(3), items.repartition(5), vectors.encoder, Search(), 10)
            assert listed(found) == expected
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 2000)
    assert max(len(of) for of in cut) >= 4, "the items were in several parts"
    assert all(part.count <= 20 for of in cut for part in of), "no part is larger than its room"


def test_an_index_takes_over_above_its_size_and_its_recall_is_counted(vectors: Vectors) -> None:
    queries, items = vectors.frames()
    how = Search(approximate_above=10, sampled_queries=6)
    with a_run(vectors.warehouse) as current:
        found = listed(nearest_items(current, queries, items, vectors.encoder, how, 10))
        assert current.rows["index_recall_queries"] == 6
        assert current.rows["index_recall_ppm"] == 1_000_000, "so few vectors are all looked at"
    assert found == {q: of for q, of in vectors.expected(10).items() if of}


@pytest.mark.parametrize("place", [TEXTS, EMBEDDINGS], ids=lambda table: table.name)
def test_a_missing_text_or_vector_says_what_to_run(vectors: Vectors, place: Any) -> None:
    queries, items = vectors.frames()
    more = {"item_id": "new", "locale": "uk", "source_digest": digest("new")}
    with a_run(vectors.warehouse) as current:
        if place == TEXTS:
            items = items.unionByName(build_rows(vectors.warehouse.spark, ITEMS, more))
            with pytest.raises(ContractError, match=r"texts: .* all items .* found 1 without; run build_texts"):
                nearest_items(current, queries, items, vectors.encoder, Search(), 5)
        else:
            other = tiny.checkpoint(vectors.encoder.folder.parent, "other", "encoder", seed=9)
            with pytest.raises(ContractError, match=r"embeddings: .* all queries by other .*; run embed_texts first"):
                nearest_items(current, queries, items, other, Search(), 5)
