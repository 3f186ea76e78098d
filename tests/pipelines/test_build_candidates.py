"""Candidates end to end: who proposes, what stays, and that assessors lift nobody."""

from pathlib import Path

import pytest
from pyspark.sql import functions as F
from shop import ITEMS, Shop

from ecomspark.errors import ContractError
from ecomspark.schemas import CANDIDATES, COLLECTION_STATISTICS, JUDGMENTS, RANKINGS


def sources(shop: Shop) -> dict[tuple[str, str], dict[str, float]]:
    rows = shop.rows(CANDIDATES).select(F.hex("query_id").alias("query"), "item_id", "sources").collect()
    return {(row["query"], row["item_id"]): row["sources"] for row in rows}


def test_bm25_and_assessors_propose_and_each_is_kept_with_its_score(ranked_shop: Shop) -> None:
    found = sources(ranked_shop)
    by_bm25 = [pair for pair, by in found.items() if "bm25" in by]
    assert all(sum(query == other for other, _ in by_bm25) <= 5 for query, _ in by_bm25), "count is 5"
    judged = {pair for pair, by in found.items() if "judged" in by}
    assert judged == {
        (bytes(row["query_id"]).hex().upper(), row["item_id"]) for row in ranked_shop.rows(JUDGMENTS).collect()
    }
    assert any(set(by) == {"judged"} for by in found.values())
    assert any(set(by) == {"bm25", "judged"} for by in found.values())


def test_the_same_again_changes_nothing(copied: Shop) -> None:
    summary = copied.run("build_candidates", "again")
    assert summary.status == "nothing_to_do"
    assert (summary.rows["new"], summary.rows["changed"], summary.rows["dropped"]) == (0, 0, 0)


def test_an_edited_title_moves_its_own_candidates_and_statistics_are_refreshed_on_request(copied: Shop) -> None:
    before = sources(copied)
    statistics = copied.rows(COLLECTION_STATISTICS).count()
    copied.write_items([(*ITEMS[0][:1], "Purple Jug", *ITEMS[0][2:]), *ITEMS[1:]])
    for job in ("import_items", "build_texts", "build_candidates"):
        copied.run(job, "edit")
    after = sources(copied)
    changed = {pair for pair in before.keys() | after.keys() if set(before.get(pair, ())) != set(after.get(pair, ()))}
    assert changed
    assert {item for _, item in changed} == {"i01"}, "no other item's place moved"
    assert copied.rows(COLLECTION_STATISTICS).count() == statistics, "the statistics stay as they are"

    bm25 = {"statistics_version": 2}
    refreshed = copied.run("build_candidates", "refresh", bm25=bm25)
    assert refreshed.rows["statistics"] > 0
    versions = {row["statistics_version"] for row in copied.rows(COLLECTION_STATISTICS).collect()}
    assert versions == {1, 2}
    assert copied.rows(COLLECTION_STATISTICS).where("statistics_version = 2 AND term = 'purpl'").count() == 1


def test_a_candidate_whose_item_left_the_shop_is_dropped(copied: Shop) -> None:
    copied.write_items(ITEMS[1:])
    copied.run("import_items", "less")
    summary = copied.run("build_candidates", "less")
    assert summary.rows["dropped"] > 0
    assert copied.rows(CANDIDATES).where("item_id = 'i01'").isEmpty()


def test_what_assessors_know_lifts_no_item_of_the_published_ranking(ranked_shop: Shop, tmp_path: Path) -> None:
    def published(shop: Shop) -> list[str]:
        main = shop.rows(RANKINGS).where("variant = 'main'").drop("changed_by", "settings_digest")
        return sorted(map(str, main.collect()))

    candidates = sources(ranked_shop)
    only_judged = {item for (_, item), by in candidates.items() if set(by) == {"judged"}}
    in_judged = ranked_shop.rows(RANKINGS).where("variant = 'judged'")
    assert only_judged <= {row["item_id"] for row in in_judged.collect()}, "they are scored, and ranked under `judged`"

    unjudged = ranked_shop.copy(tmp_path)
    unjudged.run("build_candidates", "unjudged", sources=["bm25"])
    unjudged.run("score_candidates", "unjudged")
    unjudged.run("rank_candidates", "unjudged", variants={"main": {}})
    assert published(unjudged) == published(ranked_shop)


def test_missing_terms_stop_the_run_instead_of_emptying_the_candidates(copied: Shop) -> None:
    before = copied.rows(CANDIDATES).count()
    copied.write_items([("i01", "Purple Jug", *ITEMS[0][2:]), *ITEMS[1:]])
    copied.run("import_items", "edit")
    with pytest.raises(ContractError, match=r"found 1 texts without; run build_texts first"):
        copied.run("build_candidates", "too-soon")
    with pytest.raises(ContractError, match="run build_texts first"):
        copied.run("build_candidates", "other-language", languages={"uk": "german"})
    assert copied.rows(CANDIDATES).count() == before
