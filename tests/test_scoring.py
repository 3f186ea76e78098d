"""The gate: one evaluation a row, one load a worker, bad rows told apart, faults survived (R1, R2, R7, R17)."""

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from fakes import Broken, FakeEngine, Traced, Unloadable, logit
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import Window
from pyspark.sql import functions as F

from ecomspark import scoring, tables
from ecomspark.errors import ConfigError
from ecomspark.models import cross_encoder, embedder
from ecomspark.models.costs import Costs
from ecomspark.models.engine import stream
from ecomspark.models.tokens import Texts
from ecomspark.resources import StageResources, profile_of
from ecomspark.scoring import CrossEncoderAt, EmbedderAt, embed_texts, score_pairs
from ecomspark.tables import Author, Warehouse

PASSAGES = [f"{word} item {n}" for n in range(60) for word in ("red", "wooden")]


def pairs_of(spark: Any, passages: list[str], partitions: int) -> Any:
    rows = [(2**53 + n, f"query {n % 5}", passage) for n, passage in enumerate(passages)]
    return spark.createDataFrame(rows, "id long, query_text string, passage_text string").repartition(partitions, "id")


def test_each_row_is_evaluated_once_through_write_filter_and_window(spark: Any, tmp_path: Path) -> None:
    scorer = Traced(str(tmp_path))
    scored = score_pairs(pairs_of(spark, PASSAGES, 4), scorer)
    by_query = Window.partitionBy(F.col("id") % 5).orderBy(F.desc("logit"), "id")
    behind = scored.where("logit > -100").withColumn("place", F.row_number().over(by_query)).where("place <= 10")
    behind.select("id", "logit", "activation", "token_count", "place").write.parquet(str(tmp_path / "out"))
    assert Counter(scorer.evaluated()) == Counter(PASSAGES)
    assert len(scorer.loads()) == len(set(scorer.loads())) <= 2, "one load a worker process, two slots"
    rows = spark.read.parquet(str(tmp_path / "out")).collect()
    assert len(rows) == 50
    for row in rows:
        n = row["id"] - 2**53
        assert row["logit"] == pytest.approx(logit(f"query {n % 5}", PASSAGES[n]), abs=1e-6)


@pytest.mark.parametrize("fault", ["raise", "die", "segfault", "exit"])
def test_a_fault_that_happens_once_loses_and_doubles_no_row(spark: Any, tmp_path: Path, fault: str) -> None:
    scorer = Traced(str(tmp_path), trigger=PASSAGES[37], once=fault)
    pairs = pairs_of(spark, PASSAGES, 6)
    score_pairs(pairs, scorer).write.parquet(str(tmp_path / "out"))
    rows = spark.read.parquet(str(tmp_path / "out")).collect()
    assert Counter(row["id"] for row in rows) == Counter(2**53 + n for n in range(len(PASSAGES)))
    assert all(row["logit"] is not None for row in rows)
    assert list(tmp_path.glob("once-*")), "the fault happened"
    again = [passage for passage, times in Counter(scorer.evaluated()).items() if times > 1]
    assert len(again) <= len(PASSAGES) / 6 * 2, "at most the failed task's rows were evaluated again"


def test_a_row_that_always_fails_becomes_its_error_and_the_rest_goes_on(spark: Any, tmp_path: Path) -> None:
    scorer = Traced(str(tmp_path), poison=PASSAGES[5])
    rows = {row["id"] - 2**53: row for row in score_pairs(pairs_of(spark, PASSAGES, 2), scorer).collect()}
    bad = rows.pop(5)
    assert (bad["logit"], bad["token_count"], bad["error"], bad["error_kind"]) == (None, None, "ValueError", "lasting")
    assert all(row["logit"] is not None and row["error"] is None for row in rows.values())
    assert "canary" not in str(bad)
    assert Counter(scorer.evaluated()) == Counter(p for p in PASSAGES if p != PASSAGES[5])


class Explodes:
    """A scorer with one fault for each window that holds a given passage, `at` one of its two steps."""

    def __init__(self, error: Exception | float, at: str = "start") -> None:
        self.error, self.at, self.engine = error, at, FakeEngine()

    def prepare(self, queries: Texts, passages: Texts) -> list[str]:
        if "bad" in passages.distinct and isinstance(self.error, Exception) and self.at == "prepare":
            raise self.error
        return [passages.distinct[place] for place in passages.rows]

    def start(self, prepared: list[str]) -> Callable[[], cross_encoder.Scores]:
        if "bad" in prepared and isinstance(self.error, Exception):
            raise self.error
        logits = np.array([self.error if p == "bad" else 1.0 for p in prepared], dtype=np.float32)
        return lambda: cross_encoder.Scores(logits, *[np.ones(len(logits), dtype=np.int32)] * 3)


def through_the_gate(model: Any, queries: list[str | None], passages: list[str | None]) -> pd.DataFrame:
    """What a window of rows becomes, without Spark."""
    table = pa.table({"query_text": pa.array(queries, pa.string()), "passage_text": pa.array(passages, pa.string())})
    names = [part.split()[0] for part in scoring.SCORED.split(", ")]
    found = []
    for window, answer in stream([table], scoring._present(model), model.start, Costs()):
        found.append(pa.Table.from_arrays(scoring._columns(scoring._scored(model, window, answer)), names))
    return pa.concat_tables(found).to_pandas()


@pytest.mark.parametrize(
    ("error", "name", "kind"),
    [
        (ValueError("x"), "ValueError", "lasting"), (MemoryError(), "MemoryError", "passing"),
        (RuntimeError("CUDA out of memory"), "RuntimeError", "passing"), (float("nan"), "NotFinite", "lasting"),
        (float("inf"), "NotFinite", "lasting"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("at", ["prepare", "start"])
def test_errors_are_told_apart_by_whether_they_may_pass(error: Any, name: str, kind: str, at: str) -> None:
    frame = through_the_gate(Explodes(error, at), ["q"] * 5, ["a", "b", "bad", "c", "d"])
    assert list(frame["logit"].notna()) == [True, True, False, True, True]
    assert (frame["error"][2], frame["error_kind"][2]) == (name, kind)
    assert frame["error"].isna().sum() == 4


@pytest.mark.parametrize("missing", ["", None])
def test_an_empty_text_is_an_error_of_its_own_row(missing: str | None) -> None:
    frame = through_the_gate(Explodes(1.0), ["q", missing, "q"], ["a", "b", missing])
    assert list(frame["error"].fillna("-")) == ["-", "EmptyText", "EmptyText"]
    assert list(through_the_gate(Explodes(1.0), [missing], ["a"])["error"]) == ["EmptyText"]


def test_a_model_that_cannot_be_made_fails_the_task_not_the_rows(spark: Any) -> None:
    with pytest.raises(Exception, match="no such model"):
        score_pairs(pairs_of(spark, PASSAGES[:2], 1), Unloadable()).collect()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.checkpoint(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("partitions", "arrow_batch", "token_budget"), [(1, 1, 64), (2, 7, 2048), (8, 64, 300)])
def test_scores_do_not_depend_on_partitions_or_batches(
    spark: Any, real: Any, partitions: int, arrow_batch: int, token_budget: int
) -> None:
    passages = [f"red wooden {word} {'star ' * (n % 9)}" for n, word in enumerate(tiny.WORDS)]
    alone = cross_encoder.load(real.folder, real.scorer_digest, token_budget=4096)
    expected = alone.score([f"query {n % 5}" for n in range(len(passages))], passages)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(arrow_batch))
    try:
        scorer = CrossEncoderAt(str(real.folder), real.scorer_digest, token_budget)
        rows = score_pairs(pairs_of(spark, passages, partitions), scorer).collect()
    finally:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "2000")
    assert sorted(row["id"] - 2**53 for row in rows) == list(range(len(passages)))
    for row in rows:
        n = row["id"] - 2**53
        assert row["logit"] == pytest.approx(float(expected.logits[n]), abs=1e-5)
        assert row["token_count"] == expected.token_counts[n]


def test_a_worker_refuses_another_model_than_the_drivers(spark: Any, real: Any) -> None:
    scorer = CrossEncoderAt(str(real.folder), b"another digest!!", 100)
    with pytest.raises(Exception, match="another scorer than the driver's"):
        score_pairs(pairs_of(spark, PASSAGES[:2], 1), scorer).collect()


def test_vectors_come_back_in_the_order_of_their_texts(spark: Any, tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder")
    texts = spark.createDataFrame(list(enumerate(tiny.WORDS)), "n int, text string").repartition(3)
    found = embed_texts(texts, EmbedderAt(str(made.folder), made.scorer_digest, 200), "query").orderBy("n").toPandas()
    expected = embedder.load(made.folder, made.scorer_digest, token_budget=4096).embed(tiny.WORDS, "query")
    assert np.stack(list(found["vector"])) == pytest.approx(expected, abs=1e-5)


def test_what_the_gate_says_fits_the_table(spark: Any, warehouse: Warehouse, tmp_path: Path) -> None:
    from ecomspark.schemas import SCORES

    keys = {
        "query_digest": "unhex('00')",
        "passage_digest": "encode(CAST(id AS STRING), 'UTF-8')",
        "scorer_digest": "unhex('01')",
        "attempt": "1",
    }
    pairs = pairs_of(spark, PASSAGES[:9], 2).selectExpr(
        *(f"{sql} AS {name}" for name, sql in keys.items()), "query_text", "passage_text"
    )
    scored = score_pairs(pairs, Traced(str(tmp_path), poison=PASSAGES[3]))
    commit = tables.append_memory(warehouse, SCORES, scored, Author("test", "1"))
    assert commit.inserted == 9
    stored = tables.read_memory(warehouse, SCORES).toPandas()
    assert list(stored["error"].dropna()) == ["ValueError"]
    assert pd.isna(stored.loc[stored["error"].notna(), "logit"]).all()


@given(
    lengths=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=8), token_budget=st.integers(1, 4),
)  # fmt: skip
@settings(deadline=None)
def test_windows_span_arrow_batches_and_keep_each_row_in_its_place(lengths: list[list[int]], token_budget: int) -> None:
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    numbers = iter(range(1000))
    batches = [
        pa.RecordBatch.from_pylist([{"id": next(numbers), "text": "x" * n or None} for n in batch], schema)
        for batch in lengths
    ]
    windows = list(scoring._windows(iter(batches), ["text"], token_budget))
    assert [row for window in windows for row in window.column("id").to_pylist()] == list(range(sum(map(len, lengths))))
    size = token_budget * 8 * 4
    weights = [sum(len(text or "") for text in window.column("text").to_pylist()) for window in windows]
    for window, weight in zip(windows, weights, strict=True):
        assert window.num_rows == 1 or weight <= size
    for weight, following in zip(weights, windows[1:], strict=False):
        assert weight + len(following.column("text")[0].as_py() or "") > size, "no window too small"


def test_what_a_stage_cost_is_added_up_over_its_workers(spark: Any, real: Any) -> None:
    passages = [f"red wooden {word} {'star ' * (n % 9)}" for n, word in enumerate(tiny.WORDS)]
    costs = scoring.costs_of(spark)
    scorer = CrossEncoderAt(str(real.folder), real.scorer_digest, 200)
    rows = score_pairs(pairs_of(spark, passages, 5), scorer, costs).where("logit > -1e9").collect()
    spent = costs.value
    assert spent.rows == len(rows) == len(passages)
    assert spent.tokens == sum(row["token_count"] for row in rows), "no token twice"
    assert (spent.padding, spent.out_of_memory) == (0, 0)
    assert 0 <= spent.loads <= 2
    assert spent.batches >= spent.tokens // 200
    assert spent.forward > 0
    assert spent.tokenising > 0
    assert spent.peak_memory > 50 * 2**20, "a process with torch"


def test_a_model_is_kept_and_the_collector_need_not_look_at_it(tmp_path: Path) -> None:
    scoring._models.clear()
    scorer = Traced(str(tmp_path))
    before = gc.get_freeze_count()
    spent = Costs()
    assert scoring.resident(scorer, spent) is scoring.resident(scorer, spent)
    assert spent.loads == len(scorer.loads()) == 1
    assert gc.get_freeze_count() > before
    scoring.resident(Traced(str(tmp_path), trigger="other"), spent)
    assert (spent.loads, len(scoring._models)) == (2, 1), "one model a process"
    scoring._models.clear()


@pytest.mark.parametrize(("vector_type", "spark_type"), [("float16", "array<float>"), ("int8", "array<tinyint>")])
def test_vectors_of_other_types_leave_as_arrow(spark: Any, tmp_path: Path, vector_type: Any, spark_type: str) -> None:
    made = tiny.checkpoint(tmp_path, kind="encoder", vector_type=vector_type)
    texts = spark.createDataFrame(list(enumerate(tiny.WORDS)), "n int, text string").repartition(2)
    found = embed_texts(texts, EmbedderAt(str(made.folder), made.scorer_digest, 200, None, vector_type), "query")
    assert found.schema["vector"].dataType.simpleString() == spark_type
    vectors = found.orderBy("n").toPandas()["vector"]
    expected = embedder.load(made.folder, made.scorer_digest, token_budget=4096).embed(tiny.WORDS, "query")
    assert np.abs(np.stack(list(vectors)).astype(float) - expected.astype(float)).max() <= (
        1 if spark_type[6] == "t" else 1e-3
    )


def test_a_profile_is_not_asked_of_local_mode_and_several_gpus_an_executor_are_refused(spark: Any) -> None:
    assert profile_of(spark, StageResources(executor_cores=1)) is None
    with pytest.raises(ValueError, match="executor_cores: missing"):
        StageResources()
    assert profile_of(spark, None) is None

    cluster: Any = SimpleNamespace(conf={"spark.executor.resource.gpu.amount": "2"})
    with pytest.raises(ConfigError, match=r"expected 1, found 2: .* start more executors"):
        profile_of(cluster, None)


def test_vectors_and_untouched_columns_are_not_copied() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    lists = scoring._vectors(vectors)
    assert lists.values.buffers()[1].address == vectors.ctypes.data
    assert lists.to_pylist() == vectors.tolist()
    ids = pa.RecordBatch.from_pydict({"id": [1, 2, 3], "text": ["a", "b", "c"]})
    (window,) = scoring._windows(iter([ids]), ["text"], 64)
    (batch,) = scoring._batches([window.column("id"), lists], ["id", "vector"])
    assert batch.column("id").buffers()[1].address == ids.column("id").buffers()[1].address


@pytest.mark.parametrize("bad", [np.array([[1.0, np.nan]], dtype=np.float32), np.array([[1, -128]], dtype=np.int8)])
def test_a_vector_that_is_not_finite_is_not_stored(bad: Any) -> None:
    with pytest.raises(ValueError, match="not finite"):
        scoring._finite(bad)
    assert scoring._finite(bad[:, :1]) is not None


def test_an_error_names_the_way_to_it_and_no_text(spark: Any) -> None:
    texts = spark.createDataFrame([("canary",)], "text string")
    with pytest.raises(Exception, match="KeyError") as error:
        embed_texts(texts, Broken(), "query").collect()
    assert "fails_here" in str(error.value)
    assert "canary" not in str(error.value)


def test_torch_has_as_many_threads_as_the_task_has_cores() -> None:
    """In a process of its own, for torch reads it when it is imported: a stage must not import torch before."""
    script = """
from types import SimpleNamespace
from ecomspark import resources, scoring
resources.TaskContext = SimpleNamespace(get=lambda: SimpleNamespace(cpus=lambda: 2, resources=dict))
class Stage:
    schema = SimpleNamespace(fields=[])
    def mapInArrow(self, function, schema, profile):
        return function
scoring._fields = lambda ddl: []
class Model:
    def load(self):
        import torch
        raise SystemExit(f"{torch.get_num_threads()} threads")
list(scoring.score_pairs(Stage(), Model())(iter([])))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=100)
    assert done.stderr.strip().endswith("2 threads"), done.stderr[-500:]
