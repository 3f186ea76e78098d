"""Vectors that do not depend on their neighbours, pooled, cut and typed as the card says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel

from ecomspark.errors import CheckpointError
from ecomspark.models import embedder

TEXTS = ["red mug", "large wooden candle holder with a star for the garden wall", "x", "gift " * 80]


def plain(folder: Path, style: str, text: str, pooling: str, max_tokens: int = 48) -> Any:
    """The unit vector by transformers' own forward of one text."""
    model = AutoModel.from_pretrained(folder).eval()
    inputs = tiny.tokenizer(style)(text, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state[0].numpy()
    pooled = tokens.mean(axis=0) if pooling == "mean" else tokens[0]
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("style", ["bert", "roberta", "modernbert", "mpnet"])
def test_vectors_equal_the_plain_forward(tmp_path: Path, pooling: str, style: str) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder", style=style, pooling=pooling, query_prefix="gift ")
    expected = [plain(made.folder, style, text, pooling) for text in TEXTS]
    for budget in (1, 10_000):
        encoder = embedder.load(made.folder, made.scorer_digest, token_budget=budget)
        assert encoder.embed(TEXTS, "passage") == pytest.approx(np.stack(expected), abs=1e-5)
    as_query = encoder.embed(["red mug"], "query")
    assert as_query == pytest.approx(encoder.embed(["gift red mug"], "passage"), abs=1e-6)
    assert as_query != pytest.approx(encoder.embed(["red mug"], "passage"), abs=1e-3)


def test_sizes_and_types_of_vectors(tmp_path: Path) -> None:
    whole = tiny.checkpoint(tmp_path, "whole", kind="encoder")
    full = embedder.load(whole.folder, whole.scorer_digest, token_budget=500).embed(TEXTS, "query")
    digests = {whole.scorer_digest}
    for vector_type, apart in (("float32", 1e-6), ("float16", 1e-3), ("int8", 0.02)):
        made = tiny.checkpoint(tmp_path, f"small-{vector_type}", kind="encoder", dimensions=8, vector_type=vector_type)
        digests.add(made.scorer_digest)
        found = embedder.load(made.folder, made.scorer_digest, token_budget=500).embed(TEXTS, "query")
        assert found.dtype == np.dtype(vector_type)
        assert found.shape == (len(TEXTS), 8)
        # Matryoshka: the first dimensions, made of unit length again.
        cut = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
        as_floats = found.astype(np.float64)
        lengths = np.linalg.norm(as_floats, axis=1, keepdims=True)
        assert as_floats / lengths == pytest.approx(cut, abs=apart)
        if vector_type == "int8":
            assert np.abs(found.astype(int)).max(axis=1).tolist() == [127] * len(TEXTS)
        else:
            assert lengths.ravel() == pytest.approx(np.ones(len(TEXTS)), abs=apart)
    assert len(digests) == 4, "size and type are part of the scorer"


def test_more_dimensions_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="33 dimensions of vectors that have 32"):
        tiny.checkpoint(tmp_path, kind="encoder", dimensions=33)
