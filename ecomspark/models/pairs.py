"""Token ids of (query, passage) pairs: the query capped at its own length, then only the passage cut, both recorded.

`longest_first` truncation, the usual one, can cut the query for the sake of a long passage. The specials and type ids
around the two texts are read off the tokenizer itself, so BERT-like and RoBERTa-like ones come out as their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pairs:
    """Token ids of some pairs, unpadded. `type_ids` is None where the model has none. One entry a pair in all five."""

    ids: list[NDArray[np.int64]]
    type_ids: list[NDArray[np.int64]] | None
    cut_query_tokens: NDArray[np.int32]
    cut_passage_tokens: NDArray[np.int32]
    token_counts: NDArray[np.int32]


class PairTokenizer:
    """Makes `Pairs`. `max_tokens` counts the specials; `query_max_tokens` does not."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, query_max_tokens: int, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._query_max_tokens = query_max_tokens
        self._max_tokens = max_tokens
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        template = tokenizer(["a"], ["a"], return_token_type_ids=True)
        sides = template.sequence_ids(0)
        ids = np.array(template["input_ids"][0])
        types = np.array(template["token_type_ids"][0])
        query, passage = sides.index(0), sides.index(1)
        query_end = len(sides) - sides[::-1].index(0)
        passage_end = len(sides) - sides[::-1].index(1)
        self._specials = (ids[:query], ids[query_end:passage], ids[passage_end:])
        self._special_types = (types[:query], types[query_end:passage], types[passage_end:])
        self._text_types = (int(types[query]), int(types[passage]))
        self._special_count = sum(len(part) for part in self._specials)
        if max_tokens < query_max_tokens + self._special_count + 1:
            raise ValueError(
                f"max_tokens {max_tokens} leaves no room for a passage behind {query_max_tokens} of a query"
            )

    @property
    def padding_id(self) -> int:
        return int(self._tokenizer.pad_token_id or 0)

    def __call__(self, queries: Sequence[str], passages: Sequence[str]) -> Pairs:
        """The pairs in the order given. Each distinct text is tokenised once. Raises ValueError on unequal lengths."""
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries for {len(passages)} passages")
        of_query, of_passage = self._plain_ids(queries), self._plain_ids(passages)
        ids, type_ids, cut_query, cut_passage = [], [], [], []
        for query, passage in zip(queries, passages, strict=True):
            whole_query, whole_passage = of_query[query], of_passage[passage]
            kept_query = whole_query[: self._query_max_tokens]
            kept_passage = whole_passage[: self._max_tokens - self._special_count - len(kept_query)]
            first, middle, last = self._specials
            ids.append(np.concatenate([first, kept_query, middle, kept_passage, last]))
            cut_query.append(len(whole_query) - len(kept_query))
            cut_passage.append(len(whole_passage) - len(kept_passage))
            if self._has_types:
                type_ids.append(self._types(len(kept_query), len(kept_passage)))
        return Pairs(
            ids,
            type_ids if self._has_types else None,
            np.array(cut_query, dtype=np.int32),
            np.array(cut_passage, dtype=np.int32),
            np.array([len(pair) for pair in ids], dtype=np.int32),
        )

    def padded(self, pairs: Pairs, chosen: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """Some of the pairs as one rectangle, padded on the right to the longest of them: what a model takes."""
        longest = int(pairs.token_counts[chosen].max())
        ids = np.full((len(chosen), longest), self.padding_id, dtype=np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, pair in enumerate(chosen):
            length = pairs.token_counts[pair]
            ids[row, :length], mask[row, :length] = pairs.ids[pair], 1
            if pairs.type_ids is not None:
                types[row, :length] = pairs.type_ids[pair]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return inputs if pairs.type_ids is None else inputs | {"token_type_ids": torch.from_numpy(types)}

    def _plain_ids(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        encoded = self._tokenizer(distinct, add_special_tokens=False, truncation=False, verbose=False)
        return {text: np.array(ids, dtype=np.int64) for text, ids in zip(distinct, encoded["input_ids"], strict=True)}

    def _types(self, query_length: int, passage_length: int) -> NDArray[np.int64]:
        first, middle, last = self._special_types
        query, passage = self._text_types
        return np.concatenate([first, np.full(query_length, query), middle, np.full(passage_length, passage), last])


def batches(token_counts: NDArray[np.int32], token_budget: int) -> Iterator[NDArray[np.int64]]:
    """Rows in batches of like length, longest first, each of at most `token_budget` tokens with its padding.

    A row longer than the budget is a batch of its own. The longest come first, so that memory runs out early if ever.
    """
    order = np.argsort(-token_counts, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, token_budget // int(token_counts[order[start]]))
        yield order[start : start + size]
        start += size
