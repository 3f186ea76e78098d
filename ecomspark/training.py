"""Starts `models.finetune` or another training of `models` in a process of its own and passes its progress on: no torch
in the driver, and no CUDA."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from ecomspark.errors import CheckpointError
from ecomspark.models.checkpoint import CARD, open_checkpoint

log = logging.getLogger("ecomspark")


def train(
    plan: Mapping[str, Any],
    examples: pd.DataFrame,
    module: str = "ecomspark.models.finetune",
    file: str = "examples.parquet",
    see: Callable[[Mapping[str, Any]], None] = lambda _: None,
    more: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> None:
    """Train what the `Plan` of `module` says from `examples`, which it reads from `file`, and from what it reads from
    `more` files. The checkpoint is in the models folder afterwards. `see` is shown every progress line.

    Raises CheckpointError, naming the class of what went wrong, when the process ends otherwise; nothing is kept then.
    """
    with tempfile.TemporaryDirectory(prefix="ecomspark-train-") as folder:
        (Path(folder) / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        for name, rows in {file: examples, **more}.items():
            rows.to_parquet(Path(folder) / name)
        # What Spark put on the path (a zip of --py-files, say) must be found by the child, too; of Spark's one thread
        # for its Python processes it must not hear: while it trains it has the machine.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("OMP_NUM_THREADS", None)
        complaints = Path(folder) / "stderr.txt"
        with complaints.open("w") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", module, folder],
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
                    see(progress)
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        if status != 0:
            raise CheckpointError(
                f"{plan['name']}: training ended early with status {status} ({reason}); nothing was kept"
            )


def is_trained(models_folder: Path, name: str, kind: str, training_digest: str, job: str) -> bool:
    """Whether the checkpoint of that name is there, made by this very training.

    Raises CheckpointError when another training made it, or when it does not verify.
    """
    if not (models_folder / name / CARD).exists():
        return False
    if open_checkpoint(models_folder, name, kind).card.training_digest != training_digest:
        raise CheckpointError(
            f"{name}: made from other settings or data; a checkpoint never changes: set {job}.name to a new name"
        )
    log.info("%s: %s was trained from exactly this already", job, name)
    return True


def _progress(child: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    for line in child.stdout or ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # some library's own print
            continue


def _sentence(progress: dict[str, Any]) -> str:
    if "masked" in progress:
        return _sentence_of_guesses(progress)
    if "mrr@20" in progress:
        return _sentence_of_lists(progress)
    if "on_trial" in progress:
        said = {name: value for name, value in progress.items() if name != "on_trial"}
        return f"{progress['on_trial']} on trial: {_sentence(said)}"
    if progress["step"] == "left":
        return f"head {progress['head']} cannot be learnt from this part ({progress['error']} by {progress['way']})"
    if progress["step"] == "before":
        return f"validation NDCG@10 {progress['ndcg@10']:.4f} by {progress['of']}"
    if progress["step"] == "train":
        loss = progress.get("loss")
        return f"step {progress['at']} of {progress['of']}" + (f", loss {loss:.4f}" if loss is not None else "")
    if progress["step"] == "head":
        return f"head {progress['head']} on {progress['pairs']:,} pairs: validation NDCG@10 {progress['ndcg@10']:.4f}"
    if progress["step"] == "auto":
        return f"takes the head {progress['takes']}"
    if progress["step"] in ("augmented", "negatives", "distilled"):
        counts = ", ".join(f"{name} {count:,}" for name, count in progress.items() if name != "step" and count)
        return f"{progress['step']}: {counts or 'none'}"
    if progress["step"] == "epoch":
        found = (
            f"validation NDCG@10 {progress['ndcg@10']:.4f}, Spearman {progress['spearman']:.4f}, "
            f"best {progress['best']:.4f}"
        )
        return f"epoch {progress['at']} of {progress['of']}: {found}"
    return f"{progress['name']}: validation NDCG@10 {progress['before']:.4f} before, {progress['after']:.4f} after"


def _sentence_of_lists(progress: dict[str, Any]) -> str:
    """Of what `models.finetune_sequence` says: where the next item stands in the lists."""
    found = f"validation HR@20 {progress['hr@20']:.4f}, MRR@20 {progress['mrr@20']:.4f}"
    if progress["step"] == "before":
        return f"{found} by {progress['of']}"
    if progress["step"] == "epoch":
        return f"{progress['body']}: epoch {progress['at']} of {progress['of']}: {found}, best {progress['best']:.4f}"
    return f"{progress['name']}: {found} (MRR@20 by popularity {progress['before']:.4f})"


def _sentence_of_guesses(progress: dict[str, Any]) -> str:
    """Of what `models.pretrain` says: how well hidden tokens are guessed."""
    now = progress["masked"]
    found = f"perplexity {now['perplexity']:.2f}, {100 * now['accuracy']:.1f} % of the hidden tokens guessed"
    if progress["step"] == "before":
        return f"validation {found} by {progress['of']}"
    if progress["step"] == "epoch":
        return f"epoch {progress['at']} of {progress['of']}: validation {found}"
    return f"{progress['name']}: validation {found} (perplexity before {progress['before']['perplexity']:.2f})"
