"""Texts, terms, queries and judgments, made once and only where they lack."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from shop import ITEMS, Shop

from ecomspark import text
from ecomspark.errors import ContractError
from ecomspark.schemas import JUDGMENTS, QUARANTINE, QUERIES, TERMS, TEXTS


def test_queries_judgments_texts_and_terms_are_there(with_texts: Shop) -> None:
    queries = {row["query_text"]: row for row in with_texts.rows(QUERIES).collect()}
    assert {name: row["traffic"] for name, row in queries.items()} == {
        "red mug": 11, "wall clock": 7, "candle holder": 5, "gift": 4, "teapot": 0,
    }  # fmt: skip
    red_mug = bytes(queries["red mug"]["query_id"])
    assert red_mug == text.digest("uk", "red mug")
    judged = {
        row["item_id"]: row["grade"]
        for row in with_texts.rows(JUDGMENTS).collect()
        if bytes(row["query_id"]) == red_mug
    }
    assert judged == {"i01": 3, "i02": 2, "i04": 2, "i08": 0, "i11": 1, "i12": 3}
    texts = with_texts.rows(TEXTS)
    assert texts.where("role = 'passage'").count() == 11, "twins share one text"
    assert {row["text"] for row in texts.where("role = 'passage'").collect()} >= {"red ceramic mug", "cake stand"}
    made = {bytes(row["field_text_digest"]): row["terms"] for row in with_texts.rows(TERMS).collect()}
    assert made[text.digest("Set of 4 Glass Mugs")] == ["set", "of", "4", "glass", "mug"]


def test_nothing_new_starts_no_python_and_commits_nothing(with_texts: Shop, tmp_path: Path) -> None:
    shop = with_texts.copy(tmp_path)
    again = shop.run("build_texts", "again")
    assert again.status == "nothing_to_do"
    assert set(again.tables) == {"queries", "judgments"}, "memory tables were not even appended to"


def test_an_edited_title_makes_one_text_and_its_terms(with_texts: Shop, tmp_path: Path) -> None:
    shop = with_texts.copy(tmp_path)
    shop.write_items([("i01", "Purple Ceramic Jug", "2.50", "100", "2011-10-20"), *ITEMS[1:]])
    shop.run("import_items", "edit")
    summary = shop.run("build_texts", "edit")
    assert (summary.rows["texts"], summary.rows["terms"]) == (1, 1)
    shop.write_items(ITEMS)
    shop.run("import_items", "back")
    assert shop.run("build_texts", "back").rows.get("texts", 0) == 0, "what was made once is remembered"


def test_a_conflict_is_set_aside_and_keeps_the_grade_it_had(with_texts: Shop, tmp_path: Path) -> None:
    shop = with_texts.copy(tmp_path)
    grades = [("q1", "i01", 3), ("q6", "i01", 1), ("q1", "i02", 2), ("q9", "i01", 1)]
    shop.write("judgments", "id,sku,grade", grades)
    shop.run("import_judgments", "conflict", max_deleted_share=1.0)
    with pytest.raises(ContractError, match=r"expected at most 1\.00% to be unusable, found 3 of 4"):
        shop.run("build_texts", "conflict", max_quarantined_share=0.01)
    shop.run("build_texts", "allowed", max_quarantined_share=0.9)
    aside = {(row["source_key"], row["reason"]) for row in shop.rows(QUARANTINE).collect()}
    assert aside == {("ours/q1/i01", "conflict"), ("ours/q6/i01", "conflict"), ("ours/q9/i01", "unknown_query")}
    kept = {(row["item_id"], row["grade"]) for row in shop.rows(JUDGMENTS).collect()}
    assert kept == {("i01", 3), ("i02", 2)}, "the grade published before stays; the others are gone with their rows"


def test_texts_need_queries_first(new_shop: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(new_shop.folder, folder, ignore=shutil.ignore_patterns("warehouse", "models"))
    shop = Shop(new_shop.spark, folder)
    shop.run("import_items")
    with pytest.raises(
        ContractError, match="query_aliases: expected the table, found none; run the job that publishes it first"
    ):
        shop.run("build_texts")
