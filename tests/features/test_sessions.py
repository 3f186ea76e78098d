"""What a session is: gaps, days, order, and the rules for machines."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from pyspark.sql import functions as F

from ecomspark import text
from ecomspark.features.sessions import BotRules, SessionRules, local_date, sessions_of, spans_of
from ecomspark.schemas import INTERACTIONS

NOBODYS = BotRules(max_interactions_an_hour=None, max_items=None, min_seconds_between=None)


def did(shopper: str | None, name: str, at: str, kind: str = "click", item: str = "mug") -> dict[str, Any]:
    when = datetime.fromisoformat(at).replace(tzinfo=UTC)
    return {"shopper_id": shopper, "interaction_id": name, "occurred_at": when, "kind": kind, "item_id": item}


def clicks(shopper: str, count: int, seconds: float, kind: str = "click", items: int = 1) -> list[dict[str, Any]]:
    start = datetime(2026, 1, 1)
    return [
        did(shopper, f"{shopper}{n:04}", (start + timedelta(seconds=n * seconds)).isoformat(), kind, f"i{n % items}")
        for n in range(count)
    ]


def test_a_session_ends_with_a_gap_and_has_the_day_on_which_it_began(rows: Callable[..., Any]) -> None:
    behaviour = rows(
        INTERACTIONS,
        # Half an hour is no gap, a microsecond more is; midnight is nothing.
        did("gap", "g2", "2026-01-01T00:10:00"),
        did("gap", "g1", "2025-12-31T23:40:00", "cart", "pot"),
        did("gap", "g3", "2026-01-01T00:40:00.000001", "purchase"),
        # In London the hour from 1 to 2 on 2026-10-25 comes twice: an hour between these, on either clock a gap.
        did("dst", "d1", "2026-10-25T00:30:00"),
        did("dst", "d2", "2026-10-25T01:30:00"),
        # On the day of 23 hours it is 23:59 and 01:01 by the clock, and three minutes apart.
        did("spring", "s1", "2026-03-28T23:59:00"),
        did("spring", "s2", "2026-03-29T00:02:00"),
        did("summer", "u1", "2026-06-30T23:30:00"),
        did("leap", "l1", "2028-02-29T12:00:00"),
        did("end", "e1", "9999-12-31T23:30:00"),
        did("end", "e2", "9999-12-31T23:59:59.999999"),
        # Of one moment: by the id, in whatever order they came.
        did("tie", "t2", "2026-01-01T12:00:00", item="b"),
        did("tie", "t1", "2026-01-01T12:00:00", item="a"),
        did(None, "n1", "2026-01-01T12:00:00"),
        did("seen", "i1", "2026-01-01T12:00:00", "impression"),
    )
    rules = SessionRules(gap_minutes=30, time_zone="Europe/London", bots=NOBODYS)
    found = sessions_of(behaviour, rules).withColumn("day", F.col("session_date").cast("string")).collect()
    told = sorted((r["shopper_id"], r["day"], r["item_ids"], r["kinds"], r["purchase_count"]) for r in found)
    assert told == [
        ("dst", "2026-10-25", ["mug"], ["click"], 0),
        ("dst", "2026-10-25", ["mug"], ["click"], 0),
        ("end", "9999-12-31", ["mug", "mug"], ["click", "click"], 0),
        ("gap", "2025-12-31", ["pot", "mug"], ["cart", "click"], 0),
        ("gap", "2026-01-01", ["mug"], ["purchase"], 1),
        ("leap", "2028-02-29", ["mug"], ["click"], 0),
        ("spring", "2026-03-28", ["mug", "mug"], ["click", "click"], 0),
        ("summer", "2026-07-01", ["mug"], ["click"], 0),
        ("tie", "2026-01-01", ["a", "b"], ["click", "click"], 0),
    ]
    ids = {bytes(row["session_id"]) for row in found}
    first = ["d1", "d2", "e1", "g1", "g3", "l1", "s1", "t1", "u1"]
    shoppers = ["dst", "dst", "end", "gap", "gap", "leap", "spring", "tie", "summer"]
    assert ids == {text.digest(who, name) for who, name in zip(shoppers, first, strict=True)}


def test_a_day_is_the_same_in_every_zone_of_the_spark_session(spark: Any) -> None:
    times = "'1969-12-31T23:59:59Z', '2026-03-29T00:59:59Z', '2026-12-31T11:00:00Z', '9999-12-31T12:00:00Z', '0001-01-01T00:00:00Z'"
    rows = spark.sql(f"SELECT explode(array({times})) AS given").select(F.col("given").cast("timestamp").alias("at"))
    zones = ("UTC", "Pacific/Auckland", "America/New_York")
    days = [local_date(F.col("at"), zone).cast("string").alias(zone) for zone in zones]
    try:
        for session in ("UTC", "Asia/Tokyo"):
            spark.conf.set("spark.sql.session.timeZone", session)
            assert [tuple(row) for row in rows.select(*days).collect()] == [
                ("1969-12-31", "1970-01-01", "1969-12-31"),
                ("2026-03-29", "2026-03-29", "2026-03-28"),
                ("2026-12-31", "2027-01-01", "2026-12-31"),
                ("9999-12-31", "9999-12-31", "9999-12-31"),
                ("0001-01-01", "0001-01-01", "0001-01-01"),
            ]
    finally:
        spark.conf.set("spark.sql.session.timeZone", "UTC")


def test_a_session_of_a_machine_keeps_its_row_and_names_the_first_rule_that_holds(rows: Callable[..., Any]) -> None:
    behaviour = rows(
        INTERACTIONS,
        *clicks("calm", 12, 60),
        *clicks("busy", 12, 5, items=12),
        *clicks("wide", 12, 60, items=12),
        *clicks("fast", 12, 0.5),
        *clicks("few", 9, 0.5),
        *clicks("invoice", 12, 0, "purchase", items=12),
    )
    bots = BotRules(max_interactions_an_hour=None, max_items=11, min_seconds_between=1)
    found = sessions_of(behaviour, SessionRules(bots=bots)).collect()
    assert {row["shopper_id"]: row["bot_rule"] for row in found} == {
        "calm": None, "busy": "max_items", "wide": "max_items", "fast": "min_seconds_between", "few": None, "invoice": None,
    }  # fmt: skip
    hourly = SessionRules(bots=BotRules(max_interactions_an_hour=10, max_items=11))
    slow = rows(INTERACTIONS, *clicks("busy", 12, 5, items=12), *clicks("slow", 40, 360), *clicks("edge", 11, 359))
    found = sessions_of(slow, hourly).collect()
    assert {row["shopper_id"]: row["bot_rule"] for row in found} == {
        "busy": "max_interactions_an_hour", "slow": None, "edge": "max_interactions_an_hour",
    }, "11 within an hour, whichever hour that is"  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"time_zone": "Europe/Londn"}, "no time zone of that name"),
        ({"time_zone": "localtime"}, "no time zone of that name"),
        ({"time_zone": "../UTC"}, "no time zone of that name"),
        ({"gap_minutes": 0}, "greater than or equal to 1"),
        ({"kinds": []}, "at least 1 item"),
        ({"kinds": ["view"]}, "Input should be"),
        ({"bots": {"max_items": 0}}, "greater than or equal to 1"),
        ({"bots": {"max_item": 3}}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SessionRules(**given)


def test_days_become_spans_and_many_one() -> None:
    assert spans_of([]) == []
    assert spans_of([3, 1, 2, 7]) == [(1, 3), (7, 7)]
    assert spans_of(range(0, 62, 2)) == [(0, 60)], "31 of them"
