"""Sessions end to end: the same from whatever order things came in, and only what changed is made anew."""

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scans import Watch
from shoppers import Shoppers, did, random_interactions

from ecomspark import tables, text
from ecomspark.errors import ContractError
from ecomspark.pipelines import build_sessions
from ecomspark.schemas import INTERACTIONS, SESSIONS

START = datetime(2028, 2, 28, 22, 0, tzinfo=UTC)
BEHAVIOUR = [
    did("s0", "far", "9999-12-31T23:59:59.999999"),
    *random_interactions(7, shoppers=8, count=120, start=START),
    did(None, "nobody", "2028-02-29T00:00:00"),
    did("it's \\ \u2028 '; DROP", "quo'te", "2028-02-29T00:00:00"),
]
YES = [f"s{n}" for n in range(7)] + ["it's \\ \u2028 '; DROP"]
GAP = timedelta(minutes=30)


def expected(interactions: list[dict[str, Any]], people: dict[str, str], gap: timedelta = GAP) -> list[tuple[Any, ...]]:
    """The sessions in plain Python: (session_id, shopper, item_ids, kinds, seconds from first to last)."""
    steps = sorted(
        (people[i["shopper_id"]], i["occurred_at"], i["interaction_id"], i["item_id"], i["kind"])
        for i in {i["interaction_id"]: i for i in interactions}.values()
        if i["shopper_id"] in people and i["kind"] != "impression"
    )
    sessions: list[list[Any]] = []
    for step in steps:
        if not sessions or sessions[-1][-1][0] != step[0] or step[1] - sessions[-1][-1][1] > gap:
            sessions.append([])
        sessions[-1].append(step)
    return sorted(
        (
            text.digest(of[0][0], of[0][2]), of[0][0], tuple(s[3] for s in of), tuple(s[4] for s in of),
            (of[-1][1] - of[0][1]).total_seconds(),
        )
        for of in sessions
    )  # fmt: skip


def published(shop: Shoppers) -> list[tuple[Any, ...]]:
    rows = shop.rows(SESSIONS).collect()
    return sorted(
        (
            bytes(r["session_id"]), r["shopper_id"], tuple(r["item_ids"]), tuple(r["kinds"]),
            (r["ended_at"] - r["started_at"]).total_seconds(),
        )
        for r in rows
    )  # fmt: skip


def alone(*shoppers: str) -> dict[str, str]:
    return {who: who for who in shoppers}


@pytest.fixture(scope="module")
def built(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Shoppers:
    """Everything imported at once and its sessions built."""
    shop = Shoppers(spark, tmp_path_factory.mktemp("shoppers"))
    shop.did(BEHAVIOUR[:1])
    shop.did(BEHAVIOUR)
    shop.said(True, *YES)
    assert shop.sessions("first").rows["sessions"] > 20
    return shop


def test_shuffled_split_and_doubled_interactions_settle_to_the_same_sessions(
    built: Shoppers, spark: Any, tmp_path: Path
) -> None:
    assert published(built) == expected(BEHAVIOUR, alone(*YES))
    shop, shuffled = Shoppers(spark, tmp_path), random.Random(3).sample(BEHAVIOUR, len(BEHAVIOUR))
    shop.said(True, *YES)
    for n, part in enumerate((shuffled[:80], shuffled[40:])):
        shop.did(part)
        shop.sessions(f"{n}")
    assert shop.told(SESSIONS) == built.told(SESSIONS), "what was built bit by bit is what is built at once"
    assert shop.sessions("last").rows == {"changed_shoppers": 0, "interactions": 0, "sessions_looked_at": 0}


def test_only_the_sessions_near_what_came_are_made_anew(built: Shoppers, tmp_path: Path) -> None:
    shop = built.copy(tmp_path)
    before = {bytes(row["session_id"]) for row in shop.rows(SESSIONS).collect()}
    came = [
        # Between two sessions, so that they become one; a new one of its own; and of one who never agreed.
        did("s8", "late", "2028-03-09T10:00:00"), did("s0", "own", "2028-03-09T10:00:00"), did("s7", "no", "2028-03-09T10:00:00"),
    ]  # fmt: skip
    mine = shop.rows(SESSIONS).where("shopper_id = 's1'").orderBy("started_at").collect()
    one, other = next((a, b) for a, b in pairwise(mine) if b["started_at"] - a["ended_at"] <= 2 * GAP)
    between = (one["ended_at"] + (other["started_at"] - one["ended_at"]) / 2).astimezone(UTC)
    came.append({**did("s1", "between", "2028-03-09T10:00:00"), "occurred_at": between})
    shop.did(came)
    plan = build_sessions.plan(shop.spark, shop.session_config())
    at = tables.snapshot(shop.warehouse, SESSIONS)
    assert at
    watch = Watch(shop.spark)
    summary = shop.sessions("second")
    files = [scan.files for scan in watch.scans(shop.folder / "warehouse") if scan.table == "interactions"]
    assert plan.counts == {"changed_shoppers": 2, "interactions": 2 + one["interaction_count"] + other["interaction_count"],
                           "sessions_looked_at": 2}  # fmt: skip
    assert {name: summary.rows[name] for name in plan.counts} == plan.counts
    assert {name: summary.rows[name] for name in ("sessions", "new", "changed", "removed")} == {
        "sessions": 2, "new": 1, "changed": 1, "removed": 1,
    }  # fmt: skip
    touched = {bytes(row["session_id"]) for row in shop.changed_since(SESSIONS, at.version)}
    assert touched & before == {bytes(one["session_id"]), bytes(other["session_id"])}
    whole = tables.file_count(shop.warehouse, INTERACTIONS)
    assert max(files) < whole, "what was imported of other days alone is not read"
    assert published(shop) == expected([*BEHAVIOUR, *came], alone(*YES))


def test_consent_and_links_remake_a_shopper_whole(built: Shoppers, tmp_path: Path) -> None:
    shop = built.copy(tmp_path)
    shop.said(False, "s0", day=2)
    shop.said(True, "s7", day=2)
    shop.said(False, "s1", day=2, purpose="statistics")
    shop.linked("s2", "s3")
    shop.linked("s4", "s0")  # one who now refuses: a no of one id is a no of the person
    summary = shop.sessions("second")
    assert summary.rows["changed_shoppers"] == 5, "ids"
    people = {**alone("s1", "s2", "s5", "s6", "s7", YES[-1]), "s3": "s2"}
    assert published(shop) == expected(BEHAVIOUR, people)
    assert shop.sessions("whole", full=True).status == "nothing_to_do"


def test_other_settings_remake_all_and_what_a_dead_run_left_is_found(
    built: Shoppers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = built.copy(tmp_path)
    publish = tables.publish

    def and_dies(*arguments: Any) -> Any:
        publish(*arguments)
        raise ConnectionError

    monkeypatch.setattr(tables, "publish", and_dies)
    with pytest.raises(ConnectionError):
        shop.sessions("dies", gap_minutes=10)
    monkeypatch.setattr(tables, "publish", publish)
    assert published(shop) == expected(BEHAVIOUR, alone(*YES), timedelta(minutes=10))
    shop.did([did("s0", "late", "2028-03-09T10:00:00")])
    shop.sessions("second")
    later = [*BEHAVIOUR, did("s0", "late", "2028-03-09T10:00:00")]
    assert published(shop) == expected(later, alone(*YES)), "not by what came alone"
    assert shop.rows(SESSIONS).select("settings_digest").distinct().count() == 1


def test_empty_logs_make_no_sessions_and_none_at_all_is_said(spark: Any, tmp_path: Path) -> None:
    shop = Shoppers(spark, tmp_path)
    with pytest.raises(ContractError, match="interactions: expected the table, found none; run the job"):
        shop.sessions("none")
    shop.did([])
    shop.sessions("empty")
    assert shop.rows(SESSIONS).isEmpty()
    shop.did([did("a", "1", "2028-02-27T10:00:00"), did("b", "2", "2028-02-27T10:00:00")])
    shop.said(True, "a")
    shop.sessions("yes")
    assert [row[1] for row in published(shop)] == ["a"], "unknown means no"
