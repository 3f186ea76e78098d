"""Rankings end to end: whole queries, one scorer each, only what differs, and no model needed."""

from datetime import date
from typing import Any

import pytest
import tiny
from pyspark.sql import functions as F
from shop import ITEMS, Shop

from ecomspark.errors import ConfigError, NewerPublished
from ecomspark.models import cross_encoder
from ecomspark.schemas import CANDIDATES, QUERIES, RANKINGS, RUNS

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
    assert set(rankings["scorer_digest"].map(bytes)) == {
        bytes.fromhex(card_digest) for card_digest in [scorer(ranked_shop, "relevance-1").hex()]
    }


def scorer(shop: Shop, name: str) -> bytes:
    from ecomspark.models.checkpoint import open_checkpoint

    return open_checkpoint(shop.models, name).scorer_digest


def test_one_price_re_ranks_only_its_queries_and_loads_no_model(copied: Shop, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(cross_encoder, "load", refuse)
    copied.write_items([("i01", "Red Ceramic Mug", "99.00", "100", "2011-10-20"), *ITEMS[1:]])
    copied.run("import_items", "price")
    summary = copied.run("rank_candidates", "price")
    touched = {bytes(row["query_id"]) for row in copied.rows(RANKINGS).where("changed_by = 'price'").collect()}
    of_item = {bytes(row["query_id"]) for row in copied.rows(CANDIDATES).where("item_id = 'i01'").collect()}
    assert summary.rows["changed"] > 0
    assert touched
    assert touched <= of_item
    untouched = copied.rows(RANKINGS).where("changed_by = 'first'").count()
    assert untouched == copied.rows(RANKINGS).count() - summary.rows["changed"]
    assert summary.rows["reranked_queries"] == summary.rows["because_items"] == len(of_item)


def test_the_same_again_publishes_nothing(copied: Shop) -> None:
    again = copied.run("rank_candidates", "again")
    assert again.status == "nothing_to_do"
    assert again.tables == {}
    assert again.rows == {"reranked_queries": 0}
    full = copied.run("rank_candidates", "full", full=True)
    assert full.rows["reranked_queries"] == full.rows["because_whole"] > 0
    assert full.status == "nothing_to_do"


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


def test_a_query_without_all_its_scores_keeps_its_old_ranking_whole(copied: Shop) -> None:
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


def test_no_query_mixes_scorers(copied: Shop) -> None:
    tiny.checkpoint(copied.models, "relevance-2", seed=11, max_tokens=32, query_max_tokens=8)
    before = copied.rows(RANKINGS).count()
    unscored = copied.run("rank_candidates", "unscored", checkpoint="relevance-2")
    assert unscored.rows["new"] == unscored.rows["changed"] == unscored.rows["removed"] == 0
    assert copied.rows(RANKINGS).count() == before
    assert unscored.rows["kept_back_queries"] > 0, "no query of it is scored: all old rankings stay"

    def scorers() -> dict[bytes, set[bytes]]:
        found: dict[bytes, set[bytes]] = {}
        for row in copied.rows(RANKINGS).where("variant = 'main'").collect():
            found.setdefault(bytes(row["query_id"]), set()).add(bytes(row["scorer_digest"]))
        return found

    # The new scorer knows all candidates as they are now; then a new item comes that it does not know.
    copied.run("score_candidates", "switch", checkpoint="relevance-2")
    copied.write_items([*ITEMS, ("i13", "Blue Wall Clock", "10.00", "5", "2011-10-10")])
    for job in ("import_items", "build_texts", "build_candidates"):
        copied.run(job, "new")
    switched = copied.run("rank_candidates", "switch", checkpoint="relevance-2")
    assert switched.rows["kept_back_queries"] > 0
    assert all(len(of_query) == 1 for of_query in scorers().values())
    assert set().union(*scorers().values()) == {scorer(copied, "relevance-1"), scorer(copied, "relevance-2")}


def test_a_query_that_lost_its_last_candidate_leaves_the_rankings(copied: Shop) -> None:
    copied.write("judgments", "id,sku,grade", [("q2", "i07", 3)])
    copied.write_items([item for item in ITEMS if item[0] != "i03" and item[0] != "i04"])
    copied.run("import_judgments", "fewer", max_deleted_share=1.0)
    for job in ("import_items", "build_texts", "build_candidates", "score_candidates"):
        copied.run(job, "fewer")
    copied.run("rank_candidates", "fewer")
    teapot = copied.rows(QUERIES).where("query_text = 'teapot'").collect()[0]["query_id"]
    assert copied.rows(RANKINGS).where(F.col("query_id") == F.lit(teapot)).isEmpty()


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
