"""Work runs ahead of the model, memory that runs out is survived, budgets are found once and remembered."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from ecomspark.models import budget, cross_encoder
from ecomspark.models.costs import Costs
from ecomspark.models.engine import stream
from ecomspark.models.tokens import Texts

QUERIES = [f"red {word}" for word in tiny.WORDS]
PASSAGES = [f"{word} set of {'small ' * (n % 9)}cups" for n, word in enumerate(tiny.WORDS)]


@pytest.fixture
def scorer(tmp_path: Path) -> Any:
    made = tiny.checkpoint(tmp_path / "models")
    return cross_encoder.load(made.folder, made.scorer_digest, token_budget=200)


class Small:
    """An encoder whose memory holds so many tokens."""

    def __init__(self, encoder: Any, room: int, error: type[Exception]) -> None:
        self._encoder, self._room, self._error = encoder, room, error
        self.tried: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(self, batch: Any) -> torch.Tensor:
        self.tried.append(batch.token_count)
        if batch.token_count > self._room:
            raise self._error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return self._encoder(batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_memory_that_runs_out_halves_the_budget_and_loses_no_row(scorer: Any, error: type[Exception]) -> None:
    """R6: 200 tokens a batch, room for 60: two batches fail, then all fit."""
    expected = scorer.score(QUERIES, PASSAGES)
    small = scorer.engine._encoder = Small(scorer.engine._encoder, 60, error)
    scorer.engine.costs = Costs()
    found = scorer.score(QUERIES, PASSAGES)
    assert found.logits == pytest.approx(expected.logits, abs=1e-5)
    assert scorer.engine.costs.out_of_memory == 2
    assert 25 <= scorer.engine.token_budget <= 60
    assert sum(tokens for tokens in small.tried if tokens <= 60) == expected.token_counts.sum(), "each row once"
    small.tried.clear()
    scorer.score(QUERIES, PASSAGES)
    assert max(small.tried) <= 60, "the lower budget is kept"


def test_batches_that_were_cut_before_halve_nothing_more(scorer: Any) -> None:
    """Windows are cut ahead: one shortage makes each of them fail once, and is one reason only."""
    ahead = [scorer.prepare(Texts.of(QUERIES), Texts.of(PASSAGES)) for _ in range(3)]
    scorer.engine._encoder = Small(scorer.engine._encoder, 120, RuntimeError)
    for prepared in ahead:
        assert np.isfinite(scorer.start(prepared)().logits).all()
    assert scorer.engine.costs.out_of_memory == 3
    assert scorer.engine.token_budget > 80


def test_a_gpu_that_is_lost_fails_the_task_and_blames_no_row() -> None:
    def start(n: int) -> Callable[[], int]:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(torch.AcceleratorError):
        list(stream([1], lambda n: n, start, Costs()))


def test_a_sequence_that_does_not_fit_alone_says_so(scorer: Any) -> None:
    scorer.engine._encoder = Small(scorer.engine._encoder, 3, RuntimeError)
    with pytest.raises(MemoryError, match=r"a sequence of \d+ tokens does not fit"):
        scorer.score(QUERIES[:3], PASSAGES[:3])


def test_another_error_is_not_taken_for_want_of_memory(scorer: Any) -> None:
    class Broken(Small):
        def __call__(self, batch: Any) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    scorer.engine._encoder = Broken(scorer.engine._encoder, 0, RuntimeError)
    with pytest.raises(RuntimeError, match="shapes"):
        scorer.score(QUERIES, PASSAGES)
    assert scorer.engine.token_budget == 200


def test_a_budget_is_found_by_trying_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECOMSPARK_CACHE", str(tmp_path / "cache"))
    made = tiny.checkpoint(tmp_path / "models")
    tried: list[int] = []
    real = cross_encoder.load(made.folder, made.scorer_digest).engine
    assert real.token_budget >= 1_024
    file = next((tmp_path / "cache").rglob("*.json"))
    assert made.scorer_digest.hex() in file.name
    assert "cpu" in file.name
    file.write_text(json.dumps({"token_budget": 777}))
    assert cross_encoder.load(made.folder, made.scorer_digest).engine.token_budget == 777

    def remember(tokens: int) -> None:
        tried.append(tokens)

    again = budget.found(made.scorer_digest, torch.device("cpu"), remember)
    assert (again.tokens, tried) == (777, [])
    again.halve(400)
    assert again.tokens == 200
    assert budget.found(made.scorer_digest, torch.device("cpu"), remember).tokens == 200
    again.halve(10_000)
    assert budget.found(b"another scorer !", torch.device("cpu"), remember).tokens >= 1_024
    assert tried[:2] == [1_024, 1_024]


def test_trying_stops_where_memory_ends(tmp_path: Path) -> None:
    def try_out(tokens: int) -> None:
        if tokens > 4_000:
            raise MemoryError
        time.sleep(0.01)  # the same time for twice the tokens: each doubling is worth it

    assert budget.found(b"0" * 16, torch.device("cpu"), try_out, tmp_path).tokens == 2_048


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert budget.found(b"0" * 16, torch.device("cpu"), lambda _: None, tmp_path / "file").tokens >= 256


def test_reading_runs_ahead_of_the_model_and_no_further_than_two_windows() -> None:
    """Counted, not timed: while the model is held in window 0, the reader gets to the third window behind it and waits."""
    read: list[int] = []
    prepared_in: set[int] = set()

    def windows() -> Iterator[int]:
        for n in range(9):
            read.append(n)
            yield n

    def prepare(n: int) -> int:
        prepared_in.add(threading.get_ident())
        return n * 10

    def start(n: int) -> Callable[[], int]:
        if n == 0:
            for _ in range(500):  # until the reader stands still
                before = len(read)
                time.sleep(0.02)
                if len(read) == before >= 4:
                    break
            assert len(read) == 4, "one in the model, two ready, one in the reader's hand"
        return lambda: n + 1

    assert list(stream(windows(), prepare, start, Costs())) == [(n, n * 10 + 1) for n in range(9)]
    assert prepared_in.isdisjoint({threading.get_ident()})


def test_a_device_that_works_on_is_given_the_next_window_before_the_last_is_fetched() -> None:
    happened: list[str] = []

    def start(n: int) -> Callable[[], int]:
        happened.append(f"start {n}")
        return lambda: happened.append(f"fetch {n}") or n

    assert [n for n, _ in stream(range(3), lambda n: n, start, Costs(), is_asynchronous=True)] == [0, 1, 2]
    assert happened == ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"]


def test_a_window_that_fails_is_answered_by_its_error_and_the_rest_goes_on() -> None:
    def prepare(n: int) -> int:
        if n == 1:
            raise ValueError("no")
        return n

    def start(n: int) -> Callable[[], int]:
        if n == 2:
            raise OSError
        return lambda: [3][n - 3] if n else 0  # of window 3: 3; of 4: IndexError

    found = list(stream(range(5), prepare, start, Costs()))
    assert [n for n, _ in found] == list(range(5))
    assert [type(answer).__name__ for _, answer in found] == ["int", "ValueError", "OSError", "int", "IndexError"]


def test_what_reading_raises_is_raised() -> None:
    def windows() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    answers = stream(windows(), lambda n: n, lambda n: lambda: n, Costs())
    assert next(answers) == (1, 1)
    with pytest.raises(KeyError):
        next(answers)


def test_leaving_early_ends_the_reader() -> None:
    before = threading.active_count()
    answers = stream(iter(range(1000)), lambda n: n, lambda n: lambda: n, Costs())
    next(answers)
    assert threading.active_count() == before + 1
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_costs_add_up() -> None:
    total = Costs(rows=1, tokens=10, peak_memory=5) + Costs(rows=2, tokens=20, padding=10, peak_memory=3)
    assert (total.rows, total.tokens, total.peak_memory) == (3, 30, 5)
    assert total.padding_share == 0.25
    with total.timed("forward"):
        pass
    assert total.forward > 0


def test_an_engine_counts_what_it_forwards(scorer: Any) -> None:
    scores = scorer.start(scorer.prepare(Texts.of(QUERIES), Texts.of(PASSAGES)))()
    assert scorer.engine.costs.tokens == scores.token_counts.sum()
    assert scorer.engine.costs.padding == 0
    assert np.isfinite(scores.logits).all()
