"""Profiles end to end: nothing later than their day, made anew for whom something changed, gone with the consent."""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shoppers import Shoppers, did

from ecomspark import text
from ecomspark.errors import ContractError
from ecomspark.features.profiles import newest_profiles
from ecomspark.pipelines import build_profiles
from ecomspark.schemas import EMBEDDINGS, ITEMS, NEXT_ITEMS, PROFILES, SEQUENCE_STATES, TEXTS
from ecomspark.text import TextRecipe

FIRST, SECOND, THIRD = (date(2028, 2, 28) + timedelta(days=n) for n in range(3))
ENCODER: Any = SimpleNamespace(scorer_digest=b"s" * 16, card=SimpleNamespace(recipe=TextRecipe()))
PEOPLE = [f"s{n}" for n in range(6)]
# In Auckland the day of 28 February ends at 11:00 UTC.
ZONE = {"time_zone": "Pacific/Auckland", "encoder": "towers", "gap_minutes": 120}
END_OF_SECOND = datetime(2028, 2, 29, 11, tzinfo=UTC)


def behaviour() -> list[dict[str, Any]]:
    chance = random.Random(11)
    start = datetime(2028, 2, 27, 12, tzinfo=UTC)
    return [
        {
            **did(f"s{chance.randrange(6)}", f"n{n}", "2028-02-29T00:00:00", item=f"i{chance.randrange(5)}"),
            "occurred_at": start + timedelta(seconds=chance.randrange(3 * 86_400)),
            "kind": chance.choice(["click", "cart", "purchase", "return", "review"]),
            "price": Decimal(chance.choice(["1.5", "4", "30"])), "currency": "GBP", "rating": 4.0,
        }
        for n in range(90)
    ]  # fmt: skip


BEHAVIOUR = [
    *behaviour(),
    {**did("s5", "last", "2028-02-29T00:00:00"), "occurred_at": END_OF_SECOND - timedelta(microseconds=1)},
    {**did("s5", "over", "2028-02-29T00:00:00"), "occurred_at": END_OF_SECOND},
]


def item(name: str, **more: Any) -> dict[str, Any]:
    return {"item_id": name, "title": name, "category": f"of {name}", "source_digest": text.digest(name), **more}


def with_vectors(shop: Shoppers, *names: str) -> None:
    """Texts and embeddings of items, as build_texts and an encoder would leave them."""
    recipe = ENCODER.card.recipe.digest
    made = [(text.digest(name), text.digest("text", name)) for name in names]
    shop.memory(
        TEXTS, [{"source_digest": s, "text_digest": t, "role": "passage", "recipe_digest": recipe} for s, t in made]
    )
    shop.memory(
        EMBEDDINGS,
        [
            {"text_digest": t, "role": "passage", "scorer_digest": ENCODER.scorer_digest, "vector": [t[0] / 7, 1.0, -t[1] / 3]}
            for _, t in made
        ],
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def encoder() -> Iterator[None]:
    """The digests of an encoder: of its weights a profile needs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_profiles, "open_checkpoint", lambda *_, **__: ENCODER)
        yield


def started(spark: Any, folder: Path) -> Shoppers:
    shop = Shoppers(spark, folder)
    shop.said(True, *PEOPLE)
    shop.items(*(item(f"i{n}") for n in range(4)))  # i4 is bought, but not in the catalogue
    with_vectors(shop, "i0", "i1", "i2")
    return shop


@pytest.fixture(scope="module")
def built(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Shoppers:
    """All of the behaviour imported, and the profiles as of a day on which half of it had happened."""
    shop = started(spark, tmp_path_factory.mktemp("profiles"))
    shop.did(BEHAVIOUR)
    shop.profiles("first", SECOND, **ZONE)
    return shop


def test_a_profile_is_made_of_nothing_later_and_days_in_between_are_caught_up(
    built: Shoppers, spark: Any, tmp_path: Path
) -> None:
    early = [step for step in BEHAVIOUR if step["occurred_at"] < END_OF_SECOND]
    assert 20 < len(early) < 70
    shop, whole = started(spark, tmp_path / "bit by bit"), built.copy(tmp_path / "at once")
    shop.did(early)
    shop.profiles("first", SECOND, **ZONE)
    rows = shop.told(PROFILES)
    assert rows == built.told(PROFILES), "what happened later is in the log, and in no profile"
    assert sum(row["interaction_count"] for row in rows) == len(early)
    assert any(row["vector"] for row in rows)
    shop.did(BEHAVIOUR)
    for each in (shop, whole):
        assert each.profiles("second", THIRD, **ZONE).rows["changed_shoppers"] == 6
    assert shop.told(PROFILES) == whole.told(PROFILES), "whether it came late, or was there and its day came"


def test_an_older_day_is_built_beside_newer_ones_and_replaces_none(built: Shoppers, tmp_path: Path) -> None:
    shop = built.copy(tmp_path)
    shop.did([{**did("s0", "late", "2028-02-28T01:00:00", "purchase", "i3")}])
    before = shop.told(PROFILES)
    summary = shop.profiles("older", FIRST, **ZONE)
    rows = shop.told(PROFILES)
    assert [row for row in rows if row["as_of_date"] == SECOND] == before
    assert summary.rows["new"] == len(rows) - len(before) > 0
    assert {row["as_of_date"] for row in rows} == {FIRST, SECOND}
    # What the older day's run has read is not taken for seen by the newer day.
    plan = build_profiles.plan(shop.spark, shop.profile_config(**ZONE), SECOND)
    assert plan.counts == {"consenting_shoppers": 6, "changed_shoppers": None}
    newer = shop.profiles("newer", SECOND, **ZONE)
    assert newer.rows["changed"] == 1
    newest = {row["shopper_id"]: row for row in newest_profiles(shop.rows(PROFILES), SECOND).collect()}
    was = {row["shopper_id"]: row for row in before}
    assert newest["s0"]["interaction_count"] == was["s0"]["interaction_count"] + 1


def test_whose_profile_is_made_anew_is_found_from_what_changed(built: Shoppers, tmp_path: Path) -> None:
    shop = built.copy(tmp_path)
    shop.said(False, "s0", day=2)
    shop.linked("s1", "s2")
    shop.items(*(item(f"i{n}") for n in range(2)), item("i2", category="another"), item("i3"))
    with_vectors(shop, "i3")
    shop.did([did("s3", "new", "2028-02-28T10:00:00", item="i4"), did("s9", "no", "2028-02-28T10:00:00")])
    assert shop.sessions("bots", bots={"max_items": 1}, gap_minutes=120).rows["bots_max_items"] > 0
    summary = shop.profiles("second", SECOND, **ZONE)
    assert "changed_shoppers" in summary.rows, "not everybody's"
    rows = {row["shopper_id"]: row for row in shop.told(PROFILES)}
    assert set(rows) == {"s1", "s3", "s4", "s5"}, "the retired id's profile is gone, and that of one who withdrew"
    assert rows["s1"]["linked_count"] == 2
    assert any("another" in row["category_weights"] for row in rows.values())
    whole = shop.profiles("whole", SECOND, full=True, **ZONE)
    assert whole.status == "nothing_to_do", "what was made bit by bit is what is made at once"
    # The state that a sequence model was in is taken over where it is asked for.
    key = {"history_digest": b"h" * 16, "scorer_digest": b"q" * 16}
    shop.memory(SEQUENCE_STATES, [{**key, "vector": [0.5, -0.5]}])
    shop.state(NEXT_ITEMS, [{"shopper_id": "s3", "as_of_date": SECOND, "rank": 1, **key}])
    shop.profiles("states", THIRD, has_sequence_state=True, keeps_dates=1, **ZONE)
    rows = {row["shopper_id"]: row for row in shop.told(PROFILES)}
    assert {row["as_of_date"] for row in rows.values()} == {THIRD}, "other settings say something new; one day is kept"
    assert rows["s3"]["sequence_state"] == [0.5, -0.5]
    assert rows["s4"]["sequence_state"] is None


def test_empty_tables_make_no_profiles_and_missing_ones_are_said(spark: Any, tmp_path: Path) -> None:
    shop = Shoppers(spark, tmp_path)
    with pytest.raises(ContractError, match="interactions: expected the table, found none; run the job"):
        shop.profiles("none", FIRST)
    shop.did([])
    with pytest.raises(ContractError, match="items: expected the table, found none; run the job"):
        shop.profiles("no-items", FIRST)
    shop.state(ITEMS, [])
    assert shop.profiles("empty", FIRST).rows["profiles"] == 0
    shop.did([did("a", "1", "2028-02-27T10:00:00"), did("b", "2", "2028-02-27T10:00:00")])
    shop.said(True, "a")
    assert shop.profiles("yes", FIRST).rows["new"] == 1
    assert [row["shopper_id"] for row in shop.told(PROFILES)] == ["a"], "unknown means no"
