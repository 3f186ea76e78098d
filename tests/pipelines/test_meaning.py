"""Texts embedded once, items proposed by meaning, and what the first stage finds: three jobs on the shop, end to end."""

from pathlib import Path
from typing import Any

import pytest
from conftest import build_rows
from pyspark.sql import functions as F
from shop import GRADES, ITEMS, Shop

from ecomspark import tables
from ecomspark.errors import ContractError
from ecomspark.pipelines import build_candidates, embed_texts, evaluate_retrieval
from ecomspark.schemas import CANDIDATES, EMBEDDINGS, QUERIES, RUN_METRICS, SPLITS, TEXTS, UNSERVED_QUERIES
from ecomspark.tables import Author

SEARCH = {"encoder": "base", "count": 4}
RETRIEVAL = {"judgment_set": "ours", "embedding": SEARCH, "ks": [3, 1], "resamples": 200, "min_queries": 1}


@pytest.fixture(scope="module")
def searched(with_texts: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with vectors, candidates by meaning, a split whose test side all queries are on, and its figures."""
    shop = with_texts.copy(tmp_path_factory.mktemp("searched"))
    with pytest.raises(ContractError, match=r"embeddings: .* run embed_texts first"):
        shop.run("build_candidates", "too-soon", sources=["embedding"], embedding=SEARCH)
    assert shop.run("embed_texts", encoder="base", texts_per_commit=4).status == "published"
    shop.run("build_candidates", sources=["bm25", "embedding", "judged"], embedding=SEARCH)
    author = Author("test", "1")
    sides = [{"split": "default", "query_id": row["query_id"], "side": "test"} for row in shop.rows(QUERIES).collect()]
    frame = build_rows(shop.spark, SPLITS, *sides).drop("changed_by")
    tables.publish(shop.warehouse, tables.compare(shop.warehouse, SPLITS, frame, author), author)
    assert shop.run("evaluate_retrieval", **RETRIEVAL).status == "published"
    return shop


def counted(shop: Shop, job: str, run_id: str = "first") -> dict[str, int]:
    from ecomspark.schemas import RUNS

    rows: dict[str, int] = shop.rows(RUNS).where(f"job = '{job}' AND run_id = '{run_id}'").collect()[0]["rows"]
    return rows


def test_each_distinct_text_has_one_vector_and_lands_in_parts(searched: Shop) -> None:
    texts = searched.rows(TEXTS).where(F.length("text") > 0).select("role", "text_digest").distinct()
    rows = counted(searched, "embed_texts")
    assert rows["embedded"] == rows["to_embed"] == rows["texts"] == 11 + 5, "i01 and i12 are twins, q6 is q1"
    assert rows["there"] == 0
    assert searched.rows(EMBEDDINGS).select("role", "text_digest").subtract(texts).isEmpty()
    assert searched.rows(EMBEDDINGS).count() == 16
    commits = list((searched.folder / "warehouse" / "embeddings" / "_delta_log").glob("*.json"))
    assert len(commits) > 3, "four texts a commit at most"


def test_a_second_run_embeds_none_and_a_changed_title_once_for_all_its_twins(searched: Shop, tmp_path: Path) -> None:
    shop = searched.copy(tmp_path)
    again = shop.run("embed_texts", "again", encoder="base")
    assert again.status == "nothing_to_do"
    assert (again.rows["texts"], again.rows["to_embed"]) == (0, 0), "nothing changed: nothing is looked at"
    jug = [(name, "Purple Jug", *ITEMS[0][2:]) for name in ("i01", "i02")]
    shop.write_items([*jug, *ITEMS[2:]])
    shop.run("import_items", "edit")
    with pytest.raises(ContractError, match=r"found none for 1 of 1; run build_texts with that recipe first"):
        shop.run("embed_texts", "too-soon", encoder="base")
    shop.run("build_texts", "edit")
    plan = embed_texts.plan(shop.spark, shop.config("embed_texts", encoder="base"))
    edit = shop.run("embed_texts", "edit", encoder="base")
    assert edit.rows["embedded"] == 1, "two items, one text"
    assert plan.counts == {name: edit.rows[name] for name in plan.counts}
    assert (plan.counts["to_embed_passage"], plan.counts["to_embed_query"]) == (1, 0)


@pytest.mark.nightly
def test_all_is_looked_at_on_request_and_where_vectors_were_taken_away(searched: Shop, tmp_path: Path) -> None:
    shop = searched.copy(tmp_path)
    whole = shop.run("embed_texts", "whole", encoder="base", full=True)
    assert (whole.rows["texts"], whole.rows["there"], whole.rows["to_embed"]) == (16, 16, 0)
    assert "embedded" not in whole.rows

    # What the change feeds of items and queries say of it is nothing.
    shop.spark.sql(f"DELETE FROM delta.`{shop.folder}/warehouse/embeddings` WHERE role = 'query'")
    assert shop.run("embed_texts", "taken", encoder="base").rows["embedded"] == 5


def test_meaning_proposes_beside_words_and_each_source_keeps_its_score(searched: Shop) -> None:
    rows = searched.rows(CANDIDATES).collect()
    by_meaning = [row for row in rows if "embedding" in row["sources"]]
    per_query: dict[bytes, list[Any]] = {}
    for row in by_meaning:
        per_query.setdefault(bytes(row["query_id"]), []).append(row)
    assert {len(of) for of in per_query.values()} == {4}
    assert all(-1 <= row["sources"]["embedding"] <= 1 for row in by_meaning)
    assert any("bm25" in row["sources"] for row in by_meaning)
    assert {bytes(row["query_id"]) for row in searched.rows(QUERIES).collect()} == set(per_query)


def test_fused_proposals_are_the_best_of_both_and_given_pairs_stay(searched: Shop, tmp_path: Path) -> None:
    shop = searched.copy(tmp_path)
    same = shop.run("build_candidates", "same", sources=["bm25", "embedding", "judged"], embedding=SEARCH)
    assert same.status == "nothing_to_do"
    judged = {(r["query_id"], r["item_id"]) for r in shop.rows(CANDIDATES).collect() if "judged" in r["sources"]}
    fused = shop.run(
        "build_candidates", "fused", sources=["bm25", "embedding", "judged"], embedding=SEARCH, fused_count=2, margin=0
    )
    assert fused.rows["fused"] == 2 * 5
    rows = shop.rows(CANDIDATES).collect()
    assert {(r["query_id"], r["item_id"]) for r in rows if "judged" in r["sources"]} == judged
    ranked = [row for row in rows if set(row["sources"]) & {"bm25", "embedding"}]
    assert len(ranked) == 2 * 5


def test_recall_is_in_run_metrics_by_source_and_slice(searched: Shop) -> None:
    rows = searched.rows(RUN_METRICS).where("job = 'evaluate_retrieval'").collect()
    found = {(row["ranker"], row["metric"], row["slice"]): row for row in rows}
    assert {ranker for ranker, _, _ in found} == {"bm25", "embedding", "fused"}
    assert {metric for _, metric, _ in found} == {"recall@1", "recall@3"}
    assert any(name.startswith("traffic=") for _, _, name in found)
    for row in rows:
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    relevant = {name: [item for item, grade in of.items() if grade >= 2] for name, of in GRADES.items() if name != "q6"}
    assert found["bm25", "recall@3", "all"]["query_count"] == len(relevant)
    # By BM25 the teapot is the one match of q5, and it is the one relevant item: 1; of q2's clocks both: 1 at 3.
    assert found["bm25", "recall@3", "words=1"]["value"] == 1.0
    assert found["fused", "recall@3", "all"]["difference"] is None


def test_queries_that_nothing_serves_are_named_and_the_same_again_changes_none(searched: Shop, tmp_path: Path) -> None:
    assert searched.rows(UNSERVED_QUERIES).where("reason = 'nothing_near'").isEmpty(), "tiny vectors are all near"
    shop = searched.copy(tmp_path)
    plan = evaluate_retrieval.plan(shop.spark, shop.config("evaluate_retrieval", **RETRIEVAL))
    # One place deep: how many items match is counted as deep as `few_matches` asks, all the same.
    far = {**RETRIEVAL, "ks": [1], "embedding": {"encoder": None}, "few_matches": 2, "min_recall": 0.0}
    summary = shop.run("evaluate_retrieval", "far", **far)
    assert plan.counts == {name: summary.rows[name] for name in plan.counts}
    texts = {row["query_id"]: row["query_text"] for row in shop.rows(QUERIES).collect()}
    rows = shop.rows(UNSERVED_QUERIES).collect()
    assert {texts[row["query_id"]]: row["lexical_count"] for row in rows} == {"teapot": 1}
    assert rows[0]["best_cosine"] is None
    assert shop.run("evaluate_retrieval", "far-again", **far).rows["unserved_new"] == 0


def test_what_is_missing_is_named_before_anything_is_searched(searched: Shop) -> None:
    with pytest.raises(
        ContractError, match=r"expected relevant items .* on the train side of split default, found none"
    ):
        searched.run("evaluate_retrieval", "train", **RETRIEVAL, side="train")
    with pytest.raises(ContractError, match="expected version 9, found none of it; run build_candidates"):
        searched.run("evaluate_retrieval", "version", **RETRIEVAL, bm25={"statistics_version": 9})
    with pytest.raises(ValueError, match=r"embedding\.encoder: missing"):
        build_candidates.Config(warehouse="w", sources=["embedding"])
