"""Only what changed is scored and ranked: night after night in a world of few tables, with a scorer that leaves traces."""

import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from fakes import Traced
from pyspark.sql import functions as F
from scans import Watch
from world import NO_FEED, TODAY, Item, World, query_id

from ecomspark import holds, tables, text
from ecomspark.config import LeaseSettings
from ecomspark.errors import ConfigError, ContractError, LeaseTaken, NewerPublished, OnHold
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.pipelines import rank_candidates, score_candidates
from ecomspark.plans import read_pins, save
from ecomspark.runs import keep_plan
from ecomspark.schemas import CANDIDATES, HOLDS, ITEMS, KEPT_BACK, LEASES, QUERIES, RANKINGS, RUNS, SCORES
from ecomspark.tables import Author

TERMS = ("final_score", "relevance_term", "price_term", "sold_term", "rating_term", "freshness_term", "rank")


@pytest.fixture(scope="module")
def first_world(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three queries, five items of which two have one title, everything scored and ranked once."""
    items = {
        "a": Item("red mug", 2.0, 10), "b": Item("blue mug", 3.0, 5), "c": Item("glass teapot", 9.0, 1),
        "twin": Item("red mug", 2.5, 1), "d": Item("wall clock", 12.0, 7),
    }  # fmt: skip
    made = World(
        spark,
        tmp_path_factory.mktemp("world"),
        buckets=8,
        items=items,
        queries={"mug": "red mug", "pot": "tea pot", "clock": "clock"},
    )
    made.pairs = {
        ("mug", "a"),
        ("mug", "b"),
        ("mug", "twin"),
        ("pot", "c"),
        ("pot", "b"),
        ("clock", "d"),
        ("clock", "c"),
    }
    made.publish()
    made.score("first")
    made.rank("first")
    return made


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    """A copy that a test may change."""
    return first_world.copy(tmp_path)


def test_nothing_changed_prices_titles_and_back(world: World) -> None:
    assert len(world.scorer.evaluated()) == 6, "seven candidates, of which two are twins"
    first = world.shown()

    # Nothing changed: no model, no commit but to runs and leases, no row in a change feed.
    versions, loads = world.versions(), world.scorer.loads()
    again = [world.score("again"), world.rank("again")]
    assert [summary.status for summary in again] == ["nothing_to_do"] * 2
    assert world.versions() == versions
    assert world.scorer.loads() == loads

    # All prices changed: nothing is scored; only rows of which a term or the rank moved are in the feed.
    for number, item_id in enumerate(world.items):
        world.edit(item_id, price=20.0 - 3 * number)
    world.publish(ITEMS)
    before = tables.snapshot(world.warehouse, RANKINGS).version  # type: ignore[union-attr]
    scored, ranked = world.score("prices"), world.rank("prices")
    assert (scored.rows["to_score"], ranked.rows["because_items"]) == (0, 3)
    feed: dict[tuple[bytes, str], dict[str, Any]] = {}
    for row in world.feed(RANKINGS, before):
        feed.setdefault((bytes(row["query_id"]), row["item_id"]), {})[row["_change_type"]] = row
    assert feed
    for kinds in feed.values():
        old, new = kinds["update_preimage"], kinds["update_postimage"]
        assert any(abs(old[term] - new[term]) > 1e-9 for term in TERMS)

    # A title changed: exactly its pairs, as planned; and only its queries are ranked again.
    world.edit("b", title="green mug")
    world.publish(ITEMS)
    planned = world_plan(world, "score")
    evaluated = len(world.scorer.evaluated())
    scored = world.score("title")
    assert {name: scored.rows[name] for name in planned.counts if name in scored.rows} == {
        name: count for name, count in planned.counts.items() if name in scored.rows
    }
    assert (scored.rows["changed_text"], scored.rows["new"], scored.rows["unchanged"]) == (2, 0, 5)
    assert planned.fields == {"title": 1}
    assert world.scorer.evaluated()[evaluated:] == ["green mug"] * 2
    expected = world_plan(world, "rank").counts
    ranked = world.rank("title")
    assert {name: ranked.rows.get(name) for name in expected} == expected
    assert ranked.rows["reranked_queries"] == 2, "clock has neither the item nor a score that it gained"

    # Changed back, and a price that made the round: what was known is known.
    world.edit("b", title="blue mug")
    world.publish(ITEMS)
    back = world.score("back")
    assert (back.rows["to_score"], back.rows["twins"]) == (0, 2)
    world.rank("back")
    full = world.rank("full", full=True)
    assert full.status == "nothing_to_do", "as if all had been compared"
    assert world.shown().keys() == first.keys()


def world_plan(world: World, job: str) -> Any:
    if job == "score":
        return score_candidates.plan(world.spark, world.score_config(), TODAY)
    return rank_candidates.plan(world.spark, world.rank_config(), TODAY)


def test_items_queries_and_candidates_come_and_go(world: World) -> None:
    evaluated = len(world.scorer.evaluated())
    # Delisted, while its candidates are not built anew: it leaves the rankings, and ranks close up.
    gone = world.items.pop("a")
    world.publish(ITEMS)
    scored, ranked = world.score("delisted"), world.rank("delisted")
    assert (scored.rows["to_score"], scored.rows["gone"], ranked.rows["removed"]) == (0, 1, 1)
    assert sorted(world.shown()["mug"]) == ["b", "twin"]
    # Relisted, a query withdrawn, a candidate dropped, another that came: the old scores are found.
    world.items["a"] = gone
    del world.queries["pot"]
    assert world.pairs is not None
    world.pairs = {pair for pair in world.pairs if pair[0] != "pot" and pair != ("clock", "c")} | {("clock", "b")}
    world.publish()
    scored, ranked = world.score("relisted"), world.rank("relisted")
    assert (scored.rows["to_score"], scored.rows["new"], scored.rows["twins"]) == (1, 1, 1)
    assert len(world.scorer.evaluated()) == evaluated + 1
    assert {query: sorted(items) for query, items in world.shown().items()} == {
        "mug": ["a", "b", "twin"], "clock": ["b", "d"],
    }  # fmt: skip
    assert world.rank("full", full=True).status == "nothing_to_do"


def test_calibration_age_scorer_and_errors(world: World) -> None:
    evaluated = len(world.scorer.evaluated())
    # A step of freshness is crossed by one item alone.
    world.edit("d", listed=date(2026, 10, 25))
    world.publish(ITEMS)
    world.rank("listed")
    aged = world.rank("aged", as_of=date(2026, 12, 1))
    assert (aged.rows["reranked_queries"], aged.rows["because_freshness"], aged.rows["changed"]) == (1, 1, 1)
    # Other weights: every query, no score.
    weights = {"main": {"weights": {"price": 0.9}}}
    assert world.rank("weights", date(2026, 12, 1), variants=weights).rows["because_whole"] == 3
    assert world.score("weights", as_of=date(2026, 12, 1)).rows["to_score"] == 0
    assert len(world.scorer.evaluated()) == evaluated
    # Another checkpoint: all pairs; of one of them an error that may pass, which keeps its query back.
    world.checkpoint = "other"
    broken = Traced(str(world.folder), poison="wall clock", poison_error="OSError")
    scored = world.score("switch", broken, date(2026, 12, 1))
    assert (scored.rows["changed_scorer"], scored.rows["failed"]) == (6, 1)
    switched = world.rank("switch", date(2026, 12, 1))
    assert (switched.rows["kept_back_queries"], world.rows(KEPT_BACK).count()) == (1, 1)
    assert scorers(world) == {"mug": 1, "pot": 1, "clock": 1}
    assert world.rows(RANKINGS).select("scorer_digest").distinct().count() == 2
    # It heals: tried again, and exactly the query that waited for it goes over.
    healed = world.score("healed", as_of=date(2026, 12, 1))
    assert (healed.rows["retried"], healed.rows["to_score"], healed.rows["scored"]) == (1, 1, 1)
    ranked = world.rank("healed", date(2026, 12, 1))
    assert ranked.rows["reranked_queries"] == 1
    assert ranked.rows["because_kept_back"] == ranked.rows["because_scores"] == 1
    assert world.rows(KEPT_BACK).isEmpty()
    assert world.rows(RANKINGS).select("scorer_digest").distinct().count() == 1
    old = tiny_digest(world, "tiny")
    assert world.rows(SCORES).where(F.col("scorer_digest") == F.lit(old)).count() == 6, "the old scores are still there"


def test_of_a_query_that_changed_only_its_files_are_read(world: World) -> None:
    world.queries["pot"] = "glass pot"
    world.publish(QUERIES)
    evaluated = len(world.scorer.evaluated())
    watch = Watch(world.spark)
    scored = world.score("asked")
    scans = watch.scans(world.folder / "warehouse")
    watch = Watch(world.spark)
    ranked = world.rank("asked")
    scans += watch.scans(world.folder / "warehouse")
    assert (scored.rows["changed_text"], scored.rows["unchanged"], ranked.rows["reranked_queries"]) == (2, 5, 1)
    assert sorted(world.scorer.evaluated()[evaluated:]) == ["blue mug", "glass teapot"]
    laid_out_by = {CANDIDATES: query_id("pot"), SCORES: text.digest("glass pot"), RANKINGS: query_id("pot")}
    for table, digest in laid_out_by.items():
        rows = world.spark.read.format("delta").load(world.warehouse.path(table))
        of_query = rows.where(F.col("bucket") == digest[0] % world.buckets).inputFiles()
        most = max(scan.files for scan in scans if scan.table == table.name)
        assert 0 < most <= len(of_query) < len(rows.inputFiles()), table.name


def scorers(world: World) -> dict[str, int]:
    names = {query_id(q): q for q in world.queries}
    counted = world.rows(RANKINGS).groupBy("query_id").agg(F.count_distinct("scorer_digest").alias("scorers"))
    return {names[bytes(row["query_id"])]: row["scorers"] for row in counted.collect()}


def tiny_digest(world: World, name: str) -> bytes:
    return open_checkpoint(world.folder / "models", name).scorer_digest


@pytest.mark.nightly
def test_a_switch_can_be_all_at_once(world: World) -> None:
    world.checkpoint = "other"
    world.score("switch", Traced(str(world.folder), poison="wall clock", poison_error="OSError"))
    before = tables.snapshot(world.warehouse, RANKINGS)
    waiting = world.rank("waiting", switch="atomic")
    assert waiting.rows["waiting_to_switch"] == 1
    assert tables.snapshot(world.warehouse, RANKINGS) == before
    world.score("healed")
    switched = world.rank("switched", switch="atomic")
    versions = switched.tables["rankings"]
    assert versions["after"] == versions["before"] + 1, "one commit"
    assert world.rows(RANKINGS).select("scorer_digest").distinct().count() == 1


# Why the feed cannot be read, as the run says it: Spark's and Delta's names of it, or ours.
WHY = {
    "off": "DELTA_MISSING_CHANGE_DATA",
    "vacuumed": "FAILED_READ_FILE.FILE_NOT_EXIST",
    "expired": "DELTA_",
    "recreated": "it is not the table that was read last time",
}


@pytest.mark.parametrize("fault", NO_FEED)
def test_what_changed_is_not_known_without_the_feed(world: World, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    before = tables.snapshot(world.warehouse, ITEMS)
    world.edit("b", title="green mug")
    world.publish_without_feed(fault)
    now = tables.snapshot(world.warehouse, ITEMS)
    assert tables.changes(world.warehouse, ITEMS, before, now, ("source_digest",)) is None
    assert f"items: what changed cannot be read from its change feed ({WHY[fault]}" in caplog.text


@pytest.mark.nightly
def test_without_the_feed_the_rows_are_the_same(world: World) -> None:  # after each fault: the figure feeds
    world.edit("b", title="green mug", price=7.0)
    del world.items["twin"]
    world.publish_without_feed("expired")
    evaluated = len(world.scorer.evaluated())
    scored, ranked = world.score("after"), world.rank("after")
    assert scored.rows["changed_text"] == 2
    assert "gone" not in scored.rows, "without a feed that is not known"
    assert world.scorer.evaluated()[evaluated:] == ["green mug"] * 2
    assert ranked.rows["reranked_queries"] == ranked.rows["because_whole"] == 3
    found = sorted(map(str, world.rows(RANKINGS).drop("changed_by").collect()))
    assert (ranked.rows["removed"], ranked.rows["changed"] > 0) == (1, True)
    assert world.rank("again", full=True).status == "nothing_to_do"
    assert sorted(map(str, world.rows(RANKINGS).drop("changed_by").collect())) == found


def test_work_goes_in_parts_and_a_death_loses_the_part_at_hand(world: World, monkeypatch: Any) -> None:
    world.checkpoint = "other"
    landed: list[int] = []
    append = score_candidates.tables.append_memory

    class Killed(BaseException):
        """As the end of the process: nothing after it is done."""

    def dying(*args: Any) -> Any:
        if len(landed) == 2:
            raise Killed
        landed.append(append(*args).inserted)
        return tables.Commit(SCORES, 0, 1, landed[-1])

    evaluated = len(world.scorer.evaluated())
    monkeypatch.setattr(score_candidates.tables, "append_memory", dying)
    monkeypatch.setattr(score_candidates.tables, "renew", lambda *_: False)
    with pytest.raises(Killed):
        world.score("parts", pairs_per_commit=2)
    monkeypatch.undo()
    row = world.rows(RUNS).where("job = 'score_candidates' AND run_id = 'parts'").collect()[0]
    assert row["status"] == "open"
    # Another run must wait for the lease of the dead one; the same run goes on where it was.
    with pytest.raises(LeaseTaken, match="scores: score_candidates, run parts, may publish to it until it ends"):
        world.score("other", pairs_per_commit=2)
    resumed = world.score("parts", pairs_per_commit=2)
    assert sum(landed) + resumed.rows["to_score"] == 6
    assert len(world.scorer.evaluated()) == evaluated + 6, "nothing that had landed was scored again"


def test_a_saved_plan_pins_what_it_saw(world: World, tmp_path: Path) -> None:
    world.edit("b", title="green mug")
    world.publish(ITEMS)
    plan = score_candidates.plan(world.spark, world.score_config(), TODAY)
    save(plan, tmp_path / "plan.json")
    keep_plan(world.warehouse, plan)
    kept = world.rows(RUNS).where("status = 'planned'").collect()
    assert [list(row["covers"]) for row in kept] == [[tiny_digest(world, "tiny").hex()]], "its scores are kept, too"
    world.edit("c", title="iron teapot")
    world.publish(ITEMS)
    done = world.score("planned", plan=tmp_path / "plan.json")
    assert done.rows["to_score"] == plan.counts["to_score"] == 2, "the title that changed after it is not in it"
    assert world.score("next").rows["to_score"] == 2
    with pytest.raises(NewerPublished, match="items at version 2, but version 3 is published already"):
        world.score("late", plan=tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="expected one of rank_candidates, found one of score_candidates"):
        read_pins(tmp_path / "plan.json", "rank_candidates", b"", TODAY)
    with pytest.raises(ConfigError, match="made with settings"):
        world.score("changed", plan=tmp_path / "plan.json", max_tries=9)


@pytest.mark.nightly
def test_a_rollback_holds_until_it_is_released_and_then_everything_comes_forward(
    world: World, monkeypatch: Any
) -> None:
    first = world.shown()
    rows = sorted(map(str, world.rows(RANKINGS).drop("changed_by").collect()))
    world.edit("twin", sold=9_000, price=0.1)
    world.edit("c", title="iron teapot")
    del world.items["d"]
    world.publish(ITEMS)
    world.score("second")
    world.rank("second")
    second = world.shown()
    assert second != first

    summary = holds.roll_back(world.warehouse, "first", "main", "back", LeaseSettings())
    assert summary.status == "published"
    without = {query: [i for i in items if i != "d"] for query, items in first.items()}
    assert world.shown() == {query: items for query, items in without.items() if items}
    assert len(set(rows) & set(map(str, world.rows(RANKINGS).drop("changed_by").collect()))) == len(rows) - 2

    world.edit("a", price=0.01)
    world.publish(ITEMS)
    with pytest.raises(OnHold, match="main is on hold"):
        world.rank("held")
    assert world.shown() == {query: items for query, items in without.items() if items}
    assert world.score("held").status == "nothing_to_do", "memory tables still fill"
    kept = holds.set_hold(world.warehouse, "main", "by hand", Author("hold", "h"))
    assert kept.before == kept.after, "the rollback's stays"
    holds.release(world.warehouse, "main", Author("release", "r1"))
    with pytest.raises(ContractError, match="expected a hold on the variant main, found none"):
        holds.release(world.warehouse, "main", Author("release", "r2"))
    world.rank("forward")
    assert world.rank("full", full=True).status == "nothing_to_do", "the increment left nothing behind"
    with pytest.raises(ContractError, match=r"expected a run nobody .* found none"):
        holds.roll_back(world.warehouse, "nobody", "main", "b2", LeaseSettings())
    monkeypatch.setattr(holds, "closed_up", None)
    with pytest.raises(TypeError):
        holds.roll_back(world.warehouse, "first", "main", "b3", LeaseSettings())
    assert world.rows(HOLDS).isEmpty(), "a rollback that cannot be holds nothing"


def test_a_sleeper_that_wakes_cannot_publish(world: World, monkeypatch: Any) -> None:  # R21
    """Its lease ended while it slept between finding a change and publishing it; nobody published in between."""
    world.edit("a", price=50.0)
    world.publish(ITEMS)
    publish, renew = rank_candidates.tables.publish, tables.renew
    before = tables.snapshot(world.warehouse, RANKINGS)

    def no_fence(*_: Any) -> None:
        raise OSError("full")

    def sleeping(warehouse: Any, change: Any, author: Author) -> Any:
        monkeypatch.setattr(rank_candidates.tables, "publish", publish)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "fence_off", no_fence)
            with pytest.raises(OSError, match="full"):
                world.rank("unlucky", leases={"seconds": 600})
        lease = tables.read_leases(warehouse).rows[RANKINGS.name]
        assert (lease.run_id, lease.nonce != tables.GIVEN_BACK) == ("unlucky", True), "else the next would not fence"
        world.rank("second", leases={"seconds": 600})
        return publish(warehouse, change, author)

    monkeypatch.setattr(rank_candidates.tables, "publish", sleeping)
    # Who sleeps renews nothing.
    monkeypatch.setattr(tables, "renew", lambda *given: given[2].run_id == "sleeper" or renew(*given))
    with pytest.raises(LeaseTaken, match="the lease of this run was taken over by rank_candidates, run second"):
        world.rank("sleeper", leases={"seconds": 0.01})
    by = {row["changed_by"] for row in world.rows(RANKINGS).collect()}
    assert by == {"first", "second"}
    assert before is not None
    states = {row["run_id"]: row["status"] for row in world.rows(RUNS).where("job = 'rank_candidates'").collect()}
    assert states == {"first": "published", "sleeper": "failed", "second": "published"}


def test_an_answer_that_was_lost_adds_nothing(world: World, monkeypatch: Any) -> None:  # R9
    """The commit landed and its writer was told that it failed: it finds its nonce in the log."""
    write = _module("commits").write

    def lost(*args: Any, **more: Any) -> None:
        write(*args, **more)
        raise ConnectionError("no answer")

    world.edit("b", title="green mug")
    world.publish(ITEMS)
    for name in ("commits", "leases", "publish"):
        monkeypatch.setattr(_module(name), "write", lost)
    evaluated = len(world.scorer.evaluated())
    scored = world.score("lost")
    assert scored.rows["scored"] == 2
    monkeypatch.undo()
    assert len(world.scorer.evaluated()) == evaluated + 2
    raw = world.spark.read.format("delta").load(world.warehouse.path(SCORES))
    assert raw.count() == world.rows(SCORES).count() == 8
    assert world.rows(LEASES).where("table_name = 'scores'").count() == 1


def _module(name: str) -> Any:
    """A module of the package `tables`, some of whose functions have the names of modules."""
    return sys.modules[f"ecomspark.tables.{name}"]


def test_the_readers_see_whole_queries_whatever_part_was_published(world: World) -> None:
    for number, item_id in enumerate(world.items):
        world.edit(item_id, price=20.0 - 3 * number)
    world.publish(ITEMS)
    summary = world.rank("parts", candidates_per_commit=1)
    assert summary.tables["rankings"]["after"] - summary.tables["rankings"]["before"] == 3, "a commit a query"
    first = summary.tables["rankings"]["before"]
    for version in range(first + 1, first + 4):
        at = tables.snapshot(world.warehouse, RANKINGS)
        assert at is not None
        rows = tables.read(world.warehouse, RANKINGS, tables.Snapshot(at.table_id, version))
        counts = rows.groupBy("query_id").agg(F.count("*").alias("n"), F.max("rank").alias("last")).collect()
        assert all(row["n"] == row["last"] for row in counts)
