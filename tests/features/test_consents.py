"""Who may be known, and as whom."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

from ecomspark.features.consents import consenting, of_people, people, standing_consents
from ecomspark.schemas import CONSENTS, INTERACTIONS, SHOPPER_LINKS


def at(day: int) -> datetime:
    return datetime(2026, 1, day, tzinfo=UTC)


def said(shopper: str, day: int, is_given: bool, purpose: str = "personalisation") -> dict[str, Any]:
    return {"shopper_id": shopper, "purpose": purpose, "at": at(day), "is_given": is_given}


def link(stays: str, retires: str) -> dict[str, Any]:
    return {"shopper_id": stays, "other_id": retires, "at": at(1)}


def test_the_newest_row_holds_and_of_two_at_once_the_no(rows: Callable[..., Any]) -> None:
    consents = rows(
        CONSENTS,
        said("gave", 1, False), said("gave", 2, True),
        said("took back", 1, True), said("took back", 2, False),
        said("both", 3, True), said("both", 3, False), said("both", 1, True),
        said("for another", 1, True, "statistics"),
    )  # fmt: skip
    found = {row["shopper_id"]: row["is_given"] for row in standing_consents(consents, "personalisation").collect()}
    assert found == {"gave": True, "took back": False, "both": False}


def test_linked_ids_are_one_person_under_the_id_that_never_retired(rows: Callable[..., Any]) -> None:
    chain = [link(f"c{n}", f"c{n + 1}") for n in range(9)]
    circle = [link("x", "y"), link("y", "z"), link("z", "x")]
    links = rows(SHOPPER_LINKS, *chain, *circle, link("b", "a"), link("self", "self"), link("m", "k"), link("l", "k"))
    found = {row["shopper_id"]: row["person_id"] for row in people(links).collect()}
    assert found == {
        **{f"c{n}": "c0" for n in range(10)}, "x": "x", "y": "x", "z": "x", "a": "b", "b": "b",
        "k": "l", "l": "l", "m": "l",
    }  # fmt: skip


def test_a_long_chain_of_ids_in_any_order_is_one_person(rows: Callable[..., Any]) -> None:
    names = [f"{place:03}" for place in range(150)]
    Random(4).shuffle(names)
    links = rows(SHOPPER_LINKS, *(link(stays, retires) for stays, retires in pairwise(names)))
    assert {row["person_id"] for row in people(links).collect()} == {names[0]}


def test_unknown_means_no_and_a_no_of_one_id_is_a_no_of_the_person(rows: Callable[..., Any]) -> None:
    consents = rows(
        CONSENTS,
        said("alone", 1, True),
        said("stays", 1, True), said("retired", 1, True),
        said("known", 1, True),
        said("half", 1, True), said("refuses", 9, False),
        said("old", 1, True),
    )  # fmt: skip
    links = rows(
        SHOPPER_LINKS,
        link("stays", "retired"),
        link("known", "unknown"),
        link("half", "refuses"),
        link("silent", "old"),
    )
    allowed = consenting(consents, links, "personalisation")
    found = {row["shopper_id"]: row["person_id"] for row in allowed.collect()}
    assert found == {"alone": "alone", "stays": "stays", "retired": "stays", "known": "known"}

    behaviour = rows(
        INTERACTIONS,
        *(
            {"interaction_id": who, "shopper_id": who}
            for who in ("alone", "retired", "unknown", "refuses", "old", None)
        ),
    )
    used = {row["interaction_id"]: row["shopper_id"] for row in of_people(behaviour, allowed).collect()}
    assert used == {"alone": "alone", "retired": "stays"}
