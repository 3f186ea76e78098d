"""What is told of a pair is what the tables say, each state for its reason, and a query's text stays out of everything."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from conftest import ROOT
from pyspark.sql import functions as F
from shop import ITEMS, Shop

from ecomspark import cli, explain, holds, tables
from ecomspark.explain import Explanation
from ecomspark.features.ranking import Policy
from ecomspark.metrics import expected_gain
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.schemas import CANDIDATES, KEPT_BACK, RANKINGS, SCORES, TEXTS
from ecomspark.tables import Author, Warehouse
from ecomspark.text import digest
from ecomspark.why import JOBS, Facts, why

CANARY = "canary 3141 mug"
RED_MUG = digest("uk", "red mug")


@pytest.fixture
def own_logging() -> Iterator[None]:
    """`launch` sends the project's log to stderr; other tests want it as it was."""
    log = logging.getLogger("ecomspark")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]


@pytest.fixture
def plans(spark: Any) -> Iterator[Callable[[], str]]:
    """All plans, from parsed to physical, of what Spark executed since the test began: what an event log would hold."""
    store, bus = spark._jsparkSession.sharedState().statusStore(), spark._jsc.sc().listenerBus()

    def executed() -> list[Any]:
        bus.waitUntilEmpty()
        listed = store.executionsList()
        return [listed.apply(place) for place in range(listed.size())]

    before = max((one.executionId() for one in executed()), default=-1)
    spark.conf.set("spark.sql.ui.explainMode", "extended")
    yield lambda: "\n".join(
        f"{one.description()} {one.physicalPlanDescription()}" for one in executed() if one.executionId() > before
    ).lower()
    spark.conf.unset("spark.sql.ui.explainMode")


def explained(shop: Shop, query: str, item: str, variant: str = "main", **ranking: Any) -> Explanation:
    configs = shop.config("score_candidates"), shop.config("rank_candidates", **ranking)
    return explain.explain(shop.warehouse, *configs, query, item, variant=variant)


def hexed(row: Any) -> dict[str, Any]:
    return {
        name: value.hex() if isinstance(value, bytearray | bytes) else value for name, value in row.asDict().items()
    }


def test_every_number_of_a_published_pair_is_that_of_its_tables(
    ranked_shop: Shop, plans: Callable[[], str], spark: Any
) -> None:
    found = explained(ranked_shop, " Red\u200b  MUG", "i01")
    executed = plans()
    of_query = ranked_shop.rows(RANKINGS).where((F.col("query_id") == F.lit(RED_MUG)) & (F.col("variant") == "main"))
    published = {row["item_id"]: hexed(row) for row in of_query.collect()}
    row = published["i01"]
    assert found.ranking is not None
    assert {name: found.ranking[name] for name in row} == row
    assert found.ranking["terms"]["price_term"] == RANKINGS.column("price_term").meaning
    assert found.query["query_id"] == RED_MUG.hex()
    assert (found.query["query_text"], found.query["traffic"], found.query["aliases"]) == ("red mug", 11, 2)
    assert (found.item["title"], found.item["price"]) == ("Red Ceramic Mug", 2.5)
    assert found.item["listed_at"] == "2011-10-20 00:00:00"

    is_pair = (F.hex("query_digest") == row["query_digest"].upper()) & (
        F.hex("passage_digest") == row["passage_digest"].upper()
    )
    score = hexed(ranked_shop.rows(SCORES).where(is_pair).collect()[0])
    card = open_checkpoint(ranked_shop.models, "relevance-1").card
    assert found.score == {**score, "relevance": row["relevance"], "band": row["band"]}
    assert row["relevance"] == pytest.approx(expected_gain(score["logit"], card.calibration), abs=1e-4)
    assert found.attempts == [{"attempt": 1, "logit": score["logit"], "error": None, "error_kind": None}]
    assert (found.texts["query"]["text"], found.texts["passage"]["text"]) == ("red mug", "red ceramic mug")
    assert found.checkpoint["metrics"] == card.metrics
    assert found.checkpoint["settings_digest"] == row["settings_digest"]

    beside = {one["item_id"]: one for one in found.neighbours}
    assert set(beside) == {i for i, one in published.items() if i != "i01" and abs(one["rank"] - row["rank"]) <= 2}
    assert beside["i12"]["decided_by"] == "sold_term", "its twin in text, of which fewer were sold"
    assert beside["i12"]["lead"] == pytest.approx(abs(row["sold_term"] - published["i12"]["sold_term"]))
    assert found.runs["changed_by"]["inputs"]["scores"]["version"] == found.versions["scores"]
    assert found.why[1] == "scored by relevance-1, at try 1"
    assert found.why[2] == f"published in main at rank {row['rank']} of {len(published)}, changed by run first"
    assert len(found.why) == 5, "nothing has changed since: a sentence a step and one a job"
    assert json.loads(json.dumps(found.as_json()))["ranking"]["rank"] == row["rank"]

    assert RED_MUG.hex() in executed
    assert "red mug" not in executed  # S8
    assert "red\u200b" not in executed
    spark.range(1).where(F.lit("red mug") == F.col("id").cast("string")).collect()
    assert "red mug" in plans(), "a text in a statement is seen"


def test_a_pair_that_nobody_or_only_an_assessor_proposed_says_so(ranked_shop: Shop) -> None:
    nobodys = explained(ranked_shop, "teapot", "i09")
    assert nobodys.why[:3] == [
        "not a candidate: no source proposes it, so no run ranks it; how near it came is not known",
        "not scored by relevance-1: never tried",
        "not published in main, for the reasons above",
    ]
    assert (nobodys.ranking, nobodys.score, nobodys.neighbours) == (None, None, [])
    judged = explained(ranked_shop, "red mug", "i02")
    assert judged.why[:4] == [
        "a candidate, proposed by judged (1 when it first did)",
        "scored by relevance-1, at try 1",
        "not ranked: main ranks candidates of any source but judged",
        "not published in main, for the reasons above",
    ]
    also = explained(ranked_shop, "red mug", "i02", "judged")
    assert also.ranking is not None
    assert also.why[2].startswith("published in judged at rank")
    cheaper = {"main": {}, "judged": {"proposed_by": ["judged"], "sold_cap": 5}}
    older = "what is published is of another policy: its query is looked at again by the next run of rank_candidates"
    assert older in explained(ranked_shop, "red mug", "i02", "judged", variants=cheaper).why


def test_errors_a_query_kept_back_and_a_hold_are_told_in_order(copied: Shop, rows: Callable[..., Any]) -> None:
    other = tiny.checkpoint(copied.models, "other", seed=8, max_tokens=32, query_max_tokens=8)
    of_item = copied.rows(TEXTS).where("text = 'red ceramic mug' AND role = 'passage'").collect()[0]["text_digest"]
    pair = {"query_digest": digest("red mug"), "passage_digest": of_item, "scorer_digest": other.scorer_digest}
    errors = [
        {**pair, "attempt": 2, "logit": None, "error": "ValueError", "error_kind": "lasting"},
        {**pair, "attempt": 1, "logit": None, "error": "OSError", "error_kind": "passing"},
    ]
    author = Author("score_candidates", "errors")
    tables.append_memory(copied.warehouse, SCORES, rows(SCORES, *errors), author)
    kept = rows(KEPT_BACK, {"variant": "main", "query_id": RED_MUG, "expected_count": 3, "scored_count": 2})
    tables.publish(
        copied.warehouse, tables.compare(copied.warehouse, KEPT_BACK, kept.drop("changed_by"), author), author
    )
    holds.set_hold(copied.warehouse, "main", "checking", Author("rank_candidates", "somebody"))

    found = explained(copied, "red mug", "i01", checkpoint="other")
    assert [(one["attempt"], one["error"]) for one in found.attempts] == [(1, "OSError"), (2, "ValueError")]
    assert found.score is None
    assert [re.split(r": | \d\d\d\d-", sentence)[0] for sentence in found.why[1:4]] == [
        "not scored",
        "its query was kept back by run errors",
        "main is on hold (checking, by run somebody, since",
    ]
    assert "ValueError at try 2, which lasts" in found.why[1]
    assert "2 of 3 candidates had a score, a share of 1 is asked for" in found.why[2]
    assert "`ecomspark release --variant main --run-id ID --conf FILE`" in found.why[3]
    assert found.why[5].startswith(
        "what is published is of another scorer, calibration: its query is looked at again once"
    )
    assert found.why[6].startswith("as things are now it has no rank")
    assert "scores went from version 1 to 2, the settings became others" in found.why[7]
    assert found.why[8].endswith("not about the scorer of other")


def test_an_item_whose_text_is_newer_than_what_is_published(copied: Shop) -> None:
    copied.write_items([("i01", "Crimson Ceramic Mug", *ITEMS[0][2:]), *ITEMS[1:]])
    copied.run("import_items", "edit")
    found = explained(copied, "red mug", "i01")
    assert found.item["title"] == "Crimson Ceramic Mug"
    assert found.texts["passage"] is None
    assert found.why[1].startswith(
        "not scored: no text of the passage under the recipe of relevance-1; run build_texts"
    )
    assert found.why[3].startswith("it stays as it is until a share of 1 of the query's candidates has a score")
    assert "items went from version 1 to 2" in found.why[4]
    assert "settings became" not in found.why[4]


def test_a_querys_text_is_shown_on_stdout_and_nowhere_else(
    copied: Shop, capfd: Any, caplog: Any, plans: Callable[[], str], monkeypatch: Any, own_logging: None
) -> None:  # S8
    sections = {job: copied.section(job) for job in JOBS}
    shared = {"warehouse": copied.warehouse.location, "models_folder": str(copied.models), "buckets": 2,
              "spark_properties": str(ROOT / "conf/spark-local.conf")}  # fmt: skip
    path = copied.folder / "shop.yaml"
    path.write_text(yaml.safe_dump({**shared, **json.loads(json.dumps(sections))}))

    def status(*words: str) -> int:
        return cli.main(["explain", "--conf", str(path), *words])

    assert status("--query", CANARY, "--item", "i01") == 3
    assert status("--query", CANARY, "--item", "i01", "--locale", "us") == 3
    assert status("--query", CANARY, "--item", "no such item") == 3
    assert status("--query", " \u200b", "--item", "i01") == 2
    assert status("--query", CANARY, "--item", "i01", "--variant", CANARY) == 2
    with pytest.raises(SystemExit) as unquoted:
        status("--item", "i01", "--query", *CANARY.split())
    assert unquoted.value.code == 2
    with monkeypatch.context() as patch:
        patch.setattr(explain, "why", lambda facts: [][len(CANARY)])
        assert status("--query", "red mug", "--item", "i01") == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "expected the query, found none of that text in the locale of the item; see --locale" in printed.err
    assert "expected the item, found none of that id" in printed.err
    assert "unrecognized arguments: put quotes around the query" in printed.err
    assert not [word for word in ("canary", "3141", "no such item") if word in printed.err + caplog.text]

    assert status("--query", "red mug", "--item", "i01", "--json") == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["query"]["query_text"] == "red mug"
    assert status("--query", "red mug", "--item", "i01") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:4] == ["query", f"  query_id: {RED_MUG.hex()}", "  locale: uk", "  query_text: red mug"]
    assert [line for line in lines if line.startswith("  - a candidate, proposed by bm25 (")]
    assert "red mug" not in printed.err + caplog.text
    assert not [word for word in ("canary", "red mug") if word in plans()]


def test_only_the_part_of_a_digest_is_read(spark: Any, tmp_path: Path, plans: Callable[[], str]) -> None:
    warehouse = Warehouse(spark, str(tmp_path / "warehouse"), buckets=8)
    tables.create(warehouse, CANDIDATES)
    tables.create(warehouse, SCORES)
    at = explain._Newest.of(warehouse)
    digests = b"\x0b" + bytes(15), b"\x0d" + bytes(15)
    assert at.rows(CANDIDATES, F.col("query_id") == F.lit(digests[0]), digests[0]) == []
    assert at.rows(SCORES, F.col("query_digest").isin(list(digests)), *digests) == []
    executed = re.sub(r"#\d+l?", "", plans())
    assert "partitionfilters: [(bucket = 3)]" in executed
    assert "partitionfilters: [bucket in (3,5)]" in executed, "0x0b and 0x0d modulo 8"


OF_RUN = {"run_id": "r1", "status": "published", "as_of": "2011-11-01", "ended_at": "2011-11-02 00:00:00", "error": None,
          "rows": {}, "seconds": {}, "covers": {"s": "x", "main": "x"}, "settings_digest": "d",
          "inputs": {name: {"version": 1} for name in ("candidates", "queries", "items", "scores")}}  # fmt: skip
SCORED = {"attempt": 1, "logit": 1.0, "error": None, "error_kind": None}
PASSING = {"attempt": 2, "logit": None, "error": "OSError", "error_kind": "passing"}
ROW = {"rank": 2, "changed_by": "r0", "query_digest": "q", "passage_digest": "p", "scorer_digest": "s",
       "calibration_digest": "c", "settings_digest": "v"}  # fmt: skip
MADE_OF = {name: ROW[name] for name in ROW if name.endswith("_digest")}


def facts(**changes: Any) -> Facts:
    """A pair that has its score, and that the last run of rank_candidates could have ranked and did not."""
    runs = {"score_candidates": OF_RUN, "rank_candidates": OF_RUN, "covering": OF_RUN}
    given = {
        "variant": "main", "policy": Policy(), "sources": {"bm25": 2.0}, "is_one_locale": True, "lacks_text": [],
        "tries": [SCORED], "other_scorers": 0, "max_tries": 3, "scored_by": "m", "ranked_by": "m",
        "min_scored_share": 1.0, "is_in_stock": None, "kept": None, "hold": None, "row": None, "row_count": 5,
        "made_of": MADE_OF, "settings_digest": "d", "runs": {**runs, **changes.pop("runs", {})},
        "versions": dict.fromkeys(OF_RUN["inputs"], 1),
    }  # fmt: skip
    return Facts(**{**given, **changes})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (facts(), "not published, and the tables do not say why"),
        (facts(runs={"covering": None}), "no run of rank_candidates has brought main up to date"),
        (facts(versions={"candidates": 1, "queries": 1, "items": 1, "scores": 2}), "not published yet: since run r1 of "
         "rank_candidates scores went from version 1 to 2; the next run"),
        (facts(tries=[]), "never tried; the next run of score_candidates tries it"),
        (facts(tries=[], scored_by="n", other_scorers=1), "score_candidates.checkpoint is n: name the one that is ranked by; "
         "other scorers that have: 1"),
        (facts(tries=[PASSING]), "OSError at try 2 of 3, which may pass; the next run of score_candidates tries it"),
        (facts(tries=[PASSING], max_tries=2), "max_tries is reached: raise it; until then its query counts it as lacking"),
        (facts(tries=[PASSING], row=ROW), "it stays as it is until a share of 1 of the query's candidates has a score"),
        (facts(sources=None, is_one_locale=False), "it is of another locale than the query"),
        (facts(sources=None), "scored by m, at try 1; it was a candidate once, or a pair of the same texts is one"),
        (facts(sources=None, row=ROW), "it has no rank: it leaves the ranking when its query is ranked again, by the next"),
        (facts(is_in_stock=False, row=ROW), "out of stock: behind all that can be bought, by the policy of main"),
        (facts(is_in_stock=False, policy=Policy(unavailable="out")), "out of stock: left out, by the policy of main"),
        (facts(policy=Policy(proposed_by=["impressions"])), "not ranked: main ranks candidates of impressions only"),
        (facts(policy=None, row=ROW), "rank_candidates.variants has no main: no run ranks it, and what it has published"),
        (facts(runs={"score_candidates": None}), "no run of score_candidates is known"),
        (facts(runs={"rank_candidates": {**OF_RUN, "status": "failed", "error": "ContractError"}}), "the last run of "
         "rank_candidates, r1: failed with ContractError, as of 2011-11-01"),
        (facts(runs={"rank_candidates": {**OF_RUN, "seconds": {"rollback": 1.0}}}), "rank_candidates, r1, a rollback: "),
        (facts(runs={"rank_candidates": {**OF_RUN, "status": "open", "ended_at": None}}), "not ended, or died"),
        (facts(row=ROW, runs={"rank_candidates": {**OF_RUN, "rows": {"waiting_to_switch": 7}, "covers": {}}}),
         "main goes over to another checkpoint in one commit: in run r1 7 queries of the variants that wait lacked scores"),
    ],
)  # fmt: skip
def test_each_state_has_its_reason(given: Facts, said: str) -> None:
    assert [sentence for sentence in why(given) if said in sentence], why(given)


def test_what_is_published_as_it_should_be_is_told_without_a_doubt() -> None:
    assert [sentence for sentence in why(facts(row=ROW)) if "run of" not in sentence] == [
        "a candidate, proposed by bm25 (2 when it first did)",
        "scored by m, at try 1",
        "published in main at rank 2 of 5, changed by run r0",
    ]
    out = facts(
        row=ROW,
        is_in_stock=False,
        policy=Policy(unavailable="out"),
        hold={"reason": "rollback", "set_by": "x", "set_at": "t"},
    )
    assert "it leaves the ranking when its query is ranked again, once that is over" in " ".join(why(out))
