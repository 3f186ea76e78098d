"""`ecomspark benchmark`: the jobs of relevance that a settings file has sections for, one session; the figures."""

import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ecomspark import config, launch, tables
from ecomspark.config import Settings
from ecomspark.errors import ConfigError
from ecomspark.evaluation import Figure, as_table, not_shown
from ecomspark.runs import Summary
from ecomspark.schemas import RUN_METRICS
from ecomspark.tables import Warehouse

# Each after those whose tables it reads. The sides of a data set must be there before anything is learnt from it.
JOBS = (
    "import_online_retail", "import_items", "import_queries", "import_judgments", "import_interactions",
    "import_checkpoint", "build_texts", "import_splits", "pretrain_encoder", "finetune_cross_encoder",
    "finetune_embedder", "embed_texts", "build_candidates", "score_candidates", "rank_candidates", "evaluate_rankings",
    "evaluate_retrieval",
)  # fmt: skip

_RANKERS = ("final", "model", "bm25", "cosine", "chance", "published")


def show(path: Path, run_id: str, overrides: Sequence[str], as_of: date | None, pipelines: Mapping[str, Any]) -> int:
    """Run the jobs of a settings file and print the figures; the exit status."""
    launch.log_to_stderr("text")
    with launch.ending_well() as ended:
        if not config.is_name(run_id):
            raise ConfigError("--run-id: expected letters, digits and _ . = - only, 128 at most")
        named = config.sections(path, launch.jobs(), overrides)
        jobs = [job for job in JOBS if job in named]
        if "evaluate_rankings" not in jobs:
            raise ConfigError(f"{path}: evaluate_rankings: no such section; a benchmark ends with its figures")
        # All are read before the first runs: a fault in the last section must not be found after a night.
        settings = {job: launch.load_settings(pipelines[job], path, overrides) for job in jobs}
        if left := [job for job in named if job not in jobs]:
            print(f"not run: {', '.join(left)}")
        shared = settings["evaluate_rankings"]
        with launch.spark_session("benchmark", shared) as spark:
            for number, job in enumerate(jobs, start=1):
                told(f"[{number:2} of {len(jobs)}]", pipelines[job], spark, settings[job], run_id, as_of)
            print()
            for line in figure_lines(Warehouse(spark, shared.warehouse, shared.buckets), run_id):
                print(line)
    return ended.status


def told(
    place: str, pipeline: Any, spark: SparkSession, settings: Settings, run_id: str, as_of: date | None
) -> Summary:
    """Run a job and say what it did."""
    before = time.monotonic()
    summary: Summary = pipeline.run(spark, settings, run_id, as_of)
    said = {"replayed": "done already", "nothing_to_do": "nothing to do", "published": "published"}
    counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in summary.rows.items() if n)
    took = time.monotonic() - before
    print(f"{place} {pipeline.JOB}: {said[summary.status]}, {took:.1f} s; {counts}", flush=True)
    return summary


def figure_lines(warehouse: Warehouse, run_id: str) -> list[str]:
    """The figures that a run of evaluate_rankings left, NDCG first, and plainly what they do not show."""
    mine = (F.col("job") == "evaluate_rankings") & (F.col("run_id") == run_id)
    names = [f.name for f in Figure.__dataclass_fields__.values()]
    metrics = tables.read(warehouse, RUN_METRICS, tables.snapshot(warehouse, RUN_METRICS))
    rows = metrics.where(mine).select(*names).collect()
    figures = sorted(
        (Figure(**row.asDict()) for row in rows),
        key=lambda f: (not f.metric.startswith("ndcg"), f.metric, _RANKERS.index(f.ranker)),
    )
    return [*as_table(figures), *not_shown(figures)]
