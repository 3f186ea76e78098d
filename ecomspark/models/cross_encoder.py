"""A cross-encoder: query and passage read together, one logit. Loaded once per process; takes lists, gives arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ecomspark.errors import CheckpointError
from ecomspark.models.checkpoint import Card, open_checkpoint
from ecomspark.models.device import device
from ecomspark.models.pairs import PairTokenizer, batches


@dataclass(frozen=True)
class Scores:
    """What a cross-encoder said of pairs, in the order given; one entry a pair in all four."""

    logits: NDArray[np.float32]
    token_counts: NDArray[np.int32]
    cut_query_tokens: NDArray[np.int32]
    cut_passage_tokens: NDArray[np.int32]

    @property
    def activations(self) -> NDArray[np.float64]:
        """Sigmoid of the logits, in double precision: near 1 it still tells strong matches apart."""
        return 1.0 / (1.0 + np.exp(-self.logits.astype(np.float64)))


class CrossEncoder:
    """A model on a device, with its tokenizer. Make one with `load`."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: PairTokenizer, device: torch.device, token_budget: int
    ) -> None:
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._device = device
        self._token_budget = token_budget

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Scores:
        """fp32 logits of the pairs, in the order given. Batches hold rows of like length up to the token budget."""
        pairs = self._tokenizer(queries, passages)
        logits = np.empty(len(pairs.ids), dtype=np.float32)
        with torch.inference_mode():
            for chosen in batches(pairs.token_counts, self._token_budget):
                inputs = {
                    name: tensor.to(self._device) for name, tensor in self._tokenizer.padded(pairs, chosen).items()
                }
                logits[chosen] = self._model(**inputs).logits[:, 0].float().cpu().numpy()
        return Scores(logits, pairs.token_counts, pairs.cut_query_tokens, pairs.cut_passage_tokens)


def load(folder: Path, scorer_digest: bytes, gpu: str | None, token_budget: int) -> CrossEncoder:
    """Verify a checkpoint against its card and the digest asked for, and load it on the GPU of that address.

    Raises CheckpointError when files, digest or head are not what they should be.
    """
    checkpoint = open_checkpoint(folder.parent, folder.name, "cross_encoder", scorer_digest)
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        str(folder),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        dtype=torch.float32,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        missing = ", ".join(sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))[:5])
        raise CheckpointError(f"{folder.name}: newly initialised instead of loaded: {missing}")
    return CrossEncoder(model, pair_tokenizer(folder, checkpoint.card), device(gpu), token_budget)


def pair_tokenizer(folder: Path, card: Card) -> PairTokenizer:
    """The tokenizer of a checkpoint with its card's caps."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    return PairTokenizer(tokenizer, card.query_max_tokens, card.max_tokens)
