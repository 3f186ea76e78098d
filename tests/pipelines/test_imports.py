"""Imports end to end: what is published, what is set aside, and what stops before anything is published."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from shop import GRADES, ITEMS, Shop

from ecomspark import schemas, tables
from ecomspark.errors import ConfigError, ContractError, NewerPublished
from ecomspark.schemas import INTERACTIONS, JUDGMENT_ALIASES, QUARANTINE, QUERY_ALIASES, RUNS

Make = Callable[[], Shop]


def item_ids(shop: Shop) -> set[str]:
    return {row["item_id"] for row in shop.rows(schemas.ITEMS).collect()}


def test_a_snapshot_publishes_edits_and_delists_what_is_gone(empty_shop: Make) -> None:
    shop = empty_shop()
    first = shop.run("import_items", "1")
    assert (first.status, first.rows["read"], first.rows["inserted"]) == ("published", 12, 12)
    shop.write_items([("i01", "Edited", "2.50", "100", "2011-10-20"), *ITEMS[1:11]])
    second = shop.run("import_items", "2")
    assert (second.rows["inserted"], second.rows["updated"], second.rows["deleted"]) == (0, 1, 1)
    assert item_ids(shop) == {item[0] for item in ITEMS[:11]}
    again = shop.run("import_items", "3")
    assert again.status == "nothing_to_do"
    assert again.tables["items"]["before"] == again.tables["items"]["after"]
    replay = shop.run("import_items", "2")
    assert replay.status == "replayed"
    assert replay.rows == second.rows


def test_half_a_source_stops_before_it_delists_the_shop(empty_shop: Make) -> None:  # R22
    shop = empty_shop()
    shop.run("import_items", "1")
    shop.write_items(ITEMS[:6])
    with pytest.raises(ContractError, match=r"at most 20% of 12 rows to go, found 6 missing from the source"):
        shop.run("import_items", "2")
    assert len(item_ids(shop)) == 12
    shop.write_items([])
    with pytest.raises(ContractError, match=r"found none|at least 1 usable rows, found 0"):
        shop.run("import_items", "3")
    shop.write_items(ITEMS[:10])
    with pytest.raises(ContractError, match="at least 11 usable rows, found 10"):
        shop.run("import_items", "4", min_rows=11)
    failed = {row["run_id"]: (row["status"], row["error"]) for row in shop.rows(RUNS).collect()}
    assert failed["2"] == ("failed", "ContractError")
    shop.write_items(ITEMS[:6])
    assert shop.run("import_items", "5", max_deleted_share=0.5).rows["deleted"] == 6
    assert shop.run("import_items", "6", mode="upsert").status == "nothing_to_do"


def test_what_cannot_be_used_is_set_aside_counted_and_keeps_its_published_row(empty_shop: Make) -> None:
    shop = empty_shop()
    shop.run("import_items", "1")
    broken = [("i01", "Red Ceramic Mug", "-1", "100", "2011-10-20"), *ITEMS[1:], ("", "no id", "1", "1", ""), ITEMS[3]]
    shop.write_items(broken)
    with pytest.raises(ContractError, match=r"at most 1\.00% .* found 2 of 14 \(item_id_missing 1, price_negative 1\)"):
        shop.run("import_items", "2")
    kept = {(row["source_key"], row["reason"], row["changed_by"]) for row in shop.rows(QUARANTINE).collect()}
    assert kept == {("i01", "price_negative", "2"), ("", "item_id_missing", "2")}, "kept also though the run stopped"

    allowed = shop.run("import_items", "3", max_quarantined_share=0.2)
    assert allowed.rows["quarantined"] == 2
    assert allowed.rows["folded"] == 1
    assert "i01" in item_ids(shop), "a key that is in the source is not gone"
    by_id = {row["item_id"]: row["price"] for row in shop.rows(schemas.ITEMS).collect()}
    assert float(by_id["i01"]) == 2.5
    assert shop.rows(QUARANTINE).count() == 2, "the same rows again are not new rows"


def test_all_differences_are_told_before_anything_is_written(empty_shop: Make) -> None:  # R12
    shop = empty_shop()
    columns = {"item_id": "code", "title": "label", "price": "price", "colour": "price"}
    with pytest.raises(ContractError) as error:
        shop.run("import_items", columns=columns)
    for fault in ("columns.item_id: expected a column code", "columns.title: expected a column label",
                  "columns.locale: expected a mapping", "columns.colour: not a column of items"):  # fmt: skip
        assert fault in str(error.value)
    assert not tables.exists(shop.warehouse, schemas.ITEMS)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ("sku,name,price,sold,listed,new", []),
        ("price,listed,sold,name,sku", []),
        ("sku,title,price,sold,listed", ["columns.title: expected a column name"]),
        ("sku,price,sold,listed", ["columns.title: expected a column name"]),
    ],
    ids=["a column more", "reordered", "renamed", "a column less"],
)
def test_a_source_that_drifts_is_taken_or_refused_as_declared(
    empty_shop: Make, change: str, faults: list[str]
) -> None:  # R12
    shop = empty_shop()
    named = dict(zip(["sku", "name", "price", "sold", "listed"], range(5), strict=True)) | {"title": 1, "new": 0}
    shop.write("items", change, [tuple(item[named[name]] for name in change.split(",")) for item in ITEMS])
    if not faults:
        assert shop.run("import_items").rows["inserted"] == 12
        return
    with pytest.raises(ContractError) as error:
        shop.run("import_items")
    assert all(fault in str(error.value) for fault in faults)


def test_types_that_drift_in_a_typed_source_lose_no_value(empty_shop: Make, spark: Any) -> None:  # R12
    shop, path = empty_shop(), None
    wide = spark.createDataFrame(
        [("i01", "mug", 2.5, 2**53 + 1), ("i02", "cup", None, 7)], "sku string, name string, price double, sold long"
    )
    narrow = wide.selectExpr("sku", "name", "CAST(price AS float) AS price", "CAST(sold % 100 AS tinyint) AS sold")
    columns = {
        "item_id": "sku",
        "title": "name",
        "locale": {"constant": "uk"},
        "price": "price",
        "currency": {"constant": "GBP"},
        "sold_count": "sold",
    }
    for number, frame in enumerate((wide, narrow)):
        path = str(shop.folder / f"typed{number}")
        frame.write.format("delta" if number else "parquet").save(path)
        source = {"format": "delta" if number else "parquet", "path": path}
        assert shop.run("import_items", f"{number}", source=source, columns=columns).status == "published"
        if not number:
            assert {row["sold_count"] for row in shop.rows(schemas.ITEMS).collect()} == {2**53 + 1, 7}


def test_json_lines_keep_every_digit_and_set_malformed_lines_aside(empty_shop: Make) -> None:
    shop = empty_shop()
    lines = [
        '{"sku": "a", "name": "mug", "sold": 9007199254740993}',
        '{"sku": "b", "name": "cup", "sold": null}',
        '{"sku": "c", ',
    ]
    (shop.folder / "items.jsonl").write_text("\n".join(lines))
    columns = {"item_id": "sku", "title": "name", "locale": {"constant": "uk"}, "sold_count": "sold"}
    source = {"format": "jsonl", "path": str(shop.folder / "items.jsonl")}
    summary = shop.run("import_items", source=source, columns=columns, max_quarantined_share=0.5)
    assert summary.rows["quarantined_malformed"] == 1
    assert {(r["item_id"], r["sold_count"]) for r in shop.rows(schemas.ITEMS).collect()} == {
        ("a", 2**53 + 1),
        ("b", None),
    }


def test_csv_with_quotes_line_breaks_a_byte_order_mark_and_a_broken_line(empty_shop: Make) -> None:
    shop = empty_shop()
    text = '\ufeffsku,name,price,sold,listed\n"a","mug, ""red""\nlarge",1,1,\n"b","cup",1,1,,,,\n"c","plate",1,1,\n'
    (shop.folder / "items.csv").write_text(text, encoding="utf-8")
    summary = shop.run("import_items", max_quarantined_share=0.5)
    assert summary.rows["quarantined_malformed"] == 1
    titles = {row["item_id"]: row["title"] for row in shop.rows(schemas.ITEMS).collect()}
    assert titles == {"a": 'mug, "red"\nlarge', "c": "plate"}


def test_files_of_one_folder_must_have_one_header(empty_shop: Make) -> None:  # R12
    shop = empty_shop()
    folder = shop.folder / "parts"
    folder.mkdir()
    header = "sku,name,price,sold,listed"
    (folder / "1.csv").write_text(f"{header}\ni01,Mug,1,1,\n")
    (folder / "2.csv").write_text(f"{header}\ni02,Cup,1,1,\n")
    source = {"format": "csv", "path": str(folder)}
    assert shop.run("import_items", "1", source=source).rows["inserted"] == 2
    (folder / "2.csv").write_text("name,sku,price,sold,listed\nCup,i02,1,1,\n")
    with pytest.raises(ContractError, match="one and the same header line, found 2 different ones"):
        shop.run("import_items", "2", source=source)
    (folder / "1.csv").write_text("")
    with pytest.raises(ContractError, match="or an empty file"):
        shop.run("import_items", "3", source=source)
    assert item_ids(shop) == {"i01", "i02"}


def test_an_older_file_of_another_part_or_of_a_log_is_taken(empty_shop: Make) -> None:
    shop = empty_shop()
    shop.run("import_queries", "1", as_of=date(2011, 12, 1))
    shop.run("import_queries", "2", as_of=date(2011, 11, 1), source_name="archive")
    with pytest.raises(NewerPublished):
        shop.run("import_queries", "3", as_of=date(2011, 11, 1))
    shop.write("log", "id,sku", [("1", "i01")])
    log = {
        "source": {"format": "csv", "path": str(shop.folder / "log.csv")},
        "columns": {"interaction_id": "id", "item_id": "sku", "kind": {"constant": "click"},
                    "occurred_at": {"constant": "2011-10-01 09:00:00"}},
    }  # fmt: skip
    shop.run("import_interactions", "1", as_of=date(2011, 12, 1), **log)
    shop.run("import_interactions", "2", as_of=date(2011, 11, 1), **log)


def test_a_source_that_is_not_there_is_said_without_a_trace(empty_shop: Make) -> None:
    with pytest.raises(ContractError, match=r"expected parquet, but PATH_NOT_FOUND"):
        empty_shop().run("import_items", source={"format": "parquet", "path": "/no/such/folder"})


def test_queries_and_judgments_keep_what_the_source_said(empty_shop: Make) -> None:
    shop = empty_shop()
    assert shop.run("import_queries").rows["inserted"] == 6
    assert {(r["source_query_id"], r["query_text"], r["traffic"]) for r in shop.rows(QUERY_ALIASES).collect()} >= {
        ("q6", "RED  MUG", 1), ("q5", "teapot", None),
    }  # fmt: skip
    assert shop.run("import_judgments").rows["inserted"] == sum(map(len, GRADES.values()))
    other = shop.run(
        "import_judgments", "other", judgment_set="theirs", columns={**shop.section("import_judgments")["columns"]}
    )
    assert other.rows["deleted"] == 0, "a snapshot of one set leaves the others alone"
    assert shop.rows(JUDGMENT_ALIASES).count() == 2 * sum(map(len, GRADES.values()))
    shop.write("judgments", "id,sku,grade", [("q1", "i01", 7), ("q1", "i02", "2.5"), ("q1", "i03", "")])
    with pytest.raises(ContractError, match=r"grade_missing 1, grade_off_scale 2"):
        shop.run("import_judgments", "off")
    with pytest.raises(ConfigError, match="append is for logs"):
        shop.run("import_judgments", "append", mode="append")
    with pytest.raises(ConfigError, match="has a key of its own"):
        shop.run("import_judgments", "twice", columns={"judgment_set": "x"})


def test_interactions_are_appended_once_and_returns_stay_returns(empty_shop: Make) -> None:
    shop = empty_shop()
    rows = [
        ("1", "i01", "buy", "2", "1511658000"),
        ("2", "i01", "back", "1", "1511658001"),
        ("3", "i02", "look", "", "1511658002"),
    ]
    shop.write(
        "log", "id,sku,what,n,ts", [*rows, ("4", "i02", "stare", "", "1"), ("5", "i02", "buy", "0", "1511658002")]
    )
    section = {
        "source": {"format": "csv", "path": str(shop.folder / "log.csv")}, "max_quarantined_share": 0.5,
        "columns": {"interaction_id": "id", "item_id": "sku", "quantity": "n", "occurred_at": {"from": "ts", "format": "epoch_seconds"},
                    "kind": {"from": "what", "values": {"buy": "purchase", "back": "return", "look": "impression"}}},
    }  # fmt: skip
    first = shop.run("import_interactions", "1", **section)
    assert (first.rows["appended"], first.rows["quarantined"]) == (3, 2)
    kinds = {row["interaction_id"]: (row["kind"], row["quantity"]) for row in shop.rows(INTERACTIONS).collect()}
    assert kinds == {"1": ("purchase", 2), "2": ("return", 1), "3": ("impression", None)}
    assert shop.run("import_interactions", "2", **section).status == "nothing_to_do"
    with pytest.raises(ValueError, match="mode"):
        shop.config("import_interactions", **section, mode="snapshot")


@pytest.mark.nightly
def test_the_online_retail_log_becomes_items_and_interactions(empty_shop: Make, spark: Any) -> None:
    shop = empty_shop()
    schema = "InvoiceNo string, StockCode string, Description string, Quantity double, InvoiceDate timestamp, UnitPrice double, CustomerID double, Country string"
    lines = [
        ("536365", "85123A", "WHITE HEART", 6, "2010-12-01 08:26:00", 2.55), ("536366", "85123a", "WHITE HEART", 4, "2011-01-02 10:00:00", 6.63),
        ("536367", "85123A", "white heart?", 1, "2011-01-03 10:00:00", 2.55), ("C536368", "85123A", "WHITE HEART", -3, "2011-01-04 10:00:00", 2.55),
        ("536369", "22633", "HAND WARMER", 2, "2011-02-01 10:00:00", 1.85), ("536369", "22633", "HAND WARMER", 2, "2011-02-01 10:00:00", 1.85),
        ("536370", "POST", "POSTAGE", 1, "2011-02-01 10:00:00", 18.0), ("536371", "22633", "damaged", -9, "2011-02-02 10:00:00", 0.0),
        ("C536372", "99999", "RETURNED ONLY", -1, "2011-02-02 10:00:00", 4.0),
    ]  # fmt: skip
    frame = spark.createDataFrame(
        [(*line, None, "UK") for line in lines],
        schema.replace("timestamp", "string").replace("Quantity double", "Quantity int"),
    )
    path = str(shop.folder / "lines")
    frame.selectExpr("*").withColumn("InvoiceDate", frame["InvoiceDate"].cast("timestamp")).write.parquet(path)
    summary = shop.run("import_online_retail", source={"format": "parquet", "path": path}, max_quarantined_share=0.5)
    assert {name: summary.rows[f"quarantined_{name}"] for name in ("not_goods", "stock_adjustment", "no_price")} == {
        "not_goods": 1, "stock_adjustment": 1, "no_price": 1,
    }  # fmt: skip
    items = {row["item_id"]: row for row in shop.rows(schemas.ITEMS).collect()}
    assert set(items) == {"85123A", "22633"}, "what was only returned was never offered"
    heart = items["85123A"]
    assert (heart["title"], float(heart["price"]), heart["sold_count"]) == ("WHITE HEART", 2.55, 6 + 4 + 1 - 3)
    assert heart["listed_at"].year == 2010
    assert heart["is_in_stock"] is None
    done = {(row["interaction_id"], row["kind"], row["quantity"]) for row in shop.rows(INTERACTIONS).collect()}
    assert {
        ("536369-22633-1", "purchase", 2),
        ("536369-22633-2", "purchase", 2),
        ("C536368-85123A-1", "return", 3),
    } < done
    again = shop.run(
        "import_online_retail", "again", source={"format": "parquet", "path": path}, max_quarantined_share=0.5
    )
    assert again.status == "nothing_to_do"
    frame.drop("UnitPrice").write.parquet(path + "-less")
    with pytest.raises(ContractError, match=r"columns\.unit_price: expected a column UnitPrice"):
        shop.run("import_online_retail", "less", source={"format": "parquet", "path": path + "-less"})


def test_every_judged_item_of_the_sample_is_in_its_log(spark: Any) -> None:
    from ecomspark.features.conform import ColumnMap, conform, usable
    from ecomspark.features.online_retail import COLUMNS, LINES, RULES, items_of, numbered

    data = ROOT / "ecomspark" / "demo_data"
    maps = {ours: ColumnMap.model_validate(theirs) for ours, theirs in COLUMNS.items()}
    lines = usable(conform(numbered(spark.read.parquet(str(data / "online_retail_lines.parquet"))), maps, LINES, RULES))
    offered = {row["item_id"] for row in items_of(lines).select("item_id").collect()}
    judged = {line.split(",")[1] for line in (data / "judgments.csv").read_text().splitlines()[1:]}
    assert judged <= offered
    assert len(offered) == 3755


def test_weights_from_elsewhere_are_imported_once(empty_shop: Make, tmp_path: Path) -> None:
    shop = empty_shop()
    assert shop.run("import_checkpoint").rows == {"checkpoints": 1}
    assert shop.run("import_checkpoint", "again").rows == {}
    with pytest.raises(ContractError, match="another encoder has that name"):
        shop.run("import_checkpoint", "other", pooling="first")
    with pytest.raises(ConfigError, match="no package no_such is installed"):
        shop.run("import_checkpoint", "package", source="package:no_such/model", name="x")
