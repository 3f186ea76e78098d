"""Fine-tuning an encoder end to end: from judgments and baskets to a checkpoint that `models.embedder` runs."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from conftest import build_rows
from pydantic import ValidationError
from shop import AS_OF, Shop

from ecomspark import tables
from ecomspark.errors import CheckpointError, ConfigError, ContractError
from ecomspark.models import embedder
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.pipelines import finetune_embedder
from ecomspark.pipelines.finetune_embedder import JOB, plan, run
from ecomspark.schemas import INTERACTIONS, QUERIES
from ecomspark.tables import Author

SETTINGS: dict[str, Any] = {
    "base": "base", "name": "towers-1", "judgment_set": "ours", "shares": {"train": 0.4, "validation": 0.3}, "seed": 42,
    "split": "towers", "min_cosine": None, "epochs": 1, "batch_size": 4, "recall_at": 2, "threads": 1, "sizes": [8], "dimensions": 8,
    "hard_negatives": {"from_epoch": 0}, "sources": ["judged", "bought_together", "asked_and_bought"],
}  # fmt: skip

# With this split and seed q1, q3, q4 are trained on, q2 validates, q5 is for testing.
LATER = date(2011, 12, 1)

# Purchases: (basket, item, the query that led there, day counted from October 2011; the last are after the day of the
# runs).
BOUGHT = [("b1", "i05", "q3", 1), ("b1", "i09", None, 1), ("b2", "i05", "q3", 2), ("b2", "i09", None, 2),
          ("b3", "i01", None, 3), ("b3", "i12", None, 3), ("b4", "i01", None, 4), ("b4", "i12", None, 4), ("b3", "i11", "q4", 3), ("b4", "i11", "q4", 4),
          ("b5", "i03", "q5", 60), ("b5", "i11", None, 60), ("b6", "i03", "q5", 60), ("b6", "i11", None, 60)]  # fmt: skip


class SeenError(Exception):
    """Ends a run where it would train."""


@pytest.fixture(scope="module")
def bought_shop(with_texts: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with a log of purchases; nothing is trained yet."""
    shop = with_texts.copy(tmp_path_factory.mktemp("bought"))
    rows = [
        {"interaction_id": str(at), "kind": "purchase", "basket_id": basket, "item_id": item, "source": query and "log",
         "source_query_id": query, "shopper_id": "k1-never-read",
         "occurred_at": datetime(2011, 10 + day // 32, 1 + day % 28, tzinfo=UTC)}
        for at, (basket, item, query, day) in enumerate(BOUGHT)
    ]  # fmt: skip
    author = Author("test", "log")
    tables.append_log(shop.warehouse, INTERACTIONS, build_rows(shop.spark, INTERACTIONS, *rows), author)
    return shop


def read(shop: Shop, monkeypatch: pytest.MonkeyPatch, run_id: str, **changes: Any) -> pd.DataFrame:
    """What the job would train on."""
    seen: list[pd.DataFrame] = []

    def train(_: Any, examples: pd.DataFrame, *__: Any, **___: Any) -> None:
        seen.append(examples)
        raise SeenError

    monkeypatch.setattr(finetune_embedder, "train", train)
    with pytest.raises(SeenError):
        shop.run(JOB, run_id, **{**SETTINGS, **changes})
    return seen[0]


def test_a_checkpoint_comes_of_what_belongs_together_once_and_its_plan_said_so(bought_shop: Shop) -> None:
    before = plan(bought_shop.spark, bought_shop.config(JOB, **SETTINGS), AS_OF)
    assert before.counts["queries_to_place"] == 5
    assert (before.counts["catalogue"], before.counts["dropped_queries"]) == (11, None)
    made = bought_shop.run(JOB, "first", **SETTINGS)
    assert made.status == "published"
    of = open_checkpoint(bought_shop.models, "towers-1", "encoder")
    assert (of.card.base, of.card.dimensions, of.card.max_tokens) == ("base", 8, 32)
    assert of.card.recipe == bought_shop.config(JOB, **SETTINGS).recipe
    assert {"judgments", "splits", "interactions"} <= set(of.card.data)
    assert of.card.metrics["pairs"] == {"train": made.rows["train_pairs"], "validation": made.rows["validation_pairs"]}
    assert {"recall@2"} <= set(of.card.metrics["before"])
    text = (of.folder / "card.json").read_text()
    assert "mug" not in text
    assert "never-read" not in text
    assert embedder.load(of.folder, of.scorer_digest, token_budget=500).embed(["red mug"], "query").shape == (1, 8)
    assert not list(bought_shop.models.glob("making-*"))
    after = plan(bought_shop.spark, bought_shop.config(JOB, **SETTINGS), AS_OF)
    assert (after.counts["queries_to_place"], after.counts["dropped_queries"]) == (0, 0)
    assert after.counts["train_pairs"] == made.rows["train_pairs"]
    again = bought_shop.run(JOB, "again", **SETTINGS)
    assert again.status == "nothing_to_do"
    with pytest.raises(CheckpointError, match="a checkpoint never changes"):
        bought_shop.run(JOB, "other", **{**SETTINGS, "epochs": 2})


def pairs_of(found: pd.DataFrame, role: str) -> set[tuple[str, str]]:
    of = found[(found["role"] == role) & found["is_relevant"].eq(True)]
    return set(zip(of["anchor_text"], of["passage_text"], strict=True))


def test_pairs_are_of_the_sides_and_of_nothing_later(bought_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(bought_shop, monkeypatch, "pairs", name="towers-2")
    # i01 and i12 have one text, so that they teach nothing of each other.
    now = {("white candle holder", "gift bag with hearts"), ("red ceramic mug", "cake stand")}
    later = {("glass teapot", "cake stand")}
    assert pairs_of(found, "passage") == now | {(other, one) for one, other in now}
    sides = found.groupby(["role", "anchor_text"])["side"].agg(set)
    assert set(map(frozenset, sides["passage"])) == {frozenset({"train"})}, "judged queries are validated on"
    assert {query: side for query, [side] in sides["query"].items()} == {
        "red mug": "train", "candle holder": "train", "gift": "train", "wall clock": "validation"
    }  # fmt: skip
    asked = pairs_of(found, "query")
    assert ("gift", "cake stand") in asked, "it was bought after the query twice"
    assert ("red mug", "red ceramic mug") in asked
    assert ("red mug", "red wall clock") not in asked
    assert set(found[found["role"] == "query"]["is_relevant"]) == {True, False}
    # A test query's purchases are not learnt from, whenever they were; what was bought on a later day counts then.
    then = read(bought_shop, monkeypatch, "later", name="towers-2", as_of=LATER)
    assert pairs_of(then, "passage") == {pair for of in now | later for pair in (of, of[::-1])}
    assert pairs_of(then, "query") == asked


def test_purchases_after_a_query_that_was_left_out_are_left_out(
    bought_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It nearly equals a test query: what was bought after it would teach the test's answers."""
    split_of = finetune_embedder.split_queries

    def leaking(current: Any, *of: Any) -> Any:
        split = split_of(current, *of)
        dropped = current.read(QUERIES).where("query_text = 'gift'").select("query_id")
        return replace(split, rows=split.rows.join(dropped, on="query_id", how="left_anti"), dropped=dropped)

    assert ("gift", "cake stand") in pairs_of(
        read(bought_shop, monkeypatch, "kept", name="towers-4", as_of=LATER), "query"
    )
    monkeypatch.setattr(finetune_embedder, "split_queries", leaking)
    found = read(bought_shop, monkeypatch, "left-out", name="towers-4", as_of=LATER)
    assert "gift" not in {anchor for anchor, _ in pairs_of(found, "query")}
    assert ("red mug", "red ceramic mug") in pairs_of(found, "query")


def test_without_judgments_both_directions_of_a_pair_stand_on_one_side(
    bought_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"sources": ["bought_together"], "judgment_set": None, "name": "towers-3", "as_of": LATER}
    found = read(bought_shop, monkeypatch, "alone", **alone, bought={"min_count": 1, "validation_share": 0.5})
    pairs = found[found["role"] == "passage"]
    assert set(pairs["side"]) == {"train", "validation"}
    both = [" ".join(sorted(of)) for of in zip(pairs["anchor_text"], pairs["passage_text"], strict=True)]
    of_pair = pairs.assign(both=both).groupby("both")["side"]
    assert set(of_pair.nunique()) == {1}
    assert set(of_pair.size()) == {2}


def test_what_cannot_be_trained_is_said_before_it_is_tried(bought_shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match="judged: expected pairs that belong together on the train side, found none"
    ):
        bought_shop.run(JOB, "strict", as_of=LATER, **{**SETTINGS, "name": "x", "min_grade": 9, "sources": ["judged"]})
    config = bought_shop.config(JOB, **{**SETTINGS, "name": "x", "max_tokens": 33})
    with pytest.raises(ConfigError, match=r"finetune_embedder.max_tokens: expected 32 at most.*found 33"):
        run(None, config, "long")  # type: ignore[arg-type]
    fits = {"split": "towers", "min_cosine": None, "max_edits": 2}
    for name, recipe, settings, said in (
        ("foreign", {"fields": {"title": 7}}, fits, "expected the text recipe of these settings"),
        ("elsewhere", config.recipe, {**fits, "split": "other"}, "it may know the queries"),
    ):
        tiny.checkpoint(tmp_path, name, recipe=recipe, settings=settings)
        tiny.checkpoint(tmp_path, f"base-{name}", "encoder")
        config = bought_shop.config(
            JOB, **{**SETTINGS, "base": f"base-{name}", "teacher": name, "models_folder": tmp_path}
        )
        with pytest.raises(CheckpointError, match=f"finetune_embedder.teacher: {name}: .*{said}"):
            run(None, config, name)  # type: ignore[arg-type]
    for changes, wrong in (
        ({"judgment_set": None}, "judgment_set: expected one with the source judged"),
        ({"sources": ["bought_together"]}, "and none without it"),
        ({"sources": []}, "at least 1"),
        ({"shares": {"train": 0.8, "validation": 0.3}}, "must leave queries to test on"),
    ):
        with pytest.raises(ValidationError, match=wrong):
            bought_shop.config(JOB, **{**SETTINGS, **changes})
