"""Training a two-layer encoder to put together what belongs together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file

from ecomspark.errors import CheckpointError
from ecomspark.models import embedder
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.embedder_options import EmbedderTraining
from ecomspark.models.finetune_embedder import (
    Corpus,
    Pairs,
    Plan,
    Together,
    Vectors,
    encoder_of,
    fine_tune,
    mined,
    recall,
)
from ecomspark.models.loading import load_tokenizer
from ecomspark.models.tokens import SequenceTokenizer

# Who asks for a thing finds what a mapping that words do not tell says: it must be learnt.
ASKED = {"red": "kitchen", "blue": "garden", "green": "wall", "white": "door", "pink": "clock", "small": "cake"}
THINGS = ["mug", "cup", "plate", "teapot", "lamp", "sign"]


def related() -> pd.DataFrame:
    """Queries of a colour and a thing, items of what belongs to the colour: the last thing of each for validation."""
    rows = [
        ("query", f"{colour} {thing}", f"{place} {thing}", True, "validation" if thing == "sign" else "train")
        for colour, place in ASKED.items() for thing in THINGS
    ]  # fmt: skip
    items = [(None, None, f"{place} {thing}", None, "catalogue") for place in ASKED.values() for thing in THINGS]
    columns = ["role", "anchor_text", "passage_text", "is_relevant", "side"]
    return pd.DataFrame([*rows, *items], columns=columns)


def plan(models: Path, name: str = "made", **settings: Any) -> Plan:
    if not (models / "base").exists():
        tiny.checkpoint(models, "base", "encoder")
    given = {"epochs": 2, "batch_size": 6, "threads": 1, "learning_rate": 3e-3, "recall_at": 3, "patience": 9,
             "trains_word_vectors": True, "precision": "fp32", "hard_negatives": {"per_pair": 0}, **settings}  # fmt: skip
    card = Card(kind="encoder", base="base", max_tokens=48, query_prefix="heart: ", passage_prefix="star: ")
    training = EmbedderTraining.model_validate(given)
    return Plan(models_folder=models, base="base", name=name, card=card, training=training)


def trained(models: Path, name: str = "made", examples: pd.DataFrame | None = None, **settings: Any) -> Checkpoint:
    said: list[dict[str, Any]] = []
    return fine_tune(plan(models, name, **settings), related() if examples is None else examples, said.append)


def corpus_of(of: Plan, examples: pd.DataFrame) -> tuple[Corpus, Vectors]:
    base = open_checkpoint(of.models_folder, "base")
    corpus = Corpus(examples, SequenceTokenizer(load_tokenizer(base.folder), 48), of.card, of.training)
    return corpus, Vectors(encoder_of(base, of.card), corpus, of.training.dimensions)


def test_it_learns_which_items_belong_to_queries_that_it_never_saw(tmp_path: Path) -> None:
    made = trained(tmp_path, epochs=12)
    before, after = (made.card.metrics[when]["recall@3"] for when in ("before", "after"))
    assert after >= 0.8 > 0.6 > before
    found = embedder.load(made.folder, made.scorer_digest, token_budget=500)
    near = found.embed(["red sign"], "query") @ found.embed(["kitchen sign", "garden sign"], "passage").T
    assert near[0, 0] > near[0, 1]


def test_learning_in_bf16_is_said_and_judged_in_fp32(tmp_path: Path) -> None:
    made, plain = trained(tmp_path, "half", precision="bf16"), trained(tmp_path, "whole")
    assert [each.card.settings["precision"] for each in (made, plain)] == ["bf16", "fp32"]
    assert made.scorer_digest != plain.scorer_digest
    corpus, vectors = corpus_of(plan(tmp_path), related())
    before = vectors.of(corpus.pool).copy()
    model: Any = vectors._model
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as the trainer leaves it
    vectors.forget()
    assert np.array_equal(vectors.of(corpus.pool), before)


def test_what_was_trained_is_what_the_embedder_runs(tmp_path: Path) -> None:
    made = trained(tmp_path, sizes=[8, 16], dimensions=8)
    assert made.card.dimensions == 8
    found = embedder.load(made.folder, made.scorer_digest, token_budget=500)
    corpus, vectors = corpus_of(plan(tmp_path, sizes=[8, 16], dimensions=8), related())
    texts = ["kitchen mug", "a glass lamp with a wooden heart", "wall sign " * 40]
    given = related().iloc[:0]
    rows = [("query", "red mug", text, True, side) for text in texts for side in ("train", "validation")]
    given = pd.DataFrame(rows, columns=given.columns)
    of = plan(tmp_path, sizes=[8, 16], dimensions=8)
    corpus = Corpus(given, SequenceTokenizer(load_tokenizer(made.folder), 48), of.card, of.training)
    vectors = Vectors(encoder_of(made, of.card), corpus, 8)
    order = np.argsort(texts)
    assert np.abs(vectors.of(corpus.positives) - found.embed(texts, "passage")[order]).max() < 1e-5
    assert np.abs(vectors.of(corpus.anchors[:1]) - found.embed(["red mug"], "query")).max() < 1e-5
    assert found.embed(texts, "passage").shape == (3, 8)
    assert np.allclose(np.linalg.norm(found.embed(texts, "passage"), axis=1), 1, atol=1e-5)


def test_what_belongs_to_an_anchor_is_none_of_its_negatives(tmp_path: Path) -> None:
    """Many queries want the same items: a blind draw calls them negatives."""
    rows = [
        ("query", f"{colour} {thing}", f"{place} {other}", True, "train")
        for colour, place in ASKED.items() for thing in THINGS[:3] for other in THINGS[:3]
    ]  # fmt: skip
    examples = pd.concat([pd.DataFrame(rows, columns=related().columns), related()])
    of = plan(tmp_path, hard_negatives={"per_pair": 2, "from_epoch": 0}, batch_size=4)
    corpus, vectors = corpus_of(of, examples)
    pairs = Pairs(corpus, vectors, of.training, None, lambda _: None)
    seen, masked = [], 0
    for epoch in range(3):
        for batch in pairs.batches(epoch):
            assert len(batch) <= 4
            seen += batch
            belongs = pairs.belongs(np.array(batch))
            assert belongs.shape == (len(batch), 3 * len(batch))
            columns = [corpus.positives[batch], *pairs._negatives[batch].T]
            for at, row in enumerate(batch):
                for place, passage in enumerate(np.concatenate(columns).tolist()):
                    is_known = passage in corpus.known[corpus.anchors[row]]
                    assert belongs[at, place] == (is_known and place != at)
            masked += int(belongs.sum())
    assert sorted(seen) == sorted(3 * list(range(len(pairs))))
    assert masked > 0, "a blind draw would do as well"


def test_the_loss_does_not_change_with_what_belongs_to_an_anchor(tmp_path: Path) -> None:
    """InfoNCE by hand, over a batch in which two pairs are of one anchor and one passage belongs to two."""
    rows = [
        ("red mug", "kitchen mug"),
        ("red mug", "kitchen cup"),
        ("blue mug", "garden mug"),
        ("pink mug", "kitchen mug"),
    ]
    given = [("query", *row, True, side) for row in rows for side in ("train", "validation")]
    examples = pd.DataFrame(given, columns=related().columns)
    of = plan(tmp_path)
    corpus, vectors = corpus_of(of, examples)
    pairs = Pairs(corpus, vectors, of.training, None, lambda _: None)
    batch = pairs([{"row": row} for row in range(len(pairs))])
    model = encoder_of(open_checkpoint(tmp_path, "base"), of.card).eval()
    columns = [
        {name.removeprefix(f"{of}_"): value for name, value in batch.items() if name.startswith(f"{of}_")}
        for of in ("anchor", "positive")
    ]
    found = float(Together(model, pairs, of.training)(columns, batch["label"]).detach())
    cosines = vectors.of(corpus.anchors) @ vectors.of(corpus.positives).T * of.training.scale
    losses = []
    for row, anchor in enumerate(corpus.anchors):
        others = [at for at, text in enumerate(corpus.positives) if at == row or text not in corpus.known[anchor]]
        losses.append(np.log(np.exp(cosines[row, others]).sum()) - cosines[row, row])
    assert found == pytest.approx(np.mean(losses), abs=1e-4)
    blind = np.mean(np.log(np.exp(cosines).sum(1)) - np.diag(cosines))
    assert abs(blind - found) > 0.1


def test_hard_negatives_are_near_and_neither_relevant_nor_nearer_than_the_guard_lets(tmp_path: Path) -> None:
    of = plan(tmp_path, hard_negatives={"per_pair": 3, "places": 5, "skip_first": 1, "max_share_of_positive": 1.0})
    corpus, vectors = corpus_of(of, related())
    settings = of.training.hard_negatives
    found, counts = mined(corpus, vectors, settings, 3, np.random.default_rng(1))
    assert counts["looked_at"] == 4 * len(found)
    assert 0 < counts["near_the_positive"] < counts["looked_at"]
    for anchor, own, taken in zip(corpus.anchors, corpus.positives, found, strict=True):
        near = vectors.of(corpus.pool) @ vectors.of(np.array([anchor]))[0]
        by_nearness = [text for text in corpus.pool[np.argsort(-near)] if text not in corpus.known[anchor]]
        assert set(taken) <= set(by_nearness[1:5])
        bound = float(vectors.of(np.array([own]))[0] @ vectors.of(np.array([anchor]))[0])
        assert all(near[corpus.pool == text] < bound for text in taken)


def bought_together() -> pd.DataFrame:
    """Things of one place belong together, both ways; of each place one pair is held out."""
    rows = [
        ("passage", f"{place} {one}", f"{place} {other}", True, "validation" if {one, other} == {"mug", "cup"} else "train")
        for place in ASKED.values() for one in THINGS[:3] for other in THINGS[:3] if one != other
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=related().columns)


def test_neither_what_is_held_out_nor_an_items_own_text_is_a_negative(tmp_path: Path) -> None:
    of = plan(tmp_path, hard_negatives={"per_pair": 2, "from_epoch": 0, "max_share_of_positive": 1.0}, batch_size=5)
    corpus, vectors = corpus_of(of, bought_together())
    number = {text: at for at, text in corpus.plain.items()}
    mug, cup, plate = (number[f"kitchen {thing}"] for thing in THINGS[:3])
    assert corpus.known[mug] == {mug, cup, plate}
    assert corpus.wanted[mug] == {cup}
    pairs = Pairs(corpus, vectors, of.training, None, lambda _: None)
    for batch in pairs.batches(0):
        belongs = pairs.belongs(np.array(batch))
        for at, row in enumerate(batch):
            own = {int(text) for text in pairs._negatives[row]}
            assert not corpus.known[corpus.anchors[row]] & own
            for place, other in enumerate(batch):
                if other != row and corpus.positives[other] in corpus.known[corpus.anchors[row]]:
                    assert belongs[at, place]
    # What was taught and the text itself leave their places to others: with one place, only what is held out fills it.
    all_but_wanted = np.array(
        [text for text in corpus.pool if text not in {number[f"kitchen {t}"] for t in THINGS[:3]}]
    )
    near = vectors.of(all_but_wanted) @ vectors.of(np.array([mug]))[0]
    own = float(vectors.of(np.array([cup]))[0] @ vectors.of(np.array([mug]))[0])
    corpus.wanted = {mug: {cup}}
    assert recall(corpus, vectors, 1) == float(own > near.max())
    assert recall(corpus, vectors, 1 + int((near >= own).sum())) == 1.0


def test_a_teacher_of_relevance_is_not_asked_what_is_bought_together(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, "teacher")
    settings: dict[str, Any] = {
        "losses": {"ranking": 1.0, "margin": 5.0}, "teacher": "teacher", "epochs": 1,
        "hard_negatives": {"per_pair": 1, "from_epoch": 0},
    }  # fmt: skip
    examples = pd.concat([related(), bought_together().assign(side="train")], ignore_index=True)
    of = plan(tmp_path, **settings)
    corpus, vectors = corpus_of(of, examples)
    pairs = Pairs(corpus, vectors, of.training, open_checkpoint(tmp_path, "teacher"), lambda _: None)
    pairs.batches(0)
    asked = {corpus.plain[anchor] for anchor, _ in pairs._said}
    assert asked == {text for text in related()["anchor_text"].dropna() if not text.endswith("sign")}
    margins = pairs.margins(np.arange(len(pairs)))
    assert np.isnan(margins).any(axis=1).tolist() == (~corpus.is_asked).tolist()
    made = trained(tmp_path, examples=examples, **settings)
    assert all(np.isfinite(values).all() for values in load_file(made.folder / "model.safetensors").values())


def test_negatives_are_of_the_encoder_as_it_is(tmp_path: Path) -> None:
    """Mined anew in each epoch that has them: what was near before the training is not near after it."""
    said: list[dict[str, Any]] = []
    settings = {"epochs": 3, "hard_negatives": {"per_pair": 1, "from_epoch": 1, "places": 6}}
    fine_tune(plan(tmp_path, **settings), related(), said.append)
    assert [one["step"] for one in said if one["step"] in ("negatives", "epoch")] == [
        "epoch", "negatives", "epoch", "negatives", "epoch"
    ]  # fmt: skip
    first, second = (one["near_the_positive"] for one in said if one["step"] == "negatives")
    assert first != second


def test_the_teacher_tells_margins_and_takes_out_what_it_finds_as_good(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    tiny.checkpoint(tmp_path, "teacher")
    settings = {"losses": {"ranking": 0.5, "margin": 10.0}, "teacher": "teacher", "epochs": 1}
    settings["hard_negatives"] = {"per_pair": 2, "from_epoch": 0, "max_share_of_positive": 0.9}
    made = fine_tune(plan(tmp_path, **settings), related(), said.append)
    of_negatives = next(one for one in said if one["step"] == "negatives")
    assert of_negatives["left_out_by_the_teacher"] > 0
    plain = trained(tmp_path, "plain", **{**settings, "losses": {"ranking": 0.5}})
    assert not same(made, plain), "the margins are learnt"
    of = plan(tmp_path, **settings)
    corpus, vectors = corpus_of(of, related())
    pairs = Pairs(corpus, vectors, of.training, open_checkpoint(tmp_path, "teacher"), lambda _: None)
    [first, *_] = pairs.batches(0)
    margins = pairs.margins(np.array(first))
    assert margins.shape == (len(first), 2)
    anchor, own, other = corpus.anchors[first[0]], corpus.positives[first[0]], pairs._negatives[first[0], 1]
    assert margins[0, 1] == pytest.approx(pairs._said[anchor, own] - pairs._said[anchor, other], abs=1e-6)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    left, right = (load_file(of.folder / "model.safetensors") for of in (one, other))
    return all(np.array_equal(left[name], right[name]) for name in left)


def test_the_same_seed_trains_the_same_weights_and_the_order_of_the_rows_is_nothing(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1.5, "dropout": 0.1, "hard_negatives": {"per_pair": 1, "from_epoch": 0}}
    shuffled = related().sample(frac=1, random_state=3)
    first, second = trained(tmp_path, "one", **settings), trained(tmp_path, "two", shuffled, **settings)
    assert same(first, second)
    assert first.card.metrics == second.card.metrics
    assert not same(first, trained(tmp_path, "three", **settings, seed=14))


def test_short_vectors_that_were_taught_find_more_than_those_that_were_only_cut(tmp_path: Path) -> None:
    taught = trained(tmp_path, "taught", epochs=8, sizes=[2], dimensions=2)
    whole = trained(tmp_path, "whole", epochs=8)
    cut = fine_tune(
        plan(tmp_path, "cut", sizes=[2], dimensions=2, epochs=1, learning_rate=1e-12).model_copy(
            update={"base": "whole"}
        ),
        related(),
        lambda _: None,
    )
    assert taught.card.metrics["after"]["recall@3"] > cut.card.metrics["before"]["recall@3"]
    assert whole.card.dimensions is None


def test_what_is_not_to_be_trained_on_is_said(tmp_path: Path) -> None:
    for side in ("train", "validation"):
        with pytest.raises(ValueError, match="expected some of train and of validation"):
            trained(tmp_path, "x", related()[related()["side"] != side])
    with pytest.raises(ValueError, match="sizes: expected 32 at most, the encoder's, found 33"):
        trained(tmp_path, "x", sizes=[33])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        trained(tmp_path, "x", teacher="nobody", hard_negatives={"per_pair": 1})
    everything = related().assign(role="query", anchor_text="red mug", is_relevant=True)
    everything = pd.concat([everything.assign(side="train"), everything.iloc[:2].assign(side="validation")])
    with pytest.raises(ValueError, match="no two pairs that are not known to belong together"):
        trained(tmp_path, "x", everything)
    with pytest.raises(ValueError, match="an anchor to which every item belongs has none"):
        trained(tmp_path, "x", everything, hard_negatives={"per_pair": 1, "from_epoch": 0})
    assert not (tmp_path / "x").exists()
    for settings, wrong in (
        ({"losses": {"margin": 1.0}}, "margin needs a teacher"),
        (
            {"losses": {"margin": 1.0}, "teacher": "a", "hard_negatives": {"per_pair": 1, "from_epoch": 1}},
            "margin alone",
        ),
        ({"teacher": "a", "hard_negatives": {"per_pair": 0}}, "it is asked of hard negatives only"),
        ({"sizes": [8], "dimensions": 9}, r"expected one of sizes \[8\], found 9"),
        ({"hard_negatives": {"places": 5, "skip_first": 5}}, "leaves none of 5 places"),
        ({"losses": {}}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=wrong):
            EmbedderTraining.model_validate(settings)


def test_the_process_says_where_it_went_wrong_and_no_text(tmp_path: Path) -> None:
    of = plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(of.model_dump(mode="json")))
    related().assign(side="train").to_parquet(tmp_path / "examples.parquet")
    command = [sys.executable, "-m", "ecomspark.models.finetune_embedder", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    said = json.loads(ended.stdout.splitlines()[-1])
    assert (said["step"], said["error"]) == ("failed", "ValueError")
    assert "mug" not in ended.stdout
