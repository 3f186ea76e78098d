"""The three kinds of table: what publishing writes, what it refuses, and what readers see."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.errors import ConfigError, ContractError, NewerPublished
from ecomspark.runs import Run
from ecomspark.schemas import CANDIDATES, INTERACTIONS, ITEMS, LEASES, SCORES, Column, Table, column
from ecomspark.tables import Author, Warehouse
from ecomspark.tables.commits import committed, info_of, turn, write

ME = Author("test_job", "run-1")


def publish(warehouse: Warehouse, table: Table, frame: Any, author: Author = ME, **how: Any) -> tables.Commit:
    return tables.publish(warehouse, tables.compare(warehouse, table, frame, author, **how), author)


def newest(warehouse: Warehouse, table: Table) -> Any:
    return tables.read(warehouse, table, tables.snapshot(warehouse, table))


def digest(n: int) -> bytes:
    return n.to_bytes(16, "big")


def test_only_rows_that_differ_reach_the_change_feed(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    publish(warehouse, ITEMS, rows(ITEMS, *({"item_id": str(n), "title": "as it was"} for n in range(50))))
    changed = [{"item_id": str(n), "title": "as it was"} for n in range(1, 50)]
    changed[0]["title"] = "edited"
    commit = publish(warehouse, ITEMS, rows(ITEMS, *changed, {"item_id": "new"}), Author("test_job", "run-2"))

    assert (commit.inserted, commit.updated, commit.deleted) == (1, 1, 1)
    feed = (
        warehouse.spark.read.format("delta")
        .option("readChangeFeed", "true")
        .option("startingVersion", commit.after)
        .load(warehouse.path(ITEMS))
    )
    kinds = sorted((row["_change_type"], row["item_id"]) for row in feed.collect())
    assert kinds == [("delete", "0"), ("insert", "new"), ("update_postimage", "1"), ("update_preimage", "1")]
    by_run = {row["item_id"]: row["changed_by"] for row in newest(warehouse, ITEMS).collect()}
    assert by_run["1"] == "run-2"
    assert by_run["2"] == "run-1"


def test_publishing_the_same_again_writes_no_version(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    frame = rows(ITEMS, {"item_id": "1", "attributes": {"b": "2", "a": "1"}}, {"item_id": "2", "rating": 4.5})
    first = publish(warehouse, ITEMS, frame)
    again = publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "attributes": {"a": "1", "b": "2"}},
                                           {"item_id": "2", "rating": 4.5}), Author("test_job", "run-2"))  # fmt: skip
    assert again.after == first.after == tables.snapshot(warehouse, ITEMS).version  # type: ignore[union-attr]


def test_a_number_differs_only_by_more_than_its_epsilon_and_a_source_score_never(
    warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    publish(warehouse, CANDIDATES, rows(CANDIDATES, {"query_id": digest(1), "item_id": "a", "sources": {"bm25": 1.0}}))
    same = rows(CANDIDATES, {"query_id": digest(1), "item_id": "a", "sources": {"bm25": 2.0}})
    assert tables.compare(warehouse, CANDIDATES, same, ME).is_empty
    other = rows(CANDIDATES, {"query_id": digest(1), "item_id": "a", "sources": {"bm25": 1.0, "judged": 0.0}})
    assert tables.compare(warehouse, CANDIDATES, other, ME).updated == 1

    table = Table(
        "t", "a row", "state", ("k",), (Column("k", "int", ""), column("x", "double", "", null="no", difference=0.1)), 1
    )
    frame = warehouse.spark.createDataFrame([(1, 1.0), (2, 1.0), (3, None)], "k int, x double")
    publish(warehouse, table, frame)
    moved = warehouse.spark.createDataFrame([(1, 1.05), (2, 1.2), (3, 1.0)], "k int, x double")
    assert tables.compare(warehouse, table, moved, ME).updated == 2


def test_rows_outside_the_scope_and_kept_rows_are_left_alone(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    publish(
        warehouse,
        ITEMS,
        rows(ITEMS, *({"item_id": f"{place}{n}", "locale": place} for place in ("uk", "es") for n in range(3))),
    )
    keep = warehouse.spark.createDataFrame([("uk1",)], "item_id string")
    commit = publish(
        warehouse, ITEMS, rows(ITEMS, {"item_id": "uk0", "locale": "uk"}), scope=F.col("locale") == "uk", keep=keep
    )
    assert commit.deleted == 1
    assert {row["item_id"] for row in newest(warehouse, ITEMS).collect()} == {"uk0", "uk1", "es0", "es1", "es2"}
    upsert = publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "uk9", "locale": "uk"}), deletes=False)
    assert (upsert.inserted, upsert.deleted) == (1, 0)


def test_null_and_doubled_keys_and_missing_values_are_refused_together(
    warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    faulty = rows(ITEMS, {"item_id": None}, {"item_id": "1", "title": None}, {"item_id": "2"}, {"item_id": "2"})
    with pytest.raises(ContractError) as refused:
        tables.compare(warehouse, ITEMS, faulty, ME)
    message = str(refused.value)
    assert "item_id: expected a value in every row, found 1 without" in message
    assert "title: expected a value in every row, found 1 without" in message
    assert "item_id: expected each key once, found 1 given more than once" in message
    assert newest(warehouse, ITEMS).isEmpty()


def test_wrong_columns_are_all_named(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    wrong = rows(ITEMS, {"item_id": "1"}).drop("title").withColumn("price", F.lit("3")).withColumn("rating", F.lit(4))
    with pytest.raises(ContractError) as refused:
        tables.compare(warehouse, ITEMS, wrong, ME)
    message = str(refused.value)
    assert "title: expected string, found no such column" in message
    assert "price: expected decimal(18,4), found string" in message
    assert "rating: expected double, found int" in message


def test_what_moved_since_it_was_compared_is_not_overwritten(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1"}))
    stale = tables.compare(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "title": "stale"}), ME)
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "title": "newer"}))
    with pytest.raises(NewerPublished):
        tables.publish(warehouse, stale, ME)
    assert newest(warehouse, ITEMS).collect()[0]["title"] == "newer"


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_publications_at_once_one_is_refused(
    warehouse: Warehouse, rows: Callable[..., Any], monkeypatch: Any, is_first: bool
) -> None:
    if not is_first:
        publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "0"}))
    one, other = (
        tables.compare(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "title": title}), ME, deletes=False)
        for title in ("one", "other")
    )
    tables.publish(warehouse, one, ME)
    # As if the other had looked before the first one landed.
    monkeypatch.setitem(tables.publish.__globals__, "after_maintenance", lambda *_: other.at)
    with pytest.raises(NewerPublished, match="at the same moment"):
        tables.publish(warehouse, other, ME)
    monkeypatch.undo()
    assert [row["title"] for row in newest(warehouse, ITEMS).where("item_id = '1'").collect()] == ["one"]


def test_of_two_appends_to_a_log_at_once_one_is_refused(
    warehouse: Warehouse, rows: Callable[..., Any], monkeypatch: Any
) -> None:
    frame = rows(INTERACTIONS, {"interaction_id": "1"})
    at = tables.create(warehouse, INTERACTIONS)
    tables.append_log(warehouse, INTERACTIONS, frame, ME)
    monkeypatch.setitem(tables.append_log.__globals__, "create", lambda *_: at)
    with pytest.raises(NewerPublished, match="at the same moment"):
        tables.append_log(warehouse, INTERACTIONS, frame, ME)
    assert newest(warehouse, INTERACTIONS).count() == 1


def test_two_may_make_a_table_at_once(warehouse: Warehouse) -> None:
    """As jobs that a scheduler starts side by side do on the first night, with `runs` and `leases`."""
    both = threading.Barrier(2)

    def make(_: int) -> tables.Snapshot:
        own = Warehouse(warehouse.spark.newSession(), warehouse.location, warehouse.buckets)
        both.wait()
        return tables.create(own, LEASES)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(make, range(2))
    assert one == other == tables.snapshot(warehouse, LEASES)


def test_of_two_commits_under_way_at_once_one_is_told(
    warehouse: Warehouse, rows: Callable[..., Any], tmp_path: Path
) -> None:
    """Both have begun at one version: it is Delta that refuses the second, by an exception of its own."""
    begun, landed = tmp_path / "begun", tmp_path / "landed"

    def slowly(batches: Any) -> Any:
        begun.touch()
        while not landed.exists():
            time.sleep(0.05)
        yield from batches

    at = tables.create(warehouse, INTERACTIONS)
    other = Warehouse(warehouse.spark.newSession(), warehouse.location, warehouse.buckets)
    frame = rows(INTERACTIONS, {"interaction_id": "1"})
    slow = frame.coalesce(1).mapInPandas(slowly, frame.schema)
    turn_of_both = turn(warehouse, INTERACTIONS, at, ME)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(
            committed, other, INTERACTIONS, ME, lambda: write(other, INTERACTIONS, slow, turn_of_both)
        )
        try:
            while not begun.exists():
                assert not under_way.done(), under_way.result()
                time.sleep(0.05)
            tables.append_log(warehouse, INTERACTIONS, rows(INTERACTIONS, {"interaction_id": "2"}), ME)
        finally:
            landed.touch()
        with pytest.raises(NewerPublished, match="at the same moment"):
            under_way.result()
    assert [row["interaction_id"] for row in newest(warehouse, INTERACTIONS).collect()] == ["2"]


def test_a_former_holder_cannot_be_the_first_to_publish(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    former, holder = (Author("test_job", f"run-{n}", epoch=n, leased=("items",)) for n in (1, 2))
    tables.fence_off(warehouse, [ITEMS], holder)
    with pytest.raises(NewerPublished):
        publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "late"}), former)
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1"}), holder)
    assert [row["item_id"] for row in newest(warehouse, ITEMS).collect()] == ["1"]


def test_a_pinned_version_is_what_is_read(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "title": "old"}))
    pinned = tables.snapshot(warehouse, ITEMS)
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "1", "title": "new"}))
    assert tables.read(warehouse, ITEMS, pinned).collect()[0]["title"] == "old"
    recreated = tables.Snapshot("another table's id", 1)
    with pytest.raises(ContractError, match="found another in its place"):
        tables.read(warehouse, ITEMS, recreated)


def test_a_doubled_append_to_a_memory_table_doubles_nothing_behind_it(
    warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    def score(n: int, **values: Any) -> dict[str, Any]:
        return {"query_digest": digest(n), "passage_digest": digest(n), "attempt": 1, **values}

    appended = rows(
        SCORES, score(1, logit=1.0), score(2, error="ValueError", error_kind="lasting"), score(3, logit=3.0)
    )
    tables.append_memory(warehouse, SCORES, appended, ME)
    once = sorted(map(str, tables.read_memory(warehouse, SCORES).collect()))
    tables.append_memory(warehouse, SCORES, appended, ME)
    tables.append_memory(warehouse, SCORES, rows(SCORES, score(1, logit=1.5), score(2, logit=2.0)), ME)
    seen = {bytes(row["query_digest"])[-1]: row["logit"] for row in tables.read_memory(warehouse, SCORES).collect()}

    assert len(once) == 3
    assert seen == {1: 1.0, 2: 2.0, 3: 3.0}, "the earliest commit wins, and a result before an error"
    wanted = rows(SCORES, score(2)).select("query_digest", "passage_digest")
    assert tables.read_memory(warehouse, SCORES, wanted).count() == 1


def test_a_null_in_a_memory_table_fails_the_whole_append(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    half = rows(SCORES, {"query_digest": digest(1), "attempt": 1}, {"query_digest": None, "attempt": 1})
    with pytest.raises(Exception, match="NOT_NULL_CONSTRAINT_VIOLATED"):
        tables.append_memory(warehouse, SCORES, half, ME)
    assert tables.read_memory(warehouse, SCORES).isEmpty()


def test_a_log_takes_each_key_once(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    frame = rows(INTERACTIONS, {"interaction_id": "1"}, {"interaction_id": "2"})
    first = tables.append_log(warehouse, INTERACTIONS, frame, ME)
    again = tables.append_log(warehouse, INTERACTIONS, frame, ME)
    more = tables.append_log(
        warehouse, INTERACTIONS, rows(INTERACTIONS, {"interaction_id": "2"}, {"interaction_id": "3"}), ME
    )
    assert first.inserted == 2
    assert again.after == first.after
    assert more.inserted == 1
    assert newest(warehouse, INTERACTIONS).count() == 3
    with pytest.raises(ContractError, match="each key once"):
        tables.append_log(
            warehouse, INTERACTIONS, rows(INTERACTIONS, {"interaction_id": "4"}, {"interaction_id": "4"}), ME
        )


def test_a_column_that_the_declaration_gained_is_added_and_every_other_drift_refused(
    warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    old = Table(
        "t",
        "a row",
        "state",
        ("k",),
        (Column("k", "int", ""), Column("a", "int", ""), Column("b", "string", "", True)),
        1,
    )
    publish(warehouse, old, warehouse.spark.createDataFrame([(1, 2, "x")], "k int, a int, b string"))
    pinned = tables.snapshot(warehouse, old)

    gained = Table("t", "a row", "state", ("k",), (*old.columns, column("c", "double", "", null="not known")), 1)
    assert tables.read(warehouse, gained, pinned).collect()[0]["c"] is None
    tables.create(warehouse, gained)
    assert newest(warehouse, gained).collect()[0].asDict() == {"k": 1, "a": 2, "b": "x", "c": None}

    reordered = Table("t", "a row", "state", ("k",), (gained.columns[2], *gained.columns[:2], gained.columns[3]), 1)
    tables.create(warehouse, reordered)

    drifted = (Column("k", "bigint", ""), Column("renamed", "int", ""), Column("b", "string", ""))
    with pytest.raises(ContractError) as refused:
        tables.create(warehouse, Table("t", "a row", "state", ("k",), drifted, 1))
    for fault in (
        "k: expected bigint, found int",
        "renamed: expected int, found no such column",
        "b: expected not null, found nullable",
        "a: found, but not declared",
        "c: found, but not declared",
    ):
        assert fault in str(refused.value)


def test_large_tables_are_laid_out_in_buckets_that_the_table_remembers(
    warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    frame = rows(CANDIDATES, *({"query_id": bytes([n]) * 16, "item_id": "a"} for n in range(6)))
    publish(warehouse, CANDIDATES, frame)
    more = Warehouse(warehouse.spark, warehouse.location, buckets=64)
    publish(more, CANDIDATES, rows(CANDIDATES, *({"query_id": bytes([n]) * 16, "item_id": "a"} for n in range(8))))
    path = warehouse.path(CANDIDATES)
    buckets = warehouse.spark.read.format("delta").load(path).select("bucket").distinct().collect()
    assert sorted(row["bucket"] for row in buckets) == [0, 1]


def test_what_python_made_lands_once_and_is_gone_with_the_run(
    spark: Any, warehouse: Warehouse, rows: Callable[..., Any]
) -> None:
    made = spark.sparkContext.accumulator(0)

    def count(batches: Any) -> Any:
        for batch in batches:
            made.add(batch.num_rows)
            yield batch

    given = rows(ITEMS, {"item_id": "a"}, {"item_id": "b"}).drop("changed_by")
    run = Run(warehouse, ME, None, False, {})
    staged = run.staged(ITEMS, given.mapInArrow(count, given.schema))
    publish(warehouse, ITEMS, staged)
    assert (made.value, newest(warehouse, ITEMS).count()) == (2, 2), "comparing and merging read what landed"
    folder = Path(str(warehouse.path(ITEMS))).parent / "staging" / "items"
    assert len(list(folder.iterdir())) == 1
    again = tables.stage(warehouse, ITEMS, given.limit(1), ME)
    assert again.count() == 1, "what a run left that died is not read by the next"
    nothing = tables.stage(warehouse, ITEMS, given.mapInArrow(lambda batches: iter(()), given.schema), ME)
    assert (nothing.columns, nothing.count()) == (given.columns, 0), "Delta makes no commit where there is no row"
    run.let_go()
    assert not list(folder.iterdir())


def test_commits_name_their_run_and_carry_no_value(warehouse: Warehouse, rows: Callable[..., Any]) -> None:
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "canary-item", "title": "canary-title"}))
    publish(warehouse, ITEMS, rows(ITEMS, {"item_id": "canary-item", "title": "canary-edited"}))
    path = warehouse.path(ITEMS)
    assert path is not None
    history = DeltaTable.forPath(warehouse.spark, path).history().collect()
    assert all('"run_id": "run-1"' in row["userMetadata"] for row in history if row["version"] > 0)
    assert "canary-title" not in str(history)
    assert "canary-edited" not in str(history)
    assert json.loads(info_of(warehouse, ITEMS, 2).userMetadata().get())["run_id"] == "run-1"
    assert info_of(warehouse, ITEMS, 99) is None, "what the log no longer has is no error"


def test_a_warehouse_can_be_a_schema_of_a_catalog(spark: Any, rows: Callable[..., Any]) -> None:
    spark.sql("CREATE SCHEMA IF NOT EXISTS search")
    in_catalog = Warehouse(spark, "catalog:spark_catalog.search", buckets=2)
    assert tables.snapshot(in_catalog, CANDIDATES) is None
    publish(in_catalog, CANDIDATES, rows(CANDIDATES, {"query_id": digest(1), "item_id": "a"}))
    pinned = tables.snapshot(in_catalog, CANDIDATES)
    publish(in_catalog, CANDIDATES, rows(CANDIDATES, {"query_id": digest(1), "item_id": "b"}))
    assert tables.read(in_catalog, CANDIDATES, pinned).collect()[0]["item_id"] == "a"
    assert newest(in_catalog, CANDIDATES).collect()[0]["item_id"] == "b"
    tables.append_memory(in_catalog, SCORES, rows(SCORES, {"query_digest": digest(1), "logit": 1.0}), ME)
    assert tables.read_memory(in_catalog, SCORES).count() == 1
    with pytest.raises(ConfigError, match=r"expected catalog:NAME\.SCHEMA"):
        Warehouse(spark, "catalog:no schema")


def test_what_is_kept_is_computed_once_and_stands_without_its_past_in_the_plans_of_others(spark: Any) -> None:
    computed = spark.sparkContext.accumulator(0)

    def counted(ids: Any) -> Any:
        for batch in ids:
            computed.add(len(batch))
            yield batch

    held, adaptive = spark.sparkContext._jsc.getPersistentRDDs().size(), "spark.sql.adaptive.enabled"
    before = spark.conf.get(adaptive)
    spark.conf.set(adaptive, "true")
    try:
        rows = spark.range(40, numPartitions=2).repartition(2, "id").mapInPandas(counted, "id long")
        last = tables.kept(rows.groupBy("id").count().select("id"))
        frames = [last]
        for _ in range(6):
            last = tables.kept(last.join(last.select("id"), on="id", how="inner"))
            frames.append(last)
        assert sorted(row["id"] for row in last.collect()) == list(range(40))
        assert computed.value == 40

        # As a persisted frame each of these would be spelled out in all that is made of it.
        plan = last.where("id > 3")._jdf.queryExecution().toString()
        assert plan.count("Scan") <= 3
        for frame in frames:
            frame.unpersist()
        assert spark.sparkContext._jsc.getPersistentRDDs().size() == held
        # How it came about is known, as after the loss of an executor.
        assert sorted(row["id"] for row in last.collect()) == list(range(40))
    finally:
        spark.conf.set(adaptive, before)


def test_what_is_begun_when_it_is_kept_sees_the_settings_of_the_session(spark: Any) -> None:
    def seen(batches: Any) -> Any:
        from pyspark import TaskContext

        said = TaskContext.get().getLocalProperty("spark.sql.execution.arrow.maxRecordsPerBatch")
        for batch in batches:
            yield batch.assign(said=said, size=len(batch))[["said", "size"]]

    adaptive = "spark.sql.adaptive.enabled"
    before = spark.conf.get(adaptive)
    spark.conf.set(adaptive, "true")  # so that what lies before the shuffle runs at once
    try:
        read = spark.range(4_500, numPartitions=1).mapInPandas(seen, "said string, size long")
        rows = tables.kept(read.repartition(2, "size").distinct())
        assert {(row["said"], row["size"]) for row in rows.collect()} == {("2000", 2_000), ("2000", 500)}
        rows.unpersist()
        assert spark.sparkContext.getLocalProperty("spark.sql.execution.arrow.maxRecordsPerBatch") is None
    finally:
        spark.conf.set(adaptive, before)
