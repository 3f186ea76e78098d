"""The bad-input list through the import jobs and build_texts: no crash, no row lost, every change counted by reason."""

import json
from collections.abc import Callable
from typing import Any

from pyspark.sql import functions as F
from shop import Shop

from ecomspark.schemas import ITEMS, QUARANTINE, QUERIES, QUERY_ALIASES, TERMS, TEXTS

TEXTS_OF_EVERY_KIND = {
    "null": None, "empty": "", "spaces": "   ", "nul": "red\0mug", "bom": "\ufeffred mug", "nfc": "café", "nfd": "cafe\u0301",
    "emoji": "👨\u200d👩\u200d👧 mug", "rlo": "\u202egum der", "zh": "红色杯子", "ja": "赤いマグカップ", "th": "แก้วสีแดง",
    "wide": "ＲＥＤ　ＭＵＧ", "word": "a" * 100_000, "huge": "red mug " * 1_250_000, "html": "<script>alert(1)</script><b>mug</b>",
    "control": "red\x07\x1b[31mmug", "formula": "=1+1", "template": "{{7*7}} ${x} %s", "sql": "'; DROP TABLE items; --",
    "path": "../../etc/passwd",
}  # fmt: skip
LOST = {"null", "empty", "spaces"}
SURROGATE = '{"id": "surrogate", "text": "red \\ud800 mug", "n": "1"}'
NUMBERS = {
    "n-null": None, "n-nan": "NaN", "n-inf": "Infinity", "n-minus-inf": "-Infinity", "n-negative": "-1", "n-zero": "0",
    "n-overflow": "1e400", "n-huge": "9" * 40, "n-big": "9007199254740993", "n-word": "many",
}  # fmt: skip
IDS = ["CASE", "case", "../up", "quo\"te'", "9007199254740993", "x" * 513, "", "twice", "twice"]


def write(shop: Shop) -> dict[str, Any]:
    """The list as JSON Lines, with one line that is not UTF-8 and one that holds half a surrogate pair."""
    lines = [json.dumps({"id": name, "text": text, "n": "1"}) for name, text in TEXTS_OF_EVERY_KIND.items()]
    lines += [json.dumps({"id": name, "text": "mug", "n": number}) for name, number in NUMBERS.items()]
    lines += [json.dumps({"id": name, "text": f"mug {place}", "n": "1"}) for place, name in enumerate(IDS)]
    raw = "\n".join([*lines, SURROGATE]).encode() + b'\n{"id": "latin1", "text": "caf\xe9 mug", "n": "1"}\n'
    (shop.folder / "bad.jsonl").write_bytes(raw)
    return {"format": "jsonl", "path": str(shop.folder / "bad.jsonl")}


def test_nothing_on_the_list_crashes_or_is_lost(empty_shop: Callable[[], Shop]) -> None:
    shop = empty_shop()
    source, given = write(shop), len(TEXTS_OF_EVERY_KIND) + len(NUMBERS) + len(IDS) + 2
    columns = {"item_id": "id", "title": "text", "locale": {"constant": "uk"}, "price": "n", "sold_count": "n",
               "currency": {"constant": "GBP"}}  # fmt: skip
    items = shop.run("import_items", source=source, columns=columns, max_quarantined_share=1.0)
    assert items.rows["read"] == given
    assert items.rows["inserted"] + items.rows["quarantined"] + items.rows["folded"] == given, "no row is lost"
    assert items.rows["cleaned"] == 2, "NUL and control characters"
    reasons = {(row["source_key"], row["reason"]) for row in shop.rows(QUARANTINE).collect()}
    assert {(name, "title_missing") for name in LOST} <= reasons
    assert {("", "item_id_missing"), ("x" * 513, "item_id_too_long"), ("twice", "duplicate_key")} <= reasons
    for name in ("n-nan", "n-inf", "n-minus-inf", "n-overflow", "n-huge", "n-big", "n-word"):
        assert (name, "price_unusable") in reasons, name
    assert ("n-negative", "price_negative") in reasons
    kept = {row["item_id"]: row for row in shop.rows(ITEMS).collect()}
    assert {"CASE", "case", "../up", "quo\"te'", "9007199254740993", "surrogate"} <= set(kept)
    assert kept["n-null"]["price"] is None
    assert kept["huge"]["title"] == TEXTS_OF_EVERY_KIND["huge"], "a title stays as the source has it"
    assert ("", "malformed") in reasons, (
        "a line that is not UTF-8 is no JSON line; test_conform has such a byte in a text"
    )

    columns = {"source_query_id": "id", "query_text": "text", "locale": {"constant": "uk"}, "traffic": "n"}
    queries = shop.run("import_queries", source=source, columns=columns, max_quarantined_share=1.0)
    assert queries.rows["inserted"] + queries.rows["quarantined"] + queries.rows["folded"] == given

    made = shop.run("build_texts", max_quarantined_share=1.0)
    assert made.status == "published"
    passages = shop.rows(TEXTS).where("role = 'passage'")
    assert passages.count() == shop.rows(ITEMS).select("source_digest").distinct().count()
    assert passages.agg(F.max(F.length("text"))).collect()[0][0] <= 200, "ten million characters cost their cap"
    assert shop.rows(QUERIES).agg(F.max(F.length("query_text"))).collect()[0][0] <= 1_000
    named = {row["query_text"] for row in shop.rows(QUERIES).collect()}
    assert "café" in named
    assert sum(text.startswith("caf") for text in named) == 1, "NFC and NFD are one query"
    assert {"red mug", "红色杯子", "=1+1"} <= named
    assert not shop.rows(TERMS).isEmpty()
    assert shop.rows(QUERY_ALIASES).count() == queries.rows["inserted"]
