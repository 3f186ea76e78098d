"""An encoder that gives each text a vector: token vectors pooled, cut to size, divided by their length."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from transformers import AutoModel

from ecomspark.models.checkpoint import NOT_FINITE, Card, DataType, VectorType, open_checkpoint
from ecomspark.models.encoder import Encoder
from ecomspark.models.engine import Cut, Engine
from ecomspark.models.loading import device_of, engine_for, load_tokenizer, load_weights
from ecomspark.models.tokens import SequenceTokenizer, Texts

Role = Literal["query", "passage"]


class Embedder:
    """A model on a device, with its tokenizer. Make one with `load`."""

    def __init__(self, engine: Engine, tokenizer: SequenceTokenizer, card: Card) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._prefixes: dict[Role, str] = {"query": card.query_prefix, "passage": card.passage_prefix}

    def embed(self, texts: Sequence[str], role: Role) -> NDArray[Any]:
        """Vectors, shape (texts, size), in the order given, of the card's type. The role decides the prefix.

        float32: unit length. float16: the same, rounded. int8: whole numbers whose largest is 127 in magnitude, so
        only directions are kept; a cosine divides by the lengths.
        """
        return self.start(self.prepare(Texts.of(texts), role))()

    def prepare(self, texts: Texts, role: Role) -> Cut:
        """Token ids in batches on the device. May run in another thread, while the model is at the window before."""
        return self.engine.cut(self._tokenizer.texts(texts, self._prefixes[role]))

    def start(self, prepared: Cut) -> Callable[[], NDArray[Any]]:
        """Start what was prepared; what comes back fetches the vectors."""
        return self.engine.start(prepared)


def load(
    folder: Path,
    scorer_digest: bytes,
    gpu: str | None = None,
    token_budget: int | None = None,
    data_type: DataType | None = None,
) -> Embedder:
    """Verify an encoder against its card and the digest asked for, and load it. Raises CheckpointError.

    `token_budget` None: what this host remembers for it, found by trying the first time. `data_type` None: the card's.
    """
    checkpoint = open_checkpoint(folder.parent, folder.name, "encoder", scorer_digest, data_type)
    card, device = checkpoint.card, device_of(gpu)
    # The pooler is the one part that no pooling here reads, and encoders are often published without it.
    model = load_weights(AutoModel, checkpoint, device, may_lack="pooler.")
    tokenizer = SequenceTokenizer(load_tokenizer(folder), card.max_tokens)
    encoder = Encoder(model, card.pooling, tokenizer.padding_id, device, card.data_type)
    size = card.dimensions or encoder.width

    def vectors(pooled: torch.Tensor) -> torch.Tensor:
        return _as_type(torch.nn.functional.normalize(pooled[:, :size], dim=1), card.vector_type)

    return Embedder(engine_for(checkpoint, encoder, vectors, token_budget), tokenizer, card)


def _as_type(unit: torch.Tensor, vector_type: VectorType) -> torch.Tensor:
    if vector_type == "int8":
        whole = (unit / unit.abs().amax(dim=1, keepdim=True) * 127).round()
        return whole.nan_to_num(nan=NOT_FINITE).to(torch.int8)
    return unit.half() if vector_type == "float16" else unit
