"""No shopper without consent is left in any derived table: random people, links and answers, through the job."""

import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import build_rows

from ecomspark import tables, text
from ecomspark.errors import LeaseTaken
from ecomspark.features.consents import consenting
from ecomspark.pipelines import withdraw_consents
from ecomspark.pipelines.withdraw_consents import DERIVED
from ecomspark.runs import Summary
from ecomspark.schemas import (
    CONSENTS,
    NEXT_ITEMS,
    OUTLOOKS,
    PERSONAL_RANKINGS,
    PROFILES,
    SEQUENCE_STATES,
    SESSIONS,
    SHOPPER_LINKS,
    Table,
)
from ecomspark.tables import Author, Warehouse

PURPOSE, DAY = "personalisation", date(2026, 1, 1)
GROUPS, IDS = 40, "abcd"  # links are made within a group only


@dataclass
class People:
    """What shoppers said, and which of their ids are one: by chance, the same each time."""

    said: set[tuple[str, str, datetime, bool]] = field(default_factory=set)
    links: set[tuple[str, str]] = field(default_factory=set)

    @property
    def ids(self) -> list[str]:
        return [f"{group:02}{letter}" for group in range(GROUPS) for letter in IDS]

    def may_be_known(self) -> dict[str, str]:
        """By id the one that it is told under, of those whose history may be used: the rules once more, in plain sets."""
        stands = {}
        for shopper in self.ids:
            mine = [(at, yes) for who, purpose, at, yes in self.said if (who, purpose) == (shopper, PURPOSE)]
            newest = max((at for at, _ in mine), default=None)
            stands[shopper] = all(yes for at, yes in mine if at == newest) if mine else None
        group_of = {shopper: {shopper} for shopper in self.ids}
        for one, other in self.links:
            both = group_of[one] | group_of[other]
            group_of |= dict.fromkeys(both, both)
        retired = {other for one, other in self.links if one != other}
        found = {}
        for shopper, group in group_of.items():
            person = min(group, key=lambda one: (one in retired, one))
            is_refused = any(stands[one] is False for one in group)
            if stands[shopper] and stands[person] and not is_refused:
                found[shopper] = person
        return found


def by_chance(seed: int) -> People:
    chance, people = random.Random(seed), People()
    for shopper in people.ids:
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            at = datetime(2026, 1, chance.randint(1, 4), tzinfo=UTC)
            people.said.add((shopper, chance.choice((PURPOSE,) * 5 + ("statistics",)), at, chance.random() < 0.8))
    for group in range(GROUPS):
        for _ in range(chance.choice((0, 0, 1, 2, 3))):
            people.links.add((f"{group:02}{chance.choice(IDS)}", f"{group:02}{chance.choice(IDS)}"))
    return people


@dataclass
class Tables:
    """A warehouse in which every id of some people has derived rows, whether it may or not."""

    spark: Any
    folder: Path
    people: People
    said: list[str] = field(default_factory=list)

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(self.spark, str(self.folder / "warehouse"), 2)

    def frame(self, table: Table, rows: list[dict[str, Any]]) -> Any:
        return build_rows(self.spark, table, *rows)

    def say(self, *said: tuple[str, str, datetime, bool]) -> None:
        self.people.said |= set(said)
        rows = [dict(zip(("shopper_id", "purpose", "at", "is_given"), one, strict=True)) for one in said]
        tables.append_log(self.warehouse, CONSENTS, self.frame(CONSENTS, rows), Author("test", "said"))

    def publish(self) -> None:
        """Two profiles, sessions and lists an id; each list's history is its own and one that four ids share."""
        ids = self.people.ids
        days = [(shopper, DAY + timedelta(n)) for shopper in ids for n in range(2)]
        dated = [{"shopper_id": shopper, "as_of_date": day} for shopper, day in days]
        ranked = [{"variant": "main", "audience_kind": kind, "audience": shopper, "item_id": "i"}
                  for shopper in ids for kind in ("shopper", "segment")]  # fmt: skip
        rows = {
            SESSIONS: [{"session_id": text.digest(f"{one}"), "shopper_id": one[0]} for one in days],
            PROFILES: dated,
            OUTLOOKS: dated,
            NEXT_ITEMS: [{"shopper_id": shopper, "as_of_date": day, "rank": rank, "history_digest": history(shopper, day),
                          "scorer_digest": SCORER} for shopper, day in days for rank in (1, 2)],
            PERSONAL_RANKINGS: ranked,
        }  # fmt: skip
        author = Author("test", "derived")
        for table, given in rows.items():
            frame = self.frame(table, given).drop("changed_by")
            tables.publish(self.warehouse, tables.compare(self.warehouse, table, frame, author), author)
        states = {history(*one) for one in days} | {text.digest("nobody's")}
        kept = [{"history_digest": state, "scorer_digest": scorer} for state in states for scorer in (SCORER, OTHER)]
        tables.append_memory(self.warehouse, SEQUENCE_STATES, self.frame(SEQUENCE_STATES, kept), author)
        links = [{"shopper_id": one, "other_id": other} for one, other in self.people.links]
        tables.append_log(self.warehouse, SHOPPER_LINKS, self.frame(SHOPPER_LINKS, links), author)

    def config(self, **changes: Any) -> withdraw_consents.Config:
        return withdraw_consents.Config(**{"warehouse": self.warehouse.location, **changes})

    def run(self, run_id: str, **changes: Any) -> Summary:
        return withdraw_consents.run(self.spark, self.config(**changes), run_id)

    def plan(self) -> Any:
        return withdraw_consents.plan(self.spark, self.config()).counts

    def rows(self, table: Table) -> list[Any]:
        if table.kind == "memory":
            rows: list[Any] = tables.read_memory(self.warehouse, table).collect()
        else:
            rows = tables.read(self.warehouse, table, tables.snapshot(self.warehouse, table)).collect()
        return rows

    def left(self, table: Table) -> dict[str, int]:
        """Rows by shopper; of segments none."""
        counts: dict[str, int] = {}
        for row in self.rows(table):
            if table != PERSONAL_RANKINGS or row["audience_kind"] == "shopper":
                counts[row[DERIVED[table]]] = counts.get(row[DERIVED[table]], 0) + 1
        return counts

    def states(self) -> set[tuple[bytes, bytes]]:
        return {(bytes(row["history_digest"]), bytes(row["scorer_digest"])) for row in self.rows(SEQUENCE_STATES)}


SCORER, OTHER = text.digest("scorer"), text.digest("other")
A_SHOPPER = {SESSIONS: 2, PROFILES: 2, OUTLOOKS: 2, NEXT_ITEMS: 4, PERSONAL_RANKINGS: 1}


def history(shopper: str, day: date) -> bytes:
    return text.digest(shopper if day == DAY else f"shared by four: {int(shopper[:2]) // 4} {shopper[2]}")


@pytest.fixture(scope="module")
def derived(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    world = Tables(spark, tmp_path_factory.mktemp("derived"), by_chance(seed=7))
    said, world.people.said = world.people.said, set()
    world.say(*said)
    world.publish()
    return world


def test_who_may_be_known_is_what_the_rules_say_in_plain_sets(spark: Any) -> None:  # S10
    said, links, expected = [], [], {}
    for seed in (7, 8, 9):
        people = by_chance(seed)
        said += [{"shopper_id": f"{seed}-{who}", "purpose": purpose, "at": at, "is_given": yes}
                 for who, purpose, at, yes in people.said]  # fmt: skip
        links += [{"shopper_id": f"{seed}-{stays}", "other_id": f"{seed}-{goes}"} for stays, goes in people.links]
        expected |= {f"{seed}-{who}": f"{seed}-{person}" for who, person in people.may_be_known().items()}
    found = consenting(build_rows(spark, CONSENTS, *said), build_rows(spark, SHOPPER_LINKS, *links), PURPOSE).collect()
    assert {row["shopper_id"]: row["person_id"] for row in found} == expected
    assert 200 < len(expected) < 280, "some may and some may not: else this shows nothing"


def test_no_shopper_without_consent_is_left_in_any_derived_table(derived: Tables, caplog: Any) -> None:  # S10
    known = derived.people.may_be_known()
    mine = set(known.values())
    gone = set(derived.people.ids) - mine
    before = derived.states()
    kept = {(history(shopper, DAY + timedelta(n)), SCORER) for shopper in mine for n in range(2)}
    lost = before - kept
    expected = {"shoppers": len(gone), **{f"{t.name}_removed": n * len(gone) for t, n in A_SHOPPER.items()},
                "personal_rankings_removed": len(derived.people.ids) - len(known),
                "sequence_states_removed": len(lost)}  # fmt: skip
    planned = derived.plan()
    with caplog.at_level("INFO", "ecomspark"):
        summary = derived.run("1")
    assert planned == summary.rows == expected
    sentence = next(line for line in caplog.messages if "removed of" in line)
    assert f"of {len(gone)} shoppers who may not be known under personalisation" in sentence
    assert f"{2 * len(gone)} profiles" in sentence
    assert f"{len(lost)} sequence states" in sentence
    for table, count in A_SHOPPER.items():
        assert derived.left(table) == dict.fromkeys(known if table == PERSONAL_RANKINGS else mine, count), table.name
    assert sum(row["audience_kind"] == "segment" for row in derived.rows(PERSONAL_RANKINGS)) == len(derived.people.ids)
    assert derived.states() == kept, "what a shopper who may be known has, stays, and nothing else"
    assert any(history(shopper, DAY + timedelta(1)) in {state for state, _ in kept} for shopper in gone), "shared ones"

    again = derived.run("2")
    assert (again.status, set(again.rows.values())) == ("nothing_to_do", {0})
    assert derived.run("3", full=True).status == "nothing_to_do"

    # One no, and one shopper, whole, is gone; with a lease of somebody's on one table, nothing is.
    shopper = min(mine)
    derived.say((shopper, PURPOSE, datetime(2026, 2, 1, tzinfo=UTC), False))
    states = {(history(shopper, DAY + timedelta(n)), SCORER) for n in range(2)}
    ranker = Author("rank_candidates", "under way")
    leases = tables.read_leases(derived.warehouse)
    tables.take(derived.warehouse, leases, [PROFILES.name], ranker, "nonce", 600)
    with pytest.raises(LeaseTaken, match="profiles: rank_candidates, run under way"):
        derived.run("4")
    assert shopper in derived.left(SESSIONS)
    tables.give_back(derived.warehouse, "nonce", ranker)
    assert derived.run("5").rows["shoppers"] == 1
    assert set(derived.people.may_be_known().values()) == mine - {shopper}
    assert not [table.name for table in A_SHOPPER if shopper in derived.left(table)]
    assert {s for s in derived.states() if s in states} == {s for s in states if s[0] != text.digest(shopper)}


def test_nothing_is_there_to_remove_in_a_shop_that_knows_nobody(warehouse: Any, spark: Any) -> None:
    config = withdraw_consents.Config(warehouse=warehouse.location)
    assert withdraw_consents.run(spark, config, "1").status == "nothing_to_do"
