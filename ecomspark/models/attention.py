"""Attention over sequences that lie one behind the other in one row, without padding, for transformers' own interface.

A model that reads its attention through that interface (`_supports_attention_backend`) runs packed under the name
`PACKED`: every linear layer sees real tokens only, and attention keeps each sequence to itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

PACKED = "ecomspark_packed"


@dataclass(frozen=True)
class Bounds:
    """Where the sequences of a packed row begin and end."""

    lengths: list[int]
    cumulative: torch.Tensor  # int32, shape (sequences + 1,), on the model's device


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    bounds: Bounds | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of shape (1, heads, tokens, width) to (1, tokens, heads, width).

    On CPU one call a sequence, on CUDA torch's variable-length attention, which takes half precision only.
    `sliding_window` as flash attention counts it: a token sees those less than so many places away.
    """
    if bounds is None:
        raise ValueError("packed attention was not told where its sequences end")
    reach = -1 if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn  # builds without CUDA may lack it

        longest = max(bounds.lengths)
        flat = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
        ends = (bounds.cumulative, bounds.cumulative, longest, longest)
        joined: Any = varlen_attn(*flat, *ends, scale=scaling, window_size=(reach, reach))  # type: ignore[call-arg,misc,arg-type]
        return joined[None], None
    joined = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    end = 0
    parts = (torch.split(tensor, bounds.lengths, dim=2) for tensor in (query, key, value))
    for length, q, k, v in zip(bounds.lengths, *parts, strict=True):
        start, end = end, end + length
        band = _band(length, reach) if 0 <= reach < length - 1 else None
        joined[:, start:end] = scaled_dot_product_attention(q, k, v, attn_mask=band, scale=scaling).transpose(1, 2)
    return joined, None


def _band(length: int, reach: int) -> torch.Tensor:
    places = torch.arange(length)
    return (places[:, None] - places).abs() <= reach


def _no_mask(*_: Any, **__: Any) -> None:
    """A packed row needs no mask: `Bounds` say it all."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
