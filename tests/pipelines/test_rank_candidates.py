"""Rankings end to end: whole queries, one scorer each, only what differs, and no model needed."""

from datetime import date, timedelta

import pytest
from pyspark.sql import functions as F
from shop import AS_OF, ITEMS, Shop

from ecomspark.errors import ConfigError, NewerPublished, OnHold
from ecomspark.holds import set_hold
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.schemas import QUERIES, RANKINGS, RUNS
from ecomspark.tables import Author

TERMS = ("relevance_term", "price_term", "sold_term", "rating_term", "freshness_term")


def test_ranks_follow_the_final_score_and_every_term_adds_up(ranked_shop: Shop) -> None:
    rankings = ranked_shop.rows(RANKINGS).toPandas()
    assert set(rankings["variant"]) == {"main", "judged"}
    rankings["query_id"] = rankings["query_id"].map(bytes)
    for _, of_query in rankings.groupby(["variant", "query_id"]):
        ordered = of_query.sort_values("rank")
        assert list(ordered["rank"]) == list(range(1, len(ordered) + 1))
        keys = list(zip(-ordered["final_score"], ordered["item_id"], strict=True))
        assert keys == sorted(keys)
    added = rankings["availability"] + rankings["band"] + rankings[list(TERMS)].sum(axis=1)
    assert list(rankings["final_score"]) == pytest.approx(list(added), abs=5e-6)
    of_scorer = open_checkpoint(ranked_shop.models, "relevance-1").scorer_digest
    assert set(rankings["scorer_digest"].map(bytes)) == {of_scorer}


def test_a_new_item_ages_by_as_of_and_by_no_clock(copied: Shop) -> None:
    def freshness(item_id: str) -> set[float]:
        rows = copied.rows(RANKINGS).where(F.col("item_id") == item_id)
        return {row["freshness_term"] for row in rows.collect()}

    assert freshness("i01") == {0.05}, "listed on 2011-10-20, 12 days before"
    copied.run("rank_candidates", "later", as_of=date(2011, 12, 31))
    assert freshness("i01") == {0.025}, "72 days: the second step"
    with pytest.raises(NewerPublished, match="asked for 2011-11-01, but 2011-12-31 is published already"):
        copied.run("rank_candidates", "earlier")
    assert freshness("i01") == {0.025}


def test_a_query_without_all_its_scores_keeps_its_old_ranking(copied: Shop) -> None:
    before = {str(row) for row in copied.rows(RANKINGS).collect()}
    copied.write_items([*ITEMS, ("i13", "Blue Wall Clock", "10.00", "5", "2011-10-10")])
    for job in ("import_items", "build_texts", "build_candidates"):
        copied.run(job, "new")
    waiting = copied.run("rank_candidates", "waiting")
    assert waiting.rows["kept_back_queries"] > 0
    wall_clock = F.col("query_id") == copied.rows(QUERIES).where("query_text = 'wall clock'").collect()[0]["query_id"]
    of_query = {str(row) for row in copied.rows(RANKINGS).where(wall_clock).collect()}
    assert of_query <= before
    assert of_query

    copied.run("score_candidates", "new")
    published = copied.run("rank_candidates", "published")
    assert published.rows["kept_back_queries"] == 0
    shown = {row["item_id"] for row in copied.rows(RANKINGS).where(wall_clock & (F.col("variant") == "main")).collect()}
    assert "i13" in shown


def test_a_query_that_lost_its_last_candidate_leaves_the_rankings(copied: Shop) -> None:
    teapot = copied.rows(QUERIES).where("query_text = 'teapot'").collect()[0]["query_id"]
    of_query = (F.col("query_id") == F.lit(teapot)) & (F.col("variant") == "main")
    shown = {row["item_id"] for row in copied.rows(RANKINGS).where(of_query).collect()}
    assert shown
    copied.write_items([item for item in ITEMS if item[0] not in shown])
    copied.run("import_items", "fewer", max_deleted_share=0.5)
    copied.run("rank_candidates", "fewer")
    assert copied.rows(RANKINGS).where(of_query).isEmpty()


def test_while_one_variant_is_on_hold_the_others_go_on(copied: Shop) -> None:
    set_hold(copied.warehouse, "main", "checking", Author("hold", "h"))
    copied.write_items([("i01", "Red Ceramic Mug", "99.00", "100", "2011-10-20"), *ITEMS[1:]])
    copied.run("import_items", "price")
    later = AS_OF + timedelta(1)
    with pytest.raises(OnHold, match="the variant main is on hold"):
        copied.run("rank_candidates", "held", later)
    assert {row["variant"] for row in copied.rows(RANKINGS).where("changed_by = 'held'").collect()} == {"judged"}
    run = copied.rows(RUNS).where("job = 'rank_candidates' AND run_id = 'held'").collect()[0]
    assert (run["status"], list(run["covers"])) == ("published", ["judged"])
    with pytest.raises(NewerPublished, match="asked for 2011-11-01, but 2011-11-02 is published already"):
        copied.run("rank_candidates", "older")


def test_a_run_is_replayed_and_refused_with_other_settings(copied: Shop) -> None:
    replay = copied.run("rank_candidates", "first")
    assert replay.status == "replayed"
    assert replay.rows == {row["run_id"]: row["rows"] for row in copied.rows(RUNS).where(
        "job = 'rank_candidates'").collect()}["first"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"run first ended with settings [0-9a-f]{32}, asked for now with"):
        copied.run("rank_candidates", "first", variants={"main": {"sold_cap": 5}})


def test_a_run_that_died_goes_on_with_what_it_had_pinned(copied: Shop) -> None:
    """As a driver that was killed leaves it: its row is open, the tables have moved on."""
    from ecomspark import tables
    from ecomspark.tables import Author

    row = copied.rows(RUNS).where("job = 'rank_candidates' AND run_id = 'first'").collect()[0].asDict(recursive=True)
    died = {**row, "run_id": "died", "status": "open", "ended_at": None, "published": {}}
    died["inputs"] = {name: (at["table_id"], at["version"]) for name, at in row["inputs"].items()}
    tables.put(copied.warehouse, RUNS, died, Author("rank_candidates", "died"))
    with pytest.raises(ConfigError, match="was cut off as of 2011-11-01, asked for now as of 2011-12-01"):
        copied.run("rank_candidates", "died", as_of=date(2011, 12, 1))
    with pytest.raises(ConfigError, match="was cut off with settings"):
        copied.run("rank_candidates", "died", min_scored_share=0.5)
    copied.write_items([("i01", "Red Ceramic Mug", "99.00", "100", "2011-10-20"), *ITEMS[1:]])
    copied.run("import_items", "price")
    resumed = copied.run("rank_candidates", "died")
    assert resumed.status == "nothing_to_do", "it saw the price as it was when it was opened"
    assert copied.run("rank_candidates", "fresh").rows["changed"] > 0
    stale = {**died, "run_id": "stale"}
    tables.put(copied.warehouse, RUNS, stale, Author("rank_candidates", "stale"))
    with pytest.raises(NewerPublished, match="was cut off, and a later run has ended since; nothing was done"):
        copied.run("rank_candidates", "stale")
