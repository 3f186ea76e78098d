"""What a shopper did until a moment: in whose sessions, in which order, and nothing later."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pyspark.sql import functions as F

from ecomspark import text
from ecomspark.features.histories import bought, end_of, events_until, histories, told_by
from ecomspark.features.standing import gone_dates, in_force
from ecomspark.schemas import INTERACTIONS, NEXT_ITEMS, SESSIONS

START = datetime(2026, 3, 1, tzinfo=UTC)
KINDS = ["click", "purchase"]


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def done(shopper: str | None, hours: float, item: str, kind: str = "click") -> dict[str, Any]:
    return {"interaction_id": f"{shopper}-{hours}-{item}", "shopper_id": shopper, "occurred_at": at(hours),
            "item_id": item, "kind": kind}  # fmt: skip


def session(shopper: str, start: float, end: float, bot: str | None = None) -> dict[str, Any]:
    return {"session_id": text.digest(shopper, str(start)), "shopper_id": shopper, "started_at": at(start),
            "ended_at": at(end), "bot_rule": bot}  # fmt: skip


def test_a_history_is_of_those_who_consent_of_no_machine_and_of_nothing_later(
    spark: Any, rows: Callable[..., Any]
) -> None:
    allowed = spark.createDataFrame([("ann", "ann"), ("ann-phone", "ann")], "shopper_id string, person_id string")
    interactions = rows(
        INTERACTIONS,
        done("ann", 1, "a"), done("ann-phone", 1.1, "b"), done("ann", 1.1, "c", "impression"),
        done("ann", 5, "bot's"), done("ann", 20, "a", "purchase"), done("ann", 23.9, "d"),
        done("ann", 24.1, "tomorrow"), done("ann", 12, "in no session"), done("bob", 1, "not allowed"), done(None, 1, "x"),
    )  # fmt: skip
    sessions = rows(
        SESSIONS,
        session("ann", 1, 1.1), session("ann", 5, 6, "too fast"), session("ann", 20, 24.1, "shown tomorrow"), session("bob", 1, 1),
    )  # fmt: skip
    end = end_of(date(2026, 3, 1), "UTC")
    events = events_until(interactions, sessions, allowed, end, 30).persist()
    assert sorted(row["item_id"] for row in events.collect()) == ["a", "a", "b", "c", "d"]
    assert {row["shopper_id"] for row in events.collect()} == {"ann"}

    spelled = spark.createDataFrame([("d", "d with its text")], "item_id string, spelling string")

    def read(**changes: Any) -> Any:
        asked = {"of": "shoppers", "kinds": KINDS, "max_items": 9, **changes}
        [row] = histories(events, spelled, **asked).collect()
        return row

    assert read()["item_ids"] == ["a", "b", "a", "d"]
    assert bytes(read()["history_digest"]) == text.digest("a", "b", "a", "d with its text")
    assert read(max_items=2)["item_ids"] == ["a", "d"], "the newest"
    assert read(of="sessions")["item_ids"] == ["a", "d"]
    assert read(of="sessions", kinds=["impression"])["item_ids"] == ["c"], "the last session that has such a kind"
    assert histories(events, spelled, of="sessions", kinds=["review"], max_items=9).isEmpty()
    assert [row["bought"] for row in bought(events).collect()] == [["a"]]
    [told] = told_by(events).collect()
    ids = ("ann-1-a", "ann-1.1-c", "ann-phone-1.1-b", "ann-20-a", "ann-23.9-d")
    assert bytes(told["history_digest"]) == text.digest(*ids), "in order of time, then of interaction_id"

    # At 20:00 in Honolulu its first of March has ten hours to go; in Tokyo it was over nine hours before UTC's.
    ends = spark.range(1).select(
        *(end_of(day, zone) for day, zone in ((date(2026, 3, 1), "Pacific/Honolulu"), (date(2026, 3, 1), "Asia/Tokyo"),
                                              (date(2028, 2, 29), "UTC"), (date(2026, 3, 29), "Europe/London"))),
        end_of(date(9999, 12, 31), "UTC") > F.lit(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ).collect()[0]  # fmt: skip
    assert [end.astimezone(UTC).isoformat() for end in ends[:4]] == [
        "2026-03-02T10:00:00+00:00", "2026-03-01T15:00:00+00:00", "2028-03-01T00:00:00+00:00",
        "2026-03-29T23:00:00+00:00",  # the day on which summer time began
    ]  # fmt: skip
    assert ends[4]


def test_a_list_stands_until_a_newer_one_and_the_oldest_go(spark: Any, rows: Callable[..., Any]) -> None:
    def days(shopper: str, *of: int) -> list[dict[str, Any]]:
        return [
            {"shopper_id": shopper, "as_of_date": date(2026, 3, day), "rank": rank} for day in of for rank in (1, 2)
        ]

    table = rows(NEXT_ITEMS, *days("new", 1, 2, 3), *days("same", 1, 2, 3), *days("gone", 2), *days("few", 1))
    standing = in_force(table, date(2026, 3, 2)).select("shopper_id", "as_of_date").distinct().collect()
    assert {(row[0], row[1].day) for row in standing} == {("new", 2), ("same", 2), ("gone", 2), ("few", 1)}

    kept = spark.createDataFrame([("new",), ("same",), ("few",)], "shopper_id string")
    news = kept.where("shopper_id = 'new'")
    gone = gone_dates(table, kept, news, date(2026, 3, 4), keeps_dates=2).collect()
    assert {(row["shopper_id"], row["as_of_date"].day) for row in gone} == {
        ("new", 1), ("new", 2), ("same", 1), ("gone", 2),
    }  # fmt: skip
