"""What scoring costs: counts and seconds that add up over batches, tasks and workers."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Costs:
    """Sums, but for `peak_memory`. Seconds are of workers' threads: reading and tokenising overlap with the rest."""

    rows: int = 0
    tokens: int = 0  # read by the model, specials included
    padding: int = 0  # read beside them
    text_bytes: int = 0  # of the texts given
    batches: int = 0
    reading: float = 0.0  # s: until the rows came
    tokenising: float = 0.0  # s: text to ids to batches on the device
    waiting: float = 0.0  # s: the model stood still for the two above
    forward: float = 0.0  # s: batches through the model, results back
    loads: int = 0  # models loaded
    loading: float = 0.0  # s
    out_of_memory: int = 0  # times that the token budget was halved
    peak_memory: int = 0  # bytes, the most that one worker had, of its GPU where it has one; not a sum

    def __add__(self, other: "Costs") -> "Costs":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in _FIELDS}
        return Costs(**sums | {"peak_memory": max(self.peak_memory, other.peak_memory)})

    @property
    def padding_share(self) -> float:
        """Of all tokens that were forwarded, those that were padding."""
        return self.padding / max(1, self.tokens + self.padding)

    @contextmanager
    def timed(self, field: str) -> Iterator[None]:
        """Add the seconds of a block to a field. Threads that add at once need a field each."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, field, getattr(self, field) + time.perf_counter() - start)


_FIELDS = dataclasses.fields(Costs)
