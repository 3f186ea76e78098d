"""A checkpoint: a folder of weights and tokenizer with `card.json`, sealed when made and verified before it is used.

No torch here: the driver verifies a checkpoint without loading it, and what travels to executors is a path and a
digest. Refused: pickles, remote code, hub names, links that leave the models folder, files that are not what the card
says, and a head that nobody trained.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecomspark.errors import CheckpointError
from ecomspark.text import TextRecipe, settings_digest

CARD = "card.json"
WEIGHTS = "model.safetensors"
ITEMS = "items.json"  # of a sequence model: the ids of the items that it learnt, in the order of its rows
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

# A text is read up to so many characters a token of its cap: real text has 2 to 5, so a cap is reached long before, and
# a text of ten million characters costs what its cap costs. It decides what a model reads.
CHARACTERS_A_TOKEN = 32

DataType = Literal["fp32", "bf16", "fp16", "int8"]
VectorType = Literal["float32", "float16", "int8"]
NOT_FINITE = -128  # in int8 vectors, which have no NaN; no other value of theirs is below -127

_NAME = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]{0,127}")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5"}
_HEADS = ("classifier", "score", "out_proj")
_MIB = 1024 * 1024


class Confidence(BaseModel):
    """How sure a sequence model may be of its lists, fitted on validation: a softmax's temperature, and for lists of
    some lengths the mass that it gives them to the share of them that held the next item, rising."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(gt=0)] = 1.0
    maps: dict[Annotated[int, Field(ge=1)], list[tuple[float, float]]] = {}


class Card(BaseModel):
    """What a checkpoint is and where it comes from. The keys that decide a logit or a vector are in `scorer_digest`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["encoder", "cross_encoder", "sequence"]
    base: str = Field(description="what it was made of: a checkpoint's name, or where the weights come from")
    recipe: TextRecipe = Field(default=TextRecipe(), description="how its texts are made")
    max_tokens: Annotated[int, Field(gt=4)] = Field(
        default=256, description="tokens of a pair or text, specials included"
    )
    query_max_tokens: Annotated[int, Field(gt=0)] = Field(default=64, description="tokens kept of a query in a pair")
    data_type: DataType = Field(default="fp32", description="what its layers compute in; int8 on CPU only")
    activation: Literal["sigmoid"] = Field(default="sigmoid", description="of a cross-encoder's logit")
    class_gains: list[float] = Field(
        default=[], description="of a cross-encoder that tells grades apart: what each class is worth; empty: one logit"
    )
    pooling: Literal["mean", "first"] = Field(default="mean", description="of an encoder's token vectors")
    dimensions: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="of an encoder trained for it (Matryoshka), the first so many are kept; null: all"
    )
    vector_type: VectorType = Field(default="float32", description="of an encoder's vectors as they are stored")
    query_prefix: str = Field(default="", description="put before a query that is embedded")
    passage_prefix: str = Field(default="", description="put before a passage that is embedded")
    architecture: Literal["transformer", "gru", "both", "linear"] | None = Field(
        default=None, description="of a sequence model: what reads the items; both: two of them, their scores averaged"
    )
    max_items: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="of a sequence model: items of a history that it reads, the newest"
    )
    text_scorer_digest: str = Field(
        default="", description="of a sequence model: scorer_digest, in hex, of the encoder whose item vectors it reads"
    )
    confidence: Confidence = Field(default=Confidence(), description="of a sequence model: how sure its lists are")
    data: dict[str, dict[str, Any]] = Field(default={}, description="tables that it was trained on: id and version")
    settings: dict[str, Any] = Field(default={}, description="training settings")
    training_digest: str = Field(default="", description="names the settings, data and base that it was trained from")
    metrics: dict[str, dict[str, float]] = Field(default={}, description="before and after training, on validation")
    calibration: list[tuple[float, float]] = Field(default=[], description="logit to expected gain, rising")
    files: dict[str, str] = Field(default={}, description="sha256 of every other file in the folder")

    @property
    def scorer_digest(self) -> bytes:
        """128 bits over all that decides what the model says of a text or a history; not the card's metrics, data or
        calibration."""
        if self.kind == "sequence":
            of_texts = {"text_scorer": self.text_scorer_digest, "max_items": self.max_items}
            return settings_digest(
                {"kind": self.kind, "files": self.files, "architecture": self.architecture, **of_texts}
            )
        deciding: dict[str, object] = {
            "kind": self.kind,
            "files": self.files,
            "recipe": self.recipe.digest.hex(),
            "max_tokens": self.max_tokens,
            "characters_a_token": CHARACTERS_A_TOKEN,
            "data_type": self.data_type,
        }
        if self.kind == "cross_encoder":
            deciding |= {"query_max_tokens": self.query_max_tokens, "activation": self.activation}
            if self.class_gains:
                deciding |= {"class_gains": self.class_gains}
        else:
            prefixes = [self.query_prefix, self.passage_prefix]
            deciding |= {"pooling": self.pooling, "prefixes": prefixes, "dimensions": self.dimensions}
            deciding |= {"vector_type": self.vector_type}
        return settings_digest(deciding)

    @property
    def calibration_digest(self) -> bytes:
        if self.kind == "sequence":
            return settings_digest({"confidence": self.confidence.model_dump(mode="json")})
        return settings_digest({"calibration": [list(point) for point in self.calibration]})


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: where it lies, and its card."""

    folder: Path
    card: Card

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def scorer_digest(self) -> bytes:
        return self.card.scorer_digest


def open_checkpoint(
    models_folder: Path,
    name: str,
    kind: str | None = None,
    scorer_digest: bytes | None = None,
    data_type: DataType | None = None,
) -> Checkpoint:
    """Verify every file of a checkpoint against its card. Raises CheckpointError naming every fault.

    `name` is a folder in `models_folder`: no path, no hub name, no address. `scorer_digest`: what the driver found,
    when another host opens its copy. `data_type`: what it shall compute in, where not what its card says; that makes
    another scorer of the same weights.
    """
    folder = models_folder / name
    if not _NAME.fullmatch(name) or ".." in name:
        raise CheckpointError(
            f"checkpoint {name[:80]}: expected the name of a folder in {models_folder}, found a path or address"
        )
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in models_folder.glob("*") if (path / CARD).exists())) or "none"
        raise CheckpointError(
            f"{name}: no such checkpoint in {models_folder} (there: {there}); train or import one first"
        )
    card = _card(folder)
    if data_type is not None:
        card = card.model_copy(update={"data_type": data_type})
    faults = [*_forbidden(folder), *_altered(folder, card)]
    if not faults:  # a file that is not the card's is not even parsed
        faults += _inconsistent(folder, card)
    if kind and card.kind != kind:
        faults.append(f"expected a {kind}, found a {card.kind}")
    if scorer_digest not in (None, card.scorer_digest):
        faults.append("another scorer than the driver's: copy the driver's models folder to this host")
    if faults:
        raise CheckpointError(
            "\n".join([f"{name}: not to be trusted; train or import it anew", *(f"  {f}" for f in faults)])
        )
    return Checkpoint(folder, card)


def cards(models_folder: Path) -> dict[str, Card]:
    """The card of every checkpoint in the folder, by name. The weights are not looked at.

    Raises CheckpointError when one is not a card.
    """
    return {path.parent.name: _card(path.parent) for path in sorted(models_folder.glob(f"*/{CARD}"))}


def seal(made: Path, models_folder: Path, name: str, card: Card) -> Checkpoint:
    """Write the card into `made`, a folder of weights and tokenizer, and move it to its place in one step.

    Raises CheckpointError when the name is taken (a checkpoint never changes), or when it would not verify.
    """
    if (models_folder / name).exists():
        raise CheckpointError(f"{name}: there is a checkpoint of that name in {models_folder}; choose another name")
    (made / CARD).unlink(missing_ok=True)
    files = {str(path.relative_to(made)): sha256(path) for path in sorted(made.rglob("*")) if path.is_file()}
    sealed = card.model_copy(update={"files": files})
    (made / CARD).write_text(
        json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    open_checkpoint(made.parent, made.name, card.kind)
    models_folder.mkdir(parents=True, exist_ok=True)
    made.chmod(0o755)  # temporary folders are private; executors may run as somebody else
    os.rename(made, models_folder / name)
    return open_checkpoint(models_folder, name, card.kind)


def workroom(models_folder: Path) -> Path:
    """A new empty folder on the disk of the models folder, from which `seal` can move a checkpoint in one step."""
    models_folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="making-", dir=models_folder))


def adopt(source: Path, models_folder: Path, name: str, card: Card) -> Checkpoint:
    """Copy an encoder's weights, configuration and tokenizer from a folder elsewhere into a checkpoint of our own.

    Takes safetensors only, and only the files that loading needs. Raises CheckpointError when one is missing.
    """
    missing = [wanted for wanted in ("config.json", WEIGHTS, "tokenizer.json") if not (source / wanted).is_file()]
    if missing:
        raise CheckpointError(f"{source}: expected an encoder's folder, found no {', '.join(missing)}")
    made = workroom(models_folder)
    try:
        for wanted in ("config.json", WEIGHTS, *TOKENIZER_FILES):
            if (source / wanted).is_file():
                shutil.copyfile(source / wanted, made / wanted)
        return seal(made, models_folder, name, card)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors(path: Path) -> dict[str, list[int]]:
    """Names and shapes in a safetensors file, from its header alone. Raises CheckpointError when it is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 2 <= length <= min(size - 8, 100 * _MIB):
            raise CheckpointError(f"{path.parent.name}: {path.name}: not a whole safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    if header and max(entry["data_offsets"][1] for entry in header.values()) != size - 8 - length:
        raise CheckpointError(f"{path.parent.name}: {path.name}: cut short")
    return {name: entry["shape"] for name, entry in header.items()}


def _card(folder: Path) -> Card:
    path = folder / CARD
    if not path.is_file():
        raise CheckpointError(f"{folder.name}: no {CARD}; train one with jobs/finetune_cross_encoder.py")
    try:
        return Card.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        places = [".".join(map(str, e["loc"])) for e in error.errors()] if isinstance(error, ValidationError) else []
        raise CheckpointError(f"{folder.name}: {CARD}: not a card ({', '.join(places) or 'not JSON'})") from None


def _forbidden(folder: Path) -> list[str]:
    faults, root = [], folder.parent.resolve()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if not path.resolve().is_relative_to(root):
            faults.append(f"{place}: a link that leaves the models folder")
        elif path.is_symlink():
            faults.append(f"{place}: a link; expected the file itself: what it points to may change")
        elif path.suffix in _PICKLES:
            faults.append(f"{place}: a format that can carry code; only safetensors are loaded")
        elif path.suffix == ".py":
            faults.append(f"{place}: code beside the weights is never run")
        elif path.suffix == ".json" and path.is_file() and b'"auto_map"' in path.read_bytes():
            faults.append(f"{place}: names remote code (auto_map)")
    return faults


def _altered(folder: Path, card: Card) -> list[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {CARD}
    faults = [f"{name}: in the card, not in the folder" for name in sorted(set(card.files) - found)]
    faults += [f"{name}: in the folder, not in the card" for name in sorted(found - set(card.files))]
    for name in sorted(found & set(card.files)):
        if sha256(folder / name) != card.files[name]:
            faults.append(f"{name}: not the file that the card was written for (sha256 differs)")
    return faults


def _inconsistent(folder: Path, card: Card) -> list[str]:
    return _of_sequence(folder, card) if card.kind == "sequence" else _of_texts(folder, card)


def _of_sequence(folder: Path, card: Card) -> list[str]:
    if not all((folder / name).is_file() for name in ("config.json", WEIGHTS, ITEMS)):
        return [f"expected config.json, {WEIGHTS} and {ITEMS}"]
    try:
        shapes = tensors(folder / WEIGHTS)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        item_ids = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
        found = {"architecture": config["architecture"], "max_items": config["max_items"]}
        has_texts, item_count = bool(config["text_width"]), config["item_count"]
    except CheckpointError as error:
        return [str(error)]
    except (ValueError, KeyError, TypeError):
        return [f"config.json, {ITEMS} or the header of {WEIGHTS} is not what it should be"]
    faults = []
    if not isinstance(item_ids, list) or not all(isinstance(item_id, str) for item_id in item_ids):
        faults.append(f"{ITEMS}: expected a list of ids")
    elif len(set(item_ids)) < len(item_ids) or len(item_ids) != item_count:
        faults.append(f"{ITEMS}: expected {item_count} different ids, found {len(set(item_ids))} in {len(item_ids)}")
    rows = {shape[0] for name, shape in shapes.items() if name.endswith("embedding.weight")}
    if rows != {item_count}:
        faults.append(f"{WEIGHTS}: expected the vectors of {item_count} items, found {sorted(rows)}")
    for name, value in found.items():
        if value != getattr(card, name):
            faults.append(f"{CARD}: {name}: expected {value}, as config.json has it, found {getattr(card, name)}")
    if has_texts != bool(card.text_scorer_digest):
        faults.append(f"{CARD}: text_scorer_digest: expected {'one' if has_texts else 'none'}, as config.json says")
    maps = card.confidence.maps.values()
    if not maps or any(len(points) < 2 or sorted(points) != points for points in maps):
        faults.append(f"{CARD}: confidence: expected maps of at least two rising points")
    return faults


def _of_texts(folder: Path, card: Card) -> list[str]:
    if not all((folder / name).is_file() for name in ("config.json", WEIGHTS, "tokenizer.json")):
        return ["expected config.json, model.safetensors and tokenizer.json"]
    try:
        shapes = tensors(folder / WEIGHTS)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except CheckpointError as error:
        return [str(error)]
    except (ValueError, KeyError, TypeError):  # JSON and UTF-8 errors are among them
        return ["config.json, tokenizer.json or the header of model.safetensors is not what it should be"]
    vocabulary = tokens.get("model", {}).get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max([*ids, *(token["id"] for token in tokens.get("added_tokens", []))], default=0)
    faults = []
    if largest >= config.get("vocab_size", 0):
        faults.append(
            f"tokenizer.json: its largest id is {largest}, the model knows {config.get('vocab_size', 0)} tokens"
        )
    if card.dimensions is not None and card.dimensions > config.get("hidden_size", 0):
        faults.append(f"{CARD}: {card.dimensions} dimensions of vectors that have {config.get('hidden_size', 0)}")
    if card.kind == "cross_encoder":
        # transformers writes neither where a head has two outputs: two are its default.
        outputs = config["num_labels"] if "num_labels" in config else len(config.get("id2label", ("no", "yes")))
        heads = [shape for name, shape in shapes.items() if name.endswith("weight") and any(h in name for h in _HEADS)]
        expected = len(card.class_gains) or 1
        if not any(shape[0] == expected for shape in heads):
            faults.append("model.safetensors: no trained head; loading would make a random one")
        if outputs != expected:
            faults.append(f"config.json: expected {expected} output{'s'[: expected > 1]}, found {outputs}")
        if len(card.calibration) < 2 or sorted(card.calibration) != card.calibration:
            faults.append(f"{CARD}: calibration: expected at least two rising points")
    return faults
