"""A transformer's encoder: sequences in, one pooled vector a sequence out, packed where the architecture allows it.

Packed, the sequences of a batch lie one behind the other without padding. Architectures that do not declare
transformers' attention interface (MPNet, DeBERTa-v2), and fp32 on CUDA, for which torch has no variable-length
attention, run padded, sorted by length. Which of the two is right for a model is tried once when it is loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ecomspark.models.attention import PACKED, Bounds
from ecomspark.models.budget import is_out_of_memory
from ecomspark.models.checkpoint import DataType
from ecomspark.models.linear import Int8Linear, OneDnnLinear, has_onednn, replace_linear
from ecomspark.models.tokens import Ragged, Sequences, spans, starts_of

Pooling = Literal["mean", "first"]

_HALF: dict[DataType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# How far packed and padded may lie apart, against the largest value: the order of additions differs, no more.
_TOLERANCE: dict[DataType, float] = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01, "int8": 0.05}


@dataclass(frozen=True)
class Batch:
    """One forward pass, on the model's device. `bounds`: of a packed one; its inputs have one row."""

    inputs: dict[str, torch.Tensor]
    bounds: Bounds | None
    token_count: int
    padding_count: int


class Encoder:
    """An encoder without its head, given in fp32, brought to its type on a device. Its own pooler is taken off it:
    `Head` has that, and keeps it in fp32."""

    def __init__(
        self, model: Any, pooling: Pooling, padding_id: int, device: torch.device, data_type: DataType = "fp32"
    ) -> None:
        if hasattr(model, "pooler"):
            model.pooler = None
        if data_type == "int8":
            replace_linear(model, Int8Linear)
        elif data_type == "fp32" and device.type == "cpu" and has_onednn():
            replace_linear(model, OneDnnLinear)
        self._model = model.to(device=device, dtype=_HALF.get(data_type, torch.float32)).eval()
        self._pooling = pooling
        self._padding_id = padding_id
        self.device = device
        self.width = int(model.config.hidden_size)
        # RoBERTa-like models count positions from behind the padding id; their position table says so.
        table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        self._counts_past: int | None = getattr(table, "padding_idx", None)
        self.is_packed = (
            bool(model._supports_attention_backend)
            and (device.type != "cuda" or data_type in ("bf16", "fp16"))
            and self._agrees(_TOLERANCE[data_type])
        )
        self._implement(self.is_packed)

    def batches(self, token_counts: NDArray[np.int32], token_budget: int) -> Iterator[NDArray[np.int64]]:
        """Rows in batches of at most `token_budget` tokens, padding included; a longer row is a batch of its own."""
        return (in_order if self.is_packed else sorted_by_length)(token_counts, token_budget)

    def batch(self, sequences: Sequences, rows: NDArray[np.int64]) -> Batch:
        """Some of the sequences as one batch. The copy to a GPU is under way when this returns."""
        return self._packed(sequences, rows) if self.is_packed else self._padded(sequences, rows)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """fp32, shape (sequences, width): the mean of a sequence's token vectors, or the first."""
        if batch.bounds is None:
            hidden = self._model(**batch.inputs).last_hidden_state
            return pooled(hidden, batch.inputs["attention_mask"], self._pooling)
        hidden = self._model(**batch.inputs, bounds=batch.bounds).last_hidden_state[0]
        if self._pooling == "first":
            return hidden[batch.bounds.cumulative[:-1]].float()  # type: ignore[no-any-return]
        lengths = batch.bounds.cumulative.diff()
        return torch.segment_reduce(hidden.float(), "mean", lengths=lengths, axis=0, unsafe=True)

    def _packed(self, sequences: Sequences, rows: NDArray[np.int64]) -> Batch:
        lengths = sequences.ids.lengths[rows]
        places = spans(sequences.ids.starts[rows], lengths)
        ids = sequences.ids.flat[places]
        inputs: dict[str, NDArray[Any]] = {"input_ids": ids, "position_ids": spans(np.zeros_like(lengths), lengths)}
        if self._counts_past is not None:
            inputs["position_ids"] = _past_padding(ids, lengths, self._counts_past)
        if sequences.type_ids is not None:
            inputs["token_type_ids"] = sequences.type_ids[places]
        on_device = {name: self._sent(values.astype(np.int64)[None]) for name, values in inputs.items()}
        bounds = Bounds(lengths.tolist(), self._sent(starts_of(lengths).astype(np.int32)))
        return Batch(on_device, bounds, len(places), 0)

    def _padded(self, sequences: Sequences, rows: NDArray[np.int64]) -> Batch:
        inputs = padded(sequences, rows, self._padding_id)
        token_count = int(sequences.ids.lengths[rows].sum())
        on_device = {name: self._sent(values) for name, values in inputs.items()}
        return Batch(on_device, None, token_count, inputs["input_ids"].size - token_count)

    def _sent(self, values: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _implement(self, is_packed: bool) -> None:
        self._model.set_attn_implementation(PACKED if is_packed else "sdpa")

    def _agrees(self, tolerance: float) -> bool:
        """Whether packed and padded give the same vectors: of an architecture that declares the interface and still
        keeps to itself where its sequences begin, this is how we know."""
        sequences = trial(self._model.config)
        rows = np.arange(len(sequences))
        try:
            with torch.inference_mode():
                self._implement(True)
                packed = self(self._packed(sequences, rows))
                self._implement(False)
                apart = (packed - self(self._padded(sequences, rows))).abs().max()
        except (RuntimeError, TypeError, ValueError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            return False
        return bool(apart <= tolerance * packed.abs().max().clamp_min(1.0))


class Head(torch.nn.Module):
    """The part of a classifier behind its encoder, in fp32 whatever the encoder's type: logits keep their resolution.

    transformers' own code of the head, whichever it is, over the pooled vectors: the encoder's place is taken by what
    hands them on. Raises ValueError when a head reads anything but the first token's vector or the mean: tried out.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pooling: Pooling = "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"
        self.encoder = model.base_model
        sequences = trial(model.config)
        inputs = {n: torch.from_numpy(v) for n, v in padded(sequences, np.arange(len(sequences)), 0).items()}
        with torch.inference_mode():
            whole = model(**inputs).logits
            hidden = self.encoder(**inputs).last_hidden_state
        self._given = _Given(self.encoder)
        setattr(model, model.base_model_prefix, self._given)
        self._model = model.eval()
        with torch.inference_mode():
            apart = (self(pooled(hidden, inputs["attention_mask"], self.pooling)) - whole).abs().max()
        if apart > _TOLERANCE["fp32"] * max(1.0, float(whole.abs().max())):
            raise ValueError("its head reads neither the first token nor the mean of all")

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Logits of shape (sequences, labels) from vectors of shape (sequences, width)."""
        self._given.vectors = pooled
        ones = torch.ones((len(pooled), 1), dtype=torch.long, device=pooled.device)
        logits: torch.Tensor = self._model(input_ids=ones, attention_mask=ones).logits
        return logits


class _Given(torch.nn.Module):
    """Stands in the encoder's place: sequences of one token, whose vectors are there already."""

    vectors: torch.Tensor

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.pooler = getattr(encoder, "pooler", None)
        self.pooler_activation = getattr(encoder, "pooler_activation", None)  # ALBERT's pooler is only a linear layer

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        hidden = self.vectors[:, None]
        pooled = None
        if self.pooler_activation is not None and self.pooler is not None:
            pooled = self.pooler_activation(self.pooler(self.vectors))
        elif self.pooler is not None:
            pooled = self.pooler(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def pooled(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """fp32, shape (sequences, width), of padded token vectors."""
    if pooling == "first":
        return hidden[:, 0].float()
    mask = attention_mask.unsqueeze(-1).float()
    return (hidden.float() * mask).sum(1) / mask.sum(1)


def trial(config: Any) -> Sequences:
    """Three sequences of ids, one longer than the usual window of local attention, to try a model out with."""
    longest = min(150, getattr(config, "max_position_embeddings", 150) - 2)
    lengths = np.array([3, longest, 8])
    ids = (np.arange(lengths.sum()) * 7 + 11).astype(np.int32) % int(config.vocab_size)
    none = np.zeros(3, dtype=np.int32)
    return Sequences(Ragged(ids, starts_of(lengths)), None, none, none)


def padded(sequences: Sequences, rows: NDArray[np.int64], padding_id: int) -> dict[str, NDArray[np.int64]]:
    """Some of the sequences as one rectangle, padded on the right to the longest of them."""
    lengths = sequences.ids.lengths[rows]
    mask = np.arange(int(lengths.max())) < lengths[:, None]
    places = spans(sequences.ids.starts[rows], lengths)
    ids = np.full(mask.shape, padding_id, dtype=np.int64)
    ids[mask] = sequences.ids.flat[places]
    inputs = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
    if sequences.type_ids is not None:
        types = np.zeros_like(ids)
        types[mask] = sequences.type_ids[places]
        inputs["token_type_ids"] = types
    return inputs


def in_order(token_counts: NDArray[np.int32], token_budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows as they come, in batches of about equal size: no small last one that leaves a GPU idle."""
    ends = np.cumsum(token_counts, dtype=np.int64)
    start, before = 0, 0
    while start < len(ends):
        left = int(ends[-1]) - before
        share = left / -(-left // token_budget)
        end = max(start + 1, int(np.searchsorted(ends, before + share, side="right")))
        yield np.arange(start, end)
        start, before = end, int(ends[end - 1])


def sorted_by_length(token_counts: NDArray[np.int32], token_budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows of like length together, longest first, so that memory runs out early if ever."""
    order = np.argsort(-token_counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, token_budget // int(token_counts[order[start]]))
        yield order[start : start + size]
        start += size


def _past_padding(ids: NDArray[np.int32], lengths: NDArray[np.int64], padding_id: int) -> NDArray[np.int64]:
    """Positions as RoBERTa makes them of ids: a padding token that stands in a text itself takes none."""
    is_real = ids != padding_id
    counted = np.cumsum(is_real)
    before = np.concatenate([[0], counted])[np.cumsum(lengths) - lengths]
    positions: NDArray[np.int64] = (counted - np.repeat(before, lengths)) * is_real + padding_id
    return positions
