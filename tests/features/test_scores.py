"""Which pairs need a score, and which of several attempts counts."""

from collections.abc import Callable
from typing import Any

from pyspark.sql import functions as F

from ecomspark import text
from ecomspark.features.scores import distinct_pairs, lacking, pair_texts, standing
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, SCORES, TEXTS

ME, OTHER = b"m" * 16, b"o" * 16


def test_texts_are_joined_and_twins_share_a_pair(spark: Any, rows: Callable[..., Any]) -> None:
    def made(source: str, role: str, of: str) -> dict[str, Any]:
        return {
            "source_digest": source.encode().ljust(16),
            "role": role,
            "recipe_digest": b"r",
            "text": of,
            "text_digest": text.digest(of),
        }

    candidates = rows(CANDIDATES, *({"query_id": b"q", "item_id": item} for item in ("1", "twin", "new", "gone")))
    queries = rows(QUERIES, {"query_id": b"q", "text_source_digest": b"q".ljust(16)})
    items = rows(
        ITEMS, *({"item_id": i, "source_digest": d.ljust(16)} for i, d in (("1", b"a"), ("twin", b"b"), ("new", b"c")))
    )
    texts = rows(TEXTS, made("q", "query", "red mug"), made("a", "passage", "mug"), made("b", "passage", "mug"),
                 {**made("c", "passage", "x"), "recipe_digest": b"another"})  # fmt: skip
    pairs = pair_texts(candidates, queries, items, texts, b"r").cache()
    found = {row["item_id"]: (row["query_text"], row["passage_text"]) for row in pairs.collect()}
    assert found == {"1": ("red mug", "mug"), "twin": ("red mug", "mug"), "new": ("red mug", None)}
    none = standing(rows(SCORES), ME)
    needed = lacking(pairs.where("passage_text IS NOT NULL").withColumn("cause", F.lit("new")), none, 3)
    assert distinct_pairs(needed, ["new"]).count() == 1, "twins are scored once"


def test_a_pair_needs_a_score_until_it_has_one_or_cannot_have_one(spark: Any, rows: Callable[..., Any]) -> None:
    def tried(
        pair: str, attempt: int, logit: float | None, kind: str | None = None, scorer: bytes = ME
    ) -> dict[str, Any]:
        return {"query_digest": b"q", "passage_digest": pair.encode(), "scorer_digest": scorer, "attempt": attempt, "logit": logit,
                "error": kind and "E", "error_kind": kind}  # fmt: skip

    scores = rows(
        SCORES,
        tried("scored", 1, 0.5),
        tried("healed", 1, None, "passing"), tried("healed", 2, 0.25),
        tried("passing", 1, None, "passing"),
        tried("worn out", 1, None, "passing"), tried("worn out", 2, None, "passing"), tried("worn out", 3, None, "passing"),
        tried("lasting", 1, None, "passing"), tried("lasting", 2, None, "lasting"),
        tried("by another", 1, 9.0, scorer=OTHER),
    )  # fmt: skip
    stands = standing(scores, ME).cache()
    found = {
        bytes(row["passage_digest"]).decode(): (row["logit"], row["error_kind"], row["attempt"])
        for row in stands.collect()
    }
    assert found["healed"] == (0.25, None, 2)
    assert found["lasting"] == (None, "lasting", 2)
    assert "by another" not in found
    names = ("scored", "healed", "passing", "worn out", "lasting", "by another", "never tried")
    pairs = spark.createDataFrame(
        [(b"q", name.encode(), "query", name) for name in names],
        "query_digest binary, passage_digest binary, query_text string, passage_text string",
    )
    needed = {row["passage_text"]: row["attempt"] for row in lacking(pairs, stands, max_tries=3).collect()}
    assert needed == {"passing": 2, "by another": 1, "never tried": 1}
