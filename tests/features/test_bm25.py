"""BM25 in Spark against a plain reference of the same formula; who may propose; ties; statistics that stay."""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ecomspark import text
from ecomspark.config import Bm25
from ecomspark.features import bm25
from ecomspark.features import texts as steps
from ecomspark.schemas import ITEMS, QUERIES, TERMS
from ecomspark.text import Analyser

ANALYSERS = {"uk": Analyser(language="english"), "us": Analyser()}
SETTINGS = Bm25(k1=1.4, b=0.6, field_weights={"title": 1.0, "brand": 0.7, "category": 0.3})
WORDS = [
    "red",
    "blue",
    "green",
    "mug",
    "cup",
    "plate",
    "teapot",
    "candle",
    "holder",
    "glass",
    "wooden",
    "metal",
    "set",
    "heart",
    "star",
    "large",
    "small",
    "gift",
]


def plain(queries: list[tuple[str, str]], items: list[dict[str, Any]], settings: Bm25) -> dict[tuple[int, str], float]:
    """Robertson, Zaragoza & Taylor 2004 as one reads it, over Python lists. (query index, item_id) to score."""
    scores: dict[tuple[int, str], float] = {}
    for locale in {item["locale"] for item in items}:
        mine = [item for item in items if item["locale"] == locale]
        of = {
            (item["item_id"], field): text.terms(item[field], ANALYSERS[locale])
            for item in mine
            for field in settings.field_weights
            if item[field]
        }
        means = {
            field: sum(len(t) for (_, f), t in of.items() if f == field) / sum(1 for _, f in of if f == field)
            for field in settings.field_weights
            if any(f == field for _, f in of)
        }
        holders = Counter(
            term
            for item in mine
            for term in {t for f in settings.field_weights for t in of.get((item["item_id"], f), ())}
        )
        for number, (query_locale, query) in enumerate(queries):
            if query_locale != locale:
                continue
            for item in mine:
                score = 0.0
                for term, repetitions in Counter(text.terms(query, ANALYSERS[locale])).items():
                    frequency = 0.0
                    for field, weight in settings.field_weights.items():
                        terms = of.get((item["item_id"], field))
                        if terms:
                            norm = 1 - settings.b + settings.b * len(terms) / means[field]
                            frequency += weight * terms.count(term) / norm
                    if frequency:
                        n = holders[term]
                        worth = math.log(1 + (len(mine) - n + 0.5) / (n + 0.5))
                        score += repetitions * worth * frequency * (settings.k1 + 1) / (frequency + settings.k1)
                if score:
                    scores[number, item["item_id"]] = score
    return scores


@pytest.fixture(scope="module")
def shop(spark: Any, module_rows: Callable[..., Any]) -> Any:
    """A shop of 60 generated items in two locales and nine queries, with all that BM25 needs, cached."""
    draw = random.Random(3)
    items = [
        {
            "item_id": f"i{n:02}", "locale": "uk" if n % 3 else "us", "title": " ".join(draw.choices(WORDS, k=draw.randint(2, 7))),
            "brand": draw.choice([None, "star glass", "mugs & cups"]), "category": draw.choice([None, "gift > kitchen", "candles"]),
        }
        for n in range(60)
    ]  # fmt: skip
    asked = [("uk", " ".join(draw.choices(WORDS, k=k))) for k in (1, 2, 2, 3, 4, 5)] + [
        ("us", "mugs"),
        ("us", "red mug red"),
        ("uk", "zebra"),
    ]
    queries = [
        {"query_id": bytes([n]) * 16, "locale": locale, "query_text": query} for n, (locale, query) in enumerate(asked)
    ]
    of_items, of_queries = module_rows(ITEMS, *items), module_rows(QUERIES, *queries)
    fields = steps.searched_fields(of_items).unionByName(of_queries.selectExpr("locale", "query_text AS text"))
    terms = steps.made_terms(steps.lacking_terms(fields, module_rows(TERMS), ANALYSERS), ANALYSERS).cache()
    item_terms = bm25.item_terms(of_items, terms, ANALYSERS, SETTINGS).cache()
    statistics = bm25.statistics(item_terms, 1).cache()
    postings = bm25.postings(item_terms, statistics, SETTINGS).cache()
    query_terms = bm25.query_terms(of_queries, terms, ANALYSERS).cache()
    return items, asked, of_items, of_queries, terms, statistics, postings, query_terms


@pytest.fixture(scope="module")
def module_rows(spark: Any) -> Callable[..., Any]:
    from conftest import build_rows

    return lambda table, *given: build_rows(spark, table, *given)


def found(frame: Any) -> dict[tuple[int, str], float]:
    return {(row["query_id"][0], row["item_id"]): row["score"] for row in frame.collect()}


def test_scores_equal_the_plain_reference(shop: Any) -> None:
    items, asked, _, _, _, statistics, postings, query_terms = shop
    expected = plain(asked, items, SETTINGS)
    best = bm25.best_items(query_terms, postings, statistics, count=100, max_proposing_share=1.0)
    assert found(best) == pytest.approx(expected, abs=2e-6)
    assert len(expected) > 100


def test_the_best_come_first_and_ties_are_broken_by_item_id(shop: Any) -> None:
    *_, statistics, postings, query_terms = shop
    best = bm25.best_items(query_terms, postings, statistics, count=7, max_proposing_share=1.0).collect()
    for query in {row["query_id"][0] for row in best}:
        rows = sorted((row for row in best if row["query_id"][0] == query), key=lambda row: row["place"])
        assert [row["place"] for row in rows] == list(range(1, len(rows) + 1))
        order = [(-row["score"], row["item_id"]) for row in rows]
        assert order == sorted(order)
        assert len(rows) <= 7


def test_frequent_terms_score_but_do_not_propose_unless_they_are_the_querys_rarest(shop: Any) -> None:
    items, asked, *_, statistics, postings, query_terms = shop
    every = found(bm25.best_items(query_terms, postings, statistics, 100, 1.0))
    few = found(bm25.best_items(query_terms, postings, statistics, 100, max_proposing_share=1e-9))
    assert set(few) < set(every)
    assert few == {pair: every[pair] for pair in few}, "who is proposed has the whole score"
    assert {query for query, _ in few} == {query for query, _ in every}, "no query is left without candidates"


def test_partitioning_changes_no_digit(shop: Any) -> None:
    *_, statistics, postings, query_terms = shop
    once = found(bm25.best_items(query_terms, postings, statistics, 50, 0.5))
    shuffled = bm25.best_items(query_terms.repartition(7), postings.repartition(5), statistics, 50, 0.5)
    assert found(shuffled) == once


def test_an_edited_title_moves_only_its_own_scores_while_the_statistics_stay(shop: Any, module_rows: Any) -> None:
    items, _, _, of_queries, _, statistics, _, _ = shop
    edited = [{**item, "title": "zebra mug zebra"} if item["item_id"] == "i04" else item for item in items]
    of_items = module_rows(ITEMS, *edited)
    fields = steps.searched_fields(of_items).unionByName(of_queries.selectExpr("locale", "query_text AS text"))
    terms = steps.made_terms(steps.lacking_terms(fields, module_rows(TERMS), ANALYSERS), ANALYSERS)
    postings = bm25.postings(bm25.item_terms(of_items, terms, ANALYSERS, SETTINGS), statistics, SETTINGS)
    query_terms = bm25.query_terms(of_queries, terms, ANALYSERS)
    now = found(bm25.best_items(query_terms, postings, statistics, 100, 1.0))
    before = found(bm25.best_items(shop[7], shop[6], statistics, 100, 1.0))
    assert {pair: score for pair, score in now.items() if pair[1] != "i04"} == {
        pair: score for pair, score in before.items() if pair[1] != "i04"
    }
    assert (8, "i04") in now, "a term that the statistics do not know still finds its item"
