"""From a source's rows to ours: the bad-input list at text, number and id columns; nothing crashes, nothing is lost."""

from decimal import Decimal
from typing import Any

import pytest
from pyspark.sql import functions as F

from ecomspark.features.conform import ColumnMap, conform, differences, folded, quarantined, usable
from ecomspark.pipelines import import_interactions, import_items
from ecomspark.schemas import INTERACTIONS, ITEMS

COLUMNS = {
    name: ColumnMap.model_validate(origin)
    for name, origin in {
        "item_id": "id", "title": "title", "locale": {"constant": "uk"}, "price": "price",
        "currency": {"constant": "GBP"}, "sold_count": "sold", "rating": "rating", "listed_at": "listed",
        "is_in_stock": "stock",
    }.items()
}  # fmt: skip


def conformed(spark: Any, *rows: dict[str, Any]) -> Any:
    names = ("id", "title", "price", "sold", "rating", "listed", "stock")
    filled = [
        tuple({"id": f"row {i}", "title": "mug", **row}.get(name) for name in names) for i, row in enumerate(rows)
    ]
    source = spark.createDataFrame(filled, ", ".join(f"{name} string" for name in names))
    return conform(source, COLUMNS, ITEMS, import_items.RULES)


def reasons(frame: Any) -> dict[str, list[str]]:
    return {row["item_id"]: sorted(row["_reasons"]) for row in frame.collect()}


def test_numbers_and_ids_that_cannot_be_used_have_a_reason_and_the_others_their_value(spark: Any) -> None:
    frame = conformed(
        spark,
        {
            "id": "fine",
            "price": "2.55",
            "sold": "17850.0",
            "rating": "4.5",
            "listed": "2011-02-28 09:30:00",
            "stock": "true",
        },
        {"id": "nulls"},
        {"id": "blank", "price": "  ", "sold": ""},
        {"id": "negative", "price": "-0.01", "sold": "-1"},
        {"id": "nan", "price": "NaN", "rating": "nan"},
        {"id": "infinite", "price": "Infinity"},
        {"id": "word", "price": "cheap", "sold": "many", "rating": "good", "listed": "yesterday", "stock": "maybe"},
        {"id": "overflow", "price": "1e30", "sold": "99999999999999999999"},
        {"id": "half", "sold": "2.33"},
        {"id": "off scale", "rating": "5.1"},
        {"id": "big", "sold": "9007199254740993"},
        {"id": "leap", "listed": "2023-02-29"},
        {"id": None, "title": "no id"},
        {"id": "   ", "title": "no id either"},
        {"id": "x" * 513},
        {"id": "untitled", "title": " "},
    ).cache()
    found = reasons(frame)
    assert found["fine"] == found["nulls"] == found["blank"] == found["big"] == []
    assert found["negative"] == ["price_negative", "sold_count_negative"]
    assert found["nan"] == ["price_unusable", "rating_unusable"]
    assert found["infinite"] == ["price_unusable"]
    assert found["word"] == [f"{c}_unusable" for c in ("is_in_stock", "listed_at", "price", "rating", "sold_count")]
    assert found["overflow"] == ["price_unusable", "sold_count_unusable"]
    assert found["half"] == ["sold_count_unusable"]
    assert found["off scale"] == ["rating_off_scale"]
    assert found["leap"] == ["listed_at_unusable"]
    assert found["x" * 513] == ["item_id_too_long"]
    assert found["untitled"] == ["title_missing"]
    assert found[None] == ["item_id_missing"]  # type: ignore[index]

    kept = {row["item_id"]: row for row in usable(frame).collect()}
    assert kept["fine"]["price"] == Decimal("2.5500")
    assert kept["fine"]["sold_count"] == 17850
    assert kept["fine"]["is_in_stock"] is True
    assert kept["big"]["sold_count"] == 2**53 + 1, "the last digit stays"
    assert kept["nulls"]["price"] is None
    assert set(kept) == {"fine", "nulls", "blank", "big"}

    aside = quarantined(frame, ITEMS)
    assert aside.select("source_key").distinct().count() == 16 - 4 - 1, "two rows without a key share the empty one"
    assert aside.count() == sum(len(r) for r in found.values()) + 1, "one a row and reason; the other row without an id"
    assert aside.where("length(row) > 2000").isEmpty()


def test_texts_are_made_valid_and_otherwise_stay_as_they_are(spark: Any) -> None:
    awkward = {
        "nul": "red\0mug", "bell": "red\x07mug", "tab": "red\tmug\n", "bom": "\ufeffred mug", "nfd": "cafe\u0301",
        "emoji": "👨\u200d👩\u200d👧", "rlo": "\u202egum", "cjk": "红色杯子 赤い แก้ว", "wide": "ＲＥＤ", "html": "<b>x</b>",
        "formula": "=1+1", "template": "{{7*7}}", "sql": "'; DROP TABLE items --", "path": "../../etc/passwd",
        "quotes": "\"a\" 'b' `c`", "long": "a" * 100_000,
    }  # fmt: skip
    frame = conformed(spark, *({"id": name, "title": title} for name, title in awkward.items())).cache()
    kept = {row["item_id"]: row["title"] for row in usable(frame).collect()}
    changed = {name for name in awkward if kept[name] != awkward[name]}
    assert changed == {"nul", "bell"}
    assert kept["nul"] == kept["bell"] == "redmug"
    cleaned = {row["item_id"] for row in frame.where(F.size("_cleaned") > 0).collect()}
    assert cleaned == changed

    raw = spark.sql("SELECT 'bad' AS id, CAST(unhex('726564ff6d7567') AS STRING) AS title")
    columns = {name: COLUMNS[name] for name in ("item_id", "title", "locale")}
    mended = conform(raw, columns, ITEMS, {}).collect()[0]
    assert mended["title"] == "red\ufffdmug"
    assert mended["_cleaned"] == ["title"]


def test_ids_are_taken_as_they_are(spark: Any) -> None:
    ids = ["85123A", "85123a", "../x", "'; --", '"q"', "9007199254740993", "é", "id with space"]
    frame = conformed(spark, *({"id": item} for item in ids))
    assert sorted(row["item_id"] for row in usable(frame).collect()) == sorted(ids)


def test_alike_rows_of_a_key_are_one_and_others_cannot_be_trusted(spark: Any) -> None:
    frame = conformed(
        spark,
        {"id": "twin", "price": "1"}, {"id": "twin", "price": "1"}, {"id": "twin", "price": "1"},
        {"id": "torn", "price": "1"}, {"id": "torn", "price": "2"},
        {"id": "torn and broken", "price": "1"}, {"id": "torn and broken", "price": "x"},
        {"id": "lone", "price": "1"},
    )  # fmt: skip
    assert sorted(row["item_id"] for row in usable(frame).collect()) == ["lone", "twin"]
    assert frame.where("_is_twin").count() == 2
    aside = {(row["source_key"], row["reason"]) for row in quarantined(frame, ITEMS).collect()}
    assert aside == {
        ("torn", "duplicate_key"), ("torn and broken", "duplicate_key"), ("torn and broken", "price_unusable"),
    }  # fmt: skip


def test_constants_defaults_casts_words_and_times(spark: Any) -> None:
    source = spark.createDataFrame(
        [("1", "pv", 1511658000, "2", 17850.0), ("2", "buy", 1511658001, None, 5.0), ("3", "stare", 1, "1", 5.0)],
        "id string, behaviour string, ts long, n string, basket double",
    )
    columns = {
        name: ColumnMap.model_validate(origin)
        for name, origin in {
            "interaction_id": "id", "item_id": {"constant": 7}, "occurred_at": {"from": "ts", "format": "epoch_seconds"},
            "kind": {"from": "behaviour", "values": {"pv": "impression", "buy": "purchase"}},
            "quantity": {"from": "n", "default": 1}, "basket_id": {"from": "basket", "cast": "bigint"},
        }.items()
    }  # fmt: skip
    frame = conform(source, columns, INTERACTIONS, import_interactions.RULES)
    rows = {row["interaction_id"]: row for row in frame.withColumn("at", F.col("occurred_at").cast("string")).collect()}
    assert rows["1"]["at"] == "2017-11-26 01:00:00"
    assert (rows["1"]["kind"], rows["2"]["kind"], rows["1"]["item_id"]) == ("impression", "purchase", "7")
    assert (rows["1"]["quantity"], rows["2"]["quantity"], rows["1"]["basket_id"]) == (2, 1, "17850")
    assert rows["3"]["_reasons"] == ["kind_unusable"]


def test_times_without_a_date_and_beyond_all_years_cannot_be_used(spark: Any) -> None:
    found = reasons(conformed(spark, {"id": "clock", "listed": "09:30"}, {"id": "day", "listed": "2011-02-28"}))
    assert found == {"clock": ["listed_at_unusable"], "day": []}
    source = spark.createDataFrame([("big", "9" * 18), ("fine", "1511658000")], "id string, listed string")
    columns = {**COLUMNS, "listed_at": ColumnMap(**{"from": "listed", "format": "epoch_seconds"})}
    kept = {name: columns[name] for name in ("item_id", "locale", "listed_at")} | {"title": COLUMNS["item_id"]}
    found = reasons(conform(source, kept, ITEMS, {}))
    assert found == {"big": ["listed_at_unusable"], "fine": []}


def test_attributes_are_made_valid_like_any_text(spark: Any) -> None:
    source = spark.sql(
        "SELECT 'a' AS id, map('col\u0007our', CAST(unhex('726564ff') AS STRING), 'colour', 'second') AS attributes"
    )
    columns = {"item_id": COLUMNS["item_id"], "title": COLUMNS["item_id"], "locale": COLUMNS["locale"],
               "attributes": ColumnMap(**{"from": "attributes"})}  # fmt: skip
    assert conform(source, columns, ITEMS, {}).collect()[0]["attributes"] == {"colour": "red\ufffd"}


def test_all_differences_of_a_source_are_named_at_once(spark: Any) -> None:
    source = spark.createDataFrame([([1], "x")], "price array<int>, title string")
    columns = {
        "item_id": ColumnMap.model_validate("sku"), "title": ColumnMap.model_validate("title"),
        "price": ColumnMap.model_validate("price"), "colour": ColumnMap.model_validate("title"),
        "source_digest": ColumnMap.model_validate("title"),
    }  # fmt: skip
    faults = differences(source, columns, ITEMS)
    assert [fault.split(": ")[0] for fault in sorted(faults)] == [
        "columns.colour", "columns.item_id", "columns.locale", "columns.price", "columns.source_digest",
    ]  # fmt: skip
    text = "\n".join(faults)
    assert "columns.item_id: expected a column sku, found price, title" in text
    assert "columns.price: price is array<int>, which cannot become decimal(18,4)" in text
    assert "columns.locale: expected a mapping (market and language" in text


def test_a_map_of_attributes_is_taken_as_it_is(spark: Any) -> None:
    source = spark.createDataFrame(
        [("1", "mug", {"colour": "red"})], "id string, title string, attributes map<string,string>"
    )
    columns = {name: COLUMNS[name] for name in ("item_id", "title", "locale")} | {
        "attributes": ColumnMap.model_validate("attributes")
    }
    assert usable(conform(source, columns, ITEMS, {})).collect()[0]["attributes"] == {"colour": "red"}


@pytest.mark.parametrize("wrong", [{}, {"from": "a", "constant": 1}, {"form": "a"}])
def test_a_mapping_has_one_origin(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name either|Extra inputs"):
        ColumnMap.model_validate(wrong)


def test_a_broken_copy_of_a_line_takes_nothing_from_the_line(spark: Any) -> None:
    """Spark's reader keeps what it could read of a line with a field too many: the same key as the line itself."""
    given = [
        ("a", "mug", "1.50", None),
        ("a", "mug", "1.50", "a,mug,1.50,x"),
        ("b", "cup", "2", None),
        ("b", "jug", "2", None),
    ]
    source = spark.createDataFrame(given, "id string, title string, price string, line string")
    columns = {name: COLUMNS[name] for name in ("item_id", "title", "locale", "price", "currency")}
    frame = conform(source, columns, ITEMS, import_items.RULES, malformed="line")
    assert [row["item_id"] for row in usable(frame).collect()] == ["a"]
    found = sorted((row["item_id"], *row["_reasons"]) for row in frame.collect())
    assert found == [("a",), ("a", "malformed"), ("b", "duplicate_key"), ("b", "duplicate_key")]
    kept = usable(folded(frame, ITEMS, F.col("title"))).collect()
    assert sorted((row["item_id"], row["title"]) for row in kept) == [("a", "mug"), ("b", "cup")]
