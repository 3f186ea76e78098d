"""Sequences through an encoder as fast as the device goes: batches under a token budget, the next made meanwhile."""

import queue
import resource
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ecomspark.errors import NOTE, way
from ecomspark.models.budget import Budget, is_device_lost, is_out_of_memory
from ecomspark.models.costs import Costs
from ecomspark.models.encoder import Batch, Encoder
from ecomspark.models.tokens import Ragged, Sequences

Window = TypeVar("Window")
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")

_AHEAD = 2  # windows that are read and tokenised while one is in the model


@dataclass(frozen=True)
class Cut:
    """Sequences cut into batches that are on the device, or on their way."""

    sequences: Sequences
    batches: list[tuple[NDArray[np.int64], Batch]]


class Engine:
    """An encoder with what is made of its vectors (`finish`: vectors of shape (n, width) to an answer a row)."""

    def __init__(self, encoder: Encoder, finish: Callable[[torch.Tensor], torch.Tensor], budget: Budget) -> None:
        self._encoder = encoder
        self._finish = finish
        self.budget = budget
        self.costs = Costs()

    @property
    def token_budget(self) -> int:
        return self.budget.tokens

    @property
    def is_asynchronous(self) -> bool:
        """Whether a pass goes on after it was started: then the next window is started before one is fetched."""
        return self._encoder.device.type == "cuda"

    def cut(self, sequences: Sequences, rows: NDArray[np.int64] | None = None) -> Cut:
        """Some of the sequences, or all, in batches under the budget, on the device. Safe in another thread than the
        one that runs them."""
        rows = np.arange(len(sequences)) if rows is None else rows
        cuts = [rows[some] for some in self._encoder.batches(sequences.token_counts[rows], self.budget.tokens)]
        return Cut(sequences, [(of_batch, self._encoder.batch(sequences, of_batch)) for of_batch in cuts])

    def start(self, cut: Cut) -> Callable[[], NDArray[Any]]:
        """Run the batches; what comes back fetches the answers, in the order of the sequences.

        When memory runs out the budget is halved and what is left is cut anew. Raises MemoryError when one sequence
        alone does not fit.
        """
        done: list[tuple[NDArray[np.int64], torch.Tensor]] = []
        todo = cut.batches[::-1]
        with torch.inference_mode():
            while todo:
                rows, batch = todo.pop()
                answers = self._try(batch)
                if answers is not None:
                    done.append((rows, answers))
                    self.costs.tokens += batch.token_count
                    self.costs.padding += batch.padding_count
                    self.costs.batches += 1
                    continue
                if len(rows) == 1:
                    raise MemoryError(f"a sequence of {batch.token_count} tokens does not fit into memory")
                self.costs.out_of_memory += 1
                self.budget.halve(batch.token_count + batch.padding_count)
                left = np.concatenate([rows, *(of_batch for of_batch, _ in reversed(todo))])
                del batch
                todo = self.cut(cut.sequences, left).batches[::-1]
            return self._sent_back(done, len(cut.sequences))

    def try_out(self, max_tokens: int) -> Callable[[int], None]:
        """A forward pass of a given number of tokens, in sequences of up to 128, for finding the budget."""
        length = min(128, max_tokens)

        def try_one(tokens: int) -> None:
            count = max(1, tokens // length)
            ids = np.full(count * length, 1, dtype=np.int32)
            none = np.zeros(count, dtype=np.int32)
            sequences = Sequences(Ragged(ids, np.arange(count + 1, dtype=np.int64) * length), None, none, none)
            with torch.inference_mode():
                self._finish(self._encoder(self._encoder.batch(sequences, np.arange(count)))).cpu()

        return try_one

    def _try(self, batch: Batch) -> torch.Tensor | None:
        """None when memory ran out. What failed is let go before the next try: a traceback would hold its tensors."""
        try:
            return self._finish(self._encoder(batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if self.is_asynchronous:
            torch.cuda.empty_cache()
        return None

    def _sent_back(self, done: list[tuple[NDArray[np.int64], torch.Tensor]], count: int) -> Callable[[], NDArray[Any]]:
        """The answers are on their way to the host when this returns; what comes back waits for them, not for what was
        started since."""
        if not done:
            return lambda: np.empty(0, dtype=np.float32)
        rows, answers = np.concatenate([rows for rows, _ in done]), torch.cat([answers for _, answers in done])
        arrived = None
        if self.is_asynchronous:
            answers = torch.empty(answers.shape, dtype=answers.dtype, pin_memory=True).copy_(answers, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()

        def fetched() -> NDArray[Any]:
            if arrived is not None:
                arrived.synchronize()
            ordered = np.empty((count, *answers.shape[1:]), dtype=answers.numpy().dtype)
            ordered[rows] = answers.numpy()
            return ordered

        return fetched

    def peak_memory(self) -> int:
        """Bytes: the most that this process had, of its GPU where the model is on one."""
        if self._encoder.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._encoder.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def stream(
    windows: Iterable[Window],
    prepare: Callable[[Window], Prepared],
    start: Callable[[Prepared], Callable[[], Answer]],
    costs: Costs,
    is_asynchronous: bool = False,
) -> Iterator[tuple[Window, Answer | Exception]]:
    """Each window with its answer, in order; or with the exception that it met, and the rest goes on.

    Reading the windows and preparing them runs in a thread of its own, at most two windows ahead. What reading raises
    is raised here. `is_asynchronous`: the next window is started before the answer to one is fetched.
    """
    started: list[tuple[Window, Callable[[], Answer] | Exception]] = []
    for window, prepared in ahead(_prepared(windows, prepare, costs), costs):
        with costs.timed("forward"):
            started.append((window, caught(start, prepared) if not isinstance(prepared, Exception) else prepared))
        while len(started) > int(is_asynchronous):
            yield _fetched(*started.pop(0), costs)
    for window, answer in started:
        yield _fetched(window, answer, costs)


def ahead(source: Iterator[Window], costs: Costs) -> Iterator[Window]:
    """The items of `source`, made in a thread of its own, a bounded number ahead. What it raises is raised here."""
    items: queue.Queue[tuple[Window | None, BaseException | None]] = queue.Queue(maxsize=_AHEAD)
    is_over = threading.Event()

    def put(item: Window | None, error: BaseException | None = None) -> bool:
        while not is_over.is_set():
            try:
                items.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in source:
                if not put(item):
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            with costs.timed("waiting"):
                item, error = items.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        is_over.set()
        thread.join(timeout=5.0)


def _prepared(
    windows: Iterable[Window], prepare: Callable[[Window], Prepared], costs: Costs
) -> Iterator[tuple[Window, Prepared | Exception]]:
    windows = iter(windows)
    while True:
        with costs.timed("reading"):
            window = next(windows, None)
        if window is None:
            return
        with costs.timed("tokenising"):
            prepared = caught(prepare, window)
        yield window, prepared


def _fetched(
    window: Window, answer: Callable[[], Answer] | Exception, costs: Costs
) -> tuple[Window, Answer | Exception]:
    with costs.timed("forward"):
        return window, answer if isinstance(answer, Exception) else caught(lambda _: answer(), None)


def caught(function: Callable[[Any], Answer], argument: Any) -> Answer | Exception:
    """What the function gives, or the exception that it met; but a GPU that is lost to this process is raised."""
    try:
        return function(argument)
    except Exception as error:
        if is_device_lost(error):
            raise  # the task must fail, and its process end: no row is to blame
        # Its frames hold tensors and texts: only the way to it is kept.
        error.add_note(f"{NOTE}{way(error)}")
        return error.with_traceback(None)
