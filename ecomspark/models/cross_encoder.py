"""A cross-encoder: query and passage read together, one logit. Loaded once per process; takes lists, gives arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from ecomspark.errors import CheckpointError
from ecomspark.models.checkpoint import Card, DataType, open_checkpoint
from ecomspark.models.classes import expected_gain_logits
from ecomspark.models.encoder import Encoder, Head
from ecomspark.models.engine import Cut, Engine
from ecomspark.models.loading import device_of, engine_for, load_tokenizer, load_weights
from ecomspark.models.tokens import SequenceTokenizer, Texts


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

    def __init__(self, engine: Engine, tokenizer: SequenceTokenizer) -> None:
        self.engine = engine
        self._tokenizer = tokenizer

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Scores:
        """fp32 logits of the pairs, in the order given. Raises ValueError on unequal lengths."""
        return self.start(self.prepare(Texts.of(queries), Texts.of(passages)))()

    def prepare(self, queries: Texts, passages: Texts) -> Cut:
        """Token ids in batches on the device. May run in another thread, while the model is at the window before."""
        return self.engine.cut(self._tokenizer.pairs(queries, passages))

    def start(self, prepared: Cut) -> Callable[[], Scores]:
        """Start what was prepared; what comes back fetches the scores."""
        pairs, logits = prepared.sequences, self.engine.start(prepared)
        return lambda: Scores(logits(), pairs.token_counts, pairs.cut_query_tokens, pairs.cut_passage_tokens)


def load(
    folder: Path,
    scorer_digest: bytes,
    gpu: str | None = None,
    token_budget: int | None = None,
    data_type: DataType | None = None,
) -> CrossEncoder:
    """Verify a checkpoint against its card and the digest asked for, and load it on the GPU of that address.

    `token_budget` None: what this host remembers for it, found by trying the first time. `data_type` None: the card's.
    Raises CheckpointError when files, digest or head are not what they should be.
    """
    checkpoint = open_checkpoint(folder.parent, folder.name, "cross_encoder", scorer_digest, data_type)
    device = device_of(gpu)
    model = load_weights(AutoModelForSequenceClassification, checkpoint, device)
    try:
        head = Head(model)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: not a cross-encoder that can be scored with: {error}") from None
    head.to(device)
    tokenizer = pair_tokenizer(folder, checkpoint.card)
    encoder = Encoder(head.encoder, head.pooling, tokenizer.padding_id, device, checkpoint.card.data_type)

    class_gains = checkpoint.card.class_gains

    def logits(vectors: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = head(vectors)
        return expected_gain_logits(outputs, class_gains) if class_gains else outputs[:, 0]

    return CrossEncoder(engine_for(checkpoint, encoder, logits, token_budget), tokenizer)


def pair_tokenizer(folder: Path, card: Card) -> SequenceTokenizer:
    """The tokenizer of a checkpoint with its card's caps."""
    return SequenceTokenizer(load_tokenizer(folder), card.max_tokens, card.query_max_tokens)
