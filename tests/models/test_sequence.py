"""What comes next: states that see no future, items that training never saw, and lists that know how sure they may be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file

from ecomspark.errors import CheckpointError
from ecomspark.models import finetune_sequence
from ecomspark.models.checkpoint import Card, Checkpoint, Confidence, open_checkpoint
from ecomspark.models.finetune_sequence import Plan, fine_tune, linear
from ecomspark.models.sequence import Network, SequenceModel, Sizes, confidences, load
from ecomspark.models.sequence_options import SequenceTraining

COUNT = 24
IDS = [f"i{number:02}" for number in range(COUNT)]


def walks(count: int, seed: int = 3) -> list[list[str]]:
    """Each item is followed by the next one of the circle: what a model has to find out."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        start, length = random.integers(COUNT), random.integers(2, 9)
        made.append([IDS[(start + step) % COUNT] for step in range(length)])
    return made


def text_vectors(count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Texts that say where on the circle an item lies; those behind the circle's items lie on it, too."""
    places = {item_id: number for number, item_id in enumerate(IDS)} | {f"new{n}": n + 0.5 for n in range(count)}
    turns = np.arange(1, 5)
    return {
        item_id: np.concatenate([f(2 * np.pi * place / COUNT * turns) for f in (np.cos, np.sin)]).astype(np.float32)
        for item_id, place in places.items()
    }


def trained(folder: Path, name: str = "next", with_texts: bool = False, **changes: Any) -> Checkpoint:
    settings = {"width": 16, "layers": 1, "max_items": 5, "epochs": 6, "batch_size": 64, "learning_rate": 1e-2,
                "threads": 1, "dropout": 0.0, "input_dropout": 0.0, "id_dropout": 0.3, **changes}  # fmt: skip
    sequences = walks(300)
    sides = ["train"] * 250 + ["validation"] * 50
    rows = pd.DataFrame({"sequence_id": [str(n) for n in range(300)], "item_ids": sequences, "side": sides})
    of_items = text_vectors(0)
    vectors = pd.DataFrame({"item_id": list(of_items), "vector": list(of_items.values())}) if with_texts else None
    card = Card(kind="sequence", base="none", text_scorer_digest="ab" * 16 if with_texts else "")
    plan = Plan(models_folder=folder, name=name, card=card, training=SequenceTraining(**settings))
    return fine_tune(plan, rows, vectors, lambda _: None)


def opened(made: Checkpoint) -> SequenceModel:
    return load(made.folder, made.scorer_digest, "cpu")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return trained(tmp_path_factory.mktemp("models"), architecture="both", negatives=12)


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return trained(tmp_path_factory.mktemp("models"), with_texts=True)


def best(model: SequenceModel, history: list[str], ids: list[str], **given: Any) -> str:
    scores = np.append(model.states([history], **given)[0], 1.0) @ model.items(ids, **given).T
    return ids[int(scores.argmax())]


@pytest.mark.parametrize("body", ["transformer", "gru"])
def test_nothing_later_changes_what_was_said_before(body: Any) -> None:
    torch.manual_seed(1)
    sizes = Sizes(architecture=body, item_count=COUNT, width=16, layers=2, heads=2, max_items=8)
    network = Network(sizes, body).eval()
    for layer in (network.readout, *([part.attention for part in network.body] if body == "transformer" else [])):
        torch.nn.init.normal_(layer.ask.weight)
    read = network.vectors(torch.randn(3, 8, 16))
    changed = read.clone()
    changed[:, 5:] = network.vectors(torch.randn(3, 3, 16))
    with torch.no_grad():
        one, other = network(read), network(changed)
    torch.testing.assert_close(one[:, :5], other[:, :5])
    assert (one[:, 5] - other[:, 5]).abs().max() > 1e-3, "and what is read decides"


def test_what_is_asked_together_changes_nothing(both: Checkpoint) -> None:
    model, histories = opened(both), [walk[:-1] for walk in walks(40, seed=9)] + [[], ["never seen"], IDS]
    together = model.states(histories)
    alone = np.concatenate([model.states([history]) for history in histories])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together[::-1], model.states(histories[::-1]), atol=1e-5)
    assert (together.shape, together.dtype) == ((len(histories), model.width), np.float32)
    assert model.states([]).shape == (0, model.width)


def test_the_newest_items_are_read(both: Checkpoint) -> None:
    model = opened(both)
    np.testing.assert_allclose(model.states([IDS[:12]]), model.states([IDS[7:12]]), atol=1e-6)


def test_what_comes_next_is_learnt_by_each_body_and_by_both(both: Checkpoint) -> None:
    found = both.card.metrics
    for body in ("transformer", "gru", "after"):
        assert found[body]["mrr@20"] > 0.6 > found["before"]["mrr@20"], body
    model = opened(both)
    assert [best(model, walk, model.item_ids) for walk in (IDS[3:6], IDS[20:])] == [IDS[6], IDS[0]]
    states = np.append(model.states([IDS[3:6]])[0], 1.0) @ model.items(model.item_ids).T
    shuffled = model.item_ids[::-1]
    np.testing.assert_allclose(states[::-1], np.append(model.states([IDS[3:6]])[0], 1.0) @ model.items(shuffled).T)


def test_no_history_has_a_state_of_its_own_that_knows_what_begins(both: Checkpoint) -> None:
    model = opened(both)
    start = model.states([[]])
    assert np.isfinite(start).all()
    assert not np.allclose(start, model.states([[IDS[0]]]))
    assert not np.allclose(start, model.states([["never seen"]])), "an unknown item is something that was done"


def test_an_item_that_training_never_saw_is_proposed_by_its_text(reading: Checkpoint) -> None:
    model, vectors = opened(reading), text_vectors(COUNT)
    new = [f"new{number}" for number in range(COUNT)]
    # Item 6 comes after 5; new5 and new6 lie beside it.
    assert best(model, IDS[3:6], new, vectors=vectors) in ("new5", "new6")
    read = ["new3", "new4"]
    assert best(model, read, model.item_ids, vectors=vectors) in (IDS[5], IDS[6])
    assert not np.allclose(model.states([read], vectors), model.states([read])), "without its vector it is [unknown]"
    known = model.items(IDS)
    np.testing.assert_array_equal(known, model.items(IDS, vectors), "items that training saw need no vector")


def test_without_a_text_it_is_never_proposed(both: Checkpoint, reading: Checkpoint) -> None:
    for made, vectors in ((both, text_vectors(1)), (reading, None)):
        model = opened(made)
        table = model.items([*IDS, "new0"], vectors)
        assert np.isneginf(table[-1, -1])
        assert np.isfinite(table[:-1]).all()
        scores = np.append(model.states([IDS[:3]])[0], 1.0) @ table.T
        chances, _ = model.confidence(scores[None], COUNT + 1)
        assert chances[0, -1] == 0.0


def test_a_vector_of_another_length_is_refused(reading: Checkpoint) -> None:
    with pytest.raises(ValueError, match="expected 8 numbers"):
        opened(reading).items(["new0"], {"new0": np.zeros(3)})


def test_a_seed_makes_the_same_weights_and_another_one_others(tmp_path: Path) -> None:
    made = [trained(tmp_path, name, epochs=1, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    files = [one.card.files["model.safetensors"] for one in made]
    assert files[0] == files[1] != files[2]
    assert made[0].scorer_digest == made[1].scorer_digest


def test_the_linear_model_speaks_for_what_goes_together_and_for_what_was_bought(tmp_path: Path) -> None:
    model = opened(trained(tmp_path, architecture="linear", width=12, shrinkage=1.0))
    scores = np.append(model.states([[IDS[4], IDS[6]]])[0], 1.0) @ model.items(IDS).T
    order = [IDS[place] for place in np.argsort(-scores)]
    assert set(order[:3]) == {IDS[4], IDS[5], IDS[6]}
    assert not model.states([[]]).any(), "nobody's history speaks for nothing"
    assert not model.states([["never seen"]]).any()
    np.testing.assert_allclose(model.states([IDS[:9]]), model.states([IDS[4:9]]), atol=1e-6)


def test_what_was_read_gains_by_how_often_and_the_confidence_is_of_these_scores(tmp_path: Path) -> None:
    plain, again = (
        trained(tmp_path, f"own-{weight}", architecture="linear", own_weight=weight) for weight in (0.0, 0.5)
    )
    history = [IDS[9], IDS[4], IDS[4], "never seen", IDS[6], IDS[4]]
    assert opened(plain).own([history, []]) == [{}, {}]
    log2, log4 = 0.5 * np.log(2), 0.5 * np.log(4)
    found = opened(again).own([history, []])
    assert found == [pytest.approx({IDS[4]: log4, IDS[6]: log2, "never seen": log2}), {}], "of the newest five"
    numbers = np.array([IDS.index(item_id) if item_id in IDS else -1 for item_id in [*history, IDS[0]]])
    of_both = []
    for made in (plain, again):
        sizes = Sizes.model_validate_json((made.folder / "config.json").read_text(encoding="utf-8"))
        [scores] = finetune_sequence.scores_of(opened(made)._networks, [numbers], sizes)
        of_both.append(scores[0].numpy())
    gains = {IDS[place]: gain for place, gain in enumerate(of_both[1] - of_both[0]) if abs(gain) > 1e-6}
    assert gains == pytest.approx({IDS[4]: log4, IDS[6]: log2}, abs=1e-5)
    assert plain.card.confidence != again.card.confidence


def test_the_spectral_model_speaks_for_what_stood_near_and_for_what_was_read(tmp_path: Path) -> None:
    wide = {"architecture": "spectral", "width": 20, "half_life_items": 1.0, "popularity": 0.0}
    model = opened(trained(tmp_path, again=0.05, **wide))
    scores = np.append(model.states([[IDS[4], IDS[9]]])[0], 1.0) @ model.items(IDS).T
    order = [IDS[place] for place in np.argsort(-scores)]
    assert order[0] == IDS[9], "the newest item"
    assert {IDS[8], IDS[10]} <= set(order[:4]), "and what stood beside it"
    again = opened(trained(tmp_path, "again", again=1.0, **wide))
    own = [
        float(np.append(one.states([[IDS[4]]])[0], 1.0) @ one.items([IDS[4]])[0])
        - float(np.append(one.states([[IDS[4]]])[0], 1.0) @ one.items([IDS[5]])[0])
        for one in (model, again)
    ]
    assert own[1] > own[0]
    assert not model.states([[], ["never seen"]]).any()


def test_what_is_made_in_closed_form_learns_from_both_sides_in_the_end(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "sequence_id": ["1", "2", "3", "1"],
            "item_ids": [["a", "b"], ["b", "c"], ["a", "c"], ["a", "b", "z"]],
            "side": ["train"] * 3 + ["validation"],
        }
    )
    seen = []
    kept = finetune_sequence.closed

    def closed(train: Any, *of: Any) -> Any:
        seen.append([sequence.tolist() for sequence in train])
        return kept(train, *of)

    training = SequenceTraining(architecture="linear", width=2, threads=1)
    plan = Plan(models_folder=tmp_path, name="x", card=Card(kind="sequence", base="none"), training=training)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune_sequence, "closed", closed)
        made = fine_tune(plan, rows, None, lambda _: None)
    assert opened(made).item_ids == ["a", "b", "c", "z"]
    assert seen == [[[0, 1], [1, 2], [0, 2]], [[1, 2], [0, 2], [0, 1, 3]]], "of two of one id the later"


def test_a_checkpoint_comes_back_and_its_digest_tells_scorers_apart(both: Checkpoint, reading: Checkpoint) -> None:
    again = open_checkpoint(both.folder.parent, both.name, "sequence", both.scorer_digest)
    assert again.card.scorer_digest != reading.card.scorer_digest
    surer = again.card.model_copy(
        update={"confidence": Confidence(temperature=9.0, maps={20: [(0.0, 0.0), (1.0, 1.0)]})}
    )
    assert surer.scorer_digest == again.scorer_digest, "how sure a list is decides no score"
    assert surer.calibration_digest != again.card.calibration_digest
    assert again.card.model_copy(update={"max_items": 3}).scorer_digest != again.scorer_digest
    assert again.card.model_copy(update={"text_scorer_digest": "cd"}).scorer_digest != again.scorer_digest
    with pytest.raises(CheckpointError, match="expected a encoder, found a sequence"):
        open_checkpoint(both.folder.parent, both.name, "encoder")


@pytest.mark.parametrize(
    ("file", "change", "saying"),
    [
        ("items.json", lambda ids: ids[1:], "expected 24 different ids, found 23 in 23"),
        ("items.json", lambda ids: [*ids[1:], ids[1]], "expected 24 different ids, found 23 in 24"),
        ("items.json", lambda ids: {"a": 1}, "expected a list of ids"),
        (
            "config.json",
            lambda sizes: {**sizes, "max_items": 9},
            "max_items: expected 9, as config.json has it, found 5",
        ),
        ("config.json", lambda sizes: {**sizes, "item_count": 23}, "expected the vectors of 23 items"),
        ("config.json", lambda sizes: {**sizes, "text_width": 8}, "text_scorer_digest: expected one"),
        ("card.json", lambda card: {**card, "confidence": {}}, "maps of at least two rising points"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(
    both: Checkpoint, tmp_path: Path, file: str, change: Any, saying: str
) -> None:
    from test_checkpoint import reseal

    folder = Path(shutil.copytree(both.folder, tmp_path / "next"))
    path = folder / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    if file != "card.json":
        with pytest.raises(CheckpointError, match="sha256 differs"):
            open_checkpoint(tmp_path, "next")
        reseal(folder)
    with pytest.raises(CheckpointError, match=saying):
        open_checkpoint(tmp_path, "next", "sequence")


def test_lists_are_as_sure_as_they_are_right() -> None:
    """Of a model whose scores are the true chances, but too sure of itself by a factor."""
    random = np.random.default_rng(5)
    true = random.normal(size=(12_000, 60)) * random.uniform(0.5, 3.0, size=(12_000, 1))
    chances = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    nexts = (chances.cumsum(1) > random.random((12_000, 1))).argmax(1)
    scores = 3.0 * true
    fit, test = slice(0, 8_000), slice(8_000, None)

    class Said(finetune_sequence.Linear):
        """Scores as they are given: the vectors of items are the unit matrix."""

        def __init__(self) -> None:
            super().__init__(Sizes(architecture="linear", item_count=60, width=60, layers=1, heads=1, max_items=1))
            torch.nn.init.eye_(self.embedding.weight)
            self.at = 0

        def last(self, table: Any, ids: Any, lengths: Any) -> torch.Tensor:
            start, self.at = self.at, (self.at + len(ids)) % 8_000
            return torch.from_numpy(scores[fit][start : start + len(ids)].astype(np.float32))

    said = Said()
    judged = [np.array([0, number]) for number in nexts[fit]]
    sizes = Sizes(architecture="linear", item_count=60, width=60, layers=1, heads=1, max_items=1)
    confidence, _ = finetune_sequence.fitted([said], judged, sizes)
    assert 2.7 < confidence.temperature < 3.3
    for k in (1, 5, 20):
        of_items, of_list = confidences(scores[test], k, confidence)
        order = np.argsort(-scores[test], axis=1)[:, :k]
        is_hit = (order == nexts[test][:, None]).any(1)
        bins = np.minimum((of_list * 15).astype(int), 14)
        error = sum(abs(of_list[bins == b].sum() - is_hit[bins == b].sum()) for b in range(15)) / len(is_hit)
        assert error < 0.04, k
        np.testing.assert_allclose(of_items.sum(1), of_list)
        assert (np.diff(of_items, axis=1) <= 0).all(), "best first"
    surest = np.array([[5.0, 0, 0, 0], [3.0, 0, 0, 0], [1.0, 0, 0, 0]])
    assert (np.diff(confidences(surest, 1, confidence)[1]) <= 0).all(), "and more mass is never less sure"


def test_of_no_items_and_of_too_many_asked_for() -> None:
    of = Confidence(maps={1: [(0.0, 0.0), (1.0, 1.0)]})
    chances, of_list = confidences(np.zeros((2, 0)), 5, of)
    assert chances.shape == (2, 0)
    assert not of_list.any()
    assert confidences(np.zeros((1, 3)), 5, of)[0].shape == (1, 3)
    with pytest.raises(ValueError, match="k: expected 1 or more"):
        confidences(np.zeros((1, 3)), 0, of)


def test_a_side_without_a_sequence_is_refused_and_so_are_settings_that_do_not_fit(tmp_path: Path) -> None:
    plan = Plan(models_folder=tmp_path, name="x", card=Card(kind="sequence", base="none"), training=SequenceTraining())
    rows = pd.DataFrame({"item_ids": [["a", "b"], ["a"]], "side": ["train", "validation"]})
    with pytest.raises(ValueError, match="1 sequences of two items or more to train on, 0 to validate on"):
        fine_tune(plan, rows, None, lambda _: None)
    with pytest.raises(ValidationError, match="2 heads do not divide a width of 5"):
        SequenceTraining(width=5)


def test_each_place_of_a_long_history_is_learnt_once() -> None:
    settings = SequenceTraining(max_items=4, half_life=0.5)
    windows, weights = finetune_sequence._windows([np.arange(11), np.arange(100, 102)], settings)
    assert sorted(int(place) for window in windows for place in window[1:]) == [*range(1, 11), 101]
    assert max(map(len, windows)) == 5
    assert (weights[-1], weights[0]) == (1.0, pytest.approx(0.5))
    batches = list(finetune_sequence._batches(windows, 4, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows)))


def test_what_stands_for_unknown_items_is_learnt_with_texts_too(reading: Checkpoint, tmp_path: Path) -> None:
    barely = trained(tmp_path, with_texts=True, epochs=1, learning_rate=1e-12)
    before, after = (load_file(of.folder / "model.safetensors")["transformer.unknown"] for of in (barely, reading))
    assert np.abs(after - before).max() > 0.01


def test_items_that_were_only_validated_on_leave_the_ridge_as_it_is() -> None:
    train = [np.array(of) for of in ([0, 1, 2], [0, 1], [1, 2], [2, 0])]

    def scores(item_count: int) -> Any:
        sizes = Sizes(architecture="linear", item_count=item_count, width=8, layers=1, heads=1, max_items=5)
        vectors = linear(train, sizes, 2.0)
        assert np.isfinite(vectors).all()
        return vectors[:3] @ vectors[:3].T

    assert np.allclose(scores(9), scores(3)), "six items that no training sequence has"
