"""A scorer that takes its time over a pair, and nothing else, whatever it reads."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from fakes import FakeEngine

from ecomspark.models.cross_encoder import Scores
from ecomspark.models.tokens import Texts


@dataclass(frozen=True)
class Slow:
    """Travels to the workers."""

    seconds_a_pair: float

    def load(self) -> "SlowScorer":
        return SlowScorer(self.seconds_a_pair)


@dataclass(frozen=True)
class SlowScorer:
    seconds_a_pair: float
    engine: FakeEngine = field(default_factory=FakeEngine)

    def prepare(self, queries: Texts, passages: Texts) -> int:
        return len(queries.rows)

    def start(self, prepared: int) -> Callable[[], Scores]:
        end = time.perf_counter() + prepared * self.seconds_a_pair
        while time.perf_counter() < end:
            pass  # burnt, not slept: a core is busy as with a model
        zeros, none = np.zeros(prepared, dtype=np.float32), np.zeros(prepared, dtype=np.int32)
        scores = Scores(zeros, none, none, none)
        return lambda: scores
