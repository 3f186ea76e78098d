"""The gate between Spark and models: a model over a DataFrame, each row evaluated once, bad rows told apart.

What travels to executors is a small description of a model (a path and a digest); each Python worker makes the model
of it once and keeps it. Rows travel as Arrow both ways, digests among them as they are, and nothing goes through
pandas. Windows of rows span Arrow batches and are tokenised while the window before is in the model.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark import Accumulator, AccumulatorParam
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType

from ecomspark.errors import without_values
from ecomspark.models.checkpoint import NOT_FINITE, DataType, VectorType
from ecomspark.models.costs import Costs
from ecomspark.resources import gpu_of_task, use_cores_of_task

SCORED = (
    "logit double, activation double, token_count int, cut_query_tokens int, cut_passage_tokens int, "
    "error string, error_kind string"
)
_PASSING = (MemoryError, OSError, RuntimeError, TimeoutError)
_BATCHES_A_WINDOW = 8  # enough that a half-filled last batch costs little, few enough that a window is soon read
_BYTES_A_TOKEN = 4
_ROWS_A_WINDOW = 4_096


class ModelEngine(Protocol):
    """What the gate needs to know of where a model runs: `models.engine.Engine`, or a fake's."""

    costs: Costs

    @property
    def token_budget(self) -> int: ...
    @property
    def is_asynchronous(self) -> bool: ...
    def peak_memory(self) -> int: ...


class PairScores(Protocol):
    """Arrays with one entry a pair, in the order given."""

    @property
    def logits(self) -> NDArray[Any]: ...
    @property
    def activations(self) -> NDArray[Any]: ...
    @property
    def token_counts(self) -> NDArray[Any]: ...
    @property
    def cut_query_tokens(self) -> NDArray[Any]: ...
    @property
    def cut_passage_tokens(self) -> NDArray[Any]: ...


class PairScorer(Protocol):
    """`prepare` takes two `models.tokens.Texts` and may run ahead in another thread; `start` runs what it made."""

    @property
    def engine(self) -> ModelEngine: ...
    def prepare(self, queries: Any, passages: Any) -> Any: ...
    def start(self, prepared: Any) -> Callable[[], PairScores]: ...


class Description(Protocol):
    """Hashable and small; `load` makes the model, in the worker. Tests give fakes."""

    def load(self) -> Any: ...


class EmbedderDescription(Description, Protocol):
    """Of an embedder: the schema of its vectors has to be known before it is loaded."""

    @property
    def vector_type(self) -> VectorType: ...


@dataclass(frozen=True)
class CrossEncoderAt:
    """A cross-encoder's checkpoint, as it travels to executors. `token_budget` None: found there, and remembered."""

    folder: str
    scorer_digest: bytes
    token_budget: int | None = None
    data_type: DataType | None = None

    def load(self) -> PairScorer:
        from ecomspark.models.cross_encoder import load  # torch: in the worker only

        return load(Path(self.folder), self.scorer_digest, gpu_of_task() or "cpu", self.token_budget, self.data_type)


@dataclass(frozen=True)
class EmbedderAt:
    """An encoder's checkpoint, as it travels to executors. `vector_type`: what its card says."""

    folder: str
    scorer_digest: bytes
    token_budget: int | None = None
    data_type: DataType | None = None
    vector_type: VectorType = "float32"

    def load(self) -> Any:
        from ecomspark.models.embedder import load  # torch: in the worker only

        return load(Path(self.folder), self.scorer_digest, gpu_of_task() or "cpu", self.token_budget, self.data_type)


@dataclass(frozen=True)
class SequenceAt:
    """A sequence model's checkpoint, as it travels to executors."""

    folder: str
    scorer_digest: bytes

    def load(self) -> Any:
        from ecomspark.models.sequence import load  # torch: in the worker only

        return load(Path(self.folder), self.scorer_digest, gpu_of_task() or "cpu")


class CostsSum(AccumulatorParam[Costs]):
    """Adds up what tasks cost. A task that failed is not in it; one that Spark ran again counts again."""

    def zero(self, value: Costs) -> Costs:
        return Costs()

    def addInPlace(self, value1: Costs, value2: Costs) -> Costs:  # noqa: N802 - Spark's name
        return value1 + value2


def costs_of(spark: SparkSession) -> Accumulator[Costs]:
    """Costs to hand to `score_pairs` or `embed_texts`; their `value` is whole when the action on the frame is over."""
    return spark.sparkContext.accumulator(Costs(), CostsSum())


def score_pairs(
    pairs: DataFrame,
    scorer: Description,
    costs: Accumulator[Costs] | None = None,
    profile: ResourceProfile | None = None,
) -> DataFrame:
    """`pairs` with what the scorer said of (query_text, passage_text): the columns of `SCORED`, texts dropped.

    A pair that cannot be scored has no logit but the class of its error, and the rest goes on. Each row is evaluated
    once for each time the frame is executed: append it first, look after.
    """
    kept = [field for field in pairs.schema.fields if field.name not in ("query_text", "passage_text")]
    schema = StructType([*kept, *_fields(SCORED)])

    def scored(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with reported(costs) as spent:
            from ecomspark.models.engine import stream  # torch: in the worker only

            model: PairScorer = resident(scorer, spent)
            windows = _windows(batches, ["query_text", "passage_text"], model.engine.token_budget)
            prepare = _present(model)
            for window, answer in stream(windows, prepare, model.start, spent, model.engine.is_asynchronous):
                spent.rows += window.num_rows
                spent.text_bytes += _text_bytes(window)
                columns = _columns(_scored(model, window, answer))
                texts_dropped = [window.column(field.name) for field in kept]
                yield from _batches([*texts_dropped, *columns], schema.names)

    # mapInArrow is never evaluated twice, as a deterministic UDF is for a filter or a second column behind it.
    return pairs.mapInArrow(scored, schema, profile=profile)


def embed_texts(
    texts: DataFrame,
    embedder: EmbedderDescription,
    role: Literal["query", "passage"],
    costs: Accumulator[Costs] | None = None,
    profile: ResourceProfile | None = None,
) -> DataFrame:
    """`texts` with the `vector` of `text`, which is dropped: array<tinyint> of an embedder with int8 vectors, else
    array<float>; float16 is rounded to half precision, for which Spark has no type.

    Fails when a text is null or cannot be embedded.
    """
    kept = [field for field in texts.schema.fields if field.name != "text"]
    element = "tinyint" if embedder.vector_type == "int8" else "float"
    schema = StructType([*kept, *_fields(f"vector array<{element}>")])

    def embedded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with reported(costs) as spent:
            from ecomspark.models.engine import stream  # torch: in the worker only

            model = resident(embedder, spent)
            windows = _windows(batches, ["text"], model.engine.token_budget)

            def prepare(window: pa.Table) -> Any:
                return model.prepare(_texts(window.column("text")), role)

            for window, answer in stream(windows, prepare, model.start, spent, model.engine.is_asynchronous):
                with without_values():
                    if isinstance(answer, Exception):
                        raise answer
                    vectors = _vectors(_finite(answer))
                spent.rows += window.num_rows
                yield from _batches([*(window.column(field.name) for field in kept), vectors], schema.names)

    return texts.mapInArrow(embedded, schema, profile=profile)


_models: dict[tuple[Description, str | None], Any] = {}


def resident(description: Description, spent: Costs) -> Any:
    """The model of a description on the task's GPU, made once in this process and kept. Another takes its place."""
    key = (description, gpu_of_task())
    if key not in _models:
        if _models:
            _models.clear()
            gc.unfreeze()  # what was frozen with the last model could never be collected
            gc.collect()
        with spent.timed("loading"):
            _models[key] = description.load()
            # The worker collects garbage after every task; the model's objects need not be looked at each time.
            gc.collect()
            gc.freeze()
        spent.loads += 1
    model = _models[key]
    model.engine.costs = spent
    return model


def _give_back() -> None:
    """What a load or a task took from the C library and freed goes back to the system: tens of MiB of each worker that
    waits for its next task, some milliseconds' work. With glibc only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def reported(costs: Accumulator[Costs] | None) -> Iterator[Costs]:
    """What this task spends, added to `costs` when it is over. Entered before anything imports torch."""
    use_cores_of_task()
    spent = Costs()
    yield spent
    for model in _models.values():
        spent.peak_memory = model.engine.peak_memory()
    _give_back()
    if costs is not None:
        costs.add(spent)


def _windows(batches: Iterator[pa.RecordBatch], texts: list[str], token_budget: int) -> Iterator[pa.Table]:
    """Rows in the order given, cut by the size of their texts: a window spans Arrow batches or is a part of one."""
    size = token_budget * _BATCHES_A_WINDOW * _BYTES_A_TOKEN
    held: list[pa.RecordBatch] = []
    room, rows = size, _ROWS_A_WINDOW
    for batch in batches:
        lengths = sum(pc.fill_null(pc.binary_length(batch.column(name)), 0).to_numpy() for name in texts)
        ends = np.cumsum(lengths, dtype=np.int64)
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            end = min(int(np.searchsorted(ends, before + room, side="right")), start + rows)
            if end == start and not held:
                end = start + 1  # a text larger than a window is one of its own
            if end > start:
                held.append(batch.slice(start, end - start))
                room, rows = room - (int(ends[end - 1]) - before), rows - (end - start)
            if end < batch.num_rows:
                yield pa.Table.from_batches(held)
                held, room, rows = [], size, _ROWS_A_WINDOW
            start = end
    if held:
        yield pa.Table.from_batches(held)


def _texts(column: pa.ChunkedArray) -> Any:
    from ecomspark.models.tokens import Texts

    encoded = column.combine_chunks().dictionary_encode()
    return Texts(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))


def _has_text(window: pa.Table) -> NDArray[np.bool_]:
    lengths = [pc.fill_null(pc.binary_length(window.column(name)), 0) for name in ("query_text", "passage_text")]
    has: NDArray[np.bool_] = np.logical_and(*(length.to_numpy() > 0 for length in lengths))
    return has


def _text_bytes(window: pa.Table) -> int:
    lengths = (pc.sum(pc.binary_length(window.column(name))).as_py() for name in ("query_text", "passage_text"))
    return sum(length or 0 for length in lengths)


def _present(model: PairScorer) -> Callable[[pa.Table], Any]:
    """What prepares the rows of a window that have both texts."""

    def prepare(window: pa.Table) -> Any:
        present = window.filter(pa.array(_has_text(window)))
        return model.prepare(_texts(present.column("query_text")), _texts(present.column("passage_text")))

    return prepare


@dataclass
class _Rows:
    """What came of a window's rows: numbers where `error` is None."""

    numbers: dict[str, NDArray[Any]]
    error: list[str | None]
    error_kind: list[str | None]


_NUMBERS = {
    "logit": np.float64, "activation": np.float64, "token_count": np.int32, "cut_query_tokens": np.int32,
    "cut_passage_tokens": np.int32,
}  # fmt: skip


def _scored(model: PairScorer, window: pa.Table, answer: PairScores | Exception) -> _Rows:
    """A row a pair. A window that met an error is halved until the pairs that meet it stand alone."""
    from ecomspark.models.engine import caught  # torch: in the worker only

    count = window.num_rows
    numbers: dict[str, NDArray[Any]] = {name: np.zeros(count, dtype=kind) for name, kind in _NUMBERS.items()}
    found = _Rows(numbers, [None] * count, [None] * count)

    def fail(row: int, error: str, kind: str) -> None:
        found.error[row], found.error_kind[row] = error, kind

    def take(rows: NDArray[np.int64], answer: PairScores | Exception) -> None:
        if not isinstance(answer, Exception):
            for name, of in zip(_NUMBERS, (
                answer.logits, answer.activations, answer.token_counts, answer.cut_query_tokens,
                answer.cut_passage_tokens,
            ), strict=True):  # fmt: skip
                numbers[name][rows] = of
            for row in rows[~np.isfinite(answer.logits)]:
                fail(int(row), "NotFinite", "lasting")
        elif len(rows) == 1:
            fail(int(rows[0]), type(answer).__name__, "passing" if isinstance(answer, _PASSING) else "lasting")
        else:
            for half in np.array_split(rows, 2):
                take(half, caught(attempt, window.take(pa.array(half))))

    def attempt(part: pa.Table) -> PairScores:
        return model.start(_present(model)(part))()

    has_text = _has_text(window)
    for row in np.flatnonzero(~has_text):
        fail(int(row), "EmptyText", "lasting")
    if has_text.any():
        take(np.flatnonzero(has_text), answer)
    return found


def _columns(rows: _Rows) -> list[pa.Array]:
    has_error = np.array([error is not None for error in rows.error], dtype=bool)
    numbers = [pa.array(rows.numbers[name], mask=has_error) for name in _NUMBERS]
    return [*numbers, pa.array(rows.error, pa.string()), pa.array(rows.error_kind, pa.string())]


def _finite(vectors: NDArray[Any]) -> NDArray[Any]:
    is_finite = vectors != NOT_FINITE if vectors.dtype == np.int8 else np.isfinite(vectors)
    if not is_finite.all():
        raise ValueError("a vector is not finite")
    return vectors


def _vectors(vectors: NDArray[Any]) -> pa.Array:
    """Lists of one length each, made of the array's own memory."""
    flat = vectors.reshape(-1)
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * (vectors.shape[1] if vectors.ndim == 2 else 0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _fields(ddl: str) -> list[StructField]:
    return cast(StructType, StructType.fromDDL(ddl)).fields


def _batches(columns: list[Any], names: list[str]) -> Iterator[pa.RecordBatch]:
    yield from pa.Table.from_arrays(columns, names=names).to_batches()
