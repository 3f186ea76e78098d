"""Scorers that travel to Spark's workers like real ones, and leave traces that a test can count."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ecomspark.models.checkpoint import VectorType
from ecomspark.models.costs import Costs
from ecomspark.models.cross_encoder import Scores
from ecomspark.models.tokens import Texts
from ecomspark.resources import gpu_of_task


@dataclass(frozen=True)
class Traced:
    """A scorer whose logit is a function of the texts alone. Writes a line a load and a line a batch under `folder`.

    `once`: what to do the first time a batch holds `trigger`: raise, die (SIGKILL), segfault, exit, hang, or nothing.
    `poison`: a passage that always fails, with `poison_error`. `shift`: what its logits are above those of others.
    """

    folder: str
    trigger: str = ""
    once: str = ""
    poison: str = ""
    poison_error: str = "ValueError"
    shift: float = 0.0

    def load(self) -> "TracedScorer":
        _note(self.folder, "loads", str(os.getpid()))
        _note(self.folder, "gpus", str(gpu_of_task()))
        return TracedScorer(self)

    def loads(self) -> list[str]:
        return _notes(self.folder, "loads")

    def gpus(self) -> list[str]:
        """The address of the GPU that the task of each load was given."""
        return _notes(self.folder, "gpus")

    def evaluated(self) -> list[str]:
        """Every passage that was forwarded, as often as it was."""
        return [passage for batch in _notes(self.folder, "batches") for passage in batch.split("\x1f")]


@dataclass
class FakeEngine:
    """What the gate asks of an engine. `token_budget` decides how many rows a window has."""

    token_budget: int = 64
    is_asynchronous: bool = False
    costs: Costs = field(default_factory=Costs)

    def peak_memory(self) -> int:
        return 0


@dataclass(frozen=True)
class TracedScorer:
    of: Traced
    engine: FakeEngine = field(default_factory=FakeEngine)

    def prepare(self, queries: Texts, passages: Texts) -> list[list[str]]:
        return [[texts.distinct[place] for place in texts.rows] for texts in (queries, passages)]

    def start(self, prepared: list[list[str]]) -> Callable[[], Scores]:
        scores = self.score(*prepared)
        return lambda: scores

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Scores:
        if self.of.trigger and self.of.trigger in passages and _first_time(self.of.folder, self.of.trigger):
            if self.of.once == "raise":
                raise RuntimeError("a passing fault")
            if self.of.once == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.of.once == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.of.once == "exit":
                os._exit(3)
            if self.of.once == "hang":
                time.sleep(3600)
        if self.of.poison and self.of.poison in passages:
            raise {"ValueError": ValueError, "OSError": OSError}[self.of.poison_error](f"canary {self.of.poison}")
        _note(self.of.folder, "batches", "\x1f".join(passages))
        counts = np.array(
            [len(q.split()) + len(p.split()) for q, p in zip(queries, passages, strict=True)], dtype=np.int32
        )
        values = [logit(q, p) + self.of.shift for q, p in zip(queries, passages, strict=True)]
        logits = np.array(values, dtype=np.float32)
        return Scores(logits, counts, np.zeros_like(counts), np.zeros_like(counts))


def logit(query: str, passage: str) -> float:
    """Any number that depends on both texts: here on the letters that they share."""
    return len(set(query) & set(passage)) / 4 - len(passage) / 50


def _note(folder: str, name: str, line: str) -> None:
    """One file for all workers: a short line is appended whole, so lines stand in the order of time."""
    with open(Path(folder) / f"{name}.txt", "a") as file:
        file.write(line + "\n")


def _notes(folder: str, name: str) -> list[str]:
    path = Path(folder) / f"{name}.txt"
    return path.read_text().splitlines() if path.exists() else []


def _first_time(folder: str, what: str) -> bool:
    try:
        os.close(os.open(Path(folder) / f"once-{abs(hash(what))}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Broken:
    """An embedder that fails on every text, with the text in its error."""

    vector_type: VectorType = "float32"

    def load(self) -> "Broken":
        return self

    @property
    def engine(self) -> FakeEngine:
        return FakeEngine()

    def prepare(self, texts: Texts, role: str) -> Texts:
        return texts

    def start(self, prepared: Texts) -> Any:
        return self.fails_here(prepared)

    def fails_here(self, prepared: Texts) -> Any:
        raise KeyError(prepared.distinct[0])


@dataclass(frozen=True)
class Unloadable:
    """A model that cannot be made."""

    def load(self) -> Any:
        raise OSError("no such model")
