"""Masked language modelling on tiny models: what it learns, what it leaves as it was, what it saves."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from ecomspark.models import embedder, pretrain
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.loading import load_tokenizer
from ecomspark.models.new_encoder import Size, new_tokenizer

# Each colour has its thing: who has read it a few times knows a hidden word by the other.
PATTERN = ["red mug with red mug", "blue cup and plate for blue cup and plate", "green lamp of green lamp"]
CHINESE = [
    "红色陶瓷杯 500ml",
    "蓝色陶瓷杯 300ml mug",
    "红色灯 lamp for garden",
    "蓝色木门 door, red lamp",
    "陶瓷灯 a red mug",
]
SIZE = Size(layers=2, width=32, heads=2, inner_width=64, vocabulary=200)


def texts(of: list[str], times: int = 24) -> pd.DataFrame:
    rows = [(text, side) for side, count in (("train", times), ("validation", 4)) for text in of * count]
    return pd.DataFrame(rows, columns=["text", "side"])


def plan(models: Path, **changes: Any) -> pretrain.Plan:
    said = {
        "models_folder": models, "base": "tiny", "new": None, "name": "made", "card": Card(kind="encoder", base="tiny", max_tokens=48),
        "max_tokens": 24, "masked_share": 0.15, "epochs": 10, "batch_size": 8, "accumulation": 1, "learning_rate": 3e-3,
        "warmup_share": 0.1, "weight_decay": 0.01, "max_gradient_norm": 1.0, "patience": 10, "seed": 5, "threads": None,
    }  # fmt: skip
    return pretrain.Plan(**{**said, **changes})


def weights(made: Checkpoint) -> dict[str, Any]:
    return load_file(made.folder / "model.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.checkpoint(folder, kind="encoder")
    return folder


@pytest.fixture(scope="module")
def made(models: Path) -> Checkpoint:
    return pretrain.pretrain(plan(models), texts(PATTERN), lambda _: None)


def test_what_repeats_is_learnt_and_the_card_says_how_well(models: Path, made: Checkpoint) -> None:
    before, after = made.card.metrics["before"], made.card.metrics["after"]
    assert after["loss"] < before["loss"] - 1
    assert after["accuracy"] > before["accuracy"] + 0.2
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    assert 1 <= after["epoch"] <= 10
    base, now = weights(open_checkpoint(models, "tiny")), weights(made)
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.weight"):
        assert not (base[name] == now[name]).all()


def test_the_checkpoint_is_an_encoder_as_any_other(models: Path, made: Checkpoint) -> None:
    """No head that guesses, no pickle, nothing left behind; the base's pooler, which nothing trained, as it was."""
    base, now = weights(open_checkpoint(models, "tiny")), weights(made)
    assert set(now) == set(base)
    assert (now["pooler.dense.weight"] == base["pooler.dense.weight"]).all()
    assert {path.suffix for path in made.folder.iterdir()} <= {".safetensors", ".json", ".txt"}
    assert not list(models.glob("making-*"))
    vectors = embedder.load(made.folder, made.scorer_digest, token_budget=64).embed(["red mug", "blue cup"], "query")
    assert vectors.shape == (2, 32)
    classifier, loading = AutoModelForSequenceClassification.from_pretrained(
        made.folder, num_labels=1, output_loading_info=True
    )
    assert set(loading["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not loading["unexpected_keys"]


def test_the_same_seed_trains_the_same_weights_and_another_others(models: Path, made: Checkpoint) -> None:
    again = pretrain.pretrain(plan(models, name="again"), texts(PATTERN), lambda _: None)
    assert again.card.files == made.card.files
    assert again.card.metrics == made.card.metrics
    other = pretrain.pretrain(plan(models, name="other", seed=6), texts(PATTERN), lambda _: None)
    assert other.card.files["model.safetensors"] != made.card.files["model.safetensors"]


@pytest.mark.parametrize("style", sorted(tiny.ARCHITECTURES))
def test_the_head_is_tied_and_sees_hidden_tokens_alone(tmp_path: Path, style: str) -> None:
    """Of every architecture that the engine is tried on: the loss is what transformers finds over whole sequences."""
    base = tiny.checkpoint(tmp_path, kind="encoder", style=style)
    model, tokenizer = pretrain._begun(plan(tmp_path), base, [])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    loaded = AutoModel.from_pretrained(base.folder)
    assert torch.equal(model.get_input_embeddings().weight, loaded.get_input_embeddings().weight), "the base's own"
    batch = dict(tokenizer(["red mug with a blue cup", "lamp"], padding=True, return_tensors="pt"))
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 2], labels[0, 4], labels[1, 1] = 7, 9, 11
    model.eval()
    with torch.inference_mode():
        logits, answers = pretrain.guesses(model, {**batch, "labels": labels})
        whole = model(**batch, labels=labels)
    assert answers.tolist() == [7, 9, 11]
    assert torch.nn.functional.cross_entropy(logits, answers).item() == pytest.approx(whole.loss.item(), rel=1e-5)
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape, "the hook is gone"


def test_a_step_of_two_batches_is_a_mean_over_what_is_hidden_in_both(models: Path, monkeypatch: Any) -> None:
    """Of a mean of two means, a batch with little hidden would count for too much."""
    seen: list[tuple[int, int]] = []
    compute = pretrain._Trainer.compute_loss

    def recording(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        seen.append((int((inputs["labels"] != -100).sum()), int(num_items_in_batch)))
        loss = compute(self, model, inputs, return_outputs, num_items_in_batch)
        logits, answers = pretrain.guesses(model.eval(), inputs)
        mean = torch.nn.functional.cross_entropy(logits, answers)
        again = compute(self, model, inputs, num_items_in_batch=num_items_in_batch)
        assert again.item() == pytest.approx(mean.item() * seen[-1][0] / seen[-1][1], rel=1e-5)
        model.train()
        return loss

    monkeypatch.setattr(pretrain._Trainer, "compute_loss", recording)
    halves = plan(models, name="halves", batch_size=4, accumulation=2, epochs=1)
    pretrain.pretrain(halves, texts(PATTERN), lambda _: None)
    assert len(seen) == 18
    for (one, of_one), (other, of_other) in zip(seen[::2], seen[1::2], strict=True):
        assert of_one == of_other == one + other


def test_the_best_epoch_is_kept_and_patience_ends_the_rest(models: Path) -> None:
    said: list[dict[str, Any]] = []
    spoilt = plan(
        models, name="spoilt", learning_rate=0.3, warmup_share=0.0, max_gradient_norm=100.0, epochs=9, patience=2
    )
    made = pretrain.pretrain(spoilt, texts(PATTERN), said.append)
    losses = [line["masked"]["loss"] for line in said if line["step"] == "epoch"]
    best = losses.index(min(losses))
    assert len(losses) == min(9, best + 3), "two epochs after the best one it stops"
    assert len(losses) < 9, "this rate is meant to spoil it"
    assert made.card.metrics["after"]["loss"] == min(losses)
    assert made.card.metrics["after"]["epoch"] == best + 1
    # The weights are of that epoch, too: a run that ends there has the same.
    shorter = pretrain.pretrain(
        spoilt.model_copy(update={"name": "kept", "patience": best + 1}), texts(PATTERN), said.append
    )
    assert shorter.card.metrics["after"]["epoch"] == best + 1
    assert shorter.card.files == made.card.files


def test_a_new_vocabulary_has_characters_of_chinese_alone_and_words_of_english_whole() -> None:
    made = new_tokenizer(CHINESE * 3, 200, is_lowercase=True)
    assert made.tokenize("红色陶瓷 MUG, lamp") == ["红", "色", "陶", "瓷", "mug", ",", "lamp"]
    assert made.tokenize("红猫") == ["红", "[UNK]"], "never seen"
    assert made(["红"], ["杯"])["token_type_ids"] == [[0, 0, 0, 1, 1]]
    assert [made.pad_token_id, made.unk_token_id, made.mask_token_id] == [0, 1, 4]
    assert made.get_vocab() == new_tokenizer(CHINESE * 3, 200, is_lowercase=True).get_vocab()


def test_a_new_encoder_is_made_of_texts_alone(models: Path) -> None:
    card = Card(kind="encoder", base="nothing", max_tokens=32)
    made = [
        pretrain.pretrain(plan(models, base=None, new=SIZE, name=name, card=card), texts(CHINESE), lambda _: None)
        for name in ("new-1", "new-2")
    ]
    assert made[0].card.files == made[1].card.files, "the same texts and seed, the same tokenizer and weights"
    assert made[0].card.metrics["after"]["loss"] < made[0].card.metrics["before"]["loss"] - 0.5
    assert load_tokenizer(made[0].folder).tokenize("陶瓷杯") == ["陶", "瓷", "杯"]
    vectors = embedder.load(made[0].folder, made[0].scorer_digest, token_budget=64).embed(["陶瓷杯"], "query")
    assert vectors.shape == (1, 32)
    AutoModelForSequenceClassification.from_pretrained(made[0].folder, num_labels=1)
    assert "decoder" not in " ".join(weights(made[0]))


def test_what_cannot_be_trained_is_refused(models: Path) -> None:
    with pytest.raises(ValueError, match="0 to validate on"):
        pretrain.pretrain(plan(models), texts(PATTERN).query("side == 'train'"), lambda _: None)
    for base, new in (("tiny", SIZE), (None, None)):
        with pytest.raises(ValueError, match="either a base or the size"):
            pretrain.pretrain(plan(models, base=base, new=new, name="x"), texts(PATTERN), lambda _: None)
    assert not (models / "x").exists()


def test_the_process_says_how_far_it_is_and_no_text(models: Path, tmp_path: Path) -> None:
    asked = plan(models, name="by-process", epochs=1)
    (tmp_path / "plan.json").write_text(asked.model_dump_json())
    texts(PATTERN).to_parquet(tmp_path / "texts.parquet")
    command = [sys.executable, "-m", "ecomspark.models.pretrain", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"step"')]
    assert [line["step"] for line in said] == ["before", "epoch", "done"]
    assert said[-1]["name"] == "by-process"
    assert "mug" not in ended.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, json.loads(again.stdout.splitlines()[-1])["error"]) == (1, "CheckpointError")
