"""What refers to rows of memory tables: too much is kept rather than too little."""

from collections.abc import Callable
from datetime import date
from typing import Any

from ecomspark.features import references
from ecomspark.schemas import CANDIDATES, EMBEDDINGS, ITEMS, QUERIES, RANKINGS, SCORES, TERMS, TEXTS, UNREFERENCED
from ecomspark.text import IDENTITY_RECIPE_DIGEST, Analyser, digest


def d(name: str) -> bytes:
    return digest(name)


def keys(rows: Any, *columns: str) -> set[tuple[Any, ...]]:
    return {tuple(bytes(v) if isinstance(v, bytearray) else v for v in row) for row in rows.select(*columns).collect()}


def test_a_score_is_kept_by_a_ranking_or_by_a_candidate_and_a_scorer_in_use(rows: Callable[..., Any]) -> None:
    candidates = rows(CANDIDATES, {"query_id": d("q"), "item_id": "1"})
    queries = rows(QUERIES, {"query_id": d("q"), "text_source_digest": d("sq")})
    # The item as it is, and as an earlier version that is kept had it.
    items = rows(ITEMS, {"item_id": "1", "source_digest": d("new")}, {"item_id": "1", "source_digest": d("old")})
    texts = rows(
        TEXTS,
        *({"source_digest": d("sq"), "role": "query", "recipe_digest": d(r), "text_digest": d(f"q{r}")} for r in "ab"),
        *({"source_digest": d(source), "role": "passage", "recipe_digest": d(r), "text_digest": d(f"{source}{r}")}
          for source in ("new", "old") for r in "ab"),
    )  # fmt: skip
    pairs = [("qa", "newa"), ("qb", "oldb"), ("qa", "newb"), ("shown", "shown")]
    scores = [{"query_digest": d(q), "passage_digest": d(p), "scorer_digest": d(s), "attempt": n}
              for q, p in pairs for s, n in (("in use", 1), ("in use", 2), ("ranked", 1), ("retired", 1))]  # fmt: skip
    shown = rows(RANKINGS, {"query_digest": d("shown"), "passage_digest": d("shown"), "scorer_digest": d("ranked")})
    kept = references.of_scores(
        rows(SCORES, *scores).select(*SCORES.key), candidates, queries, items, texts, shown, [d("in use")]
    )
    expected = {(d(q), d(p), d(s), n) for q, p in pairs[:2] for s, n in (("in use", 1), ("in use", 2), ("ranked", 1))}
    assert keys(kept, *SCORES.key) == expected | {(d("shown"), d("shown"), d("ranked"), 1)}, "no pair mixes recipes"


def test_texts_terms_and_embeddings_are_kept_by_what_they_are_made_of(rows: Callable[..., Any]) -> None:
    items = rows(ITEMS, {"item_id": "1", "locale": "uk", "title": "Mugs", "source_digest": d("i")})
    queries = rows(QUERIES, {"locale": "fr", "query_text": "mug", "text_source_digest": d("q")})
    aliases = queries.selectExpr("X'01' AS text_source_digest")
    texts = references.of_texts(items, queries, aliases, [d("r1"), d("r2")])
    assert keys(texts, *TEXTS.key) == {
        (d("i"), "passage", d("r1")), (d("i"), "passage", d("r2")), (d("q"), "query", d("r1")), (d("q"), "query", d("r2")),
        (b"\1", "query", IDENTITY_RECIPE_DIGEST),
    }  # fmt: skip
    english = Analyser(language="english")
    terms = references.of_terms(items, queries, {"uk": english})
    assert keys(terms, *TERMS.key) == {(d("Mugs"), english.digest), (d("mug"), Analyser().digest)}
    vectors = rows(
        EMBEDDINGS, *({"text_digest": d(t), "scorer_digest": d(s), "role": "query"} for t in "ab" for s in "xy")
    )
    there = rows(TEXTS, {"text_digest": d("a")})
    assert keys(references.of_embeddings(vectors, there, [d("x")]), "text_digest", "scorer_digest") == {
        (d("a"), d("x"))
    }
    assert references.of_embeddings(vectors, there, []).isEmpty()


def test_the_days_go_on_for_a_key_that_was_seen_before_and_begin_for_others(rows: Callable[..., Any]) -> None:
    terms = rows(
        TERMS, *({"field_text_digest": d(name), "analyser_digest": d("a")} for name in ("named", "old", "new"))
    )
    named = terms.where(terms.field_text_digest == d("named")).select(*TERMS.key)
    first, second = date(2011, 11, 1), date(2011, 12, 1)
    old = references.unreferenced(
        TERMS,
        terms.where(terms.field_text_digest == d("old")).select(*TERMS.key),
        named,
        rows(UNREFERENCED).limit(0),
        first,
    )
    assert old.select("since_date").collect()[0][0] == first
    again = references.unreferenced(TERMS, terms.select(*TERMS.key), named, old, second)
    assert keys(again, "field_text_digest", "since_date") == {(d("old"), first), (d("new"), second)}
