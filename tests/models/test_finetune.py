"""Training a two-layer model, end to end, in every way that the settings offer."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from safetensors.numpy import load_file

from ecomspark.errors import CheckpointError
from ecomspark.models import cross_encoder
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.classes import class_gains, class_of, expected_gain_logits
from ecomspark.models.finetune import Learnt, Plan, fine_tune
from ecomspark.models.heads import field_classes, rows_of
from ecomspark.models.options import Auxiliary, Training

GAINS = {0: 0.0, 1: 1 / 7, 2: 3 / 7, 3: 1.0}
THINGS = ["red mug", "blue cup", "green plate", "glass teapot", "candle holder", "wooden box", "paper bag",
          "white clock", "garden light", "wall lamp", "door sign", "cake stand"]  # fmt: skip
ENCODER = "encoder.layer.0.attention.self.query.weight"


def judged() -> pd.DataFrame:
    """Every thing asked for as a query, every other judged for it: 3 itself, 2 a shared word, else 0 or 1 by turns."""
    rows = []
    for place, query in enumerate(THINGS):
        for other, passage in enumerate(THINGS):
            shared = set(query.split()) & set(passage.split())
            grade = 3 if query == passage else 2 if shared else (place + other) % 2
            side = "validation" if place >= 9 else "train"
            rows.append(
                (
                    f"q{place:02}",
                    query,
                    f"i{other:02}",
                    f"set of {passage} | gift",
                    float(grade),
                    side,
                    passage.split()[1],
                )
            )
    return pd.DataFrame(
        rows, columns=["query_id", "query_text", "item_id", "passage_text", "grade", "side", "category"]
    )


def plan(models: Path, name: str, **settings: Any) -> Plan:
    training = {"epochs": 2, "batch_size": 8, "threads": 1, "learning_rate": 1e-3, "precision": "fp32", **settings}
    card = Card(kind="cross_encoder", base="base", max_tokens=48, query_max_tokens=12)
    if not (models / "base").exists():
        tiny.checkpoint(models, "base", "encoder")
    return Plan(
        models_folder=models, base="base", name=name, card=card, gains=GAINS, training=Training.model_validate(training)
    )


def trained(models: Path, name: str = "made", examples: pd.DataFrame | None = None, **settings: Any) -> Checkpoint:
    progress: list[dict[str, Any]] = []
    return fine_tune(plan(models, name, **settings), judged() if examples is None else examples, progress.append)


def weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """By the encoder's own names: a classifier puts `bert.` before them."""
    return {name.removeprefix("bert."): of for name, of in load_file(checkpoint.folder / "model.safetensors").items()}


def moved(models: Path, made: Checkpoint) -> set[str]:
    """The encoder's weights that are not the base's."""
    before, after = weights(open_checkpoint(models, "base")), weights(made)
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize("head", ["bce", "mse", "classes", "ranknet", "lambda", "listnet"])
def test_every_head_learns_the_training_pairs_and_scores_through_the_gate(tmp_path: Path, head: str) -> None:
    """A grade that the passage alone decides, asked of the pairs that were learnt, so that it must be seen to learn."""
    rows = judged().assign(grade=lambda of: [3.0 if "glass" in text or "box" in text else 1.0 * ("red" in text)
                                             for text in of["passage_text"]])  # fmt: skip
    twice = pd.concat([rows[rows["side"] == "train"], rows[rows["side"] == "train"].assign(side="validation")])
    made = trained(tmp_path, head, twice, head=head, epochs=8, patience=8, learning_rate=3e-3, trains_word_vectors=True)
    assert made.card.metrics["after"]["ndcg@10"] > 0.95 > made.card.metrics["before"]["ndcg@10"]
    learnt = rows[rows["side"] == "train"]
    scorer = cross_encoder.load(made.folder, made.scorer_digest, token_budget=500)
    logits = scorer.score(list(learnt["query_text"]), list(learnt["passage_text"])).logits
    assert np.corrcoef(logits, learnt["grade"])[0, 1] > 0.6
    points = made.card.calibration
    assert points == sorted(points)
    assert all(0 < gain < 1 for _, gain in points)
    assert len(made.card.class_gains) == (4 if head == "classes" else 0)


def test_the_head_that_is_best_on_validation_is_taken_and_the_others_are_said(tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    auto = {"heads": ["bce", "listnet"], "share": 0.7}
    made = fine_tune(plan(tmp_path, "auto", head="auto", auto=auto, epochs=1), judged(), progress.append)
    found = made.card.metrics["auto"]
    assert set(found) == {"bce", "listnet"}
    chosen = next(said for said in progress if said["step"] == "auto")
    assert chosen["takes"] == max(found, key=lambda head: found[head])
    tried = [said["pairs"] for said in progress if said["step"] == "head"]
    assert tried == [72, 72], "0.7 of nine queries are six, of twelve pairs each"


def test_a_head_that_cannot_be_learnt_from_the_part_is_left_out(tmp_path: Path) -> None:
    """Every query has items of one grade only: nothing to compare."""
    progress: list[dict[str, Any]] = []
    rows = judged().assign(grade=lambda of: (of["query_id"].str[1:].astype(int) % 2) * 3.0)
    settings = {"head": "auto", "auto": {"heads": ["listnet", "mse"], "share": 0.7}, "epochs": 1}
    made = fine_tune(plan(tmp_path, "auto", **settings), rows, progress.append)
    assert [said["head"] for said in progress if said["step"] == "left"] == ["listnet"]
    assert set(made.card.metrics["auto"]) == {"mse"}
    assert {said.get("on_trial") for said in progress if said["step"] == "epoch"} == {"mse", None}
    settings["auto"]["heads"] = ["listnet", "ranknet"]  # type: ignore[index]
    with pytest.raises(ValueError, match=r"none of the heads can be learnt.*raise auto\.share"):
        fine_tune(plan(tmp_path, "none", **settings), rows, progress.append)


def test_expected_gain_is_the_mean_of_the_gains_by_their_probabilities() -> None:
    outputs = torch.tensor([[0.0, 1.0, 2.0], [40.0, 0.0, 0.0], [0.0, 0.0, 60.0]])
    gains = [0.0, 0.5, 1.0]
    logits = expected_gain_logits(outputs, gains)
    p = torch.softmax(outputs[0].double(), 0)
    expected = float(0.5 * p[1] + p[2])
    assert logits[0].item() == pytest.approx(math.log(expected / (1 - expected)), abs=1e-6)
    assert logits[1] < -35 < 55 < logits[2], "where the expected gain itself is 0 or 1 in single precision"


def test_grades_that_are_means_have_a_class_only_between_edges() -> None:
    with pytest.raises(ValueError, match="expected grades of 0, 1, 2, 3, found 1 others; set class_edges"):
        class_of([1.0, 2.33], GAINS, [])
    assert class_of([0, 1.4, 1.5, 2.33, 3], GAINS, [1.5, 2.5]).tolist() == [0, 0, 1, 1, 2]
    # 2.5 lies half-way between the gains 3/7 and 1 of its neighbours.
    assert class_gains([0.0, 2.0, 2.5], GAINS, [1.0, 2.25]) == pytest.approx([0, 3 / 7, 5 / 7])
    with pytest.raises(ValueError, match=r"each of 3 classes, none in \[1\]"):
        class_gains([0.0, 2.5], GAINS, [1.0, 2.25])


def test_labels_are_what_each_loss_reads() -> None:
    rows = judged().iloc[:3].assign(grade=[3.0, 1.5, 0.0])
    assert rows_of("bce", rows, GAINS, [], None)["label"] == [1.0, 0.5, 0.0]
    assert rows_of("bce", rows.assign(grade=[1.0, 2.0, 3.0]), {1: 0.0, 2: 0.5, 3: 1.0}, [], None)["label"] == [
        0,
        0.5,
        1,
    ]
    whole = rows_of("listnet", rows, GAINS, [], None)
    assert whole["label"] == [[3.0, 1.5, 0.0]]
    assert whole["passage"] == [list(rows["passage_text"])]
    with pytest.raises(ValueError, match="no training query has items of two grades"):
        rows_of("ranknet", rows.assign(grade=1.0), GAINS, [], None)


def test_the_auxiliary_head_names_the_frequent_values_only() -> None:
    rows = judged().iloc[:4].assign(category=["mug", "mug", "cup", None])
    assert field_classes(rows, Auxiliary(field="category", max_classes=2)) == [0.0, 0.0, 1.0, -1.0]
    assert field_classes(rows.assign(category=["a", "b", "b", "c"]), Auxiliary(field="category", max_classes=2)) == [
        1,
        0,
        0,
        -1,
    ]


def test_what_stays_stays_and_what_learns_moves(tmp_path: Path) -> None:
    lower, upper = ENCODER, ENCODER.replace("layer.0", "layer.1")
    words = "embeddings.word_embeddings.weight"
    everything = moved(tmp_path, trained(tmp_path, "all", trains_word_vectors=True))
    assert {lower, upper, words} <= everything
    assert words not in moved(tmp_path, trained(tmp_path, "still-words"))
    frozen = moved(tmp_path, trained(tmp_path, "frozen", frozen_layers=1))
    assert upper in frozen
    assert not any(name.startswith(("embeddings.", "encoder.layer.0.")) for name in frozen)
    head = moved(tmp_path, trained(tmp_path, "head", trains="head"))
    assert head == {"pooler.dense.weight", "pooler.dense.bias"}
    with pytest.raises(ValueError, match="frozen_layers: expected at most 2, found 3"):
        trained(tmp_path, "too-many", frozen_layers=3)


def test_lora_is_merged_into_plain_weights(tmp_path: Path) -> None:
    made = trained(tmp_path, "lora", trains="lora", lora={"rank": 2}, learning_rate=1e-2)
    before, after = weights(open_checkpoint(tmp_path, "base")), weights(made)
    assert set(before) < set(after), "no weight of an adapter is left, the classifier has come to them"
    assert set(after) - set(before) == {"classifier.weight", "classifier.bias"}
    rank = np.linalg.matrix_rank((after[ENCODER] - before[ENCODER]).astype(np.float64), tol=1e-5)
    assert rank == 2, "the change of a matrix has the rank asked for"
    assert np.array_equal(before[ENCODER.replace("weight", "bias")], after[ENCODER.replace("weight", "bias")])


def test_lower_layers_learn_more_slowly(tmp_path: Path) -> None:
    """Adam's steps are about as long as the rate: so the changes show the rates."""
    made = trained(tmp_path, "rates", layer_rate=0.1, epochs=1, weight_decay=0.0)
    before, after = weights(open_checkpoint(tmp_path, "base")), weights(made)
    step = {depth: np.abs(after[name] - before[name]).mean() for depth in (0, 1)
            for name in [ENCODER.replace("layer.0", f"layer.{depth}")]}  # fmt: skip
    assert 5 < step[1] / step[0] < 20


@pytest.mark.parametrize(
    "settings",
    [{"adversarial_noise": 1.0}, {"auxiliary": {"field": "category", "weight": 1.0}}, {"dropout": 0.4}, {"accumulation": 2},
     {"schedule": "cosine"}, {"warmup_share": 0.9}, {"weight_decay": 0.9}, {"max_gradient_norm": 1e-3}, {"head_rate": 0.1},
     {"precision": "bf16"}, {"optimiser": "adafactor"}, {"augmentation": {"typos": 1.0}}, {"augmentation": {"field_drop": 1.0}},
     {"augmentation": {"token_drop": 1.0}}, {"augmentation": {"units": 1.0}},
     {"augmentation": {"synonyms": 1.0, "synonyms_of": {"mug": ["cup"]}}}, {"groups_by_length": False}],
    ids=str,
)  # fmt: skip
def test_every_option_changes_what_is_learnt(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = judged().replace({"query_text": {"red mug": "red mug 12 oz set"}})
    plain, made = trained(tmp_path, "plain", rows), trained(tmp_path, "made", rows, **settings)
    assert not np.array_equal(weights(plain)[ENCODER], weights(made)[ENCODER])
    assert made.card.settings["precision"] == settings.get("precision", "fp32")
    read = made.card.metrics["read"]["tokens"]
    if "adversarial_noise" in settings:
        assert read == 2 * plain.card.metrics["read"]["tokens"], "the second pass is counted, too"


def test_recomputing_happens_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, given = [], torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return given(*args, **named)

    plain = trained(tmp_path, "plain")
    for module in ("torch.utils.checkpoint", "transformers.modeling_utils"):
        monkeypatch.setattr(f"{module}.checkpoint", counted)
    assert not calls
    made = trained(tmp_path, "made", recomputes=True)
    assert len(calls) >= 2 * 2 * 14, "two layers, two epochs of fourteen steps"
    assert np.allclose(weights(plain)[ENCODER], weights(made)[ENCODER], atol=1e-6)


def test_only_training_queries_are_changed_and_validation_is_read_as_it_is(tmp_path: Path) -> None:
    examples, of = judged(), plan(tmp_path, "made", augmentation={"typos": 1.0})
    base = open_checkpoint(tmp_path, "base")
    train = examples[examples["side"] == "train"].reset_index(drop=True)
    learnt = Learnt(of, base, of.training, train)
    counts = learnt._change(train, 0)
    first = dict(learnt.reader.changed)
    assert counts["typos"] == len(first) == len(train) - len(THINGS), "`red mug` has no word of four letters"
    assert {query for query, _ in first} == set(train["query_text"]) - {"red mug"}
    assert all(passage == other for (_, passage), (_, other) in first.items())
    learnt._change(train, 1)
    assert first != learnt.reader.changed, "drawn anew in each epoch"
    validation = examples[examples["side"] == "validation"]
    assert not {(row.query_text, row.passage_text) for row in validation.itertuples()} & set(first)


def test_hard_negatives_come_to_the_training_pairs_with_the_worst_grade(tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    examples = judged().assign(place=np.nan)
    taken = (examples["side"] == "train") & (examples["grade"] == 0)
    examples.loc[taken, "side"], examples.loc[taken, "grade"] = "candidate", np.nan
    examples.loc[taken, "place"] = 7
    negatives = {"per_query": 1, "max_share_of_positive": 1.0, "max_similarity": 1.0}
    made = fine_tune(plan(tmp_path, "made", hard_negatives=negatives, epochs=1), examples, progress.append)
    counts = next(said for said in progress if said["step"] == "negatives")
    assert 0 < counts["taken"] <= 9
    without = trained(tmp_path, "without", examples[examples["side"] != "candidate"], epochs=1)
    tokens = [of.card.metrics["read"]["tokens"] for of in (made, without)]
    assert tokens[0] > tokens[1], "they were read"


def test_teachers_change_what_is_learnt_and_their_candidates_are_read(tmp_path: Path) -> None:
    """A teacher that has learnt the opposite is followed where its share is all, against the grades."""
    progress: list[dict[str, Any]] = []
    train = (
        judged()
        .query("side == 'train'")
        .assign(grade=lambda of: [3.0 * (place % 2) for place in of["item_id"].str[1:].astype(int)])
    )
    rows = pd.concat([train, train.assign(side="validation")])
    learns = {"epochs": 8, "patience": 8, "learning_rate": 3e-3, "trains_word_vectors": True}
    opposite = rows.assign(grade=3.0 - rows["grade"])
    teacher = trained(tmp_path, "opposite", opposite, **learns)
    taught = pd.concat([train, opposite[opposite["side"] == "validation"]])
    pupil = trained(tmp_path, "pupil", taught, distillation={"teachers": [teacher.name], "share": 1.0}, **learns)
    scorer = cross_encoder.load(pupil.folder, pupil.scorer_digest, token_budget=500)
    logits = scorer.score(list(train["query_text"]), list(train["passage_text"])).logits
    assert np.corrcoef(logits, train["grade"])[0, 1] < -0.3
    examples = judged().assign(place=np.nan)
    taken = (examples["side"] == "train") & (examples["grade"] == 0)
    examples.loc[taken, "side"], examples.loc[taken, "grade"] = "candidate", np.nan
    examples.loc[taken, "place"] = 7
    settings = {"teachers": [teacher.name], "candidates_per_query": 1}
    made = fine_tune(plan(tmp_path, "made", distillation=settings, epochs=1), examples, progress.append)
    counts = next(said for said in progress if said["step"] == "distilled")
    assert counts == {"step": "distilled", "pairs": int((examples["side"] == "train").sum()), "candidates": 9}
    without = trained(tmp_path, "without", examples[examples["side"] != "candidate"], epochs=1)
    tokens = [of.card.metrics["read"]["tokens"] for of in (made, without)]
    assert tokens[0] > tokens[1], "they were read"


def test_the_same_seed_gives_the_same_weights_and_another_others(tmp_path: Path) -> None:
    one, two, other = (trained(tmp_path, name, seed=seed) for name, seed in (("one", 1), ("two", 1), ("other", 2)))
    assert one.card.files["model.safetensors"] == two.card.files["model.safetensors"]
    assert one.card.calibration == two.card.calibration
    assert one.card.files["model.safetensors"] != other.card.files["model.safetensors"]


@pytest.mark.parametrize("settings", [{}, {"trains": "lora"}, {"head": "lambda", "augmentation": {"typos": 0.5}},
                                      {"auxiliary": {"field": "category"}}], ids=str)  # fmt: skip
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Ended in the middle of the second epoch, between two kept states, by an error in a progress line."""
    undisturbed = trained(tmp_path, "whole", epochs=3, patience=9, **settings)
    kept = {"resume_folder": str(tmp_path / "kept"), "resume_steps": 3, "epochs": 3, "patience": 9, **settings}
    epochs = []

    def dies(progress: dict[str, Any]) -> None:
        if progress["step"] == "epoch":
            epochs.append(progress["at"])
            if len(epochs) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(plan(tmp_path, "cut", **kept), judged(), dies)
    states = sorted((tmp_path / "kept" / "cut").glob("checkpoint-*"))
    assert states, "something was kept to go on with"
    assert not [
        path for path in (tmp_path / "kept").rglob("*") if path.name in ("training_args.bin", "pytorch_model.bin")
    ]
    seen: list[dict[str, Any]] = []
    resumed = fine_tune(plan(tmp_path, "cut", **kept), judged(), seen.append)
    before, after = weights(undisturbed), weights(resumed)
    assert max(np.abs(before[name] - after[name]).max() for name in before) <= 1e-6
    assert resumed.card.metrics["after"] == undisturbed.card.metrics["after"]
    assert len([said for said in seen if said["step"] == "epoch"]) < 3, "it did not start again"
    assert not (tmp_path / "kept" / "cut").exists(), "what was kept is taken away at the end"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "kept") == ["base", "cut", "whole"]


@pytest.mark.parametrize("epochs", [1, 1.5])
def test_a_training_cut_while_it_was_judged_at_its_end_is_judged_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: float
) -> None:
    """The last state is kept before the last look: nothing is left to train then."""
    settings = {"epochs": epochs, "resume_folder": str(tmp_path / "kept"), "resume_steps": 1}
    whole = trained(tmp_path, "whole", epochs=epochs)
    looks, logits = [], Learnt.logits

    def cut(learnt: Learnt, pairs: pd.DataFrame) -> Any:
        looks.append(1)
        if len(looks) == math.ceil(epochs):
            raise KeyboardInterrupt
        return logits(learnt, pairs)

    with monkeypatch.context() as patched:
        patched.setattr(Learnt, "logits", cut)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, "cut", **settings)
    made = trained(tmp_path, "cut", **settings)
    assert made.card.metrics["after"] == whole.card.metrics["after"]
    assert made.card.metrics["read"]["tokens"] == 0, "nothing was read again"
    assert made.card.files["model.safetensors"] == whole.card.files["model.safetensors"]


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    of = plan(tmp_path / "models", "made", epochs=30, patience=30, resume_folder=str(tmp_path / "kept"), resume_steps=2)
    (folder / "plan.json").write_text(of.model_dump_json())
    judged().to_parquet(folder / "examples.parquet")
    command = [sys.executable, "-m", "ecomspark.models.finetune", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list((tmp_path / "kept").glob("made/checkpoint-*/trainer_state.json")):
        time.sleep(0.02)
    assert child.poll() is None, "it was under way when it was killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "models" / "made").exists()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(out.splitlines()[-1])["step"] == "done"
    assert open_checkpoint(tmp_path / "models", "made").card.metrics["after"]["ndcg@10"] > 0


def test_a_state_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    from ecomspark.models.trainer import _last

    for step, text in ((4, "{}"), (12, '{"cut')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    assert _last(tmp_path) == str(tmp_path / "checkpoint-4")


def test_batches_hold_pairs_of_like_length_and_every_pair_once_an_epoch() -> None:
    from datasets import Dataset

    from ecomspark.models.trainer import ByLength

    lengths = np.random.default_rng(3).integers(5, 60, 500)
    sampler = ByLength(Dataset.from_dict({"x": list(range(500))}), 16, lengths, seed=1)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    assert len(batches) == len(sampler)
    padding = sum(lengths[batch].max() * len(batch) - lengths[batch].sum() for batch in batches)
    assert padding < 0.05 * lengths.sum()
    assert list(sampler) == batches, "an epoch is the same whoever asks again"
    sampler.set_epoch(1)
    assert list(sampler) != batches
    assert [len(batch) for batch in batches[:3]] == [16, 16, 16]
    assert lengths[batches[0]].max() != lengths.max() or lengths[batches[1]].max() != lengths.max(), (
        "not sorted over all"
    )


def test_training_stops_when_patience_is_out_and_the_best_state_is_sealed(tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    of = plan(tmp_path, "made", epochs=40, patience=2, validations=2, learning_rate=0.05)
    made = fine_tune(of, judged(), progress.append)
    looks = [said["ndcg@10"] for said in progress if said["step"] == "epoch"]
    assert len(looks) < 80
    best = looks.index(max(looks))
    assert len(looks) - 1 - best == 2
    assert made.card.metrics["after"]["ndcg@10"] == max(looks)


def test_the_state_that_is_kept_is_the_best_by_what_was_asked(tmp_path: Path) -> None:
    best = {}
    for by, key in (("ndcg", "ndcg@10"), ("spearman", "spearman")):
        progress: list[dict[str, Any]] = []
        of = plan(tmp_path, by, chosen_by=by, epochs=6, validations=3, patience=99, learning_rate=3e-3)
        made = fine_tune(of, judged(), progress.append)
        looks = [said for said in progress if said["step"] == "epoch"]
        at = max(range(len(looks)), key=lambda place, of=looks, key=key: (of[place][key], -place))  # type: ignore[misc]
        assert made.card.metrics["after"][key] == looks[at][key] == looks[-1]["best"]
        validation = judged()[judged()["side"] == "validation"]
        scorer = cross_encoder.load(made.folder, made.scorer_digest, gpu="cpu", token_budget=500)
        logits = scorer.score(list(validation["query_text"]), list(validation["passage_text"])).logits
        own = pd.Series(logits).corr(validation["grade"].reset_index(drop=True), method="spearman")
        assert own == pytest.approx(looks[at]["spearman"], abs=1e-6)
        best[by] = at
    assert best["ndcg"] != best["spearman"], "a data set on which the two agree shows nothing"


def test_a_part_of_an_epoch_is_trained_and_judged_at_its_end(tmp_path: Path) -> None:
    progress: list[dict[str, Any]] = []
    made = fine_tune(plan(tmp_path, "made", epochs=1.5, batch_size=9, patience=9), judged(), progress.append)
    looks = [(said["at"], said["global_step"]) for said in progress if said["step"] == "epoch"]
    assert looks == [(1.0, 12), (1.5, 18)], "of 108 pairs"
    whole = trained(tmp_path, "whole", epochs=2, batch_size=9, patience=9)
    assert made.card.metrics["read"]["tokens"] < whole.card.metrics["read"]["tokens"]


def test_head_and_options_that_do_not_go_together_are_refused() -> None:
    for settings, said in (
        ({"head": "lambda", "auxiliary": {"field": "brand"}}, "auxiliary: needs a head of bce, mse, classes"),
        ({"trains": "lora", "frozen_layers": 1}, "are of `trains: all`, found lora"),
        ({"trains": "head", "adversarial_noise": 1.0}, "nothing below the head would learn"),
        ({"class_edges": [2.0, 1.0]}, "class_edges must rise"),
    ):
        with pytest.raises(ValueError, match=said):
            Training.model_validate(settings)


def test_a_classifier_of_two_classes_opens(tmp_path: Path) -> None:
    """transformers leaves two labels, its default, out of the configuration."""
    made = trained(tmp_path, "made", head="classes", class_edges=[1.5], epochs=1)
    assert len(open_checkpoint(tmp_path, "made", "cross_encoder").card.class_gains) == 2
    assert cross_encoder.load(made.folder, made.scorer_digest, token_budget=99).score(
        ["red mug"], ["cup"]
    ).logits.shape == (1,)


def test_a_classifier_whose_card_says_another_count_of_classes_is_refused(tmp_path: Path) -> None:
    made = trained(tmp_path, "made", head="classes", epochs=1)
    card = json.loads((made.folder / "card.json").read_text())
    (made.folder / "card.json").write_text(json.dumps({**card, "class_gains": [0.0, 0.5, 1.0]}))
    with pytest.raises(CheckpointError, match="expected 3 outputs, found 4"):
        open_checkpoint(tmp_path, "made")
