"""The gate between Spark and models: a model over a DataFrame, each row evaluated once, bad rows told apart.

What travels to executors is a small description of a model (a path and a digest); each Python worker makes the model
of it once and keeps it. Ids stay in the JVM: only texts go to Python, and only what was said of them comes back.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql.pandas.functions import arrow_udf, pandas_udf

from ecomspark.errors import without_values

SCORED = (
    "logit double, activation double, token_count int, cut_query_tokens int, cut_passage_tokens int, "
    "error string, error_kind string"
)
_PASSING = (MemoryError, OSError, RuntimeError, TimeoutError)


class PairScores(Protocol):
    """Arrays with one entry a pair, in the order given."""

    @property
    def logits(self) -> Any: ...
    @property
    def activations(self) -> Any: ...
    @property
    def token_counts(self) -> Any: ...
    @property
    def cut_query_tokens(self) -> Any: ...
    @property
    def cut_passage_tokens(self) -> Any: ...


class PairScorer(Protocol):
    def score(self, queries: Sequence[str], passages: Sequence[str]) -> PairScores: ...


class TextEmbedder(Protocol):
    def embed(self, texts: Sequence[str], role: Literal["query", "passage"]) -> Any: ...


class Description(Protocol):
    """Hashable and small; `load` makes the model, in the worker. Tests give fakes."""

    def load(self) -> Any: ...


@dataclass(frozen=True)
class CrossEncoderAt:
    """A cross-encoder's checkpoint, as it travels to executors."""

    folder: str
    scorer_digest: bytes
    token_budget: int

    def load(self) -> PairScorer:
        from ecomspark.models.cross_encoder import load  # torch: in the worker only

        return load(Path(self.folder), self.scorer_digest, gpu_of_task(), self.token_budget)


@dataclass(frozen=True)
class EmbedderAt:
    """An encoder's checkpoint, as it travels to executors."""

    folder: str
    scorer_digest: bytes
    token_budget: int

    def load(self) -> TextEmbedder:
        from ecomspark.models.embedder import load  # torch: in the worker only

        return load(Path(self.folder), self.scorer_digest, gpu_of_task(), self.token_budget)


def score_pairs(pairs: DataFrame, scorer: Description) -> DataFrame:
    """`pairs` with what the scorer said of (query_text, passage_text): the columns of `SCORED`, texts dropped.

    A pair that cannot be scored has no logit but the class of its error, and the rest goes on. Each row is evaluated
    once for each time the frame is executed: append it first, look after.
    """

    def scored(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        model = resident(scorer)
        for queries, passages in batches:
            yield _scored(model, list(queries), list(passages))

    # A deterministic UDF would run again for a filter or a second column behind it.
    once = pandas_udf(scored, SCORED).asNondeterministic()  # type: ignore[call-overload]
    return pairs.withColumn("_scored", once("query_text", "passage_text")).select(
        *(name for name in pairs.columns if name not in ("query_text", "passage_text")), "_scored.*"
    )


def embed_texts(texts: DataFrame, embedder: Description, role: Literal["query", "passage"]) -> DataFrame:
    """`texts` with the unit vector of `text`, which is dropped. Vectors travel as Arrow, not as Python lists."""

    def embedded(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        model = resident(embedder)
        for batch in batches:
            with without_values():
                vectors = np.ascontiguousarray(model.embed(batch.to_pylist(), role), dtype=np.float32)
            offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
            yield pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))

    once = arrow_udf(embedded, "array<float>").asNondeterministic()  # type: ignore[call-overload]
    return texts.withColumn("vector", once("text")).drop("text")


def gpu_of_task() -> str | None:
    """The address of the GPU that Spark gave this task; None where it gave none."""
    context = TaskContext.get()
    given = context.resources().get("gpu") if context else None
    return str(given.addresses[0]) if given else None


_models: dict[Description, Any] = {}


def resident(description: Description) -> Any:
    """The model of a description, made once in this process and kept. Another description takes its place."""
    if description not in _models:
        _models.clear()
        _models[description] = description.load()
        # The worker collects garbage after every task; the model's objects need not be looked at each time.
        gc.collect()
        gc.freeze()
    return _models[description]


def _scored(model: PairScorer, queries: list[str | None], passages: list[str | None]) -> pd.DataFrame:
    """A row a pair. A batch that fails is halved until the pairs that fail stand alone."""
    found: list[tuple[Any, ...]] = [()] * len(queries)

    def attempt(rows: list[int]) -> None:
        try:
            scores = model.score([queries[i] or "" for i in rows], [passages[i] or "" for i in rows])
        except Exception as error:  # whatever it is: it becomes the rows' error, by its class only
            if len(rows) == 1:
                kind = "passing" if isinstance(error, _PASSING) else "lasting"
                found[rows[0]] = _failed(type(error).__name__, kind)
                return
            attempt(rows[: len(rows) // 2])
            attempt(rows[len(rows) // 2 :])
            return
        columns = (
            scores.logits, scores.activations, scores.token_counts, scores.cut_query_tokens, scores.cut_passage_tokens,
        )  # fmt: skip
        for row, (logit, activation, *counts) in zip(rows, zip(*columns, strict=True), strict=True):
            if math.isfinite(logit):
                found[row] = (float(logit), float(activation), *map(int, counts), None, None)
            else:
                found[row] = _failed("NotFinite", "lasting")

    missing = [i for i, (query, passage) in enumerate(zip(queries, passages, strict=True)) if not query or not passage]
    for row in missing:
        found[row] = _failed("EmptyText", "lasting")
    if present := [i for i in range(len(queries)) if not found[i]]:
        attempt(present)
    return pd.DataFrame(found, columns=[part.split()[0] for part in SCORED.split(", ")]).astype(
        {"token_count": "Int32", "cut_query_tokens": "Int32", "cut_passage_tokens": "Int32"}
    )


def _failed(error: str, kind: str) -> tuple[Any, ...]:
    return (None, None, None, None, None, error, kind)
