"""Starts `models.finetune` in a process of its own and passes its progress on: no torch and no CUDA in the driver."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ecomspark.errors import CheckpointError

log = logging.getLogger("ecomspark")


def train(plan: Mapping[str, Any], examples: pd.DataFrame) -> None:
    """Train what `models.finetune.Plan` says from `examples`. The checkpoint is in the models folder afterwards.

    Raises CheckpointError, naming the class of what went wrong, when the process ends otherwise; nothing is kept then.
    """
    with tempfile.TemporaryDirectory(prefix="ecomspark-train-") as folder:
        (Path(folder) / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        examples.to_parquet(Path(folder) / "examples.parquet")
        # What Spark put on the path (a zip of --py-files, say) must be found by the child, too; of Spark's one thread
        # for its Python processes it must not hear: while it trains it has the machine.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("OMP_NUM_THREADS", None)
        complaints = Path(folder) / "stderr.txt"
        with complaints.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "ecomspark.models.finetune", folder],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            )
        reason = ""
        try:
            for progress in _progress(child):
                if progress["step"] == "failed":
                    reason = f"{progress['error']}, by way of {progress['way']}"
                else:
                    log.info("train: %s", _sentence(progress))
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        if status != 0:
            raise CheckpointError(
                f"{plan['name']}: training ended early with status {status} ({reason}); nothing was kept"
            )


def _progress(child: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    for line in child.stdout or ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # some library's own print
            continue


def _sentence(progress: dict[str, Any]) -> str:
    if progress["step"] == "before":
        return f"validation NDCG@10 {progress['ndcg@10']:.4f} by {progress['of']}"
    if progress["step"] == "train":
        return f"step {progress['at']} of {progress['of']}"
    if progress["step"] == "epoch":
        found = f"validation NDCG@10 {progress['ndcg@10']:.4f}, best {progress['best']:.4f}"
        return f"epoch {progress['at']} of {progress['of']}: {found}"
    return f"{progress['name']}: validation NDCG@10 {progress['before']:.4f} before, {progress['after']:.4f} after"
