"""Personal terms move items inside their bands, and nothing where there is no profile or no consent."""

import random
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from ecomspark.features.personal import (
    KEY,
    Segment,
    Weights,
    affinity_term,
    cosines,
    last_sessions,
    mean_vectors,
    members,
    moved,
    personal_rankings,
    personal_score,
    segment_standing,
)
from ecomspark.features.profiles import newest_profiles, price_band
from ecomspark.schemas import PERSONAL_RANKINGS, PROFILES, SESSIONS

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

GENERAL = (
    "audience_kind string, audience string, variant string, query_id binary, item_id string, rank int, "
    "final_score double, availability double, band int"
)
STANDING = (
    "audience_kind string, audience string, reason string, profile_vector array<float>, "
    "price_weights map<string,double>, profile_digest binary"
)
AFFINITIES = "audience_kind string, audience string, item_id string, profile_cosine double, session_cosine double"
WEIGHTS = Weights(profile=1.0, session=0.5, price=0.25)


def test_the_formulas_take_numbers_and_keep_within_a_band() -> None:
    assert affinity_term(0.5, 1.0) == 0.5
    assert affinity_term(0.5, -1.0) == 0.0
    assert personal_score(4.0, 1.0, WEIGHTS.total, WEIGHTS.total) == 5.0, "all terms at their most"
    assert personal_score(4.0, 0.3, 0.0, 0.0) == 4.3, "no weights: the general score"


@pytest.mark.parametrize("given", [{}, {"categry": "x"}, {"category": ""}])
def test_a_segment_says_whose_it_is(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="categ"):
        Segment(**given)


def test_bands_are_never_crossed_and_the_order_is_that_of_the_plain_formula(spark: Any) -> None:
    """Forty items with random bands, stock, terms and cosines, three weightings; the figures' numpy orders alike."""
    from personal import Asked

    draw = random.Random(7)
    count, query = 40, bytearray(b"q" * 16)
    items = [f"i{n:02}" for n in range(count)]
    band, out = [draw.randint(0, 3) for _ in items], [draw.random() < 0.2 for _ in items]
    within = [round(draw.choice([0.0, 0.25, 1.0, draw.random()]), 6) for _ in items]
    tier = [b - 11.0 * o for b, o in zip(band, out, strict=True)]
    order = sorted(range(count), key=lambda n: (out[n], -band[n], -within[n], n))
    rank = {n: place for place, n in enumerate(order, 1)}
    profile, session = ([round(draw.uniform(-1, 1), 1) for _ in items] for _ in range(2))
    bands = [(i, draw.choice(["0-2", "2-5", None])) for i in items]
    shares = {"0-2": 0.75, "2-5": 0.25}
    weightings = [WEIGHTS, Weights(profile=50.0, session=0.0, price=3.0), Weights(profile=0.0, session=0.0, price=0.0)]
    general = [("shopper", "s", "main", query, items[n], rank[n], round(tier[n] + within[n], 6), -11.0 * out[n], band[n])
               for n in range(count)]  # fmt: skip
    standing = spark.createDataFrame([("shopper", "s", None, [1.0], shares, bytearray(16))], STANDING)
    affinities = [("shopper", "s", i, p, s) for i, p, s in zip(items, profile, session, strict=True)]
    for weights in weightings:
        rows = personal_rankings(
            spark.createDataFrame(general, GENERAL),
            standing,
            spark.createDataFrame(affinities, AFFINITIES),
            spark.createDataFrame(bands, "item_id string, price_band string"),
            weights,
        ).collect()
        found = {row["item_id"]: row for row in rows}
        in_order = sorted(rows, key=lambda row: row["rank"])
        assert [row["rank"] for row in in_order] == list(range(1, count + 1))
        tiers = [(not out[items.index(row["item_id"])], band[items.index(row["item_id"])]) for row in in_order]
        assert tiers == sorted(tiers, reverse=True), "availability, then band, whatever the weights"
        for n, item in enumerate(items):
            assert tier[n] <= found[item]["final_score"] <= tier[n] + 1
        asked = Asked(
            customer=np.array([1.0]), is_new=np.array([True]), target=np.array([0]), tier=np.array([tier]),
            within=np.array([within]), profile=np.array([profile]), session=np.array([session]),
            price=np.array([[shares.get(name, 0.0) if name else 0.0 for _, name in bands]]),
        )  # fmt: skip
        # There an item that is out stands in a tier of its own below all others, as here its availability puts it.
        assert [found[item]["rank"] for item in items] == list(asked.ranks(weights)[0])
        if weights.total == 0:
            assert [row["final_score"] for row in in_order] == [row["general_score"] for row in in_order]


def test_terms_by_hand_ties_by_item_id_and_the_general_ranking_for_a_reason(spark: Any) -> None:
    """a: (1 + 0) / 2 = 0.5, 0.5 x (1 - 1) / 2 = 0, 0.25 x 0.8 = 0.2: (0.4 + 0.7) / 2.75 = 0.4; b and c have no vectors:
    0.5 + 0.25, no band: (0.3 + 0.75) / 2.75 = 0.381818."""
    query = bytearray(b"q" * 16)
    of_query = [
        ("c", 1, 5.3),
        ("b", 2, 5.3),
        ("a", 3, 5.4 - 1e-9),
    ]  # not in the order of the score: it is kept as it is
    general = [(kind, name, "main", query, item, rank, score, 0.0, 5)
               for kind, name in (("shopper", "ann"), ("shopper", "bob")) for item, rank, score in of_query]  # fmt: skip
    standing = [("shopper", "ann", None, [1.0], {"0-2": 0.8}, bytearray(b"h" * 16)),
                ("shopper", "bob", "no_consent", None, None, None)]  # fmt: skip
    affinities = [
        ("shopper", "ann", "a", 0.0, -1.0),
        ("shopper", "ann", "b", None, None),
        ("shopper", "bob", "a", 1.0, 1.0),
    ]
    rows = personal_rankings(
        spark.createDataFrame(general, GENERAL),
        spark.createDataFrame(standing, STANDING),
        spark.createDataFrame(affinities, AFFINITIES),
        spark.createDataFrame([("a", "0-2"), ("b", None)], "item_id string, price_band string"),
        WEIGHTS,
    )
    found = {(row["audience"], row["item_id"]): row for row in rows.collect()}
    terms = ("profile_term", "session_term", "price_term", "final_score", "rank", "general_rank")
    assert [found["ann", "a"][name] for name in terms] == [0.5, 0.0, 0.2, 5.4, 1, 3]
    assert [found["ann", "b"][name] for name in terms] == [0.5, 0.25, 0.0, 5.381818, 2, 2]
    assert [found["ann", "c"][name] for name in terms] == [0.5, 0.25, 0.0, 5.381818, 3, 1]
    assert found["ann", "a"]["is_personal"]
    assert bytes(found["ann", "a"]["profile_digest"]) == b"h" * 16
    for item, rank, score in of_query:
        row = found["bob", item]
        assert [row[name] for name in terms] == [0.0, 0.0, 0.0, score, rank, rank]
        assert row["general_score"] == score
        assert not row["is_personal"]
        assert row["profile_digest"] is None
    said = moved(rows).collect()[0].asDict()
    assert said == {"personal": 1, "rows": 3, "places": 4, "top": 3, "came_in": 0}, "a up two, c down two"


def test_what_moved_into_the_first_ten_is_counted(rows: Callable[..., Any]) -> None:
    assert set(KEY) < set(PERSONAL_RANKINGS.column_names)
    of = [{"item_id": str(n), "rank": n, "general_rank": g} for n, g in ((1, 12), (10, 10), (11, 9), (12, 1))]
    said = moved(rows(PERSONAL_RANKINGS, *of, {"is_personal": False, "rank": 1, "general_rank": 20})).collect()[0]
    assert said.asDict() == {"personal": 1, "rows": 4, "places": 24, "top": 2, "came_in": 1}
    nothing = moved(rows(PERSONAL_RANKINGS)).collect()[0]
    assert set(nothing.asDict().values()) == {0}


def test_a_segment_is_of_those_whose_strongest_it_is_and_of_enough_of_them(
    rows: Callable[..., Any], spark: Any
) -> None:
    def profile(name: str, vector: list[float] | None, categories: dict[str, float], bands: dict[str, float]) -> Any:
        return {"shopper_id": name, "vector": vector, "category_weights": categories, "price_band_weights": bands}

    profiles = rows(
        PROFILES,
        profile("a", [2.0, 0.0], {"mugs": 0.7, "bags": 0.3}, {"0-2": 1.0}),
        profile("b", [0.0, 3.0], {"mugs": 0.5, "zinc": 0.5}, {"0-2": 0.5, "2-5": 0.5}),  # of equals the first by name
        profile("c", [9.0, 9.0], {"bags": 1.0}, {"0-2": 1.0}),
        profile("no vector", None, {"mugs": 1.0}, {"0-2": 1.0}),
        profile("nothing", [1.0, 1.0], {}, {}),
    )
    segments = {"mugs": Segment(category="mugs"), "dear mugs": Segment(category="mugs", price_band="2-5")}
    of_each = members(profiles, segments)
    names = spark.createDataFrame([("mugs",), ("dear mugs",)], "audience string")
    found = {row["audience"]: row for row in segment_standing(of_each, names, 2).collect()}
    assert found["mugs"]["reason"] is None
    assert list(found["mugs"]["profile_vector"]) == [0.5, 0.5], "the mean of unit vectors"
    assert found["mugs"]["price_weights"] == {"0-2": 0.75, "2-5": 0.25}
    lone = found["dear mugs"]
    assert (lone["reason"], lone["profile_vector"], lone["price_weights"]) == ("too_few_members", None, None)


def test_the_last_session_is_what_a_person_did_in_it(rows: Callable[..., Any], spark: Any) -> None:
    def session(name: bytes, day: int, items: list[str], kinds: list[str], **more: Any) -> dict[str, Any]:
        started = datetime(2026, 1, day, tzinfo=UTC)
        at = {"session_date": started.date(), "started_at": started, "ended_at": started + timedelta(minutes=9)}
        return {"session_id": name * 16, "shopper_id": "ann", **at, "item_ids": items, "kinds": kinds, **more}

    sessions = rows(
        SESSIONS,
        session(b"1", 1, ["old"], ["purchase"]),
        session(b"2", 2, ["a", "shown", "b", "a", "back"], ["click", "impression", "purchase", "cart", "return"]),
        session(b"3", 3, ["only shown"], ["impression"]),
        session(b"4", 4, ["machine"], ["click"], bot_rule="pace"),
        session(b"5", 9, ["later"], ["click"]),
        # It began on the fifth, and at the end of that day nobody knew that it would go on, or was over.
        session(
            b"7", 5, ["late", "after midnight"], ["click", "click"], ended_at=datetime(2026, 1, 5, 23, 45, tzinfo=UTC)
        ),
        session(b"6", 2, ["other"], ["click"], shopper_id="bob"),
    )
    ann = spark.createDataFrame([("ann",)], "person_id string")
    found = sorted(
        (row["person_id"], row["item_id"])
        for row in last_sessions(sessions, ann, date(2026, 1, 5), 30, "UTC").collect()
    )
    assert found == [("ann", "a"), ("ann", "b")]
    assert last_sessions(sessions, ann, date(2026, 1, 6), 30, "UTC").count() == 2
    assert [row["item_id"] for row in last_sessions(sessions, ann, date(2026, 1, 5), 10, "UTC").collect()] != ["a", "b"]


def test_vectors_count_by_direction_and_a_missing_one_makes_no_cosine(spark: Any) -> None:
    vectors = spark.createDataFrame(
        [("i", [127.0, 0.0]), ("j", [0.0, 2.0]), ("none", None), ("zero", [0.0, 0.0])],
        "item_id string, vector array<float>",
    )
    mean = {row["item_id"]: list(row["vector"]) for row in mean_vectors(vectors, "item_id").collect()}
    assert mean == {"i": [1.0, 0.0], "j": [0.0, 1.0], "zero": [0.0, 0.0]}
    audience = "audience_kind string, audience string"
    audiences = spark.createDataFrame(
        [("shopper", "s", [-3.0, 3.0]), ("shopper", "t", None)], f"{audience}, vector array<float>"
    )
    wanted = spark.createDataFrame(
        [("shopper", who, item) for who in "st" for item in ("i", "j", "none", "gone")], f"{audience}, item_id string"
    )
    found = {(row["audience"], row["item_id"]): row["c"] for row in cosines(wanted, audiences, vectors, "c").collect()}
    assert found == {("s", "i"): -0.707107, ("s", "j"): 0.707107}


def test_price_bands_and_the_newest_profile_of_a_day(rows: Callable[..., Any], spark: Any) -> None:
    from pyspark.sql import functions as F

    prices = spark.createDataFrame([(1.99,), (2.0,), (19.9,), (20.0,), (None,)], "price double")
    names = [row[0] for row in prices.select(price_band(F.col("price"), [2, 5, 10, 20])).collect()]
    assert names == ["0-2", "2-5", "10-20", "20+", None]
    of_days = [{"shopper_id": "a", "as_of_date": date(2026, 1, day), "interaction_count": day} for day in (1, 2, 3)]
    newest = newest_profiles(rows(PROFILES, *of_days), date(2026, 1, 2)).collect()
    assert [row["interaction_count"] for row in newest] == [2]
