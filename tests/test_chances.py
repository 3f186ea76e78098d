"""A set of chances: fitted, calibrated, sealed, and refused when it is not what it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ecomspark.chances import (
    FEATURES,
    FILE,
    Chances,
    Linear,
    calibration_error,
    fit,
    judged,
    open_chances,
    seal_chances,
)
from ecomspark.errors import CheckpointError, ContractError

LINEAR = Linear(terms={"events": (1.0, 2.0, 0.5)}, bias=-1.0, points=[(-1.0, 0.1), (1.0, 0.6)], metrics={"auc": 0.7})


def rows(count: int, seed: int, slope: float = 1.5) -> pd.DataFrame:
    """Two features that matter, with a known chance; all others are one value."""
    generator = np.random.default_rng(seed)
    made = pd.DataFrame(dict.fromkeys(FEATURES["purchase"], 1.0), index=range(count))
    made["baskets"], made["days_since_event"] = generator.normal(size=count), 5 + generator.normal(size=count)
    made["true"] = 1 / (1 + np.exp(-(slope * made["baskets"] - made["days_since_event"] + 3)))
    made["label"] = (generator.random(count) < made["true"]).astype(int)
    made["group"] = [f"s{n}" for n in range(count)]
    return made


def test_a_fit_finds_the_chances_that_made_the_labels() -> None:
    model = fit(rows(8_000, seed=1), rows(4_000, seed=2), "purchase")
    assert set(model.terms) == {"baskets", "days_since_event"}, "what never varies weighs nothing"
    fresh = rows(4_000, seed=3)
    said = model.chances(fresh)
    assert np.abs(said - fresh["true"]).mean() < 0.02
    assert np.all((said > 0) & (said < 1))
    found = judged(said, fresh["label"].to_numpy(), model.metrics["train_rate"])
    assert found["ece"] < 0.02
    assert found["brier"] < 0.8 * found["brier_of_rate"]
    # What the card says of the validation rows was told by models that had not seen them: it holds elsewhere.
    assert model.metrics["brier"] == pytest.approx(found["brier"], abs=0.01)
    assert model.metrics["auc"] == pytest.approx(found["auc"], abs=0.02)
    assert fit(rows(500, seed=1), rows(500, seed=2), "purchase") == fit(
        rows(500, seed=1), rows(500, seed=2), "purchase"
    )


def test_labels_of_one_kind_teach_nothing() -> None:
    none = rows(200, seed=1).assign(label=0)
    with pytest.raises(ContractError, match=r"return: expected training examples with and without one, found 200 of 0"):
        fit(none, rows(200, seed=2), "return")
    with pytest.raises(ContractError, match="expected validation examples"):
        fit(rows(200, seed=2), none, "return")


def test_calibration_error_is_the_gap_between_what_is_said_and_what_comes() -> None:
    assert calibration_error(np.full(10, 0.3), np.array([1] * 3 + [0] * 7)) == pytest.approx(0)
    assert calibration_error(np.full(10, 1.0), np.array([1] * 3 + [0] * 7)) == pytest.approx(0.7)


def test_a_sealed_set_opens_as_it_was_and_never_changes(tmp_path: Path) -> None:
    made = seal_chances(tmp_path, "ours", Chances(days=30, models={"session_purchase": LINEAR}))
    assert open_chances(tmp_path, "ours") == made
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    other = Chances(days=30, models={"session_purchase": LINEAR.model_copy(update={"metrics": {}})}, data={"x": {}})
    assert other.scorer_digest == made.scorer_digest, "metrics and origins decide no chance"
    assert Chances(days=7, models=made.models).scorer_digest != made.scorer_digest
    with pytest.raises(CheckpointError, match="choose another name"):
        seal_chances(tmp_path, "ours", other)


def altered(change: Any) -> Any:
    """A set with something changed and sealed anew, as somebody might who knows how."""
    plain = Chances(days=30, models={"session_purchase": LINEAR}).model_dump(mode="json")
    change(plain)
    try:
        return Chances.model_validate(plain).model_dump(mode="json") | {
            "digest": Chances.model_validate(plain).own_digest
        }
    except ValueError:
        return plain


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda of: of["models"]["session_purchase"]["terms"].update(shoe_size=(0.0, 1.0, 1.0)), "no feature named shoe_size"),
        (lambda of: of["models"]["session_purchase"].update(points=[(1.0, 0.2), (0.0, 0.4)]), "expected logits that rise"),
        (lambda of: of.update(recipe=2), "features of recipe 2, expected 1"),
        (lambda of: of["models"]["session_purchase"].update(bias="1e999"), r"not a set of chances \(models.session_purchase.bias"),
        (lambda of: of["models"]["session_purchase"]["terms"].update(events=(0.0, 0.0, 1.0)), "not a set of chances"),
        (lambda of: of.update(code="import os"), r"not a set of chances \(code\)"),
    ],
)  # fmt: skip
def test_a_set_that_does_not_make_sense_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / FILE).write_text(json.dumps(altered(change)))
    with pytest.raises(CheckpointError, match=said):
        open_chances(tmp_path, "ours")


def test_a_set_that_somebody_touched_is_refused(tmp_path: Path) -> None:
    seal_chances(tmp_path, "ours", Chances(days=30, models={"session_purchase": LINEAR}))
    path = tmp_path / "ours" / FILE
    whole = path.read_text()
    path.write_text(whole.replace("-1.0", "-2.0", 1))
    with pytest.raises(CheckpointError, match="its digest differs"):
        open_chances(tmp_path, "ours")
    path.write_text(whole[:50])
    with pytest.raises(CheckpointError, match="not JSON"):
        open_chances(tmp_path, "ours")
    path.write_bytes(b"\xff" + whole.encode())
    with pytest.raises(CheckpointError, match="not a set of chances"):
        open_chances(tmp_path, "ours")
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CheckpointError, match="a link"):
        open_chances(tmp_path, "ours")
    with pytest.raises(CheckpointError, match=r"no chances.json .*jobs/train_chances.py"):
        open_chances(tmp_path, "theirs")
    for name in ("../ours", "https://x/y", "a..b"):
        with pytest.raises(CheckpointError, match="expected the name of a folder"):
            open_chances(tmp_path, name)
