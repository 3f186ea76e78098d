"""How near a passage is to a query, by an encoder and by a cross-encoder."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from ecomspark.models import cross_encoder, embedder
from ecomspark.models.similarity import cosines, similarities

QUERIES = ["red mug", "blue cup", "red mug", "garden"]
PASSAGES = ["red ceramic mug", "blue cup", "wall clock", "red ceramic mug"]


@pytest.mark.parametrize("vector_type", ["float32", "int8"])
def test_an_encoder_gives_cosines_in_the_order_of_the_pairs(tmp_path: Path, vector_type: str) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder", query_prefix="gift ", vector_type=vector_type)
    found = similarities(made, QUERIES, PASSAGES, gpu="cpu", token_budget=500)
    encoder = embedder.load(made.folder, made.scorer_digest, gpu="cpu", token_budget=500)
    for query, passage, value in zip(QUERIES, PASSAGES, found, strict=True):
        one, other = (
            encoder.embed([text], role)[0].astype(float) for text, role in ((query, "query"), (passage, "passage"))
        )
        assert value == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-5)


def test_a_cross_encoder_gives_its_activation(tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path)
    model = cross_encoder.load(made.folder, made.scorer_digest, gpu="cpu", token_budget=500)
    found = similarities(made, QUERIES, PASSAGES, gpu="cpu", token_budget=500)
    assert found == pytest.approx(model.score(QUERIES, PASSAGES).activations)
    assert found.dtype == np.float64


def test_no_pairs_load_nothing_and_unequal_lists_are_refused(tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder")
    assert similarities(made, [], []).shape == (0,)
    with pytest.raises(ValueError, match="1 queries, 0 passages"):
        similarities(made, ["red"], [])


def test_a_vector_of_zeros_is_near_nothing() -> None:
    found = cosines(np.array([[3, 4], [0, 0]], dtype=np.int8), np.array([[4, 3], [1, 0]], dtype=np.int8))
    assert found[0] == pytest.approx(24 / 25)
    assert np.isnan(found[1])
