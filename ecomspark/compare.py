"""`ecomspark compare A B`: run compare_checkpoints and print what it found, also of a run that was done before."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ecomspark import config, launch, paired
from ecomspark.errors import PUBLISHED, ConfigError
from ecomspark.paired import Comparison
from ecomspark.runs import Summary
from ecomspark.tables import Warehouse


def show(pipeline: Any, asked: argparse.Namespace) -> int:
    """Compare as asked and print the figures; the exit status. `pipeline`: `pipelines.compare_checkpoints`."""
    launch.log_to_stderr(asked.log_format)
    with launch.ending_well() as ended:
        if asked.full:
            raise ConfigError(f"--full: {pipeline.JOB} always looks at everything")
        if not config.is_name(asked.run_id):
            raise ConfigError("--run-id: expected letters, digits and _ . = - only, 128 at most")
        settings: Any = launch.load_settings(pipeline, asked.conf, [*asked.overrides, *_overrides(pipeline.JOB, asked)])
        with launch.spark_session(pipeline.JOB, settings) as spark:
            summary = pipeline.run(spark, settings, asked.run_id, asked.as_of)
            warehouse = Warehouse(spark, settings.warehouse, settings.buckets)
            found = pipeline.comparisons_of(warehouse, settings, asked.run_id)
        said = as_json(settings, summary, found) if asked.as_json else "\n".join(as_lines(settings, summary, found))
        print(said, flush=True)
    if ended.status != PUBLISHED and asked.as_json:
        failed = {"job": pipeline.JOB, "run_id": asked.run_id, "status": "failed", "exit_status": ended.status}
        print(json.dumps({**failed, "error": ended.error}), flush=True)
    return ended.status


def as_json(settings: Any, summary: Summary, found: Sequence[Comparison]) -> str:
    """One object: the run's summary, what was compared, and every figure."""
    compared = {key: getattr(settings, key) for key in ("a", "b", "judgment_set", "split", "side")}
    figures = [{**asdict(of), "is_shown": not of.difference.low <= 0 <= of.difference.high} for of in found]
    return json.dumps({**summary.as_json(), **compared, "comparisons": figures})


def as_lines(settings: Any, summary: Summary, found: Sequence[Comparison]) -> list[str]:
    """The table, what was left out of it, and what it does not show."""
    rows = summary.rows
    lines = [f"judgments {settings.judgment_set}, the {settings.side} side of split {settings.split}"]
    lines += paired.as_table(found, settings.a, settings.b)
    if of_ndcg := next((of for of in found if of.metric.startswith("ndcg")), None):
        lines.append(f"{of_ndcg.omitted_count} queries are left out of ndcg: nothing judged for them has a gain")
    if rows.get("slices_left_out"):
        lines.append(f"{rows['slices_left_out']} slices are left out: fewer than {settings.min_queries} queries")
    if without := rows.get("gone", 0) + rows.get("failed", 0):
        lines.append(
            f"{without} of {rows['judged_pairs']} judged pairs are in the ideal only: {rows['gone']} of items that are "
            f"gone, {rows['failed']} that A or B has no score for"
        )
    return [*lines, *paired.not_shown(found)]


def _overrides(job: str, asked: argparse.Namespace) -> list[str]:
    given = {"a": asked.a, "b": asked.b, "judgment_set": asked.judgments, "split": asked.split, "side": asked.side}
    return [f"{job}.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
