"""Token ids, each distinct text tokenised once, assembled into sequences: of pairs, or of single texts.

Of a pair the query is capped at its own length, then only the passage is cut, both recorded: `longest_first`
truncation, the usual one, can cut the query for the sake of a long passage. The special tokens and type ids around the
texts are read off the tokenizer itself, so BERT-like and RoBERTa-like ones come out as their own. No torch here: this
part runs in a thread of its own beside the forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ecomspark.models.checkpoint import CHARACTERS_A_TOKEN


@dataclass(frozen=True)
class Texts:
    """Distinct texts, and which of them each row has: `rows[i]` is the place of row i's text in `distinct`."""

    distinct: list[str]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return cls(list(places), np.fromiter((places[text] for text in texts), dtype=np.int64, count=len(texts)))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, one behind the other: row i is `flat[starts[i]:starts[i + 1]]`."""

    flat: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Sequences:
    """What a model reads, unpadded, specials included. `type_ids` is None where the model has none.

    A count of cut tokens covers the part of a text that was read (`CHARACTERS_A_TOKEN` a token of its cap).
    """

    ids: Ragged
    type_ids: NDArray[np.uint8] | None
    cut_query_tokens: NDArray[np.int32]
    cut_passage_tokens: NDArray[np.int32]

    @property
    def token_counts(self) -> NDArray[np.int32]:
        return self.ids.lengths.astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids.starts) - 1


class SequenceTokenizer:
    """Makes `Sequences`. `max_tokens` counts the specials; `query_max_tokens`, of a pair's query, does not.

    Takes the tokenizer over: a call to it with truncation or padding, by another, would change what comes out here.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, query_max_tokens: int | None = None
    ) -> None:
        self._of_text = _Frame(tokenizer(["a"], return_token_type_ids=True))
        self._of_pair = _Frame(tokenizer(["a"], ["a"], return_token_type_ids=True))
        # Its file may ask for truncation and padding; here what is cut is counted, and nothing is padded.
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._max_tokens = max_tokens
        self._query_max_tokens = query_max_tokens
        self.padding_id = int(tokenizer.pad_token_id or 0)
        room = max_tokens - (
            self._of_text.count if query_max_tokens is None else query_max_tokens + self._of_pair.count
        )
        if room < 1:
            raise ValueError(
                f"max_tokens {max_tokens} leaves no room for a text between its special tokens"
                if query_max_tokens is None
                else f"max_tokens {max_tokens} leaves no room for a passage behind {query_max_tokens} of a query"
            )

    def pairs(self, queries: Texts, passages: Texts) -> Sequences:
        """The pairs in the order given. Raises ValueError on unequal lengths, or where no cap for queries was given."""
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries for {len(passages)} passages")
        if self._query_max_tokens is None:
            raise ValueError("a tokenizer of single texts: give query_max_tokens for pairs")
        of_query = self.plain_ids(queries.distinct, self._query_max_tokens)
        of_passage = self.plain_ids(passages.distinct, self._max_tokens)
        return self.assemble_pairs(of_query, queries.rows, of_passage, passages.rows)

    def texts(self, texts: Texts, prefix: str = "") -> Sequences:
        """The texts, each behind `prefix`, in the order given."""
        read = [prefix + text for text in texts.distinct] if prefix else texts.distinct
        ids = self.plain_ids(read, self._max_tokens)
        whole = ids.lengths[texts.rows]
        kept = np.minimum(whole, self._max_tokens - self._of_text.count)
        sequences = self._of_text.around([(ids, texts.rows, kept)])
        cut = (whole - kept).astype(np.int32)
        return Sequences(sequences, self._of_text.types([kept]) if self._has_types else None, np.zeros_like(cut), cut)

    def assemble_pairs(
        self, of_query: Ragged, query_rows: NDArray[np.int64], of_passage: Ragged, passage_rows: NDArray[np.int64]
    ) -> Sequences:
        """Pairs from ids that are there already: `plain_ids` of distinct texts, and which of them each pair has."""
        whole_query, whole_passage = of_query.lengths[query_rows], of_passage.lengths[passage_rows]
        query = np.minimum(whole_query, self._query_max_tokens or 0)
        passage = np.minimum(whole_passage, self._max_tokens - self._of_pair.count - query)
        sequences = self._of_pair.around([(of_query, query_rows, query), (of_passage, passage_rows, passage)])
        return Sequences(
            sequences,
            self._of_pair.types([query, passage]) if self._has_types else None,
            (whole_query - query).astype(np.int32),
            (whole_passage - passage).astype(np.int32),
        )

    def plain_ids(self, texts: Sequence[str], cap: int) -> Ragged:
        """Ids of the texts without specials, of their first `cap * CHARACTERS_A_TOKEN` characters."""
        read = [text[: cap * CHARACTERS_A_TOKEN] for text in texts]
        encoded = self._backend.encode_batch_fast(read, add_special_tokens=False)
        lengths = np.fromiter((len(one) for one in encoded), dtype=np.int64, count=len(encoded))
        flat = np.fromiter(chain.from_iterable(one.ids for one in encoded), dtype=np.int32, count=int(lengths.sum()))
        return Ragged(flat, starts_of(lengths))


class _Frame:
    """The special tokens around one text or two, with the type id of each part, as the tokenizer itself has them."""

    def __init__(self, template: Any) -> None:
        sides = template.sequence_ids(0)
        ids, types = np.array(template["input_ids"][0], dtype=np.int32), np.array(template["token_type_ids"][0])
        texts = sorted({side for side in sides if side is not None})
        edges = [0]
        for side in texts:
            edges += [sides.index(side), len(sides) - sides[::-1].index(side)]
        edges.append(len(sides))
        self.specials = [ids[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]
        self.count = sum(len(part) for part in self.specials)
        # In order: specials, text, specials, text, specials. A part without tokens has a type all the same: any.
        self._part_types = [int(types[start]) if start < end else 0 for start, end in pairwise(edges)]

    def around(self, texts: Sequence[tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]]) -> Ragged:
        """Sequences of (ids of distinct texts, which of them, how much of it): one copy a text, no loop over rows."""
        lengths = self.count + np.sum([kept for _, _, kept in texts], axis=0)
        starts = starts_of(lengths)
        flat = np.empty(int(starts[-1]), dtype=np.int32)
        at = starts[:-1].copy()
        for special, (ids, rows, kept) in zip(self.specials, texts, strict=False):
            flat[at[:, None] + np.arange(len(special))] = special
            at += len(special)
            flat[spans(at, kept)] = ids.flat[spans(ids.starts[rows], kept)]
            at += kept
        flat[at[:, None] + np.arange(len(self.specials[-1]))] = self.specials[-1]
        return Ragged(flat, starts)

    def types(self, kept: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
        """Type ids of the same sequences, flat."""
        lengths = np.empty((len(kept[0]), len(self._part_types)), dtype=np.int64)
        lengths[:, ::2] = [len(part) for part in self.specials]
        lengths[:, 1::2] = np.stack(list(kept), axis=1)
        return np.repeat(np.tile(np.array(self._part_types, dtype=np.uint8), len(lengths)), lengths.ravel())


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, one behind the other, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)])


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the spans that begin at `starts`, one behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
