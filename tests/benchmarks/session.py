"""One Spark session in a process of its own, for the benchmark: it reads a case a line and answers with what it measured.

    python session.py MASTER FOLDER [KEY=VALUE ...]

Sessions of one and of two slots stand side by side and are asked in turn, so that what the machine does meanwhile hits
all alike. FOLDER holds mix.parquet, short.parquet and models/.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "benchmarks")]

import peers  # noqa: E402
from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402
from pyspark.sql.functions import pandas_udf  # noqa: E402

from ecomspark import tables  # noqa: E402
from ecomspark.features.scores import pair_texts  # noqa: E402
from ecomspark.models.checkpoint import VectorType, open_checkpoint  # noqa: E402
from ecomspark.models.costs import Costs  # noqa: E402
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, SCORES, TEXTS  # noqa: E402
from ecomspark.scoring import CrossEncoderAt, EmbedderAt, costs_of, embed_texts, score_pairs  # noqa: E402
from ecomspark.tables import Author, Warehouse  # noqa: E402

WIDTH = 384
RECIPE = b"r" * 16


@dataclass
class IdleEngine:
    token_budget: int = 16_384
    is_asynchronous: bool = False
    costs: Costs = field(default_factory=Costs)

    def peak_memory(self) -> int:
        return 0


@dataclass
class Said:
    logits: Any
    activations: Any
    token_counts: Any
    cut_query_tokens: Any
    cut_passage_tokens: Any


@dataclass(frozen=True)
class NoWork:
    """A scorer and embedder that does nothing: what is left is the plumbing."""

    vector_type: VectorType = "float32"

    def load(self) -> "NoWorkModel":
        return NoWorkModel()


@dataclass
class NoWorkModel:
    engine: IdleEngine = field(default_factory=IdleEngine)

    def prepare(self, texts: Any, more: Any) -> Any:
        return len(texts), isinstance(more, str)

    def start(self, prepared: Any) -> Callable[[], Any]:
        count, is_embedding = prepared
        if is_embedding:
            return lambda: VECTORS[:count]
        zeros, ones = np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.int32)
        return lambda: Said(zeros, zeros, ones, ones, ones)


VECTORS = np.random.default_rng(1).standard_normal((16_384, WIDTH)).astype(np.float32)


class Cases:
    """Each method is a case. Frames are cached before a case is timed: only the scoring stage is."""

    def __init__(self, spark: SparkSession, folder: Path) -> None:
        self.spark, self.folder, self.frames = spark, folder, {}
        self.slots = spark.sparkContext.defaultParallelism
        made = open_checkpoint(folder / "models", "bench", "cross_encoder")
        self.ours = CrossEncoderAt(str(made.folder), made.scorer_digest)
        encoder = open_checkpoint(folder / "models", "encoder", "encoder")
        self.encoder = EmbedderAt(str(encoder.folder), encoder.scorer_digest)

    def frame(self, kind: str, rows: int, tasks: int) -> DataFrame:
        if (kind, rows, tasks) not in self.frames:
            read = self.spark.read.parquet(str(self.folder / f"{kind}.parquet")).where(F.col("id") < rows)
            self.frames[kind, rows, tasks] = read.repartition(tasks, "id").cache()
            self.frames[kind, rows, tasks].count()
        return self.frames[kind, rows, tasks]

    def score(self, kind: str, rows: int, tasks: int) -> dict[str, Any]:
        costs = costs_of(self.spark)
        seconds = timed(score_pairs(self.frame(kind, rows, tasks), self.ours, costs))
        return {"seconds": seconds, **vars(costs.value)}

    def predict_batch_udf(self, kind: str, rows: int, tasks: int, batch_size: int) -> dict[str, Any]:
        frame = peers.predict_batch_udf(self.frame(kind, rows, tasks), self.ours.folder, batch_size)
        return {"seconds": timed(frame)}

    def cross_encoder_predict(self, kind: str, rows: int, tasks: int, batch_size: int) -> dict[str, Any]:
        frame = peers.cross_encoder_predict(self.frame(kind, rows, tasks), self.ours.folder, batch_size)
        return {"seconds": timed(frame)}

    def embed(self, kind: str, rows: int, tasks: int) -> dict[str, Any]:
        texts = self.frame(kind, rows, tasks).select("id", F.col("passage_text").alias("text"))
        return {"seconds": timed(embed_texts(texts, self.encoder, "passage"))}

    def encode(self, kind: str, rows: int, tasks: int, batch_size: int) -> dict[str, Any]:
        texts = self.frame(kind, rows, tasks).select("id", F.col("passage_text").alias("text"))
        return {"seconds": timed(peers.sentence_transformer_encode(texts, self.encoder.folder, batch_size))}

    def logits(self, kind: str, rows: int, tasks: int) -> dict[str, Any]:
        """The scores themselves, for comparing, into FOLDER/logits.parquet."""
        frame = score_pairs(self.frame(kind, rows, tasks), self.ours)
        frame.select("id", "logit").toPandas().to_parquet(self.folder / "logits.parquet")
        return {}

    def loads(self, rows: int, tasks: int) -> dict[str, Any]:
        """Model loads in fresh workers, with a filter behind the score."""
        costs = costs_of(self.spark)
        timed(score_pairs(self.frame("short", rows, tasks), self.ours, costs).where("logit > -100"))
        return {"loads": costs.value.loads, "rows": costs.value.rows}

    def memory(self, rows: int, tasks: int) -> dict[str, Any]:
        """Bytes that the executor's Python processes, the daemon among them, hold between them once every slot has
        scored (PSS: shared pages count once)."""
        costs = costs_of(self.spark)
        timed(score_pairs(self.frame("mix", rows, tasks), self.ours, costs))
        held = [pss(pid) for pid in descendants(os.getpid()) if "pyspark.worker" in command(pid)]
        return {"bytes": sum(held), "processes": len(held), "loads": costs.value.loads}

    def vectors_by_arrow(self, rows: int) -> dict[str, Any]:
        texts = self.frame("short", rows, 1).select("id", F.col("passage_text").alias("text"))
        return {"cpu_seconds": cpu_of(lambda: timed(embed_texts(texts, NoWork(), "passage")))}

    def vectors_by_lists(self, rows: int) -> dict[str, Any]:
        def embedded(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
            for batch in batches:
                yield pd.Series(list(VECTORS[: len(batch)]))

        udf = pandas_udf(embedded, "array<float>").asNondeterministic()
        texts = self.frame("short", rows, 1)
        return {"cpu_seconds": cpu_of(lambda: timed(texts.select("id", udf("passage_text").alias("vector"))))}

    def plumbing(self, rows: int, name: str) -> dict[str, Any]:
        """Read candidates, join both texts, score by doing nothing, append to Delta."""
        warehouse = Warehouse(self.spark, str(self.folder / "plumbing"), buckets=2)
        if tables.snapshot(warehouse, CANDIDATES) is None:
            self._publish_catalogue(warehouse, rows)
        scorer_digest = name.ljust(16).encode()[:16]
        start = time.perf_counter()
        candidates, queries, items = (
            tables.read(warehouse, table, tables.snapshot(warehouse, table)) for table in (CANDIDATES, QUERIES, ITEMS)
        )
        pairs = pair_texts(
            candidates.select("query_id", "item_id"), queries, items, tables.read_memory(warehouse, TEXTS), RECIPE
        )
        scores = score_pairs(pairs, NoWork()).withColumns({"scorer_digest": F.lit(scorer_digest), "attempt": F.lit(1)})
        commit = tables.append_memory(warehouse, SCORES, scores, Author("bench", name))
        return {"seconds": time.perf_counter() - start, "rows": commit.inserted, "slots": self.slots}

    def _publish_catalogue(self, warehouse: Warehouse, rows: int) -> None:
        """`rows` candidates of 100 a query, over one item for ten of them; texts as long as the mix's."""
        item_count, author = rows // 10, Author("bench", "catalogue")
        texts = self.frame("mix", 2_000, 2).select((F.col("id") % 2_000).alias("_text"), "passage_text")
        digests = {"item": "unhex(md5(concat('item', id)))", "query": "unhex(md5(concat('query', id)))"}
        items = self.spark.range(item_count).selectExpr(
            "CAST(id AS STRING) AS item_id", "'uk' AS locale", "'a title' AS title", "CAST(NULL AS STRING) AS brand",
            "CAST(NULL AS STRING) AS category", "CAST(NULL AS STRING) AS description",
            "CAST(NULL AS MAP<STRING, STRING>) AS attributes", "CAST(NULL AS DECIMAL(18, 4)) AS price",
            "CAST(NULL AS STRING) AS currency", "CAST(NULL AS BIGINT) AS sold_count", "CAST(NULL AS DOUBLE) AS rating",
            "CAST(NULL AS BIGINT) AS rating_count", "CAST(NULL AS BOOLEAN) AS is_in_stock",
            "CAST(NULL AS TIMESTAMP) AS listed_at", f"{digests['item']} AS source_digest",
        )  # fmt: skip
        queries = self.spark.range(rows // 100).selectExpr(
            f"{digests['query']} AS query_id", "'uk' AS locale", "'a query' AS query_text",
            f"{digests['query']} AS text_source_digest", "1L AS traffic",
        )  # fmt: skip
        candidates = self.spark.range(rows).selectExpr(
            "unhex(md5(concat('query', id DIV 100))) AS query_id",
            f"CAST((id * 7919) % {item_count} AS STRING) AS item_id", "map('bm25', 1.0D) AS sources",
        )  # fmt: skip
        for table, frame in ((ITEMS, items), (QUERIES, queries), (CANDIDATES, candidates)):
            tables.publish(warehouse, tables.compare(warehouse, table, frame, author), author)
        passages = (
            self.spark.range(item_count)
            .selectExpr("id", "id % 2000 AS _text")
            .join(texts, "_text")
            .selectExpr(
                f"{digests['item']} AS source_digest", "'passage' AS role", "concat(passage_text, ' ', id) AS text"
            )
        )
        asked = self.spark.range(rows // 100).selectExpr(
            f"{digests['query']} AS source_digest", "'query' AS role", "concat('white hanging heart ', id) AS text"
        )
        made = passages.union(asked).select(
            "source_digest", "role", F.lit(RECIPE).alias("recipe_digest"), "text",
            F.expr("unhex(md5(text))").alias("text_digest"), F.lit(0).cast("bigint").alias("cut_characters"),
        )  # fmt: skip
        tables.append_memory(warehouse, TEXTS, made, author)


def timed(frame: DataFrame) -> float:
    start = time.perf_counter()
    frame.write.format("noop").mode("overwrite").save()
    return time.perf_counter() - start


def cpu_of(work: Callable[[], object]) -> float:
    """Seconds of CPU that this process, the JVM and the workers spent on `work`."""
    before = {pid: cpu(pid) for pid in descendants(os.getpid())}
    work()
    return sum(cpu(pid) - before.get(pid, 0.0) for pid in descendants(os.getpid()))


def descendants(root: int) -> list[int]:
    """The process and all below it."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, []))
    return found


def cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def main(master: str, folder: Path, settings: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    flags = " ".join(f"--conf {setting}" for setting in [f"spark.master={master}", *settings])
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path[:2]])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {flags} pyspark-shell"
    spark = SparkSession.builder.appName("bench").getOrCreate()
    cases = Cases(spark, folder)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(cases, asked.pop("case"))(**asked)), file=answers, flush=True)
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
