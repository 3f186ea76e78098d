"""The list of checkpoints: figures from their cards, and a line for one that is broken."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from ecomspark import cli, launch
from ecomspark.chances import Chances, Linear, seal_chances
from ecomspark.model_list import as_lines, listed
from ecomspark.models.checkpoint import open_checkpoint

METRICS = {
    "before": {"ndcg@10": 0.5}, "after": {"ndcg@10": 0.75, "epoch": 2.0}, "pairs": {"train": 1200.0, "validation": 300.0},
    "read": {"tokens": 9e6, "padding": 1e5},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The command sends the project's log to stderr; other tests want it as it was."""
    log = logging.getLogger("ecomspark")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    settings = {"head": "bce", "judgment_set": "ours", "split": "default"}
    tiny.checkpoint(tmp_path, "tuned", settings=settings, metrics=METRICS)
    tiny.checkpoint(tmp_path, "base", kind="encoder")
    (tmp_path / "making-abc").mkdir()
    return tmp_path


def test_every_card_is_a_line_with_its_figures(models: Path) -> None:
    base, tuned = listed(models, {"tuned": "int8"})
    assert (base.name, base.kind, base.head, base.judgment_set, base.metrics) == ("base", "encoder", "mean", "", {})
    assert (tuned.base, tuned.head, tuned.data_type, tuned.train_pairs) == ("tiny", "bce", "int8", 1200)
    assert tuned.scorer_digest == open_checkpoint(models, "tuned", data_type="int8").scorer_digest.hex()
    assert tuned.size == sum(path.stat().st_size for path in (models / "tuned").iterdir())
    lines = as_lines([base, tuned], models)
    assert len(lines) == 3
    assert lines[2].endswith("ours/default 1,200 pairs  ndcg@10 0.5000 to 0.7500, epoch 2")
    assert as_lines([], models)[0].startswith("no checkpoint in")


def test_a_set_of_chances_is_a_line_too(models: Path) -> None:
    linear = Linear(
        terms={"events": (1.0, 2.0, 0.5)}, bias=-1.0, points=[(-1.0, 0.1), (1.0, 0.6)], metrics={"auc": 0.7}
    )
    made = seal_chances(models, "chances", Chances(days=30, models={"session_purchase": linear}))
    _, found, _ = listed(models, {})
    assert (found.name, found.kind, found.scorer_digest) == ("chances", "chances", made.scorer_digest.hex())
    assert as_lines([found], models)[1].endswith("session_purchase auc 0.7000")
    (models / "chances" / "chances.json").write_text("{}")
    assert "chances.json: not to be trusted" in listed(models, {})[1].fault


@pytest.mark.parametrize(
    ("card", "fault"),
    [(None, "cannot be read (No such file"), ("{", "not JSON"), ('{"kind": "cross_encoder"}', "not a card (base)")],
)
def test_a_broken_card_is_a_line_and_the_others_are_listed(models: Path, card: str | None, fault: str) -> None:
    path = models / "tuned" / "card.json"
    path.unlink() if card is None else path.write_text(card)
    base, tuned = listed(models, {})
    assert (base.fault, fault in tuned.fault) == ("", True), tuned.fault
    lines = as_lines([base, tuned], models)
    assert lines[-1].startswith("tuned: cannot be used: card.json")


def test_the_command_starts_no_spark_and_reads_the_files_only_when_asked(
    models: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(launch, "spark_session", refuse)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({"warehouse": "w", "models_folder": str(models)}))
    with (models / "tuned" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert cli.main(["models", "--conf", str(path)]) == 0
    assert "tuned" in capsys.readouterr().out
    assert cli.main(["models", "--conf", str(path), "--verify", "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["exit_status"] == 3
    assert [(of["name"], of["is_verified"]) for of in said["models"]] == [("base", True), ("tuned", False)]
    assert "sha256 differs" in said["models"][1]["fault"]
