"""Retrieval by meaning at size: is it exact, does it keep its memory, how fast is it, and is nothing embedded twice?

    .venv/bin/python tests/benchmarks/retrieval.py --out retrieval.json

Top 100 of 2,000 queries over 50,000 vectors of 384 numbers, 500 of them twins and 200 near-ties where a query's best
end, against plain numpy in float64; the approximate index's recall; seconds beside plain numpy and FAISS's flat index on
one thread; and 50,000 texts embedded twice by a tiny encoder, then 1 % of them changed. Vectors are drawn: sums of a few
of 2,000 topics with noise. Under 8 minutes on two cores.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the plain versions; Spark's tasks have one core each

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import tiny  # noqa: E402
from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402

from ecomspark import tables  # noqa: E402
from ecomspark.features.digests import digest_of  # noqa: E402
from ecomspark.models.checkpoint import Checkpoint  # noqa: E402
from ecomspark.nearest import Room  # noqa: E402
from ecomspark.pipelines import embed_texts  # noqa: E402
from ecomspark.retrieval import Search, nearest_items  # noqa: E402
from ecomspark.runs import planned_run  # noqa: E402
from ecomspark.schemas import EMBEDDINGS, ITEMS, QUERIES, TEXTS  # noqa: E402
from ecomspark.tables import Author, Warehouse  # noqa: E402

WIDTH, COUNT = 384, 100
TWINS, NEAR_TIES = 500, 200

Vectors = NDArray[np.float32]
Best = list[list[tuple[int, float]]]


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def drawn(items: int, queries: int) -> tuple[Vectors, Vectors]:
    """Vectors of unit length; for query 0 twins stand across its 100th place, for query 1 near-ties."""
    generator = np.random.default_rng(11)
    topics = generator.normal(size=(2_000, WIDTH))

    def some(count: int) -> Vectors:
        made = generator.normal(size=(count, WIDTH)) * 0.25
        for _ in range(4):
            made += topics[generator.integers(0, len(topics), count)] * generator.uniform(0.3, 1, size=(count, 1))
        return (made / np.linalg.norm(made, axis=1)[:, None]).astype(np.float32)

    offered, asked = some(items), some(queries)
    order = np.argsort(-(offered @ asked[0]))
    offered[order[60 : 60 + TWINS]] = offered[order[60]]
    order = np.argsort(-(offered @ asked[1]))
    near = offered[order[COUNT]].astype(float) + generator.normal(size=(NEAR_TIES, WIDTH)) * 1e-7
    offered[order[20 : 20 + NEAR_TIES]] = near.astype(np.float32)
    return offered, asked


def reference(offered: Vectors, asked: Vectors) -> Best:
    """Every cosine in float64, rounded to 1e-6, ordered by it and then by place."""
    items, found = offered.astype(float), []
    lengths = np.sqrt((items**2).sum(axis=1))
    for query in asked.astype(float):
        cosines = np.round(items @ query / (lengths * np.sqrt(query @ query)), 6)
        least = np.partition(cosines, -COUNT)[-COUNT]
        places = np.flatnonzero(cosines >= least)
        best = places[np.lexsort((places, -cosines[places]))][:COUNT]
        found.append([(int(place), float(cosines[place])) for place in best])
    return found


def plain(offered: Vectors, asked: Vectors) -> dict[str, float]:
    """Seconds of plain versions in float32 on one thread."""
    import faiss

    def by_numpy() -> None:
        for start in range(0, len(asked), 250):
            scores = asked[start : start + 250] @ offered.T
            places = np.argpartition(scores, -COUNT, axis=1)[:, -COUNT:]
            np.argsort(-np.take_along_axis(scores, places, axis=1), axis=1)

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(offered)
    return {"numpy": timed(by_numpy), "faiss_flat": timed(lambda: index.search(asked, COUNT))}


def timed(what: Callable[[], Any]) -> float:
    start = time.monotonic()
    what()
    return time.monotonic() - start


def name_of(place: int) -> str:
    return f"i{place:07d}"


def published(spark: SparkSession, folder: Path, offered: Vectors, asked: Vectors) -> tuple[Warehouse, Checkpoint, Any]:
    """A warehouse with texts and vectors, and frames of queries and items."""
    encoder = tiny.checkpoint(folder / "models", "drawn", "encoder")
    warehouse, author = Warehouse(spark, str(folder / "warehouse"), 8), Author("benchmark", "1")
    frames = []
    for role, vectors in (("passage", offered), ("query", asked)):
        flat = pa.array(vectors.reshape(-1))
        lists = pa.ListArray.from_arrays(pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * WIDTH), flat)
        names = pa.array([name_of(place) for place in range(len(vectors))])
        path = str(folder / f"{role}.parquet")
        pq.write_table(pa.table({"name": names, "vector": lists}), path, row_group_size=5_000)
        made = spark.read.parquet(path).withColumn("digest", digest_of(F.concat(F.lit(role), "name")))
        texts = made.select(
            F.col("digest").alias("source_digest"), F.lit(role).alias("role"),
            F.lit(encoder.card.recipe.digest).alias("recipe_digest"), F.col("name").alias("text"),
            F.col("digest").alias("text_digest"), F.lit(0).cast("bigint").alias("cut_characters"),
        )  # fmt: skip
        tables.append_memory(warehouse, TEXTS, texts, author)
        rows = made.select(
            F.col("digest").alias("text_digest"), F.lit(role).alias("role"),
            F.lit(encoder.scorer_digest).alias("scorer_digest"), "vector",
        )  # fmt: skip
        tables.append_memory(warehouse, EMBEDDINGS, rows, author)
        frames.append(made.select("name", "digest", F.lit("uk").alias("locale")))
    items = frames[0].select(F.col("name").alias("item_id"), "locale", F.col("digest").alias("source_digest"))
    queries = frames[1].select(
        F.col("name").cast("binary").alias("query_id"), "locale", F.col("digest").alias("text_source_digest")
    )
    return warehouse, encoder, (queries, items)


def searched(
    warehouse: Warehouse, encoder: Checkpoint, frames: tuple[DataFrame, DataFrame], how: Search, queries: int
) -> tuple[Best, dict[str, int], float]:
    with planned_run(warehouse, "benchmark", reads=(), publishes=(), covers={}, as_of=None) as current:
        start = time.monotonic()
        rows = nearest_items(current, *frames, encoder, how, COUNT)
        took = time.monotonic() - start
        found: Best = [[] for _ in range(queries)]
        frame = rows.withColumn("query", F.col("query_id").cast("string")).drop("query_id").toPandas()
        for row in frame.sort_values(["query", "place"]).itertuples():
            found[int(str(row.query)[1:])].append((int(str(row.item_id)[1:]), float(row.score)))  # type: ignore[arg-type]
    return found, dict(current.rows), took


def peaks() -> list[int]:
    """The largest resident memory, in bytes, that each Python worker of Spark ever had."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"pyspark.daemon" in command or b"pyspark/daemon" in command:
                line = next(of for of in (folder / "status").read_text().splitlines() if of.startswith("VmHWM"))
                if mine(folder):
                    found.append(int(line.split()[1]) * 1024)
        except (OSError, StopIteration):
            continue
    return sorted(found)


def mine(folder: Path) -> bool:
    """Whether a process descends from this one."""
    pid = int(folder.name)
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


def recall(found: Best, wanted: Best) -> float:
    hits = [len({p for p, _ in of} & {p for p, _ in best}) / len(best) for of, best in zip(found, wanted, strict=True)]
    return float(np.mean(hits))


def embedded(spark: SparkSession, folder: Path, count: int) -> dict[str, Any]:
    """Counts of `embed_texts` over texts of which a hundredth are twins: first, again, with 1 % changed, and all."""
    tiny.checkpoint(folder / "models", "base", "encoder")
    warehouse = Warehouse(spark, str(folder / "embedded"), 8)
    config = embed_texts.Config(
        warehouse=warehouse.location, models_folder=folder / "models", buckets=8, encoder="base"
    )
    recipe = embed_texts._checkpoint(config).card.recipe.digest
    generator = np.random.default_rng(5)
    titles = [f"{' '.join(generator.choice(tiny.WORDS, 5))} {place}" for place in range(count)]
    for place in range(0, count, 100):
        titles[place + 1] = titles[place]  # twins

    def publish(run: str) -> int:
        author = Author("benchmark", run)
        rows = spark.createDataFrame(
            pa.table({"item_id": [name_of(place) for place in range(count)], "title": titles})  # type: ignore[arg-type]
        )
        named = rows.withColumn("source_digest", digest_of(F.col("title")))
        nothing = [F.lit(None).cast(c.type).alias(c.name) for c in ITEMS.columns if c.is_nullable]
        items = named.select("item_id", F.lit("uk").alias("locale"), "title", "source_digest", *nothing)
        change = tables.compare(warehouse, ITEMS, items, author)
        tables.publish(warehouse, change, author)
        texts = named.select(
            "source_digest", F.lit("passage").alias("role"), F.lit(recipe).alias("recipe_digest"),
            F.col("title").alias("text"), F.col("source_digest").alias("text_digest"),
            F.lit(0).cast("bigint").alias("cut_characters"),
        )  # fmt: skip
        there = tables.read_memory(warehouse, TEXTS).select("source_digest")
        new = texts.dropDuplicates(["source_digest"]).join(there, on="source_digest", how="left_anti")
        tables.append_memory(warehouse, TEXTS, new, author)
        return len(set(titles))

    empty = tables.empty(warehouse, QUERIES).drop("changed_by")
    first = Author("benchmark", "0")
    tables.publish(warehouse, tables.compare(warehouse, QUERIES, empty, first), first)
    distinct, found = publish("1"), {}

    def run(name: str, **changes: Any) -> None:
        start = time.monotonic()
        rows = embed_texts.run(spark, config.model_copy(update=changes), name, None).rows
        found[name] = {what: rows.get(what, 0) for what in ("texts", "there", "to_embed", "embedded")}
        found[name]["seconds"] = round(time.monotonic() - start, 1)
        say(f"embed_texts, {name}: {found[name]}")

    run("first")
    run("again")
    known = set(titles)
    for place in range(0, count, 100):
        titles[place + 7] = f"changed {titles[place + 7]}" if place % 500 else "one new title of a fifth of them"
    publish("2")
    run("changed")
    run("whole", full=True)
    found["expected"] = {"first": distinct, "again": 0, "changed": len(set(titles) - known), "whole": 0}
    found["holds"] = all(found[name]["embedded"] == number for name, number in found["expected"].items())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=2_000)
    asked_for = parser.parse_args()
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    folder = Path(tempfile.mkdtemp(prefix="ecomspark-retrieval-"))
    os.environ["ECOMSPARK_CACHE"] = str(folder / "cache")
    own = f"--conf spark.sql.warehouse.dir={folder}/catalog --conf spark.driver.memory=3g"
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {own} pyspark-shell"

    report: dict[str, Any] = {"items": asked_for.items, "queries": asked_for.queries, "count": COUNT, "width": WIDTH}
    offered, asked = drawn(asked_for.items, asked_for.queries)
    say("drawn")
    wanted = reference(offered, asked)
    seconds = plain(offered, asked)
    say(f"plain versions: {seconds}")
    spark = SparkSession.builder.appName("retrieval").getOrCreate()
    try:
        warehouse, encoder, frames = published(spark, folder, offered, asked)
        say("published")
        for name, how in (("exact", Search()), ("index", Search(approximate_above=0))):
            found, rows, took = searched(warehouse, encoder, frames, how, len(asked))
            report[name] = {
                "equal": found == wanted, "recall": recall(found, wanted), "seconds": round(took, 1), "counts": rows,
                "seconds_of_numpy": round(took / seconds["numpy"], 2),
                "seconds_of_faiss_flat": round(took / seconds["faiss_flat"], 2),
                "worker_peaks_mib": [peak // 2**20 for peak in peaks()],
            }  # fmt: skip
            say(f"{name}: {report[name]}")
            asked_for.out.write_text(json.dumps(report, indent=1) + "\n")
        room = Room.of(Search().block_mib, WIDTH)
        part = Room(min(room.vectors, len(offered)), room.rows, WIDTH)
        report["stated_mib"] = {"setting": Search().block_mib, "of_this_part": round(part.bytes / 2**20, 1)}
        report["plain_seconds"] = {name: round(value, 2) for name, value in seconds.items()}
        report["embedding"] = embedded(spark, folder, asked_for.items)
    finally:
        spark.stop()
    must = report["exact"]["equal"] and report["index"]["recall"] >= 0.98 and report["embedding"]["holds"]
    report["holds"] = bool(must)
    asked_for.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if must else 1


if __name__ == "__main__":
    sys.exit(main())
