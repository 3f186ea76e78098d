"""Next items and outlooks over some nights: of whom, from what, made when, and what goes again."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
from behaviour import Behaviour, day
from conftest import build_rows
from fake_sequences import TracedSequence, state, vector
from pydantic import ValidationError

from ecomspark import tables, text
from ecomspark.chances import Chances, Linear, seal_chances
from ecomspark.errors import CheckpointError, ConfigError, ContractError
from ecomspark.metrics import expected_gain
from ecomspark.models.checkpoint import Card, adopt, open_checkpoint
from ecomspark.models.finetune_sequence import Plan, fine_tune
from ecomspark.models.sequence_options import SequenceTraining
from ecomspark.pipelines import score_next_items
from ecomspark.pipelines.score_next_items import Config, Model
from ecomspark.schemas import EMBEDDINGS, NEXT_ITEMS, OUTLOOKS, SEQUENCE_STATES, TEXTS
from ecomspark.tables import Author

K, AGAIN = 3, 0.6
NEW = ("n1", "n2")  # items that the model did not learn; n1 has a text that was embedded
POINTS = [(-3.0, 0.05), (0.0, 0.3), (3.0, 0.9)]
LINEAR = {
    "session_purchase": Linear(terms={"events": (0.0, 1.0, 1.0)}, bias=-2.0, points=POINTS, metrics={}),
    "purchase": Linear(terms={"days_since_event": (0.0, 1.0, -1.0)}, bias=1.0, points=POINTS, metrics={}),
}
CLICK_A, CLICK_B = ("click", "a1"), ("click", "b1")


class Nights(Behaviour):
    """A shop whose lists a fake model makes."""

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def scorer(self) -> TracedSequence:
        return TracedSequence(str(self.folder), new=NEW, again=AGAIN)

    def model(self) -> Model:
        encoder = open_checkpoint(self.models, "base", "encoder")
        return Model(text.digest("fake"), "c1", 3, frozenset(self.items) - set(NEW), encoder.scorer_digest,
                     encoder.card.recipe.digest)  # fmt: skip

    def config(self, **changes: Any) -> Config:
        asked = {"warehouse": self.warehouse.location, "buckets": 2, "models_folder": self.models, "checkpoint": "fake",
                 "k": K, "chances": "chances", "encoder": "base", "keeps_dates": 3, "rows_per_task": 1, **changes}  # fmt: skip
        return Config(**asked)

    def score(self, run_id: str, as_of: date, model: Model | None = None, **changes: Any) -> Any:
        config = self.config(**changes)
        return score_next_items.run_with(self.spark, config, run_id, model or self.model(), self.scorer, as_of)

    def lists(self) -> dict[tuple[str, int], list[str]]:
        """The items of each shopper and day, in order."""
        found: dict[tuple[str, int], list[str]] = {}
        for row in sorted(self.rows(NEXT_ITEMS), key=lambda row: row["rank"]):
            found.setdefault((row["shopper_id"], (row["as_of_date"] - day(0)).days), []).append(row["item_id"])
        return found

    def wanted(self, *history: str, without: tuple[str, ...] = ("n2",)) -> list[str]:
        """What the fake proposes after a history, reckoned here."""
        vectors = {"n1": np.array([0.25, 0.0])}
        scores = {
            item: round(float(np.dot(state(history, vectors), vector(item, vectors))) + AGAIN * history.count(item), 4)
            for item, is_there in self.items.items()
            if is_there is not False and item not in without
        }
        return sorted(scores, key=lambda item: (-scores[item], item))[:K]


@pytest.fixture(scope="module")
def nights(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """Ann and Bob did the same until the evening of day 9; Cyd never said yes, Dot is a machine, Eve only looked."""
    shop = Nights(spark, tmp_path_factory.mktemp("nights"))
    source = shop.folder / "encoder"
    tiny.model("encoder").save_pretrained(source, safe_serialization=True)
    tiny.tokenizer().save_pretrained(source)
    adopt(source, shop.models, "base", Card(kind="encoder", base="tiny", max_tokens=32))
    seal_chances(shop.models, "chances", Chances(days=30, models=LINEAR))
    shop.items = {"a1": True, "a2": None, "b1": True, "b2": True, "c1": False, "n1": True, "n2": True}
    shop.consents = [(who, 0, True) for who in ("ann", "bob", "dot", "eve", "ann-phone")]
    # An interaction a day for eight days, then one session over midnight: two of its four events are of day 9.
    for who in ("ann", "bob"):
        shop.sessions += [(who, n, [CLICK_A if n < 3 else CLICK_B], None) for n in range(1, 9)]
    shop.sessions += [
        ("ann", 9 + 1438 / 1440, [("cart", "b1"), ("click", "n1"), ("purchase", "a2"), ("click", "b2")], None),
        ("bob", 9 + 1438 / 1440, [("cart", "b1"), ("click", "n1")], None),
        ("bob", 10.5, [("click", "a2")], None),
        ("cyd", 9, [CLICK_A, CLICK_B], None), ("dot", 9, [CLICK_A] * 3, "too fast"), ("eve", 9, [("impression", "a1")], None),
    ]  # fmt: skip
    shop.publish()
    encoder, author = open_checkpoint(shop.models, "base", "encoder"), Author("nights", "1")
    vectors = {"a1": [1.0, 0.1], "b1": [0.1, 1.0], "n1": [0.25, 0.0]}
    texts = [{"source_digest": text.digest(item), "role": "passage", "recipe_digest": encoder.card.recipe.digest,
              "text_digest": text.digest("text", item)} for item in vectors]  # fmt: skip
    made = [{"text_digest": text.digest("text", item), "role": "passage", "scorer_digest": encoder.scorer_digest,
             "vector": of} for item, of in vectors.items()]  # fmt: skip
    for table, rows in ((TEXTS, texts), (EMBEDDINGS, made)):
        tables.append_memory(shop.warehouse, table, build_rows(spark, table, *rows), author)
    return shop


class DeathError(Exception):
    """A run dies between two commits."""


def test_lists_are_made_once_from_nothing_later_and_go_with_the_consent(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = score_next_items.plan_with(nights.spark, nights.config(), nights.model(), day(9))
    first = nights.score("1", day(9))
    assert first.status == "published"
    assert planned.counts == {"shoppers": 3, "items_on_shelf": 6, "to_make": 2, "histories_to_read": 1,
                              "lists_dropped": 0, "outlooks_to_write": 3}  # fmt: skip
    assert {name: first.rows.get(name, 0) for name in planned.counts} == planned.counts
    assert nights.lists() == {(who, 9): nights.wanted("b1", "b1", "n1") for who in ("ann", "bob")}
    assert nights.scorer.histories() == ["b1 b1 n1"], "two shoppers of one history: it is read once, its newest items"
    assert len(nights.scorer.loads()) <= 2, "once a worker"
    assert set(nights.scorer.matrices()) == {"6"}
    row = next(row for row in nights.rows(NEXT_ITEMS) if row["rank"] == 1)
    assert 0 < row["confidence"] < row["list_confidence"] <= 1
    spelling = "n1\x1f" + text.digest("text", "n1").hex().upper()
    assert bytes(row["history_digest"]) == text.digest("b1", "b1", spelling), "the text of a new item is part of it"

    outlooks = {row["shopper_id"]: row for row in nights.rows(OUTLOOKS)}
    assert set(outlooks) == {"ann", "bob", "eve"}, "of no machine, of nobody who did not say yes"
    ann = outlooks["ann"]
    assert ann["session_purchase_chance"] == pytest.approx(expected_gain(np.log(3) - 2, POINTS), abs=1e-6)
    assert ann["purchase_chance"] == pytest.approx(expected_gain(1 - np.log1p(1 / 1440), POINTS), abs=1e-6)
    assert ann["return_chance"] is None, "no model of it"
    # Nine sessions with vectors, the last five all but along b1; of those before them two are along a1, two along b1.
    # By the formula in numpy (tests/features/test_drift.py): 0.084006, with a standard error of 0.319943.
    assert [ann["drift"], ann["drift_low"]] == pytest.approx([0.084006, 0.0], abs=2e-6)
    assert ann["drift_high"] == pytest.approx(0.084006 + 2.776445 * 0.319943, abs=1e-5)
    assert outlooks["eve"]["drift"] is None

    again = nights.score("2", day(9))
    assert again.status == "nothing_to_do"
    assert len(nights.scorer.histories()) == 1

    second = nights.score("3", day(10))
    assert second.rows["to_make"] == second.rows["histories_to_read"] == 2, "both did something on day 10"
    assert sorted(nights.scorer.histories()[1:]) == ["b1 n1 a2", "n1 a2 b2"]
    assert nights.lists()["ann", 9] == nights.lists()["bob", 9], "what stood before stays"
    assert nights.lists()["ann", 10] == nights.wanted("n1", "a2", "b2")

    third = nights.score("4", day(11))
    assert third.rows.get("to_make", 0) == 0
    assert third.rows["outlooks_inserted"] == 3, "a day more has passed since"
    assert ("ann", 11) not in nights.lists(), "a list stands until a newer one"
    assert {(row["shopper_id"], (row["as_of_date"] - day(0)).days) for row in nights.rows(OUTLOOKS)} == {
        (who, n) for who in ("ann", "bob", "eve") for n in (9, 10, 11)
    }

    told = {(row["shopper_id"], row["as_of_date"]): row["session_purchase_chance"] for row in nights.rows(OUTLOOKS)}
    assert told["ann", day(11)] is None, "her last session was over the day before: it goes on to nothing"

    # Another item is on sale, and Bob wants to be forgotten.
    nights.items["c1"] = True
    nights.consents.append(("bob", 11, False))
    nights.publish()
    shared = {bytes(row["history_digest"]) for row in nights.rows(NEXT_ITEMS) if row["shopper_id"] == "ann"}
    with monkeypatch.context() as dying:
        landed: list[Any] = []

        def once(lands: Any) -> Any:
            def landing(*of: Any, **how: Any) -> Any:
                if landed:
                    raise DeathError
                landed.append(lands(*of, **how))
                return landed[0]

            return landing

        for name in ("collect", "publish"):
            dying.setattr(tables, name, once(getattr(tables, name)))
        with pytest.raises(DeathError):
            nights.score("4-dies", day(12))
    assert [(commit.table, commit.deleted) for commit in landed] == [(SEQUENCE_STATES, 1)], (
        "what Bob shared with nobody, before the rows by which it is found; day 9's was Ann's, too"
    )
    fourth = nights.score("5", day(12))
    assert (fourth.rows["to_make"], fourth.rows.get("histories_to_read", 0)) == (1, 0)
    assert set(nights.lists()) == {("ann", 9), ("ann", 10), ("ann", 12)}, "Bob's are gone"
    assert nights.lists()["ann", 12] == nights.wanted("n1", "a2", "b2")
    assert {(row["shopper_id"], (row["as_of_date"] - day(0)).days) for row in nights.rows(OUTLOOKS)} == {
        (who, n) for who in ("ann", "eve") for n in (10, 11, 12)
    }, "the newest three days are kept"
    left = {bytes(row["history_digest"]) for row in nights.rows(SEQUENCE_STATES)}
    assert left == shared

    # What she bought is not proposed, and what she did on her phone is hers.
    nights.sessions.append(("ann-phone", 12.5, [("click", "b2")], None))
    nights.links.append(("ann", "ann-phone"))
    nights.publish()
    fifth = nights.score("6", day(13), excludes_bought=True)
    assert fifth.rows["to_make"] == 1
    assert nights.lists()["ann", 13] == nights.wanted("a2", "b2", "b2", without=("n2", "a2"))
    assert [row["item_id"] for row in nights.rows(NEXT_ITEMS) if row["shopper_id"] == "ann-phone"] == []

    # Another model's lists take the place of these; the first model asked again the same day does not say all is done.
    other = replace(nights.model(), scorer_digest=text.digest("another"))
    assert nights.score("7", day(13), model=other, excludes_bought=True).rows["to_make"] == 1
    assert nights.score("8", day(13), excludes_bought=True).rows["to_make"] == 1
    assert {bytes(row["scorer_digest"]) for row in nights.rows(NEXT_ITEMS) if row["as_of_date"] == day(13)} == {
        nights.model().scorer_digest
    }

    # All that is left on sale she has bought: nothing is proposed, and no older list says otherwise.
    for item in nights.items:
        nights.items[item] = item == "a2"
    nights.publish()
    assert nights.score("9", day(14), excludes_bought=True).rows["next_items_deleted"] > 0
    assert not [who for who, _ in nights.lists() if who == "ann"]


def test_what_is_not_there_is_said_before_anything_is_made(spark: Any, nights: Nights, tmp_path: Path) -> None:
    config = nights.config(checkpoint="no-such")
    with pytest.raises(CheckpointError, match="no-such: no such checkpoint"):
        score_next_items.run(spark, config, "1", day(9))
    with pytest.raises(CheckpointError, match="expected a sequence, found a encoder"):
        score_next_items.run(spark, nights.config(checkpoint="base"), "1", day(9))
    with pytest.raises(CheckpointError, match=r"no chances\.json"):
        nights.score("x", day(20), chances="base")
    empty = Nights(spark, tmp_path)
    config = nights.config(warehouse=str(tmp_path / "warehouse"), chances=None, encoder=None)
    with pytest.raises(ContractError, match="as_of: expected a date"):
        score_next_items.run_with(spark, config, "1", nights.model(), nights.scorer)
    with pytest.raises(ContractError, match="consents: expected the table, found none"):
        score_next_items.run_with(spark, config, "2", nights.model(), nights.scorer, day(9))
    assert not list(empty.folder.glob("warehouse/next_items")), "nothing was made"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"k": 0}, "greater than or equal to 1"), ({"time_zone": "Mars/Olympus"}, "no time zone of that name"), ({"kinds": []}, "at least 1 item"),
     ({"kinds": ["look"]}, "Input should be"), ({"checkpoint": "../up"}, "should match pattern"), ({"half_life_days": 0}, "greater than 0"),
     ({"sessions_for_drift": 1}, "greater than or equal to 2"), ({"of": "queries"}, "Input should be"), ({"shelf": 3}, "not permitted")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config(**{"warehouse": "w", "checkpoint": "fake", **changes})


def test_a_model_of_sessions_reads_no_whole_histories(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {"sequence_id": list("1234"), "item_ids": [["a", "b"]] * 4, "side": ["train", "validation"] * 2}
    )
    card = Card(kind="sequence", base="none", settings={"of": "sessions"})
    training = SequenceTraining(architecture="linear", width=2)
    fine_tune(Plan(models_folder=tmp_path, name="next", card=card, training=training), rows, None, lambda said: None)
    config = Config(warehouse="w", models_folder=tmp_path, checkpoint="next")
    with pytest.raises(ConfigError, match="of: expected sessions, which next was trained on, found shoppers"):
        score_next_items._checkpoint(config)
    assert score_next_items._checkpoint(config.model_copy(update={"of": "sessions"})).name == "next"
