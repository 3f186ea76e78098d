"""What build_texts makes: the same digests in Spark as in Python, each source once, queries and judgments re-keyed."""

from collections.abc import Callable
from typing import Any

from pyspark.sql import functions as F

from ecomspark import text
from ecomspark.features import texts as steps
from ecomspark.features.digests import digest_of
from ecomspark.schemas import ITEMS, JUDGMENT_ALIASES, QUERY_ALIASES, TERMS, TEXTS
from ecomspark.text import IDENTITY_RECIPE_DIGEST, Analyser, TextRecipe

RECIPE = TextRecipe()


def test_digests_are_the_same_in_spark_and_in_python(spark: Any) -> None:
    parts = [("uk", "red mug"), ("", "é漢👩"), ("a\0b", None), (None, None), ("12:3", "-")]
    frame = spark.createDataFrame([(i, *pair) for i, pair in enumerate(parts)], "i int, a string, b string")
    found = frame.select("i", digest_of(F.col("a"), F.col("b")).alias("d")).orderBy("i").collect()
    assert [bytes(row["d"]) for row in found] == [text.digest(*pair) for pair in parts]


def alias(name: str, query: str, traffic: int | None = 1, locale: str = "uk") -> dict[str, Any]:
    return {"source": "log", "source_query_id": name, "locale": locale, "query_text": query, "traffic": traffic,
            "text_source_digest": text.digest(query)}  # fmt: skip


def test_each_source_is_made_once_and_only_if_it_lacks(spark: Any, rows: Callable[..., Any]) -> None:
    items = steps.with_source_digest(
        rows(
            ITEMS,
            {"item_id": "1", "title": "RED <b>Mug</b>", "attributes": {"size": "300 ml", "colour": "red", "x": ""}},
            {"item_id": "twin", "title": "RED <b>Mug</b>", "attributes": {"colour": "red", "size": "300 ml", "x": ""}},
            {"item_id": "2", "title": "x" * 500},
        ).drop("source_digest")
    )
    sources = steps.item_sources(items)
    lacking = steps.lacking(sources, rows(TEXTS), "passage", RECIPE.digest)
    made = {row["text"]: row for row in steps.passages(lacking, RECIPE).collect()}
    assert set(made) == {"red mug | colour: red, size: 300 ml", "x" * 200}
    assert made["x" * 200]["cut_characters"] == 300
    one = made["red mug | colour: red, size: 300 ml"]
    assert bytes(one["text_digest"]) == text.digest(one["text"])
    there = rows(TEXTS, {**one.asDict(), "source_digest": one["source_digest"]})
    assert steps.lacking(sources, there, "passage", RECIPE.digest).count() == 1
    assert steps.lacking(sources, there, "query", RECIPE.digest).count() == 2, "another role is another text"
    assert steps.lacking(sources, there, "passage", b"other").count() == 2, "so is another recipe"


def test_aliases_of_one_query_become_one_with_their_traffic_summed(spark: Any, rows: Callable[..., Any]) -> None:
    aliases = rows(
        QUERY_ALIASES,
        alias("1", "Red  MUG", 5), alias("2", "red mug", None), alias("3", "red mug", 2), alias("4", "red mug", 9, "us"),
        alias("5", "  \u200b "),
    )  # fmt: skip
    texts = steps.identities(steps.lacking(steps.alias_sources(aliases), rows(TEXTS), "query", IDENTITY_RECIPE_DIGEST))
    texts = texts.select(*TEXTS.column_names).cache()
    queries = {(row["locale"], row["query_text"]): row for row in steps.queries_of(aliases, texts).collect()}
    assert {key: row["traffic"] for key, row in queries.items()} == {("uk", "red mug"): 7, ("us", "red mug"): 9}
    assert bytes(queries["uk", "red mug"]["query_id"]) == text.digest("uk", "red mug")

    def judged(query: str, grade: float, item: str = "i") -> dict[str, Any]:
        return {"judgment_set": "j", "source": "log", "source_query_id": query, "item_id": item, "grade": float(grade)}

    judgments = rows(
        JUDGMENT_ALIASES,
        judged("1", 3), judged("2", 1),  # one query, one item, two verdicts
        judged("1", 2, "agreed"), judged("3", 2, "agreed"), judged("4", 0), judged("5", 1), judged("gone", 1),
    )  # fmt: skip
    found = {
        (row["source_query_id"], row["item_id"]): row["reason"]
        for row in steps.judgments_of(judgments, aliases, texts).collect()
    }
    assert found == {
        ("1", "i"): "conflict", ("2", "i"): "conflict", ("1", "agreed"): None, ("3", "agreed"): None, ("4", "i"): None,
        ("5", "i"): "empty_query", ("gone", "i"): "unknown_query",
    }  # fmt: skip


def test_terms_are_made_once_per_text_and_analyser(spark: Any, rows: Callable[..., Any]) -> None:
    analysers = {
        "uk": Analyser(language="english"),
        "us": Analyser(language="english"),
        "es": Analyser(language="spanish"),
    }
    fields = spark.createDataFrame(
        [("uk", "Mugs"), ("us", "Mugs"), ("es", "Mugs"), ("jp", "Mugs"), ("uk", ""), ("uk", None)],
        "locale string, text string",
    )
    lacking = steps.lacking_terms(fields.where("length(text) > 0"), rows(TERMS), analysers)
    made = {bytes(row["analyser_digest"]): row["terms"] for row in steps.made_terms(lacking, analysers).collect()}
    assert made == {
        analysers["uk"].digest: ["mug"], analysers["es"].digest: text.terms("Mugs", analysers["es"]),
        Analyser().digest: ["mugs"],
    }  # fmt: skip
