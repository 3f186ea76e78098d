"""An encoder that gives each text a unit vector: token vectors pooled, then divided by their length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from ecomspark.errors import CheckpointError
from ecomspark.models.checkpoint import Card, open_checkpoint
from ecomspark.models.device import device
from ecomspark.models.pairs import batches


class Embedder:
    """A model on a device, with its tokenizer. Make one with `load`."""

    def __init__(
        self,
        model: torch.nn.Module,
        width: int,
        tokenizer: PreTrainedTokenizerBase,
        card: Card,
        device: torch.device,
        token_budget: int,
    ) -> None:
        self._model = model.to(device).eval()
        self._width = width
        self._tokenizer = tokenizer
        self._card = card
        self._device = device
        self._token_budget = token_budget

    def embed(self, texts: Sequence[str], role: Literal["query", "passage"]) -> NDArray[np.float32]:
        """Unit vectors, shape (texts, width), in the order given. The role decides the prefix."""
        prefix = self._card.query_prefix if role == "query" else self._card.passage_prefix
        encoded = self._tokenizer(
            [prefix + text for text in texts], truncation=True, max_length=self._card.max_tokens, verbose=False
        )
        counts = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int32)
        vectors = np.empty((len(texts), self._width), dtype=np.float32)
        with torch.inference_mode():
            for chosen in batches(counts, self._token_budget):
                rows = {name: [values[i] for i in chosen] for name, values in encoded.items()}
                inputs = self._tokenizer.pad(rows, return_tensors="pt").to(self._device)
                tokens = self._model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"].unsqueeze(-1).float()
                pooled = (tokens * mask).sum(1) / mask.sum(1) if self._card.pooling == "mean" else tokens[:, 0]
                vectors[chosen] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return vectors


def load(folder: Path, scorer_digest: bytes, gpu: str | None, token_budget: int) -> Embedder:
    """Verify an encoder against its card and the digest asked for, and load it. Raises CheckpointError."""
    checkpoint = open_checkpoint(folder.parent, folder.name, "encoder", scorer_digest)
    options = {"trust_remote_code": False, "local_files_only": True}
    model, loading = AutoModel.from_pretrained(
        str(folder), use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
    )
    # The pooler is the one part that no pooling here reads, and encoders are often published without it.
    missing = sorted(key for key in map(str, loading["missing_keys"]) if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(f"{folder.name}: newly initialised instead of loaded: {', '.join(missing[:5])}")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    width = int(model.config.hidden_size)
    return Embedder(model, width, tokenizer, checkpoint.card, device(gpu), token_budget)
