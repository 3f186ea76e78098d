"""What a profile says, by hand, and which of its rows stand."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError
from pyspark.sql import functions as F
from shoppers import did

from ecomspark import text
from ecomspark.features.profiles import (
    ProfileRules,
    _title_head,
    newest_profiles,
    profiles_of,
    standing_profiles,
    until_day,
    without_bots,
)
from ecomspark.schemas import INTERACTIONS, ITEMS, PROFILES, SESSIONS

BOUGHT = {"kind": "purchase", "currency": "GBP", "quantity": 1}
RULES = ProfileRules(half_life_days=10, kind_weights={"purchase": 1, "click": 0.2, "return": -1})


def bought(name: str, at: str, item: str, basket: str | None, price: str, **more: Any) -> dict[str, Any]:
    return {**did("ann", name, at, item=item), **BOUGHT, "basket_id": basket, "price": Decimal(price), **more}


def day(number: int) -> date:
    return date(2026, 1, number)


@pytest.fixture
def behaviour(rows: Callable[..., Any]) -> Any:
    interactions = rows(
        INTERACTIONS,
        bought("p1", "2026-01-01T10:00:00", "mug", "b1", "3", quantity=2),
        bought("p2", "2026-01-01T10:00:00", "pot", "b1", "12"),
        bought("p3", "2026-01-11T10:00:00", "mug", "b2", "3"),
        bought("p4", "2026-01-21T10:00:00", "hat", None, "25", currency="USD"),
        bought("r1", "2026-01-21T10:00:00", "pot", "b1", "12", kind="return"),
        {**did("ann", "c1", "2026-01-21T09:00:00", item="gone"), "dwell_seconds": 30.25},
        did("ann", "v1", "2026-01-21T08:00:00", "review", rating=5.0),
        did("bob", "i1", "2026-01-21T08:00:00", "impression"),
        {
            **bought("h1", "9999-12-31T23:59:59", "mug", "b", "99999999999999.9999", quantity=2**63 - 1),
            "shopper_id": "huge",
        },
    )
    return interactions.withColumn("own_id", interactions["shopper_id"])


@pytest.fixture
def items(rows: Callable[..., Any]) -> Any:
    return rows(
        ITEMS,
        {"item_id": "mug", "category": "Kitchen > Mugs", "brand": "Acme", "title": "RED Retrospot MUG 12CM"},
        {"item_id": "pot", "category": "Kitchen > Pots", "title": "Pot"},
        {"item_id": "hat", "category": "Hats", "brand": "Acme", "title": "Straw Hat, No.3"},
    )


def test_what_a_shopper_did_is_counted_weighted_and_named(spark: Any, behaviour: Any, items: Any) -> None:
    vectors = spark.createDataFrame(
        [("mug", [1.0, 0.0], 1.0), ("pot", [0.0, 1.0], 1.0), ("hat", [0.0, 2.0], 2.0)],
        "item_id string, vector array<float>, length double",
    )
    made = profiles_of(behaviour, items, vectors, b"e" * 16, RULES)
    found = {row["shopper_id"]: row.asDict(recursive=True) for row in made.collect()}
    ann = found["ann"]
    # 20 days are two half-lives, 10 are one: mug 1/4 + 1/2, hat 1, pot 1/4 - 1 and so nothing, gone in no category.
    expected = {
        "linked_count": 1, "interaction_count": 7, "purchase_count": 4, "return_count": 1, "basket_count": 3, "active_days": 3,
        "days_between_baskets": 10.0, "basket_items": 1.333333, "basket_value": 10.5, "return_share": 0.25,
        "repeat_share": 0.25, "browse_seconds": 30.25, "review_count": 1, "review_tone": 1.0,
        "category_weights": {"Kitchen > Mugs": 0.428571, "Hats": 0.571429}, "brand_weights": {"Acme": 1.0},
        "price_band_weights": {"2-5": 1.0}, "interests": ["by Acme", "Hats", "Mugs"], "encoder_digest": b"e" * 16,
    }  # fmt: skip
    assert {name: ann[name] for name in expected} == expected, (
        "18 and 3 pounds a basket; the dollars are another currency"
    )
    assert ann["vector"] == pytest.approx([0.6, 0.8]), "3/4 and 1, of unit length"
    in_order = ("p1", "p2", "p3", "v1", "c1", "p4", "r1")
    assert bytes(ann["history_digest"]) == text.digest("".join(f"2:{name}" for name in in_order))
    bob = found["bob"]
    nothing = ("days_between_baskets", "basket_items", "basket_value", "return_share", "repeat_share", "browse_seconds",
               "review_tone", "vector", "encoder_digest")  # fmt: skip
    assert {bob[name] for name in nothing} == {None}
    assert (bob["basket_count"], bob["category_weights"], bob["interests"]) == (0, {}, [])
    assert found["huge"]["price_band_weights"] == {"20+": 1.0}


def test_the_last_word_of_a_title_stands_in_for_a_category(behaviour: Any, items: Any) -> None:
    rules = RULES.model_copy(update={"category_from": "title_head", "weights_count": 1, "interests_count": 1})
    made = profiles_of(behaviour.where("shopper_id = 'ann'"), items, None, None, rules).collect()[0]
    assert made["category_weights"] == {"hat": 0.571429}, "the strongest; its share is of all"
    assert made["interests"] == ["by Acme"]
    assert made["vector"] is None


def test_a_word_that_only_links_others_names_nothing(spark: Any) -> None:
    heads = {
        "RED RETROSPOT MUG 12CM": "mug",
        "PAPER CASES, PACK OF 60": "pack",
        "Bag with": "bag",
        "OF THE": None,
        "60": None,
    }
    titles = spark.createDataFrame([(title,) for title in heads], "title string")
    found = titles.select("title", _title_head(F.col("title")).alias("head")).collect()
    assert {row["title"]: row["head"] for row in found} == heads


def test_of_a_day_a_row_stands_where_it_says_something_new(rows: Callable[..., Any], spark: Any) -> None:
    def row(shopper: str, on: int, says: bytes) -> dict[str, Any]:
        return {
            "shopper_id": shopper,
            "as_of_date": day(on),
            "history_digest": says * 16,
            "category_weights": {"a": 1.0, "b": 0.5},
        }

    there = rows(
        PROFILES,
        row("same", 1, b"A"), row("other", 1, b"A"), row("redone", 1, b"A"), row("redone", 3, b"B"), row("later", 5, b"X"),
        row("refuses", 1, b"A"), row("refuses", 5, b"A"), row("forgotten", 1, b"A"), row("forgotten", 5, b"X"),
        row("many", 1, b"A"), row("many", 2, b"B"),
    )  # fmt: skip
    made = rows(
        PROFILES,
        *(row(who, 3, b"A") for who in ("same", "redone", "later", "new")), row("other", 3, b"B"), row("many", 3, b"C"),
    ).drop("changed_by")  # fmt: skip
    who = ("same", "other", "redone", "later", "forgotten", "many", "new")
    allowed = spark.createDataFrame([(name,) for name in who], "shopper_id string")
    stand = standing_profiles(there, made, allowed, day(3), keeps_dates=2)
    found = sorted((r["shopper_id"], r["as_of_date"].day, bytes(r["history_digest"])[:1]) for r in stand.collect())
    assert found == [
        ("forgotten", 5, b"X"), ("later", 3, b"A"), ("later", 5, b"X"), ("many", 2, b"B"), ("many", 3, b"C"),
        ("new", 3, b"A"), ("other", 1, b"A"), ("other", 3, b"B"), ("redone", 1, b"A"), ("same", 1, b"A"),
    ]  # fmt: skip
    newest = newest_profiles(there, day(4)).collect()
    assert {(r["shopper_id"], r["as_of_date"].day) for r in newest} == {
        ("same", 1), ("other", 1), ("redone", 3), ("refuses", 1), ("forgotten", 1), ("many", 2),
    }  # fmt: skip


def test_a_machines_session_is_left_out_once_it_is_over(rows: Callable[..., Any]) -> None:
    def session(shopper: str, start: str, end: str, rule: str | None = "max_items") -> dict[str, Any]:
        times = {"started_at": did("", "", start)["occurred_at"], "ended_at": did("", "", end)["occurred_at"]}
        return {"session_id": shopper.encode(), "shopper_id": shopper, "bot_rule": rule, **times}

    sessions = rows(
        SESSIONS,
        session("early", "2026-01-05T20:00:00", "2026-01-05T21:00:00"),
        session("late", "2026-01-05T22:00:00", "2026-01-05T22:45:00"),
        session("person", "2026-01-05T20:00:00", "2026-01-05T21:00:00", None),
    )
    behaviour = rows(
        INTERACTIONS,
        did("early", "1", "2026-01-05T20:00:00"), did("early", "2", "2026-01-05T21:00:00"),
        did("early", "3", "2026-01-05T21:00:01"), did("late", "4", "2026-01-05T22:10:00"),
        did("late", "5", "2026-01-05T23:10:00"), did("person", "6", "2026-01-05T20:30:00"),
    )  # fmt: skip

    def left(on: int) -> set[str]:
        # In Berlin the day ends at 23:00 UTC: until then the late one may go on.
        until = until_day(behaviour, day(on), "Europe/Berlin")
        kept = without_bots(until, sessions, day(on), 30, "Europe/Berlin")
        return {row["interaction_id"] for row in kept.collect()}

    assert left(5) == {"3", "4", "6"}
    assert left(6) == {"3", "5", "6"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"price_bands": [5, 2]}, "edges must rise"),
        ({"price_bands": [0, 2]}, "the first more than 0"),
        ({"price_bands": []}, "at least 1 item"),
        ({"half_life_days": 0}, "greater than 0"),
        ({"kind_weights": {"view": 1}}, "Input should be"),
        ({"kind_weights": {"click": 1e9}}, "less than or equal to 100"),
        ({"time_zone": "Mars/Olympus"}, "no time zone of that name"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ProfileRules(**given)
