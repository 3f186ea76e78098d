"""A sequence model that travels to Spark's workers like a real one, and leaves traces that a test can count."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fakes import FakeEngine, _note, _notes
from numpy.typing import NDArray

WIDTH = 4


@dataclass(frozen=True)
class TracedSequence:
    """`new`: items that it did not learn and knows by their text alone; without a text it proposes them never. `again`:
    what an item adds to its own score each time that it was read."""

    folder: str
    new: tuple[str, ...] = ()
    again: float = 0.0

    def load(self) -> "TracedSequenceModel":
        _note(self.folder, "sequence-loads", str(os.getpid()))
        return TracedSequenceModel(self)

    def loads(self) -> list[str]:
        return _notes(self.folder, "sequence-loads")

    def histories(self) -> list[str]:
        """Every history that was read, as often as it was, its items joined by blanks."""
        return _notes(self.folder, "histories")

    def matrices(self) -> list[str]:
        """How many items each matrix was made of."""
        return _notes(self.folder, "matrices")


@dataclass(frozen=True)
class TracedSequenceModel:
    of: TracedSequence
    max_items: int = 3
    engine: FakeEngine = field(default_factory=FakeEngine)

    def states(
        self, histories: Sequence[Sequence[str]], vectors: Mapping[str, Any] | None = None
    ) -> NDArray[np.float32]:
        for history in histories:
            _note(self.of.folder, "histories", " ".join(history))
        return np.array([state(history, vectors or {}) for history in histories], dtype=np.float32).reshape(-1, WIDTH)

    def items(self, ids: Sequence[str], vectors: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        _note(self.of.folder, "matrices", str(len(ids)))
        made = [[*vector(item_id, vectors or {}), self._bias(item_id, vectors or {})] for item_id in ids]
        return np.array(made, dtype=np.float32).reshape(-1, WIDTH + 1)

    def own(self, histories: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        return [{item_id: self.of.again * history.count(item_id) for item_id in history} for history in histories]

    def confidence(self, scores: NDArray[Any], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances = -np.sort(-weights / weights.sum(axis=1, keepdims=True), axis=1)[:, :k]
        return chances, chances.sum(axis=1)

    def _bias(self, item_id: str, vectors: Mapping[str, Any]) -> float:
        return -np.inf if item_id in self.of.new and item_id not in vectors else 0.0


def vector(item_id: str, vectors: Mapping[str, Any]) -> list[float]:
    """Any numbers that depend on the id, or on its text's vector; items of one first letter are alike."""
    if item_id in vectors:
        return [float(vectors[item_id][0]), 1.0, 0.0, 0.0]
    return [float(ord(item_id[0]) % 7 == n) for n in range(WIDTH)]


def state(history: Sequence[str], vectors: Mapping[str, Any]) -> NDArray[np.float64]:
    """The newest three items, the newest weighing most."""
    newest = list(history)[-3:][::-1]
    return np.sum([np.array(vector(item, vectors)) / (place + 1) for place, item in enumerate(newest)], axis=0)
