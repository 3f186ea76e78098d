"""`ecomspark models`: every checkpoint in the models folder, by its card, with its figures, and every set of chances.
Starts no Spark."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import ValidationError

from ecomspark import config, launch
from ecomspark.chances import FILE as CHANCES
from ecomspark.chances import open_chances
from ecomspark.config import Settings
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.models.checkpoint import CARD, Card, DataType, open_checkpoint

_MAKING = "making-"  # what `models.checkpoint.workroom` calls its folders


@dataclass(frozen=True)
class Listed:
    """One checkpoint. `fault`: why it cannot be used, empty when nothing was found; then the rest is as far as known.

    `head`: what it was trained by, of an encoder its pooling. `metrics`: on validation, before and after training.
    `size`: bytes of all files. `is_verified`: whether every file was read.
    """

    name: str
    size: int
    fault: str = ""
    kind: str = ""
    base: str = ""
    head: str = ""
    data_type: str = ""
    scorer_digest: str = ""
    judgment_set: str = ""
    split: str = ""
    train_pairs: int | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    is_verified: bool = False


def show(path: Path, overrides: Sequence[str], is_verifying: bool, as_json: bool) -> int:
    """Print every checkpoint; the exit status: 3 when one of them cannot be used."""
    launch.log_to_stderr("text")
    with launch.ending_well() as ended:
        settings = config.load(path, "", Settings, launch.jobs(), overrides)
        found = listed(settings.models_folder, settings.data_types, is_verifying)
        ended.status = ContractError.status if any(each.fault for each in found) else ended.status
        told = {"models_folder": str(settings.models_folder), "exit_status": ended.status}
        spelled = {**told, "models": [asdict(each) for each in found]}
        print(json.dumps(spelled) if as_json else "\n".join(as_lines(found, settings.models_folder)), flush=True)
    return ended.status


def listed(models_folder: Path, data_types: dict[str, DataType], is_verifying: bool = False) -> list[Listed]:
    """Every checkpoint in the folder, by name. `data_types`: those in which settings have some of them compute."""
    folders = sorted(path for path in models_folder.glob("*") if path.is_dir() and path.name[0] != ".")
    names = [folder.name for folder in folders if not folder.name.startswith(_MAKING)]
    return [_listed(models_folder, name, data_types.get(name), is_verifying) for name in names]


def as_lines(found: Sequence[Listed], models_folder: Path) -> list[str]:
    """A line a checkpoint."""
    if not found:
        return [f"no checkpoint in {models_folder}; import or train one first"]
    rows = [("name", "kind", "base", "head", "type", "scorer", "MiB", "trained on", "validation")]
    rows += [
        (of.name, of.kind, of.base, of.head, of.data_type, of.scorer_digest[:12], f"{of.size / 2**20:.1f}",
         _trained_on(of), _metrics(of.metrics)) for of in found if not of.fault
    ]  # fmt: skip
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
    lines = lines if len(rows) > 1 else []
    return [*lines, *(f"{of.name}: cannot be used: {of.fault}" for of in found if of.fault)]


def _listed(models_folder: Path, name: str, data_type: DataType | None, is_verifying: bool) -> Listed:
    folder = models_folder / name
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        if (folder / CHANCES).exists():
            return _of_chances(models_folder, name, size)
        card = _card(folder)
        if is_verifying:
            open_checkpoint(models_folder, name)
    except CheckpointError as error:
        return Listed(name, size, "; ".join(line.strip() for line in str(error).removeprefix(f"{name}: ").splitlines()))
    card = card if data_type is None else card.model_copy(update={"data_type": data_type})
    said = card.settings
    trained_by = said.get("head") or ""
    return Listed(
        name,
        size,
        kind=card.kind,
        base=card.base,
        head=str(trained_by) if card.kind == "cross_encoder" else card.pooling,
        data_type=card.data_type,
        scorer_digest=card.scorer_digest.hex(),
        judgment_set=str(said.get("judgment_set") or ""),
        split=str(said.get("split") or ""),
        train_pairs=_whole(card.metrics.get("pairs", {}).get("train")),
        metrics=card.metrics,
        is_verified=is_verifying,
    )


def _of_chances(models_folder: Path, name: str, size: int) -> Listed:
    """A set of chances, always verified: it is one small file. Its figures are the AUCs of its models."""
    found = open_chances(models_folder, name)
    metrics = {kind: model.metrics["auc"] for kind, model in found.models.items() if "auc" in model.metrics}
    return Listed(
        name, size, kind="chances", scorer_digest=found.scorer_digest.hex(),
        metrics={"after": {f"{kind} auc": value for kind, value in metrics.items()}}, is_verified=True,
    )  # fmt: skip


def _card(folder: Path) -> Card:
    """A checkpoint's card alone. Raises CheckpointError when there is none, or something else in its place."""
    try:
        return Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{CARD}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        places = ", ".join(".".join(map(str, fault["loc"])) for fault in error.errors())
        raise CheckpointError(f"{CARD}: not a card ({places or 'not JSON'})") from None
    except ValueError:
        raise CheckpointError(f"{CARD}: not a card (not UTF-8)") from None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _trained_on(of: Listed) -> str:
    pairs = "" if of.train_pairs is None else f" {of.train_pairs:,} pairs"
    return f"{of.judgment_set}/{of.split}{pairs}" if of.judgment_set else ""


def _metrics(metrics: dict[str, dict[str, float]]) -> str:
    """
    >>> _metrics({"before": {"ndcg@10": 0.5}, "after": {"ndcg@10": 0.75, "epoch": 2.0}})
    'ndcg@10 0.5000 to 0.7500, epoch 2'
    """
    before = metrics.get("before", {})
    said = []
    for name, value in metrics.get("after", {}).items():
        spelled = f"{value:.0f}" if name == "epoch" else f"{value:.4f}"
        said.append(f"{name} {before[name]:.4f} to {spelled}" if name in before else f"{name} {spelled}")
    return ", ".join(said)
