"""Personal rankings over a tiny world of published tables: five items, two queries, vectors of two numbers by hand."""

import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import build_rows
from pydantic import ValidationError

from ecomspark import tables, text
from ecomspark.errors import ConfigError, ContractError, OnHold
from ecomspark.holds import set_hold
from ecomspark.pipelines import personalise_rankings
from ecomspark.runs import Summary
from ecomspark.schemas import (
    CONSENTS,
    EMBEDDINGS,
    ITEMS,
    PERSONAL_RANKINGS,
    PROFILES,
    QUERIES,
    RANKINGS,
    SESSIONS,
    SHOPPER_LINKS,
    TEXTS,
    Table,
)
from ecomspark.tables import Author, Warehouse

TODAY, LATER = date(2026, 11, 20), date(2026, 11, 30)
LEFT, UP = [1.0, 0.0], [0.0, 1.0]
# Item: vector, price, and in the general ranking availability, band, sum of terms.
ITEMS_OF: dict[str, tuple[list[float] | None, str | None, float, int, float]] = {
    "a": (LEFT, "1", 0.0, 5, 0.5),
    "b": (UP, "3", 0.0, 5, 0.4),
    "c": (None, None, 0.0, 5, 0.4),
    "d": (UP, "3", 0.0, 4, 0.9),
    "e": (UP, "3", -10.0, 9, 0.9),
}
GENERAL = ["a", "b", "c", "d", "e"]
MUG, PLATE = (text.digest("uk", words) for words in ("mug", "plate"))
CANARY = "p5eudonym-of-ann"


@dataclass
class Shop:
    spark: Any
    folder: Path
    prices: dict[str, str | None] = field(default_factory=lambda: {name: of[1] for name, of in ITEMS_OF.items()})
    runs: int = 0

    def __post_init__(self) -> None:
        self.warehouse = Warehouse(self.spark, str(self.folder / "warehouse"), 2)
        self.encoder = tiny.checkpoint(self.folder / "models", "encoder", kind="encoder")

    def put(self, table: Table, *given: dict[str, Any]) -> None:
        self.runs += 1
        author, rows = Author("world", f"w{self.runs}"), build_rows(self.spark, table, *given)
        if table.kind == "memory":
            tables.append_memory(self.warehouse, table, rows, author)
        elif table.kind == "log":
            tables.append_log(self.warehouse, table, rows, author)
        else:
            change = tables.compare(self.warehouse, table, rows.drop("changed_by"), author, deletes=False)
            tables.publish(self.warehouse, change, author)

    def put_items(self) -> None:
        self.put(ITEMS, *({"item_id": name, "title": name, "source_digest": text.digest(name),
                           "price": price and Decimal(price)} for name, price in self.prices.items()))  # fmt: skip

    def profile(self, shopper: str, vector: list[float], digest: bytes | None = None, **more: Any) -> dict[str, Any]:
        given = {"as_of_date": date(2026, 11, 1), "history_digest": text.digest(shopper), "vector": vector,
                 "encoder_digest": digest or self.encoder.scorer_digest, "category_weights": {"mugs": 1.0},
                 "price_band_weights": {"2-5": 1.0}}  # fmt: skip
        return {"shopper_id": shopper, **given, **more}

    def name(self, *pairs: tuple[Any, ...]) -> None:
        lines = [json.dumps(dict(zip(("shopper_id", "query_text", "locale"), pair, strict=True))) for pair in pairs]
        (self.folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def config(self, **changes: Any) -> personalise_rankings.Config:
        given: dict[str, Any] = {
            "warehouse": self.warehouse.location, "buckets": 2, "models_folder": self.folder / "models",
            "encoder": "encoder", "pairs": {"format": "jsonl", "path": str(self.folder / "pairs.jsonl")},
            "weights": {"profile": 1.0, "session": 0.5, "price": 0.25}, "min_members": 2,
            "segments": {"mugs": {"category": "mugs"}, "lone": {"category": "mugs", "brand": "one"}}, "top_queries": 1,
        }  # fmt: skip
        return personalise_rankings.Config(**{**given, **changes})

    def run(self, run_id: str, as_of: date = TODAY, **changes: Any) -> Summary:
        return personalise_rankings.run(self.spark, self.config(**changes), run_id, as_of)

    def plan(self, as_of: date = TODAY, **changes: Any) -> dict[str, Any]:
        return dict(personalise_rankings.plan(self.spark, self.config(**changes), as_of).counts)

    def rows(self) -> list[Any]:
        at = tables.snapshot(self.warehouse, PERSONAL_RANKINGS)
        found: list[Any] = tables.read(self.warehouse, PERSONAL_RANKINGS, at).orderBy("rank").collect()
        return found

    def shown(self, query: bytes = MUG) -> dict[str, list[str]]:
        """The items of each audience in their order."""
        found: dict[str, list[str]] = {}
        for row in self.rows():
            if bytes(row["query_id"]) == query:
                found.setdefault(row["audience"], []).append(row["item_id"])
        return found

    def changed_by(self, run_id: str) -> set[tuple[str, bytes]]:
        return {(row["audience"], bytes(row["query_id"])) for row in self.rows() if row["changed_by"] == run_id}


def session(shopper: str, day: int, item: str) -> dict[str, Any]:
    at = {"session_date": date(2026, 11, day), "started_at": datetime(2026, 11, day, tzinfo=UTC)}
    done = {"item_ids": [item], "kinds": ["click"], "bot_rule": None}
    return {"session_id": text.digest(shopper, str(day)), "shopper_id": shopper, **at, **done}


def consent(shopper: str, is_given: bool, day: int = 1) -> dict[str, Any]:
    at = datetime(2026, 11, day, tzinfo=UTC)
    return {"shopper_id": shopper, "purpose": "personalisation", "is_given": is_given, "at": at}


PAIRS = [
    (CANARY, " MUG ", "uk"), (CANARY, "mug", "uk"), (CANARY, "plate", "uk"), ("bob", "mug", "uk"), ("cat", "mug", "uk"),
    ("dan", "mug", "uk"), ("eve", "mug", "uk"), ("fay", "mug", "uk"), ("old", "mug", "uk"),
    (CANARY, "nobody asked this", "uk"), (CANARY, "mug", "us"), (CANARY, "unranked", "uk"), (None, "mug", "uk"),
    (CANARY, None, "uk"),
]  # fmt: skip


@pytest.fixture(scope="module")
def shop(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """ann consents, and so does an id of hers that retired; bob refused; cat has no profile; dan's is another encoder's;
    nobody heard of eve; fay likes the other things."""
    made = Shop(spark, tmp_path_factory.mktemp("personal"))
    made.put_items()
    queries = {"mug": 9, "plate": 5, "unranked": 1}
    made.put(QUERIES, *({"query_id": text.digest("uk", words), "query_text": words, "locale": "uk", "traffic": n,
                         "text_source_digest": text.digest(words)} for words, n in queries.items()))  # fmt: skip
    general = []
    for query, names in ((MUG, GENERAL), (PLATE, ["b", "d", "e"])):
        for rank, name in enumerate(names, 1):
            _, _, out, band, within = ITEMS_OF[name]
            score = {"availability": out, "band": band, "final_score": round(out + band + within, 6)}
            general.append({"variant": "main", "query_id": query, "item_id": name, "rank": rank, **score})
    made.put(RANKINGS, *general)
    recipe, scorer = made.encoder.card.recipe.digest, made.encoder.scorer_digest
    made.put(TEXTS, *({"source_digest": text.digest(name), "role": "passage", "recipe_digest": recipe, "text": name,
                       "text_digest": text.digest("text", name)} for name in ITEMS_OF))  # fmt: skip
    made.put(EMBEDDINGS, *({"text_digest": text.digest("text", name), "role": "passage", "scorer_digest": by,
                            "vector": vector if by == scorer else [9.0, 9.0, 9.0]}
                           for name, (vector, *_) in ITEMS_OF.items() if vector for by in (scorer, b"o" * 16)))  # fmt: skip
    made.put(CONSENTS, *(consent(name, name != "bob") for name in (CANARY, "old", "cat", "dan", "fay", "bob")))
    made.put(SHOPPER_LINKS, {"shopper_id": CANARY, "other_id": "old", "at": datetime(2026, 11, 1, tzinfo=UTC)})
    made.put(
        PROFILES,
        made.profile(CANARY, UP),
        made.profile(CANARY, LEFT, as_of_date=LATER),  # not yet
        made.profile("old", LEFT),  # of before the link: it is not read
        made.profile("bob", UP),
        made.profile("dan", UP, b"o" * 16),
        made.profile("fay", [3.0, 0.0], price_band_weights={"0-2": 1.0}),
    )
    made.put(SESSIONS, session(CANARY, 3, "b"), session(CANARY, 2, "a"))
    made.name(*PAIRS)
    return made


# One after the other: each goes on from what the one before it left.


def test_who_consents_and_has_a_profile_gets_an_order_of_their_own(shop: Shop, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "ecomspark")
    done = shop.run("first")
    shown = shop.shown()
    # ann: b has all of its terms, (0.4 + 1 + 0.5 + 0.25) / 2.75; a half of the first two: (0.5 + 0.75) / 2.75.
    assert shown[CANARY] == ["b", "a", "c", "d", "e"]
    assert shown["old"] == shown[CANARY], "the retired id is told as the one that stays"
    # fay has no session: a (0.5 + 1 + 0.25 + 0.25) / 2.75; c, without a vector, before b at right angles by nothing but id.
    assert shown["fay"] == GENERAL
    for name in ("cat", "dan", "lone"):
        assert shown[name] == GENERAL
    assert not {"bob", "eve"} & set(shown), "of who may not be known there is nothing: search shows the general ranking"
    assert shown["mugs"] == GENERAL, "ann and fay: cosines alike, and half of the price term for each"
    by_key = {(row["audience"], bytes(row["query_id"]), row["item_id"]): row for row in shop.rows()}
    row = by_key[CANARY, MUG, "b"]
    assert [row[name] for name in ("profile_term", "session_term", "price_term")] == [1.0, 0.5, 0.25]
    assert (row["final_score"], row["general_score"], row["general_rank"]) == (5.781818, 5.4, 2)
    assert bytes(row["profile_digest"]) == text.digest(CANARY)
    assert by_key[CANARY, MUG, "a"]["final_score"] == 5.454545
    assert by_key[CANARY, MUG, "c"]["final_score"] == 5.418182
    assert by_key[CANARY, MUG, "e"]["final_score"] == -0.036364, "out of stock stays last, whatever the affinity"
    general = [row for row in shop.rows() if not row["is_personal"]]
    assert {row["audience"] for row in general} == {"cat", "dan", "lone"}
    assert all(row["final_score"] == row["general_score"] and row["rank"] == row["general_rank"] for row in general)
    assert not any(row[name] for row in general for name in ("profile_term", "session_term", "price_term"))
    expected = {
        "named_pairs": 9, "unusable_pairs": 2, "unknown_queries": 2, "unknown_shoppers": 1, "unranked_queries": 1,
        "redone_pairs": 8, "because_new": 8, "because_whole": 8, "gone_pairs": 0, "personal_rankings": 5,
        "general_rankings": 3, "shoppers_without_consent": 2, "general_no_profile": 1, "general_other_encoder": 1,
        "general_too_few_members": 1, "new": 38, "published_personal": 5, "personal_rows": 23, "moved_places": 4,
        "top_rows": 23, "came_into_top": 0,
    }  # fmt: skip
    assert {name: done.rows.get(name) for name in expected} == expected
    assert "an item stands 0.17 places from where everybody sees it" in caplog.text
    assert CANARY not in caplog.text
    assert "mug" not in caplog.text.replace("mugs", "")


def test_nothing_changed_is_no_version_and_a_plan_says_so(shop: Shop) -> None:
    assert shop.plan()["redone_pairs"] == 0
    again = shop.run("again")
    assert (again.status, again.rows["redone_pairs"]) == ("nothing_to_do", 0)


def test_only_what_changed_is_done_again(shop: Shop) -> None:
    shop.put(SESSIONS, session(CANARY, 5, "a"))
    planned = shop.plan()
    assert (planned["redone_pairs"], planned["because_sessions"]) == (3, 3), "hers, and those of her retired id"
    shop.prices["a"] = "3"
    shop.put_items()
    done = shop.run("changes")
    assert (done.rows["because_sessions"], done.rows["because_items"], done.rows["redone_pairs"]) == (3, 7, 8)
    # b: (0.4 + 1 + 0.25 + 0.25) / 2.75 = 0.690909; a: (0.5 + 0.5 + 0.5 + 0.25) / 2.75 = 0.636364.
    assert shop.shown()[CANARY] == ["b", "a", "c", "d", "e"]
    assert {name for name, query in shop.changed_by("changes") if query == PLATE} == {CANARY}, "for the session alone"
    assert ("cat", MUG) not in shop.changed_by("changes"), "looked at, and the same"
    done = shop.run("a-later-day", LATER)
    assert done.rows["because_profiles"] == 5, "her profile of that day counts now: three pairs, and the segments"
    assert shop.shown()[CANARY] == GENERAL
    whole = shop.run("whole", LATER, full=True)
    assert (whole.status, whole.rows["redone_pairs"]) == ("nothing_to_do", 8), (
        "what changed was all that had to be done"
    )


def test_a_shopper_who_withdraws_and_one_who_is_not_named_any_more_have_no_ranking_of_their_own(shop: Shop) -> None:
    shop.put(CONSENTS, consent(CANARY, False, 2))
    shop.name(*(pair for pair in PAIRS if pair[0] != "cat"), ("fay", "plate", "uk"))
    done = shop.run("withdrawn", LATER)
    personal = {row["audience"] for row in shop.rows() if row["is_personal"]}
    assert personal == {"fay"}, "a no of one id is a no of the person, and one member is no segment"
    assert not {CANARY, "old", "cat"} & set(shop.shown())
    assert (done.rows["gone_pairs"], done.rows["because_new"], done.rows["general_too_few_members"]) == (4, 1, 2)


def test_a_variant_on_hold_is_not_followed_but_who_withdraws_is_let_go(shop: Shop) -> None:
    set_hold(shop.warehouse, "main", "checking", Author("hold", "h"))
    shop.prices["a"] = "100"
    shop.put_items()
    shop.put(CONSENTS, consent("fay", False, 2))
    before = [row for row in shop.rows() if row["audience"] != "fay"]
    with pytest.raises(OnHold, match="the variant main is on hold and was not followed") as held:
        shop.run("held", LATER)
    assert held.value.status == 6
    assert shop.rows() == before
    assert shop.plan(LATER) == {"redone_pairs": 0}


def test_bad_pairs_are_counted_and_too_many_or_other_columns_are_refused(shop: Shop, spark: Any) -> None:
    from ecomspark.schemas import HOLDS

    spark.sql(f"DELETE FROM delta.`{shop.warehouse.path(HOLDS)}`")
    texts = ["", "   ", "\ufeff", "red\0mug", "\u202egum der", "红色杯子", "a" * 100_000, "mug " * 500_000, "<b>mug</b>",
             "=1+1", "'; DROP TABLE items; --", "../../etc/passwd", "ＭＵＧ", None]  # fmt: skip
    shop.name(*(("dan", words, "uk") for words in texts), ("x" * 600, "mug", "uk"), ("", "mug", "uk"))
    with (shop.folder / "pairs.jsonl").open("ab") as file:
        file.write(b'{"shopper_id": "caf\xe9"\nnot json\n')
    counts = shop.plan(LATER, segments={}, top_queries=0)
    unusable = counts["unusable_pairs"]
    assert counts["named_pairs"] == 1, "the full-width form is the same query"
    assert unusable + counts["unknown_queries"] + 1 == len(texts) + 4, "none is lost without a count"
    with pytest.raises(ContractError, match="expected at most 1 of an audience and a query, found"):
        shop.plan(LATER, max_pairs=1)
    with pytest.raises(ContractError, match=r"columns\.shopper_id: expected a column person"):
        shop.plan(LATER, columns={"shopper_id": "person", "query_text": "query_text", "locale": {"constant": "uk"}})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"top_queries": 0}, "shoppers and segments need queries"),
        ({"segments": {}}, "these need shoppers or segments"),
        ({"price_bands": [5.0, 2.0]}, "edges must rise"),
        ({"price_bands": [0.0]}, "each above 0"),
        ({"weights": {"profile": -1.0}}, "greater than or equal to 0"),
        ({"min_members": 1}, "greater than or equal to 2"),
        ({"segments": {"s": {}}}, "name a category"),
    ],
)
def test_settings_that_name_nobody_or_nothing_are_refused(changes: dict[str, Any], fault: str) -> None:
    given = {"warehouse": "w", "encoder": "e", "segments": {"s": {"category": "mugs"}}, "top_queries": 1}
    with pytest.raises(ValidationError, match=fault):
        personalise_rankings.Config(**{**given, **changes})
    nobody = personalise_rankings.Config(warehouse="w", encoder="e")
    with pytest.raises(ConfigError, match="nobody else gets a ranking"):
        personalise_rankings.plan(None, nobody)  # type: ignore[arg-type]
