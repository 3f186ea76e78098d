"""Training a two-layer encoder to put together what belongs together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from pydantic import ValidationError
from safetensors.numpy import load_file

from ecomspark.errors import CheckpointError
from ecomspark.models import embedder
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.embedder_options import EmbedderTraining
from ecomspark.models.finetune_embedder import (
    Corpus,
    Pairs,
    Plan,
    Vectors,
    encoder_of,
    fine_tune,
    mined,
    without_false_negatives,
)
from ecomspark.models.loading import load_tokenizer
from ecomspark.models.tokens import SequenceTokenizer

# Who asks for a thing finds what a mapping that words do not tell says: it must be learnt.
ASKED = {"red": "kitchen", "blue": "garden", "green": "wall", "white": "door", "pink": "clock", "small": "cake"}
THINGS = ["mug", "cup", "plate", "teapot", "lamp", "sign"]


def related() -> pd.DataFrame:
    """Queries of a colour and a thing, items of what belongs to the colour: the last thing of each for validation."""
    rows = [
        ("query", f"{colour} {thing}", f"{place} {thing}", True, "validation" if thing == "sign" else "train")
        for colour, place in ASKED.items() for thing in THINGS
    ]  # fmt: skip
    items = [(None, None, f"{place} {thing}", None, "catalogue") for place in ASKED.values() for thing in THINGS]
    columns = ["role", "anchor_text", "passage_text", "is_relevant", "side"]
    return pd.DataFrame([*rows, *items], columns=columns)


def plan(models: Path, name: str = "made", **settings: Any) -> Plan:
    if not (models / "base").exists():
        tiny.checkpoint(models, "base", "encoder")
    given = {"epochs": 2, "batch_size": 6, "threads": 1, "learning_rate": 3e-3, "recall_at": 3, "patience": 9,
             "trains_word_vectors": True, "hard_negatives": {"per_pair": 0}, **settings}  # fmt: skip
    card = Card(kind="encoder", base="base", max_tokens=48, query_prefix="heart: ", passage_prefix="star: ")
    training = EmbedderTraining.model_validate(given)
    return Plan(models_folder=models, base="base", name=name, card=card, training=training)


def trained(models: Path, name: str = "made", examples: pd.DataFrame | None = None, **settings: Any) -> Checkpoint:
    said: list[dict[str, Any]] = []
    return fine_tune(plan(models, name, **settings), related() if examples is None else examples, said.append)


def corpus_of(of: Plan, examples: pd.DataFrame) -> tuple[Corpus, Vectors]:
    base = open_checkpoint(of.models_folder, "base")
    corpus = Corpus(examples, SequenceTokenizer(load_tokenizer(base.folder), 48), of.card, of.training)
    return corpus, Vectors(encoder_of(base, of.card), corpus, of.training.dimensions)


def test_it_learns_which_items_belong_to_queries_that_it_never_saw(tmp_path: Path) -> None:
    made = trained(tmp_path, epochs=12)
    before, after = (made.card.metrics[when]["recall@3"] for when in ("before", "after"))
    assert after >= 0.8 > 0.5 > before
    found = embedder.load(made.folder, made.scorer_digest, token_budget=500)
    near = found.embed(["red sign"], "query") @ found.embed(["kitchen sign", "garden sign"], "passage").T
    assert near[0, 0] > near[0, 1]
