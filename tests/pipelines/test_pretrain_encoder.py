"""Pretraining end to end: which texts it reads, and an encoder that fine-tuning takes for its base."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError
from shop import Shop

from ecomspark.errors import CheckpointError, ConfigError, ContractError
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.pipelines import pretrain_encoder
from ecomspark.schemas import ITEMS, QUERIES, SPLITS, TEXTS

RECIPE = b"r" * 16


def digest(name: str) -> bytes:
    return name.encode().ljust(16, b".")


class SeenError(Exception):
    """Ends a run where it would train."""


def read_texts(shop: Shop, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> pd.DataFrame:
    """What the job would train on."""
    seen: list[pd.DataFrame] = []

    def train(plan: Any, texts: pd.DataFrame, *_: Any, **__: Any) -> None:
        seen.append(texts)
        raise SeenError

    monkeypatch.setattr(pretrain_encoder, "train", train)
    with pytest.raises(SeenError):
        shop.run("pretrain_encoder", f"seen-{len(list(shop.folder.iterdir()))}-{changes.get('name')}", **changes)
    return seen[0]


def test_texts_of_queries_that_are_tested_on_are_left_out(rows: Any) -> None:
    """Also when the same words are another, learnt query in another locale; as an item's text they stay."""
    said = {"q-train": "red mug", "q-test": "wall clock", "q-valid": "teapot", "q-free": "gift", "q-twin": "wall clock", "q-old": "x",
            "i-1": "teapot", "i-2": "red mug | cups", "i-gone": "y", "i-empty": ""}  # fmt: skip
    texts = rows(
        TEXTS,
        *({"source_digest": digest(name), "role": "query" if name[0] == "q" else "passage", "recipe_digest": RECIPE,
           "text": text, "text_digest": digest(text)} for name, text in said.items()),
        {"source_digest": digest("i-1"), "role": "passage", "recipe_digest": b"o" * 16, "text": "other", "text_digest": digest("other")},
    )  # fmt: skip
    names = ("q-train", "q-test", "q-valid", "q-free", "q-twin")
    queries = rows(QUERIES, *({"query_id": digest(name), "text_source_digest": digest(name)} for name in names))
    items = rows(ITEMS, *({"item_id": n, "source_digest": digest(n)} for n in ("i-1", "i-2", "i-empty")))
    sides = {"q-train": "train", "q-twin": "train", "q-test": "test", "q-valid": "validation"}
    split = rows(SPLITS, *({"query_id": digest(name), "side": side} for name, side in sides.items()))
    read = pretrain_encoder.corpus(texts, queries, items, split, RECIPE).collect()
    assert sorted(row["text"] for row in read) == ["gift", "red mug", "red mug | cups", "teapot"]
    every = pretrain_encoder.corpus(texts, queries, items, split.limit(0), RECIPE).collect()
    assert sorted(row["text"] for row in every) == ["gift", "red mug", "red mug | cups", "teapot", "wall clock"]


def test_an_encoder_is_made_once_and_fine_tuning_starts_from_it(
    copied: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ids = {bytes(row["query_id"]): row["side"] for row in copied.rows(SPLITS).collect()}
    asked = {row["query_text"]: ids[bytes(row["query_id"])] for row in copied.rows(QUERIES).collect()}
    unseen = {text for text, side in asked.items() if side != "train"}
    with monkeypatch.context() as patched:
        read = read_texts(copied, patched)
        assert not unseen & set(read["text"])
        assert {text for text in asked if text not in unseen} <= set(read["text"])
        assert set(read["side"]) == {"train", "validation"}
        assert set(asked) <= set(read_texts(copied, patched, split=None, name="all")["text"]), "null: every query"
        assert len(read_texts(copied, patched, max_texts=7, validation_share=0.5, name="few")) == 7

    curves = {"tensorboard": str(tmp_path / "curves")}
    assert copied.run("pretrain_encoder", "real", tracking=curves).status == "published", (
        "a checkpoint is something new"
    )
    assert (
        len(EventAccumulator(str(tmp_path / "curves" / "shop-words-real")).Reload().Scalars("validation/masked_loss"))
        > 1
    )
    card = open_checkpoint(copied.models, "shop-words", "encoder").card
    assert (card.base, card.max_tokens, card.settings["split"]) == ("base", 32, "default")
    assert {"items", "queries", "splits"} <= set(card.data)
    assert card.metrics["after"]["loss"] < card.metrics["before"]["loss"]
    again = copied.run("pretrain_encoder", "again")
    assert (again.status, "checkpoints" in again.rows) == ("nothing_to_do", False)
    with pytest.raises(CheckpointError, match="a checkpoint never changes"):
        copied.run("pretrain_encoder", "other", epochs=1)
    copied.run("finetune_cross_encoder", "on-it", base="shop-words", name="relevance-2")
    assert open_checkpoint(copied.models, "relevance-2", "cross_encoder").card.base == "shop-words"


def test_what_is_missing_or_contradicts_itself_is_said_before_training(copied: Shop, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="expected queries on the sides of split nobody, found none"):
        copied.run("pretrain_encoder", "nobody", split="nobody")
    with pytest.raises(ConfigError, match="max_tokens: expected 32 at most"):
        copied.run("pretrain_encoder", "long", max_tokens=64)
    shared = {"warehouse": "w", "name": "n", "split": None}
    for wrong in ({}, {"base": "b", "new": {}}):
        with pytest.raises(ValidationError, match="either `base` or `new`"):
            pretrain_encoder.Config(**shared, **wrong)
    with pytest.raises(ValidationError, match="3 heads do not divide"):
        pretrain_encoder.Config(**shared, new={"heads": 3})
    with pytest.raises(ValidationError, match="reads 512 at most"):
        pretrain_encoder.Config(**shared, new={}, max_tokens=513)
