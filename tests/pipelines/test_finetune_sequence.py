"""Sequence training end to end: which sessions it learns from, and a checkpoint that says what comes next."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import build_rows
from pydantic import ValidationError
from pyspark.sql import functions as F

from ecomspark import tables, text
from ecomspark.errors import CheckpointError, ConfigError, ContractError
from ecomspark.features.sequences import sequences
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.models.sequence import load
from ecomspark.pipelines import finetune_sequence
from ecomspark.runs import Summary
from ecomspark.schemas import CONSENTS, EMBEDDINGS, ITEMS, SESSIONS, TEXTS
from ecomspark.tables import Author, Warehouse


class SeenError(Exception):
    """Ends a run where it would read texts."""


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AS_OF = date(2026, 3, 20)
IDS = [f"i{number}" for number in range(8)]


def session(number: int, shopper: str, day: int, items: list[str], hours: int = 1, **more: Any) -> dict[str, Any]:
    started = NOON + timedelta(days=day)
    return {"session_id": number.to_bytes(16, "big"), "shopper_id": shopper, "session_date": started.date(),
            "started_at": started, "ended_at": started + timedelta(hours=hours), "item_ids": items,
            "kinds": ["click"] * len(items), "bot_rule": None, **more}  # fmt: skip


def test_what_ended_before_is_learnt_and_what_began_since_is_judged(rows: Any) -> None:
    sessions = rows(
        SESSIONS,
        session(1, "a", 0, ["x", "y"]),
        session(2, "a", 1, ["z"]),
        session(3, "a", 9, ["u", "v"]),
        session(4, "b", 0, ["x"]),
        session(5, "b", 9, ["w", "x"], bot_rule="too_fast"),
        session(6, "b", 4, ["p", "q"], hours=24),
        session(7, "c", 9, ["r", "s"]),
        session(8, "d", 0, ["m", "n", "o"], kinds=["purchase", "return", "click"]),
        session(9, "d", 9, ["n", "k"], kinds=["return", "click"]),
        session(10, "e", 0, ["l", "l"], kinds=["return", "return"]),
    )
    since = F.lit(NOON + timedelta(days=5))  # session 6 lasts until then

    def found(of: Any) -> list[tuple[str, str]]:
        made = sequences(sessions, of, since, ["click", "purchase"]).collect()
        return sorted((row["side"], "".join(row["item_ids"])) for row in made)

    assert found("sessions") == [("train", "mo"), ("train", "xy"), ("validation", "rs"), ("validation", "uv")]
    assert found("shoppers") == [("train", "mo"), ("train", "xyz"), ("validation", "mok"), ("validation", "xyzu")]
    assert sequences(sessions.limit(0), "shoppers", since, ["click"]).collect() == []


@dataclass(frozen=True)
class Walk:
    """Shoppers who look at one item after the other, in a circle; the items have texts. One of them took consent back
    when the sessions were there, and one was never asked."""

    spark: Any
    folder: Path

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), 2)

    def config(self, **changes: Any) -> finetune_sequence.Config:
        given = {
            "warehouse": self.warehouse.location, "models_folder": self.folder / "models", "buckets": 2,
            "name": "next-1", "validation_from": date(2026, 3, 10), "encoder": "words", "width": 8, "layers": 1,
            "max_items": 4, "epochs": 2, "batch_size": 32, "learning_rate": 1e-2, "threads": 1,
        }  # fmt: skip
        return finetune_sequence.Config(**{**given, **changes})

    def run(self, run_id: str, **changes: Any) -> Summary:
        return finetune_sequence.run(self.spark, self.config(**changes), run_id, AS_OF)


@pytest.fixture(scope="module")
def walk(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    made = Walk(spark, tmp_path_factory.mktemp("walk"))
    recipe = tiny.checkpoint(made.folder / "models", "words", "encoder").card.recipe.digest
    words = dict(zip(IDS, tiny.WORDS, strict=False))
    sessions = [
        session(number, f"s{number % 9}", number % 16, [IDS[(number + step) % 8] for step in range(2 + number % 3)])
        for number in range(48)
    ]
    sessions += [session(48, "no", 2, [*IDS, "only theirs"]), session(49, "never asked", 12, IDS)]
    said = [{"shopper_id": f"s{number}", "is_given": True} for number in range(9)]
    said += [{"shopper_id": "no", "is_given": is_given, "at": NOON + timedelta(days=day)}
             for is_given, day in ((True, 0), (False, 3))]  # fmt: skip
    consents = [{"purpose": "personalisation", **row} for row in said]
    items = [{"item_id": item_id, "source_digest": text.digest(word)} for item_id, word in words.items()]
    texts = [
        {"source_digest": text.digest(word), "role": "passage", "recipe_digest": recipe, "text": word,
         "text_digest": text.digest("text", word)}
        for word in list(words.values())[:-1]
    ]  # fmt: skip
    author = Author("walk", "made")
    for table, given in ((SESSIONS, sessions), (ITEMS, items)):
        frame = build_rows(spark, table, *given).drop("changed_by")
        tables.publish(made.warehouse, tables.compare(made.warehouse, table, frame, author), author)
    tables.append_log(made.warehouse, CONSENTS, build_rows(spark, CONSENTS, *consents), author)
    tables.append_memory(made.warehouse, TEXTS, build_rows(spark, TEXTS, *texts), author)
    return made


def test_a_sequence_model_is_made_once_from_what_its_plan_counted(walk: Walk) -> None:
    planned = finetune_sequence.plan(walk.spark, walk.config(), AS_OF)
    assert planned.counts == {"train_sequences": 27, "validation_sequences": 21, "items": 8, "checkpoints_there": 0}
    made = walk.run("first")
    assert (made.status, made.rows["items_with_text"], made.rows["embedded"]) == ("published", 7, 7)
    assert {name: made.rows[name] for name in ("train_sequences", "validation_sequences", "items")} == {
        name: count for name, count in planned.counts.items() if name != "checkpoints_there"
    }
    checkpoint = open_checkpoint(walk.folder / "models", "next-1", "sequence")
    encoder = open_checkpoint(walk.folder / "models", "words", "encoder")
    assert checkpoint.card.text_scorer_digest == encoder.scorer_digest.hex()
    assert {"sessions", "items"} <= set(checkpoint.card.data)
    assert checkpoint.card.settings["validation_from"] == "2026-03-10"
    model = load(checkpoint.folder, checkpoint.scorer_digest, "cpu")
    assert model.item_ids == IDS
    vector = next(iter(tables.read_memory(walk.warehouse, EMBEDDINGS).limit(1).collect()))["vector"]
    assert model.items(["never seen"], {"never seen": vector}).shape == (1, 9)

    again = walk.run("again")
    assert (again.status, again.rows.get("embedded", 0), "checkpoints" in again.rows) == ("nothing_to_do", 0, False)
    assert finetune_sequence.plan(walk.spark, walk.config(), AS_OF).counts["checkpoints_there"] == 1
    with pytest.raises(CheckpointError, match="a checkpoint never changes"):
        walk.run("other", epochs=1)


def test_texts_are_read_by_the_variant_that_data_types_names(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def embedded(_: Any, __: Any, embedder: Any, ___: Any) -> Any:
        seen.append(embedder)
        raise SeenError

    monkeypatch.setattr(finetune_sequence, "embedded", embedded)
    with pytest.raises(SeenError):
        walk.run("variant", name="next-2", data_types={"words": "bf16"})
    plain, variant = (
        open_checkpoint(walk.folder / "models", "words", "encoder", data_type=kind).scorer_digest
        for kind in (None, "bf16")
    )
    assert [(one.data_type, one.scorer_digest) for one in seen] == [("bf16", variant)]
    assert plain != variant


def test_what_is_missing_is_said_before_training(walk: Walk) -> None:
    with pytest.raises(ConfigError, match="validation_from: expected a day up to as_of 2026-03-20, found 2026-04-01"):
        walk.run("late", validation_from=date(2026, 4, 1))
    with pytest.raises(ContractError, match="expected sessions of two items or more to train on, found none"):
        walk.run("early", validation_from=date(2026, 2, 1))
    with pytest.raises(ContractError, match="expected shoppers of two items or more to validate on, found none"):
        walk.run("nobody-new", of="shoppers", validation_from=AS_OF)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        walk.run("unread", encoder="nothing")


def test_settings_that_contradict_themselves_are_refused() -> None:
    shared = {"warehouse": "w", "name": "n", "validation_from": date(2026, 1, 1)}
    with pytest.raises(ValidationError, match="linear knows no texts"):
        finetune_sequence.Config(**shared, architecture="linear", encoder="words")
    with pytest.raises(ValidationError, match="3 heads do not divide"):
        finetune_sequence.Config(**shared, heads=3)
