"""Queries that are nearly the same query: by tokens, by edits, by cosine. Pure: no Spark, no models.

A pair is found by the first of three rules, and never when its numbers differ ("8 ft ladder", "6 ft ladder"):

* tokens: the same bag of terms (`text.terms`): order, case, accents, stems and joined digits do not matter;
* edits: an optimal string alignment distance (insert, delete, replace, swap neighbours; no letter edited twice) of
  at most one for each six characters of the shorter text, and of `max_edits`; punctuation counts as a blank;
* cosine: of vectors that the caller brings, at least `min_cosine`.

The first two are exact, not sampled: two texts within k edits have a text in common that each becomes by deleting at
most k of its characters, so only texts that share such a text are compared. Work is done by length of what is left,
so memory follows the texts of three adjacent lengths; cosines are taken in blocks.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import ceil, comb
from typing import Any

import numpy as np
import pandas as pd
import regex
from numpy.typing import NDArray
from rapidfuzz.distance import OSA
from rapidfuzz.process import cpdist
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ecomspark.text import Analyser, normalise_query, terms

RULES = ("tokens", "edits", "cosine")
CHARACTERS_AN_EDIT = 6
SIDES = ("test", "validation", "train")  # the strictest first

_PLAIN = Analyser()
_PAIRS_A_TEXT = 100  # beyond that, a rule tells nothing apart
_VARIANTS_AT_ONCE = 2_000_000
_ROWS_A_BLOCK = 2_048
_NO_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")
_NUMBER = regex.compile(r"\p{N}+")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_BASE_INVERSE = pow(_BASE, -1, 2**64)

Ints = NDArray[np.int64]


def near_pairs(
    texts: Sequence[str],
    vectors: NDArray[Any] | None = None,
    analysers: Analyser | Sequence[Analyser] = _PLAIN,
    max_edits: int = 2,
    min_cosine: float = 0.92,
) -> pd.DataFrame:
    """Columns left, right (places in `texts`, left < right), rule: the first that found the pair. Sorted.

    `vectors`: one row a text, of any length, zeros for a text without; without them there is no cosine rule.
    `analysers`: one for all, or one a text. Raises ValueError when a rule finds more than a hundred pairs a text: it
    tells nothing apart then.

    >>> near_pairs(["red mugs", "8 ft ladder", "mug, RED", "6 ft ladder"], analysers=Analyser(language="english"))
       left  right    rule
    0     0      2  tokens
    """
    plain = [_NO_WORD.sub(" ", normalise_query(text)).strip() for text in texts]
    numbers = _codes([" ".join(sorted(_NUMBER.findall(text))) for text in plain])
    each = [analysers] * len(texts) if isinstance(analysers, Analyser) else analysers
    bags = [" ".join(sorted(terms(text, analyser))) for text, analyser in zip(texts, each, strict=True)]
    found = [_same(_codes(bags), [bool(bag) for bag in bags]), _edited(plain, numbers, max_edits)]
    if vectors is not None:
        found.append(_close(vectors, numbers, min_cosine))
    for rule, (left, _) in zip(RULES, found, strict=False):
        if len(left) > _PAIRS_A_TEXT * len(texts):
            raise ValueError(f"{rule}: more than {_PAIRS_A_TEXT} near-duplicates a text")
    frames = [
        pd.DataFrame({"left": left, "right": right, "rule": rule})
        for rule, (left, right) in zip(RULES, found, strict=False)
    ]
    pairs = pd.concat(frames, ignore_index=True).drop_duplicates(["left", "right"])  # keeps the first rule
    in_order: pd.DataFrame = pairs.sort_values(["left", "right"], ignore_index=True)
    return in_order


def groups(count: int, pairs: pd.DataFrame) -> Ints:
    """The group of each of `count` texts: what pairs connect, directly or over others. Numbered as they appear."""
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs["left"], pairs["right"])), shape=(count, count))
    numbers: Ints = connected_components(links, directed=False)[1].astype(np.int64)
    return numbers


def followed(query_ids: Sequence[bytes], sides: Sequence[str | None], pairs: pd.DataFrame) -> pd.DataFrame:
    """What decides the side of each query that has none yet: columns at (its place), side, leader_id.

    A group of near-duplicates goes to one side: the strictest that one of it has already, else the one that its
    smallest query_id (`leader_id`) draws, and `side` is missing.
    """
    queries = pd.DataFrame(
        {
            "at": np.arange(len(query_ids)),
            "group": groups(len(query_ids), pairs),
            "leader_id": list(query_ids),
            "side": [None if side is None else SIDES.index(side) for side in sides],
        }
    )
    queries["side"] = queries["side"].astype(float)
    of_group = queries.groupby("group").agg(side=("side", "min"), leader_id=("leader_id", "min"))
    new = queries.loc[queries["side"].isna(), ["at", "group"]].join(of_group, on="group").drop(columns="group")
    new["side"] = [None if np.isnan(side) else SIDES[int(side)] for side in new["side"]]
    return new.reset_index(drop=True)


def leaks(pairs: pd.DataFrame, sides: Sequence[str]) -> pd.DataFrame:
    """One row a query that nearly equals one of a stricter side: columns at (its place), side, near_side, rule.

    Training leaks into validation and test, validation into test. The strictest side and the first rule are told.
    """
    of = np.array([SIDES.index(side) for side in sides], dtype=np.int64)
    left, right = pairs["left"].to_numpy(np.int64), pairs["right"].to_numpy(np.int64)
    laxer = np.where(of[left] > of[right], left, right)
    stricter = np.where(of[left] > of[right], right, left)
    rule = np.array([RULES.index(rule) for rule in pairs["rule"]], dtype=np.int64)
    crossing = pd.DataFrame({"at": laxer, "side": of[laxer], "near_side": of[stricter], "rule": rule})
    crossing = crossing[of[laxer] != of[stricter]].sort_values(["at", "near_side", "rule"])
    found: pd.DataFrame = crossing.drop_duplicates("at").reset_index(drop=True)
    for column, names in (("side", SIDES), ("near_side", SIDES), ("rule", RULES)):
        found[column] = [names[code] for code in found[column]]
    return found


def _codes(values: Sequence[str]) -> Ints:
    return pd.factorize(np.array(values, dtype=object))[0].astype(np.int64)


def _same(keys: NDArray[Any], is_wanted: Sequence[bool] | None = None) -> tuple[Ints, Ints]:
    """All pairs of places that have the same key, left < right."""
    places = np.arange(len(keys)) if is_wanted is None else np.flatnonzero(is_wanted)
    order = places[np.argsort(keys[places], kind="stable")]
    sorted_keys = keys[order]
    lefts, rights = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    starts = np.arange(len(order))
    for apart in range(1, len(order)):
        starts = starts[starts + apart < len(order)]
        starts = starts[sorted_keys[starts] == sorted_keys[starts + apart]]
        if not len(starts):
            break
        lefts.append(order[starts])
        rights.append(order[starts + apart])
    return np.concatenate(lefts), np.concatenate(rights)


def _edited(plain: Sequence[str], numbers: Ints, max_edits: int) -> tuple[Ints, Ints]:
    """Pairs of texts that differ within the allowed edits. Equal texts are left to the rule before."""
    distinct, first, which = np.unique(np.array(plain, dtype=object), return_index=True, return_inverse=True)
    lengths = np.array([len(text) for text in distinct], dtype=np.int64)
    allowed = np.minimum(lengths // CHARACTERS_AN_EDIT, max_edits)
    kept: set[tuple[int, int]] = set()
    for some in _sharing(distinct, lengths, allowed, numbers[first], max_edits):
        new = sorted(set(some) - kept)
        if new:
            left, right = (list(side) for side in zip(*new, strict=True))
            distance = cpdist(distinct[left], distinct[right], scorer=OSA.distance, score_cutoff=max_edits)
            is_near = distance <= np.minimum(allowed[left], allowed[right])
            kept.update(pair for pair, near in zip(new, is_near, strict=True) if near)
    return _spread(sorted(kept), which)


def _sharing(
    texts: NDArray[Any], lengths: Ints, allowed: Ints, numbers: Ints, max_edits: int
) -> Iterator[list[tuple[int, int]]]:
    """Pairs of texts with the same numbers that deletions make the same, for each length of what is left."""
    rows = {int(length): np.flatnonzero(lengths == length) for length in np.unique(lengths)}
    sums = {length: _prefix_sums(texts[of], numbers[of], length) for length, of in rows.items() if length}
    for left_over in range(CHARACTERS_AN_EDIT - max_edits, int(lengths.max(initial=0)) + 1):
        parts = [
            (length, length - left_over)
            for length in range(left_over, left_over + max_edits + 1)
            if length in sums and length - left_over <= min(max_edits, length // CHARACTERS_AN_EDIT)
        ]
        total = sum(len(rows[length]) * comb(length, deleted) for length, deleted in parts)
        passes = max(1, ceil(total / _VARIANTS_AT_ONCE))
        for turn in range(passes):
            made = [
                (rows[length][at], hashes)
                for length, deleted in parts
                for at, hashes in _variants(sums[length], length, deleted, passes, turn)
            ]
            if made:
                yield _meeting(np.concatenate([at for at, _ in made]), np.concatenate([h for _, h in made]))


def _meeting(at: Ints, hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    seen = pd.DataFrame({"at": at, "hash": hashes}).drop_duplicates()
    left, right = _same(seen["hash"].to_numpy())
    of = seen["at"].to_numpy()
    left, right = np.minimum(of[left], of[right]), np.maximum(of[left], of[right])
    return list(zip(left.tolist(), right.tolist(), strict=True))


def _prefix_sums(texts: NDArray[Any], numbers: Ints, length: int) -> NDArray[np.uint64]:
    """Shape (texts, length + 1): what a polynomial hash modulo 2**64 sums up before each character.

    The first is a hash of the text's numbers, so that texts whose numbers differ do not meet.
    """
    letters = np.array(list(texts), dtype=f"<U{length}").view(np.uint32).reshape(len(texts), length)
    mixed = _mixed(letters.astype(np.uint64))
    powers = np.array([pow(_BASE, place, 2**64) for place in range(length)], dtype=np.uint64)
    sums = np.zeros((len(texts), length + 1), dtype=np.uint64)
    np.cumsum(mixed * powers, axis=1, out=sums[:, 1:])
    return sums + _mixed(numbers.astype(np.uint64) + np.uint64(2**32))[:, None]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    return (values ^ (values >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)


def _variants(
    sums: NDArray[np.uint64], length: int, deleted: int, passes: int, turn: int
) -> Iterator[tuple[Ints, NDArray[np.uint64]]]:
    """(row, hash) of each text without `deleted` of its characters, those hashes that are this turn's.

    What stands between two deletions is a difference of sums, moved to its new place by the base's inverse.
    """
    cuts = np.array(list(combinations(range(length), deleted)), dtype=np.int64).reshape(comb(length, deleted), deleted)
    ends = np.hstack([cuts, np.full((len(cuts), 1), length)])
    some = max(1, _VARIANTS_AT_ONCE // len(cuts))
    for start in range(0, len(sums), some):
        of = sums[start : start + some]
        hashes = of[:, ends[:, 0]].copy()
        for place in range(deleted):
            between = of[:, ends[:, place + 1]] - of[:, cuts[:, place] + 1]
            hashes += between * np.uint64(pow(_BASE_INVERSE, place + 1, 2**64))
        rows = np.repeat(np.arange(start, start + len(of)), len(cuts))
        flat = hashes.reshape(-1)
        if passes > 1:
            is_ours = (flat >> np.uint64(32)) % np.uint64(passes) == turn
            rows, flat = rows[is_ours], flat[is_ours]
        yield rows, flat


def _spread(kept: list[tuple[int, int]], which: Ints) -> tuple[Ints, Ints]:
    """Pairs of distinct texts as pairs of all places that have them."""
    members = pd.DataFrame({"text": which, "at": np.arange(len(which))})
    pairs = pd.DataFrame(kept, columns=["left", "right"], dtype=np.int64)
    wide = pairs.merge(members, left_on="left", right_on="text").merge(members, left_on="right", right_on="text")
    one, other = wide["at_x"].to_numpy(np.int64), wide["at_y"].to_numpy(np.int64)
    return np.minimum(one, other), np.maximum(one, other)


def _close(vectors: NDArray[Any], numbers: Ints, min_cosine: float) -> tuple[Ints, Ints]:
    """Pairs whose vectors' cosine is at least that, with the same numbers, by blocks of a matrix product."""
    whole = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(whole, axis=1, keepdims=True)
    unit = whole / np.where(norms > 0, norms, 1)
    lefts, rights, count = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], 0
    for top in range(0, len(unit), _ROWS_A_BLOCK):
        for side in range(top, len(unit), _ROWS_A_BLOCK):
            cosines = unit[top : top + _ROWS_A_BLOCK] @ unit[side : side + _ROWS_A_BLOCK].T
            one, other = np.nonzero(cosines >= min_cosine)
            left, right = one + top, other + side
            is_pair = (left < right) & (numbers[left] == numbers[right])
            lefts.append(left[is_pair])
            rights.append(right[is_pair])
            count += int(is_pair.sum())
            if count > _PAIRS_A_TEXT * len(unit):
                raise ValueError(f"cosine: more than {_PAIRS_A_TEXT} near-duplicates a text at {min_cosine}")
    return np.concatenate(lefts), np.concatenate(rights)
