"""Curves and experiments of trainings: TensorBoard files, and MLflow. Neither is needed to train.

What goes there is settings, metrics, the card, and where the checkpoint lies: never a text.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecomspark.config import Section, setting
from ecomspark.errors import ConfigError
from ecomspark.models.checkpoint import CARD, Checkpoint

log = logging.getLogger("ecomspark")

_PARAMETER_CHARACTERS = 500  # of a value; MLflow's own bound is far above


class Tracking(Section):
    """Where trainings leave their curves. `pip install 'ecomspark[tracking]'` brings what both need."""

    tensorboard: Path | None = setting(None, "folder of TensorBoard's files, one below it a training; null: none")
    mlflow: str | None = setting(
        None, "MLflow's tracking address; a password belongs into MLFLOW_TRACKING_PASSWORD, not here; null: none"
    )
    experiment: str = setting("ecomspark", "MLflow's experiment", min_length=1)


class Track:
    """Hands on what a training reports. Made by `tracked`."""

    def __init__(self, curves: "_Curves | None", experiment: "_Experiment | None") -> None:
        self._keepers = [keeper for keeper in (curves, experiment) if keeper is not None]
        self._step = 0

    def see(self, progress: Mapping[str, Any]) -> None:
        """One progress line of a training: its loss, and what validation found, by step."""
        what = progress["step"]
        of = f"auto_{progress['on_trial']}/" if "on_trial" in progress else ""  # a head on trial has its own curves
        if what == "train":
            self._step = int(progress["at"])
            if progress.get("loss") is not None:
                self._keep(f"{of}train/loss", float(progress["loss"]), self._step)
        elif what == "epoch" and "masked" in progress:
            for name in ("loss", "perplexity", "accuracy"):
                self._keep(f"validation/masked_{name}", float(progress["masked"][name]), int(progress["at"]))
        elif what == "epoch" and "mrr@20" in progress:
            for name in ("hr@20", "mrr@20"):
                self._keep(
                    f"{progress['body']}/validation/{name.replace('@', '_at_')}", float(progress[name]), progress["at"]
                )
        elif what == "epoch":
            self._keep(f"{of}validation/ndcg_at_10", float(progress["ndcg@10"]), int(progress["global_step"]))
            self._keep(f"{of}validation/spearman", float(progress["spearman"]), int(progress["global_step"]))
        elif what == "before" and "ndcg@10" in progress:
            self._keep("validation/ndcg_at_10_untuned", float(progress["ndcg@10"]), 0)
        elif what == "head":
            self._keep(f"auto/{progress['head']}", float(progress["ndcg@10"]), 0)

    def made(self, checkpoint: Checkpoint) -> None:
        """The checkpoint that came out: its metrics, its card, and where it lies."""
        for when, found in checkpoint.card.metrics.items():
            for name, value in found.items():
                self._keep(f"card/{when}_{name.replace('@', '_at_')}", value, self._step)
        for keeper in self._keepers:
            keeper.made(checkpoint)

    def _keep(self, name: str, value: float, step: int) -> None:
        for keeper in self._keepers:
            keeper.keep(name, value, step)


@contextmanager
def tracked(settings: Tracking, job: str, run_id: str, name: str, parameters: Mapping[str, Any]) -> Iterator[Track]:
    """A training under way. Raises ConfigError when what the settings ask for is not installed."""
    curves = _Curves(settings.tensorboard / f"{name}-{run_id}") if settings.tensorboard else None
    experiment = _Experiment(settings.mlflow, settings.experiment, job, run_id, name) if settings.mlflow else None
    if experiment:
        experiment.begin(parameters)
    status = "FAILED"
    try:
        yield Track(curves, experiment)
        status = "FINISHED"
    finally:
        if curves:
            curves.end()
        if experiment:
            experiment.end(status)


class _Curves:
    """TensorBoard's event files, written by its own writer: no torch in the driver."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise ConfigError(_missing("tensorboard")) from None
        self._event, self._summary, self._writer = Event, Summary, EventFileWriter(str(folder))

    def keep(self, name: str, value: float, step: int) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def made(self, checkpoint: Checkpoint) -> None:
        """TensorBoard keeps numbers only."""

    def end(self) -> None:
        self._writer.close()


class _Experiment:
    """A run of MLflow."""

    def __init__(self, address: str, experiment: str, job: str, run_id: str, name: str) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise ConfigError(_missing("mlflow")) from None
        self._client = MlflowClient(tracking_uri=address)
        found = self._client.get_experiment_by_name(experiment)
        of = found.experiment_id if found else self._client.create_experiment(experiment)
        tags = {"mlflow.runName": name, "ecomspark.job": job, "ecomspark.run_id": run_id}
        self._run = self._client.create_run(of, tags=tags).info.run_id

    def begin(self, parameters: Mapping[str, Any]) -> None:
        for key, value in _flat(parameters):
            self._client.log_param(self._run, key, str(value)[:_PARAMETER_CHARACTERS])

    def keep(self, name: str, value: float, step: int) -> None:
        self._client.log_metric(self._run, name, value, step=step)

    def made(self, checkpoint: Checkpoint) -> None:
        self._client.set_tag(self._run, "ecomspark.checkpoint", checkpoint.name)
        self._client.set_tag(self._run, "ecomspark.checkpoint_folder", str(checkpoint.folder.resolve()))
        self._client.set_tag(self._run, "ecomspark.scorer_digest", checkpoint.scorer_digest.hex())
        self._client.log_text(self._run, (checkpoint.folder / CARD).read_text(encoding="utf-8"), CARD)

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run, status)


def _flat(parameters: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _missing(what: str) -> str:
    return (
        f"finetune_cross_encoder.tracking.{what}: expected the package {what}, found none; "
        "pip install 'ecomspark[tracking]', or set it to null"
    )
