"""What a shopper is likely to do: linear models over a few numbers, small enough to be applied as a Spark expression.

A set of them is one JSON file, `chances.json`, in a folder of the models folder: features, weights, calibration,
metrics, the versions of what it was trained on, sealed with a digest that is looked at when it is opened. No Spark.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ecomspark.config import is_name
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.metrics import expected_gain
from ecomspark.models.calibration import calibrate
from ecomspark.models.checkpoint import workroom
from ecomspark.text import settings_digest

FILE = "chances.json"

Kind = Literal["session_purchase", "purchase", "return"]

# What they mean stands in `features.chances`. A change of meaning raises RECIPE: an older set is refused then.
RECIPE = 1
SESSION_FEATURES = (
    "events", "items", "clicks", "carts", "favourites", "purchases", "carts_open", "item_events", "item_carts",
    "seconds", "pause", "is_cart", "is_favourite", "is_purchase",
)  # fmt: skip
SHOPPER_FEATURES = (
    "days_since_event", "days_since_purchase", "days_known", "events", "events_30", "baskets", "baskets_30",
    "baskets_90", "lines", "items", "returns", "returns_90", "clicks", "carts", "favourites", "has_bought",
    "overdue", "return_share",
)  # fmt: skip
FEATURES: dict[Kind, tuple[str, ...]] = {
    "session_purchase": SESSION_FEATURES, "purchase": SHOPPER_FEATURES, "return": SHOPPER_FEATURES,
}  # fmt: skip

_BINS = 15
_FOLDS = 5

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Linear(BaseModel):
    """One model: logit = bias + sum of weight x (feature - mean) / scale, then `points` from logit to chance, as
    `metrics.expected_gain` reads them. `terms`: of each feature its mean, scale and weight; one that never varied in
    training is not among them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    terms: dict[str, tuple[Finite, Annotated[float, Field(gt=0, allow_inf_nan=False)], Finite]]
    bias: Finite
    points: Annotated[list[tuple[Finite, Annotated[float, Field(gt=0, lt=1)]]], Field(min_length=2)]
    metrics: dict[str, float]

    def logits(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """`features.chances.logit` over the rows of a frame."""
        total = np.full(len(rows), self.bias)
        for name, (mean, scale, weight) in sorted(self.terms.items()):
            total += (rows[name].to_numpy(dtype=float) - mean) / scale * weight
        return total

    def chances(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        return np.array([expected_gain(one, self.points) for one in self.logits(rows)], dtype=float)


class Chances(BaseModel):
    """A set of models with all that it needs to be known by. `days`: within which a purchase or a return is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: int = RECIPE
    days: Annotated[int, Field(ge=1)]
    models: dict[Kind, Linear]
    data: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    training_digest: str = ""
    digest: str = ""

    @property
    def own_digest(self) -> str:
        """128 bits, in hex, over all but the digest itself."""
        return settings_digest(self.model_dump(mode="json", exclude={"digest"})).hex()

    @property
    def scorer_digest(self) -> bytes:
        """128 bits over what decides a chance: not the metrics, nor where the models come from."""
        kinds = {kind: model.model_dump(mode="json", exclude={"metrics"}) for kind, model in self.models.items()}
        return settings_digest({"recipe": self.recipe, "days": self.days, "models": kinds})


def open_chances(models_folder: Path, name: str) -> Chances:
    """Read a set and look at its digest. Raises CheckpointError, naming what is wrong."""
    folder, path = models_folder / name, models_folder / name / FILE
    if not is_name(name):
        raise CheckpointError(f"chances {name[:80]}: expected the name of a folder in {models_folder}")
    if not path.is_file():
        raise CheckpointError(f"{name}: no {FILE} in {folder}; train one with jobs/train_chances.py")
    place = f"{name}: {FILE}: not to be trusted; train it anew"
    if folder.is_symlink() or path.is_symlink():
        raise CheckpointError(f"{place}: a link; expected the file itself: what it points to may change")
    try:
        found = Chances.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, fault["loc"])) for fault in error.errors()}))
        raise CheckpointError(f"{place}: not a set of chances ({places or 'not JSON'})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{place}: not a set of chances (not UTF-8)") from None
    faults = []
    if found.digest != found.own_digest:
        faults.append("not as it was written (its digest differs)")
    if found.recipe != RECIPE:
        faults.append(f"features of recipe {found.recipe}, expected {RECIPE}")
    for kind, model in found.models.items():
        if unknown := sorted(set(model.terms) - set(FEATURES[kind])):
            faults.append(f"models.{kind}: no feature named {', '.join(unknown)}")
        if [x for x, _ in model.points] != sorted({x for x, _ in model.points}):
            faults.append(f"models.{kind}: points: expected logits that rise")
    if faults:
        raise CheckpointError("\n".join([place, *(f"  {fault}" for fault in faults)]))
    return found


def seal_chances(models_folder: Path, name: str, chances: Chances) -> Chances:
    """Write a set to its place in one step. Raises CheckpointError when the name is taken: a set never changes."""
    if (models_folder / name).exists():
        raise CheckpointError(f"{name}: there is a checkpoint of that name in {models_folder}; choose another name")
    sealed = chances.model_copy(update={"digest": chances.own_digest})
    made = workroom(models_folder)
    try:
        text = json.dumps(sealed.model_dump(mode="json"), indent=1) + "\n"
        (made / FILE).write_text(text, encoding="utf-8")
        made.chmod(0o755)  # temporary folders are private; jobs may run as somebody else
        os.rename(made, models_folder / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return open_chances(models_folder, name)


def fit(train: pd.DataFrame, validation: pd.DataFrame, kind: Kind) -> Linear:
    """A logistic regression on standardised features (sklearn's, L2 of strength 1), calibrated by isotonic regression
    on the later rows.

    `train`, `validation`: the features of the kind, `label` 0 or 1, `group`: who a row is of. The metrics are those on
    the validation rows, calibrated on other groups than each row's (five folds), beside the rate of the training rows
    said of everybody. Raises ContractError when a side does not have both labels.
    """
    for side, rows in (("training", train), ("validation", validation)):
        if rows["label"].nunique() < 2:
            raise ContractError(
                f"interactions: {kind}: expected {side} examples with and without one, found {len(rows):,} of "
                f"{int(rows['label'].sum()):,} with; take more cuts, another share, or leave the kind out"
            )
    names = [name for name in FEATURES[kind] if train[name].std() > 0]
    means, scales = train[names].mean(), train[names].std(ddof=0)
    fitted = LogisticRegression(max_iter=1_000).fit(((train[names] - means) / scales).to_numpy(), train["label"])
    terms = {
        name: (float(means[name]), float(scales[name]), float(weight))
        for name, weight in zip(names, fitted.coef_[0], strict=True)
    }
    bias = float(fitted.intercept_[0])
    raw = Linear(terms=terms, bias=bias, points=[(0.0, 0.4), (1.0, 0.6)], metrics={})
    logits, labels = raw.logits(validation), validation["label"].to_numpy(dtype=float)
    points = calibrate(logits.tolist(), labels.tolist())
    folds = pd.util.hash_array(validation["group"].to_numpy(dtype=object)) % _FOLDS
    said = np.full(len(labels), labels.mean())
    for fold in range(_FOLDS):
        mine, others = folds == fold, folds != fold
        if mine.any() and len(np.unique(logits[others])) > 1:
            by_others = calibrate(logits[others].tolist(), labels[others].tolist())
            said[mine] = [expected_gain(one, by_others) for one in logits[mine]]
    rate = float(train["label"].mean())
    counts = {"train_rows": float(len(train)), "train_rate": rate, "validation_rows": float(len(labels))}
    metrics = {**counts, **judged(said, labels, rate), "auc": float(roc_auc_score(labels, logits))}
    return Linear(terms=terms, bias=bias, points=points, metrics=metrics)


def judged(said: NDArray[Any], labels: NDArray[Any], rate: float) -> dict[str, float]:
    """How good chances are: AUC, Brier score (Brier 1950) beside that of one `rate` said of everybody, and the expected
    calibration error over 15 bins of one width (Naeini et al. 2015)."""
    said, labels = np.asarray(said, dtype=float), np.asarray(labels, dtype=float)
    return {
        "rate": float(labels.mean()),
        "auc": float(roc_auc_score(labels, said)),
        "brier": float(np.mean((said - labels) ** 2)),
        "brier_of_rate": float(np.mean((rate - labels) ** 2)),
        "ece": calibration_error(said, labels),
    }


def calibration_error(said: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean gap between what is said and what comes true over 15 bins of one width, each weighing its rows.

    >>> round(calibration_error(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 0, 1, 0])), 6)
    0.25
    """
    bins = np.minimum((said * _BINS).astype(int), _BINS - 1)
    gaps = np.abs(np.bincount(bins, said - labels, minlength=_BINS))
    return float(gaps.sum() / max(1, len(said)))
