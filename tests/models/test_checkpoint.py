"""What a models folder may hold, and what is refused before anything is loaded (R14, S1, S2)."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny

from ecomspark.errors import CheckpointError
from ecomspark.models import cross_encoder
from ecomspark.models.checkpoint import Card, adopt, open_checkpoint, tensors
from ecomspark.text import TextRecipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.checkpoint(tmp_path / "models").folder


def reseal(folder: Path) -> None:
    """Write a card that fits the folder as it is now: what somebody would do who meant to deceive, or meant well."""
    from ecomspark.models.checkpoint import CARD, sha256

    card = json.loads((folder / CARD).read_text())
    card["files"] = {p.name: sha256(p) for p in folder.iterdir() if p.name != CARD}
    (folder / CARD).write_text(json.dumps(card))


def refused(folder: Path, saying: str) -> None:
    with pytest.raises(CheckpointError, match=saying):
        open_checkpoint(folder.parent, folder.name, "cross_encoder")


def test_a_sealed_checkpoint_verifies_and_keeps_its_digest(folder: Path) -> None:
    opened = open_checkpoint(folder.parent, "tiny", "cross_encoder")
    assert opened.scorer_digest == open_checkpoint(folder.parent, "tiny").scorer_digest
    assert len(opened.scorer_digest) == 16


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file_is_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(folder, "in the card, not in the folder")


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(folder, "sha256 differs")
    reseal(folder)
    refused(folder, "cut short")
    weights.write_bytes(b"\xff" * 20)
    reseal(folder)
    refused(folder, "not a whole safetensors file")


def test_an_altered_file_and_one_too_many_are_both_named(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder.parent, "tiny")
    assert "config.json: not the file that the card was written for" in str(error.value)
    assert "notes.txt: in the folder, not in the card" in str(error.value)


def test_the_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["model"]["vocab"]["zebra"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    reseal(folder)
    refused(folder, "its largest id is 5000")


def test_an_encoder_in_the_place_of_a_cross_encoder_is_refused(tmp_path: Path) -> None:
    encoder = tiny.checkpoint(tmp_path / "models", "enc", "encoder").folder
    with pytest.raises(CheckpointError, match="expected a cross_encoder, found a encoder"):
        open_checkpoint(encoder.parent, "enc", "cross_encoder")
    card = json.loads((encoder / "card.json").read_text())
    card |= {"kind": "cross_encoder", "calibration": [[-1, 0.1], [1, 0.9]]}
    (encoder / "card.json").write_text(json.dumps(card))
    refused(encoder, "no trained head; loading would make a random one")


def test_a_head_that_loading_would_make_up_is_refused_by_the_loader_too(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    # A name that passes for a head on the outside; the model still finds its own head missing.
    state["extra_classifier.weight"] = state.pop("classifier.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    reseal(folder)
    digest = open_checkpoint(folder.parent, "tiny").scorer_digest
    with pytest.raises(CheckpointError, match=r"newly initialised instead of loaded: classifier\.weight"):
        cross_encoder.load(folder, digest, token_budget=1024)


def test_a_card_without_calibration_is_refused(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["calibration"] = []
    (folder / "card.json").write_text(json.dumps(card))
    refused(folder, "at least two rising points")


def test_a_link_within_the_models_folder_is_refused_too(folder: Path) -> None:
    """What it points to may change under a card that still fits."""
    (folder / "config.json").rename(folder.parent / "config.json")
    os.symlink(folder.parent / "config.json", folder / "config.json")
    refused(folder, "config.json: a link; expected the file itself")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "state.pkl", "optimizer.pt"])
def test_pickles_are_refused_unopened(folder: Path, name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / name).write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    reseal(folder)
    refused(folder, "only safetensors are loaded")
    assert not canary.exists()


def test_remote_code_is_refused(folder: Path) -> None:
    (folder / "modeling_x.py").write_text("raise SystemExit('this ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_x.X"}
    (folder / "config.json").write_text(json.dumps(config))
    reseal(folder)
    refused(folder, "code beside the weights is never run")
    refused(folder, "names remote code")


def test_a_link_that_leaves_the_models_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    os.symlink(outside, folder / "model.safetensors")
    refused(folder, "a link that leaves the models folder")


@pytest.mark.parametrize(
    "name",
    ["sentence-transformers/all-MiniLM-L6-v2", "https://example.org/m", "../tiny", "/etc", "..", ".hidden/../x", ""],
)
def test_a_hub_name_an_address_or_a_path_is_refused_without_a_socket(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a socket was opened"))
    with pytest.raises(CheckpointError, match="expected the name of a folder"):
        open_checkpoint(folder.parent, name)


def test_an_unknown_name_says_which_there_are(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\(there: tiny\)"):
        open_checkpoint(folder.parent, "tinny")


def test_a_name_is_taken_once(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="choose another name"):
        tiny.checkpoint(folder.parent, "tiny")
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"], "nothing half-made is left behind"


def test_all_that_decides_a_logit_is_in_the_scorer_digest_and_nothing_else(folder: Path) -> None:
    card = open_checkpoint(folder.parent, "tiny").card
    for change in (
        {"max_tokens": 47},
        {"query_max_tokens": 11},
        {"recipe": TextRecipe(is_lowercase=False)},
        {"files": {**card.files, "model.safetensors": "0" * 64}},
    ):
        assert card.model_copy(update=change).scorer_digest != card.scorer_digest, change
    for change in ({"metrics": {"after": {"ndcg@10": 1.0}}}, {"calibration": [(0.0, 0.1), (1.0, 0.2)]}, {"base": "x"}):
        assert card.model_copy(update=change).scorer_digest == card.scorer_digest, change
    encoder = Card(kind="encoder", base="x")
    for change in ({"pooling": "first"}, {"query_prefix": "query: "}, {"passage_prefix": "passage: "}):
        assert encoder.model_copy(update=change).scorer_digest != encoder.scorer_digest, change


def test_weights_from_elsewhere_are_adopted_without_their_pickles(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    tiny.model("encoder").save_pretrained(elsewhere)
    tiny.tokenizer().save_pretrained(elsewhere)
    (elsewhere / "pytorch_model.bin").write_bytes(b"anything")
    adopted = adopt(elsewhere, tmp_path / "models", "base", Card(kind="encoder", base="elsewhere"))
    assert not (adopted.folder / "pytorch_model.bin").exists()
    assert open_checkpoint(tmp_path / "models", "base", "encoder").scorer_digest == adopted.scorer_digest
    with pytest.raises(CheckpointError, match=r"found no config\.json"):
        adopt(tmp_path, tmp_path / "models", "other", Card(kind="encoder", base="x"))
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["base"]


def test_shapes_are_read_without_torch(folder: Path) -> None:
    assert tensors(folder / "model.safetensors")["classifier.weight"] == [1, 32]
