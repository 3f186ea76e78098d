"""Maintenance end to end: fewer files, no row or version lost that somebody may still read, and what nobody names goes."""

import importlib
import os
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import tiny
from fakes import Traced
from pyspark.sql import functions as F
from shop import AS_OF, ITEMS, Shop

from ecomspark import launch, tables
from ecomspark.config import LeaseSettings
from ecomspark.errors import LeaseTaken
from ecomspark.holds import roll_back
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.pipelines import maintain, score_candidates
from ecomspark.schemas import ITEMS as ITEMS_TABLE
from ecomspark.schemas import RANKINGS, RUNS, SCORES, TABLES, TEXTS, UNREFERENCED, Table
from ecomspark.tables import Author, Snapshot


def age(shop: Shop, hours: int) -> None:
    """Let all that was ever written have been written so many hours earlier: files, and what the logs say of them."""
    spark: Any = shop.spark
    for log in (shop.folder / "warehouse").rglob("_delta_log"):
        for commit in log.iterdir():
            if not _IS_COMMIT.fullmatch(commit.name):
                if commit.is_file():
                    commit.unlink()  # made from the commits, and made again
                continue
            earlier = _TIMES.sub(lambda at: f"{at[1]}{int(at[2]) - hours * 3_600_000}", commit.read_text())
            commit.write_text(earlier)
    for path in (shop.folder / "warehouse").rglob("*"):
        at = path.stat().st_mtime - hours * 3600
        os.utime(path, (at, at))
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()


_IS_COMMIT = re.compile(r"\d{20}\.json")
_TIMES = re.compile(r'("(?:timestamp|inCommitTimestamp|modificationTime|deletionTimestamp)":)(\d+)')


def days(count: int) -> date:
    return AS_OF + timedelta(count)


def versions(shop: Shop) -> dict[str, Snapshot | None]:
    return {
        name: tables.snapshot(shop.warehouse, table) for name, table in TABLES.items() if name not in ("runs", "leases")
    }


def edit(shop: Shop, title: str, run_id: str) -> None:
    shop.write_items([("i01", title, *ITEMS[0][2:]), *ITEMS[1:]])
    shop.run("import_items", run_id)


def without(*item_ids: str) -> list[tuple[str, ...]]:
    return [item for item in ITEMS if item[0] not in item_ids]


def passages(shop: Shop, title: str) -> set[bytes]:
    rows = shop.rows(TEXTS).where((F.col("role") == "passage") & (F.col("text") == title)).collect()
    return {bytes(row["text_digest"]) for row in rows}


def scores_of(shop: Shop, title: str) -> int:
    return int(shop.rows(SCORES).where(F.col("passage_digest").isin(*map(F.lit, passages(shop, title)))).count())


def can_read(shop: Shop, table: Table, at: Snapshot) -> bool:
    try:
        return len(tables.read(shop.warehouse, table, at).collect()) > 0
    except Exception:
        return False


def test_the_second_time_there_is_nothing_to_do(copied: Shop) -> None:
    # As a scheduler starts it: all tables, and no day.
    first = maintain.run(copied.spark, copied.config("maintain"), "1")
    assert first.status == "published"
    assert first.as_of is not None
    before, rows = versions(copied), copied.rows(RANKINGS).count()
    assert copied.rows(UNREFERENCED).isEmpty(), "everything that a job just made is referred to"
    again = maintain.run(copied.spark, copied.config("maintain"), "2")
    assert again.status == "nothing_to_do"
    assert not any(again.rows.values())
    assert versions(copied) == before
    assert copied.rows(RANKINGS).count() == rows


def test_old_files_go_when_no_run_has_pinned_them_any_more(copied: Shop) -> None:
    pinned = tables.snapshot(copied.warehouse, ITEMS_TABLE)
    assert pinned
    row = copied.rows(RUNS).where("job = 'rank_candidates'").collect()[0].asDict(recursive=True)
    values = {"run_id": "open", "status": "open", "epoch": 1_000, "published": {}, "ended_at": None, "target": None,
              "inputs": {"items": (pinned.table_id, pinned.version)}}  # fmt: skip
    author = Author("rank_candidates", "open")
    tables.put(copied.warehouse, RUNS, {**row, **values}, author, is_new=True)
    age(copied, 100)
    edit(copied, "Edited Mug", "edit")
    how = {"tables": ["items"], "rollback_days": 0, "small_files": 1}
    together = copied.run("maintain", "1", as_of=days(1), **how)
    assert together.rows["items_files_before"] > together.rows["items_files_after"] == 1
    age(copied, 50)
    held = copied.run("maintain", "2", as_of=days(2), **how)
    assert "items_files_deleted" not in held.rows
    assert can_read(copied, ITEMS_TABLE, pinned)

    tables.put(copied.warehouse, RUNS, {**row, **values, "status": "failed"}, author)
    assert copied.run("maintain", "3", as_of=days(3), **how).rows["items_files_deleted"] > 0
    assert not can_read(copied, ITEMS_TABLE, pinned)
    assert copied.rows(ITEMS_TABLE).where("title = 'Edited Mug'").count() == 1


def test_the_log_keeps_the_commit_of_a_table_that_nobody_changed_for_long(copied: Shop) -> None:
    """A run may read it today; once the table changes, that version is no longer the newest."""
    age(copied, 100 * 24)
    copied.run("maintain", "1", as_of=days(1), tables=["splits"], rollback_days=0)
    properties = copied.spark.sql(f"SHOW TBLPROPERTIES {copied.warehouse.name(TABLES['splits'])}").collect()
    kept = {row["key"]: row["value"] for row in properties}["delta.logRetentionDuration"]
    assert kept == "interval 150 days", "100, a day of rounding, and 30 ahead, in months"


@pytest.mark.nightly
def test_a_night_can_be_put_back_after_maintenance(copied: Shop) -> None:
    def ranks() -> list[Any]:
        return sorted((bytes(r["query_id"]), r["item_id"], r["rank"]) for r in copied.rows(RANKINGS).collect())

    before = ranks()
    copied.write_items([("i01", "Red Ceramic Mug", "99.00", "1", "2010-01-01"), *ITEMS[1:]])
    copied.run("import_items", "price")
    assert copied.run("rank_candidates", "price").status == "published"
    assert ranks() != before
    age(copied, 5)
    how = {"tables": ["rankings"], "rollback_days": 0, "small_files": 1}
    assert copied.run("maintain", "1", **how).rows["rankings_files_after"] == 2, "one a bucket"
    copied.run("maintain", "2", **how)
    # Days are those of the runs: of this one, so nothing of it is old.
    roll_back(copied.warehouse, "first", "main", "back", LeaseSettings())
    roll_back(copied.warehouse, "first", "judged", "back-judged", LeaseSettings())
    assert ranks() == before


@pytest.mark.nightly
def test_scores_go_when_their_item_was_gone_for_long_and_not_before(copied: Shop) -> None:
    garden, red = scores_of(copied, "garden wall clock"), scores_of(copied, "red wall clock")
    whole = copied.rows(SCORES).count()
    assert garden
    assert red
    copied.write_items(without("i07", "i08"))
    for job in ("import_items", "build_candidates", "rank_candidates"):
        copied.run(job, "fewer", **({"max_deleted_share": 0.5} if job == "import_items" else {}))
    how = {"tables": ["scores"], "rollback_days": 0, "memory_retention_days": 30}
    assert copied.run("maintain", "1", as_of=days(1), **how).rows["scores_marked"] == garden + red
    copied.write_items(without("i07"))
    for job in ("import_items", "build_candidates"):
        copied.run(job, "relisted", as_of=days(2))
    early = copied.run("maintain", "2", as_of=days(30), **how)
    assert early.rows["scores_marked"] == garden
    assert copied.rows(SCORES).count() == whole, "29 days"

    assert copied.run("maintain", "3", as_of=days(31), **how).rows["scores_collected"] == garden
    assert scores_of(copied, "garden wall clock") == 0
    assert copied.rows(SCORES).count() == whole - garden
    assert copied.rows(UNREFERENCED).isEmpty()
    assert copied.run("score_candidates", "after", as_of=days(31)).rows["to_score"] == 0, "what went is no news"


@pytest.mark.nightly
def test_another_scorers_scores_go_in_their_time_and_are_made_anew_when_asked_for(copied: Shop, tmp_path: Path) -> None:
    tiny.checkpoint(copied.models, "other", seed=8)
    other = open_checkpoint(copied.models, "other", "cross_encoder")
    config = copied.config("score_candidates", checkpoint="other")

    def score(run_id: str, as_of: date) -> Any:
        return score_candidates.run_with(copied.spark, config, run_id, other, Traced(str(tmp_path)), as_of)

    pairs = score("1", AS_OF).rows["scored"]
    how = {"tables": ["scores"], "memory_retention_days": 10}
    is_other = F.col("scorer_digest") == F.lit(other.scorer_digest)
    assert copied.run("maintain", "1", as_of=days(10), **how).rows["scores_marked"] == 0, (
        "it was asked for ten days ago"
    )
    assert copied.run("maintain", "2", as_of=days(11), **how).rows["scores_marked"] == pairs
    assert copied.run("maintain", "3", as_of=days(21), **how).rows["scores_collected"] == pairs
    assert copied.rows(SCORES).where(is_other).isEmpty()
    assert not copied.rows(SCORES).isEmpty(), "a ranking names the others"
    again = score("2", days(22))
    assert again.rows["gone"] == 0, "it went by the change feed"
    assert again.rows["to_score"] == again.rows["scored"] == pairs


def test_a_table_that_a_run_may_publish_to_is_left_alone(copied: Shop) -> None:
    before = versions(copied)
    ranker = Author("rank_candidates", "under way")
    tables.take(copied.warehouse, tables.read_leases(copied.warehouse), ["kept_back"], ranker, "nonce", 600)
    with pytest.raises(LeaseTaken, match="kept_back: rank_candidates, run under way") as taken:
        copied.run("maintain", tables=["scores"])
    assert taken.value.status == 4
    assert versions(copied) == before
    assert copied.run("maintain", "items", tables=["run_metrics"]).status == "published", "of no concern to it"


def test_it_knows_what_every_job_reads_and_publishes() -> None:
    for job in launch.jobs():
        pipeline = importlib.import_module(f"ecomspark.pipelines.{job}")
        named = {value.name for value in vars(pipeline).values() if isinstance(value, Table) and value.kind == "memory"}
        reads = {table.name for table in getattr(pipeline, "READS", ())} | named
        if job == maintain.JOB or not reads:
            continue
        known_reads, known_publishes = maintain.USES[job]
        assert reads <= {table.name for table in known_reads}, job
        assert {table.name for table in pipeline.PUBLISHES} == {table.name for table in known_publishes}, job
