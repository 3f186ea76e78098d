"""How near a passage is to a query by a checkpoint: an encoder's cosine, or what a cross-encoder's activation says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecomspark.models import cross_encoder, embedder
from ecomspark.models.checkpoint import Checkpoint
from ecomspark.models.embedder import Embedder, Role


def similarities(
    checkpoint: Checkpoint,
    queries: Sequence[str],
    passages: Sequence[str],
    gpu: str | None = None,
    token_budget: int | None = None,
) -> NDArray[np.float64]:
    """The similarity of each query to the passage at its place, shape (pairs,), in the order given; higher is nearer.

    An encoder: cosine, -1 to 1, each distinct text embedded once. A cross-encoder: sigmoid of the logit, 0 to 1. The
    two are on different scales: bounds that were found with one say nothing about the other. NaN where the model gives
    none. Raises ValueError on unequal lengths, CheckpointError when the checkpoint does not verify.
    """
    if len(queries) != len(passages):
        raise ValueError(f"{len(queries)} queries, {len(passages)} passages; each pair needs both")
    if not queries:
        return np.empty(0)
    found = (checkpoint.folder, checkpoint.scorer_digest, gpu, token_budget, checkpoint.card.data_type)
    if checkpoint.card.kind == "cross_encoder":
        return cross_encoder.load(*found).score(queries, passages).activations
    encoder = embedder.load(*found)
    return cosines(_vectors(encoder, queries, "query"), _vectors(encoder, passages, "passage"))


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each row of one with that of the other, shape (rows,); NaN where a row is all zeros."""
    one, other = one.astype(np.float64), other.astype(np.float64)  # vectors of whole numbers are not of unit length
    lengths = np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))
    nothing = np.full(len(one), np.nan)
    found: NDArray[np.float64] = np.divide((one * other).sum(axis=1), lengths, out=nothing, where=lengths > 0)
    return found


def _vectors(encoder: Embedder, texts: Sequence[str], role: Role) -> NDArray[Any]:
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.embed(list(places), role)
    return vectors[[places[text] for text in texts]]
