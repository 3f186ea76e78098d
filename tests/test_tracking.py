"""Curves and experiments: written where the settings say, read back by the tools' own readers."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from ecomspark.errors import ConfigError
from ecomspark.tracking import Tracking, tracked

PROGRESS: list[dict[str, Any]] = [
    {"step": "before", "ndcg@10": 0.5, "of": "the untuned encoder"},
    {"step": "train", "at": 20, "of": 60, "loss": 0.75},
    {"step": "train", "at": 40, "of": 60, "loss": None},
    {"step": "epoch", "at": 1.0, "of": 2, "global_step": 30, "ndcg@10": 0.625, "spearman": 0.5, "best": 0.625},
    {"step": "epoch", "at": 1, "of": 2, "masked": {"loss": 2.0, "perplexity": 7.4, "accuracy": 0.5}},
    {"step": "train", "at": 20, "of": 60, "loss": 0.25, "on_trial": "mse"},
    {
        "step": "epoch",
        "at": 1.0,
        "of": 1,
        "global_step": 60,
        "ndcg@10": 0.125,
        "spearman": 0.5,
        "best": 0.125,
        "on_trial": "mse",
    },
]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files stand in for a server: MLflow has them for tests like this one only."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def test_curves_and_the_experiment_hold_what_a_training_reported(tmp_path: Path, address: str) -> None:
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = tiny.checkpoint(tmp_path / "models", "relevance-1", metrics={"after": {"ndcg@10": 0.625}})
    settings = Tracking(tensorboard=tmp_path / "curves", mlflow=address, experiment="ours")
    with tracked(
        settings, "finetune_cross_encoder", "night-1", "relevance-1", {"epochs": 2, "lora": {"rank": 8}}
    ) as track:
        for progress in PROGRESS:
            track.see(progress)
        track.made(made)
    curves = EventAccumulator(str(tmp_path / "curves" / "relevance-1-night-1")).Reload()
    assert [(of.step, of.value) for of in curves.Scalars("train/loss")] == [(20, 0.75)]
    assert [(of.step, of.value) for of in curves.Scalars("validation/ndcg_at_10")] == [(30, 0.625)]
    assert [(of.step, of.value) for of in curves.Scalars("auto_mse/train/loss")] == [(20, 0.25)]
    assert [(of.step, of.value) for of in curves.Scalars("auto_mse/validation/ndcg_at_10")] == [(60, 0.125)]
    assert [(of.step, of.value) for of in curves.Scalars("validation/masked_loss")] == [(1, 2.0)]
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("ours")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "2", "lora.rank": "8"}
    assert run.data.metrics["validation/ndcg_at_10"] == 0.625
    assert run.data.metrics["card/after_ndcg_at_10"] == 0.625
    assert run.data.tags["ecomspark.scorer_digest"] == made.scorer_digest.hex()
    card = Path(client.download_artifacts(run.info.run_id, "card.json", str(tmp_path)))
    assert json.loads(card.read_text())["metrics"] == {"after": {"ndcg@10": 0.625}}


def test_a_training_that_broke_is_a_failed_experiment(address: str) -> None:
    from mlflow import MlflowClient

    settings = Tracking(mlflow=address)
    with pytest.raises(RuntimeError), tracked(settings, "finetune_cross_encoder", "r", "x", {}):
        raise RuntimeError
    client = MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("ecomspark").experiment_id])  # type: ignore[union-attr]
    assert run.info.status == "FAILED"


def test_nothing_is_needed_to_run_and_what_is_asked_for_and_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name.split(".")[0] in ("tensorboard", "mlflow"):
            raise ImportError(name)
        return plain(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with tracked(Tracking(), "job", "r", "x", {}) as track:
        track.see(PROGRESS[1])
    for settings, package in ((Tracking(tensorboard=tmp_path), "tensorboard"), (Tracking(mlflow="x"), "mlflow")):
        said = rf"tracking.{package}: expected the package {package}, found none; pip install 'ecomspark\[tracking\]'"
        with pytest.raises(ConfigError, match=said), tracked(settings, "job", "r", "x", {}):
            pass
