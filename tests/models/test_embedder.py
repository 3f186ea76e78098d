"""Unit vectors that do not depend on their neighbours, pooled as the card says."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel

from ecomspark.models import embedder

TEXTS = ["red mug", "large wooden candle holder with a star for the garden wall", "x", "gift " * 80]


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_vectors_equal_the_plain_forward(tmp_path: Path, pooling: str, budget: int) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder", pooling=pooling, query_prefix="gift ")
    encoder = embedder.load(made.folder, made.scorer_digest, None, budget)
    vectors = encoder.embed(TEXTS, "passage")
    model = AutoModel.from_pretrained(made.folder).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        inputs = tiny.tokenizer()(text, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            tokens = model(**inputs).last_hidden_state[0].numpy()
        pooled = tokens.mean(axis=0) if pooling == "mean" else tokens[0]
        assert vector == pytest.approx(pooled / np.linalg.norm(pooled), abs=1e-5)
    as_query = encoder.embed(["red mug"], "query")
    assert as_query[0] == pytest.approx(encoder.embed(["gift red mug"], "passage")[0], abs=1e-6)
