"""Published data sets, by the settings files that ship, on rows made to their schemas: up to judgments, sides, figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT
from pyspark.sql import functions as F
from shop import Shop
from sklearn.metrics import ndcg_score

from ecomspark import cli, launch
from ecomspark.errors import ContractError
from ecomspark.schemas import CANDIDATES, ITEMS, JUDGMENTS, QUARANTINE, QUERIES, RANKINGS, RUNS, SPLITS

Make = Callable[[], Shop]

PRODUCTS = (
    "product_id string, product_title string, product_description string, product_bullet_point string, "
    "product_brand string, product_color string, product_locale string"
)
EXAMPLES = (
    "example_id bigint, query string, query_id bigint, product_id string, product_locale string, esci_label string, "
    "small_version bigint, large_version bigint, split string"
)
# Invented. Product A is sold in two locales; query 4 is query 1 in other letters, on the other side.
ESCI_QUERIES = {
    1: ("red mug", "us", "train"), 2: ("taza roja", "es", "train"), 3: ("wall clock", "us", "train"),
    4: ("RED  MUG", "us", "test"), 5: ("candle holder", "us", "test"), 6: ("large lamp", "us", "train"),
    7: ("tin box", "us", "train"), 8: ("paper star", "us", "train"), 9: ("glass plate", "us", "train"),
}  # fmt: skip
ESCI_LABELS = {
    1: {"A": "E", "B": "S"}, 2: {"A": "E"}, 3: {"C": "E", "B": "I"}, 4: {"A": "E", "C": "I", "D": "C"},
    5: {"D": "E", "B": "C", "C": "I", "A": "S"}, 6: {"C": "S", "A": "I"}, 7: {"B": "E", "D": "I"}, 8: {"D": "E", "C": "I"},
    9: {"B": "C", "A": "I"},
}  # fmt: skip


def write_esci(shop: Shop) -> list[str]:
    """The two files, and the overrides that put them in place of the real ones."""
    names = {"A": "Red Mug", "B": "Blue Tin", "C": "Wall Clock", "D": "Candle Holder with Heart"}
    products = [(i, title, None, None, "Acme", "red", "us") for i, title in names.items()]
    products.append(("A", "Taza Roja", "de barro", None, None, None, "es"))
    examples = [
        (100 * query + place, text, query, item, locale, label, int(query != 9), 1, side)
        for query, (text, locale, side) in ESCI_QUERIES.items()
        for place, (item, label) in enumerate(ESCI_LABELS[query].items())
    ]
    for name, rows, schema in (("products", products, PRODUCTS), ("examples", examples, EXAMPLES)):
        shop.spark.createDataFrame(rows, schema).coalesce(1).write.parquet(str(shop.folder / name))
    sources = [
        f"{job}.source.path={shop.folder}/examples" for job in ("import_queries", "import_judgments", "import_splits")
    ]
    return [f"import_items.source.path={shop.folder}/products", *sources, "import_splits.validation_share=0.4"]


def run(shop: Shop, name: str, overrides: list[str]) -> dict[str, Any]:
    """The import jobs and build_texts of a settings file that ships; the summaries."""
    path, shared = ROOT / "conf" / f"{name}.yaml", [f"warehouse={shop.warehouse.location}", "buckets=2", *overrides]
    summaries = {}
    for job in ("import_items", "import_queries", "import_judgments", "build_texts", "import_splits"):
        if job in yaml.safe_load(path.read_text()):
            module = cli.pipeline(job)
            summaries[job] = module.run(shop.spark, launch.load_settings(module, path, shared), "first", None)
    return summaries


def judged(shop: Shop) -> dict[tuple[str, str], float]:
    named = shop.rows(JUDGMENTS).join(shop.rows(QUERIES), on="query_id", how="inner")
    return {(row["query_text"], row["item_id"]): row["grade"] for row in named.collect()}


def sides(shop: Shop) -> dict[tuple[str, str], str]:
    named = shop.rows(SPLITS).join(shop.rows(QUERIES), on="query_id", how="inner")
    return {(row["locale"], row["query_text"]): row["side"] for row in named.collect()}


@pytest.mark.nightly
def test_sides_of_queries_that_nobody_imported_are_refused_and_kept_in_quarantine(empty_shop: Make) -> None:
    shop = empty_shop()
    shop.run("import_queries")
    shop.run("import_judgments")
    shop.run("import_items")
    shop.write("sides", "id,side", [("q1", "train"), ("q2", "test"), ("q3", "dev"), ("nobody", "train")])
    section = {"source": {"format": "csv", "path": str(shop.folder / "sides.csv")}, "source_name": "log",
               "columns": {"source_query_id": "id", "side": "side"}, "max_quarantined_share": 0.5}  # fmt: skip
    with pytest.raises(ContractError, match=r"found 3 of 3; run import_queries and build_texts first"):
        shop.run("import_splits", "too-soon", **section)
    shop.run("build_texts")
    summary = shop.run("import_splits", **section)
    assert (summary.rows["inserted"], summary.rows["unknown_queries"]) == (2, 1)
    aside = shop.rows(QUARANTINE).where("table_name = 'split_aliases' AND resolved_at IS NULL")
    assert {row["reason"] for row in aside.collect()} == {"side_unknown", "unknown_query"}
    assert aside.count() == 2, "those that are known now are resolved"


@pytest.mark.nightly
def test_wands_is_read_with_tabs_quotes_and_line_breaks(empty_shop: Make) -> None:
    shop = empty_shop()
    wide = "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t" \
           "rating_count\taverage_rating\treview_count\n"  # fmt: skip
    (shop.folder / "product.csv").write_text(
        wide + '7\t"the ""best"" clock, large"\tClocks\tDecor / Clocks\t"first line\nsecond\tline"\tcolor : red|size : 3\t12.0\t4.5\t3.0\n'
        + "8\tplain stool\tStools\tFurniture\t\t\t\t\t\n"
    )  # fmt: skip
    (shop.folder / "query.csv").write_text("query_id\tquery\tquery_class\n0\twall clock\tClocks\n1\tstool, wood\t\n")
    (shop.folder / "label.csv").write_text(
        "id\tquery_id\tproduct_id\tlabel\n0\t0\t7\tExact\n1\t0\t8\tIrrelevant\n2\t1\t8\tPartial\n"
    )
    run(shop, "wands", [f"{job}.source.path={shop.folder}/{file}.csv" for job, file in
                        (("import_items", "product"), ("import_queries", "query"), ("import_judgments", "label"))])  # fmt: skip
    items = {row["item_id"]: row for row in shop.rows(ITEMS).collect()}
    assert items["7"]["title"] == 'the "best" clock, large'
    assert items["7"]["description"] == "first line\nsecond\tline"
    assert items["7"]["category"] == "Decor / Clocks"
    assert (items["7"]["rating"], items["7"]["rating_count"]) == (4.5, 12)
    assert items["8"]["rating_count"] is None
    assert judged(shop) == {("wall clock", "7"): 2, ("wall clock", "8"): 0, ("stool, wood", "8"): 1}


def test_home_depot_has_means_of_judges_latin_1_and_descriptions_in_a_second_file(empty_shop: Make) -> None:
    shop = empty_shop()
    (shop.folder / "train.csv").write_text(
        '"id","product_uid","product_title","search_term","relevance"\n2,10,"Caf\xe9 table, 3 in.","caf\xe9 table",2.33\n'
        '3,10,"Caf\xe9 table, 3 in.","small table",1\n9,11,"Clock 60\xb0","small table",3\n', encoding="latin-1",
    )  # fmt: skip
    (shop.folder / "descriptions.csv").write_text(
        '"product_uid","product_description"\n10,"for the caf\xe9\nround the corner"\n12,"nobody asks"\n',
        encoding="latin-1",
    )
    summaries = run(shop, "home_depot", [
        *(f"{job}.source.path={shop.folder}/train.csv" for job in ("import_items", "import_queries", "import_judgments")),
        f"import_items.source.beside.path={shop.folder}/descriptions.csv",
    ])  # fmt: skip
    items = {row["item_id"]: (row["title"], row["description"]) for row in shop.rows(ITEMS).collect()}
    assert items == {"10": ("Café table, 3 in.", "for the café\nround the corner"), "11": ("Clock 60°", None)}
    assert summaries["import_items"].rows["folded"] == 1, "an item in two rows is one"
    assert summaries["import_queries"].rows["folded"] == 1
    assert judged(shop) == {("café table", "10"): 2.33, ("small table", "10"): 1.0, ("small table", "11"): 3.0}


@pytest.mark.nightly
def test_crowdflower_has_no_ids_and_grades_from_one_to_four(empty_shop: Make) -> None:
    shop = empty_shop()
    header, rows = "id,query,product_title,product_description,median_relevance,relevance_variance", [
        (1, "led lamp", "A lamp", "", 4, 0), (2, "led lamp", "A lamp", "", 2.5, 0.5), (5, "red mug", "A mug", "<b>big</b>", 1, 0),
        (6, "red mug", "A cup", "", 0, 0), (7, "red mug", "A jug", "", 4.5, 0),
    ]  # fmt: skip
    shop.write("train", header, rows)
    jobs = ("import_items", "import_queries", "import_judgments")
    paths = [f"{job}.source.path={shop.folder}/train.csv" for job in jobs]
    with pytest.raises(ContractError, match="grade_off_scale 2"):
        run(shop, "crowdflower", paths)
    shop.write("train", header, rows[:3])
    module = cli.pipeline("import_judgments")
    shared = [f"warehouse={shop.warehouse.location}", *paths]
    strict = launch.load_settings(
        module, ROOT / "conf/crowdflower.yaml", [*shared, "import_judgments.fractional_grades=false"]
    )
    with pytest.raises(ContractError, match="grade_off_scale 1"):
        module.run(shop.spark, strict, "strict", None)
    settings = launch.load_settings(module, ROOT / "conf/crowdflower.yaml", shared)
    module.run(shop.spark, settings, "second", None)
    texts = cli.pipeline("build_texts")
    texts.run(shop.spark, launch.load_settings(texts, ROOT / "conf/crowdflower.yaml", shared), "second", None)
    assert judged(shop) == {("led lamp", "1"): 4.0, ("led lamp", "2"): 2.5, ("red mug", "5"): 1.0}


def test_esci_comes_with_one_command_to_the_ndcg_of_its_protocol(empty_shop: Make, capsys: Any) -> None:
    shop = empty_shop()
    overrides = [
        *write_esci(shop), f"warehouse={shop.warehouse.location}", f"models_folder={shop.models}", "buckets=2",
        f"import_checkpoint.source={shop.folder}/encoder", "import_checkpoint.max_tokens=32",
        "finetune_cross_encoder.max_tokens=32", "finetune_cross_encoder.query_max_tokens=8",
        "finetune_cross_encoder.min_cosine=null",  # the tiny encoder's vectors all point one way
        "evaluate_rankings.resamples=100",
    ]  # fmt: skip
    command = ["benchmark", "--conf", str(ROOT / "conf/esci.yaml"), "--run-id", "b"]
    command += [part for override in overrides for part in ("--set", override)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()

    # By hand: all judged items of the two test queries in the order of their logits, gains 1, 0.1, 0.01, 0.
    ranked = shop.rows(RANKINGS).join(shop.rows(JUDGMENTS), on=["query_id", "item_id"], how="inner")
    frame = (
        ranked.select(F.hex("query_id").alias("query"), "item_id", "grade", "logit").toPandas().sort_values("item_id")
    )
    gains = frame.assign(gain=frame["grade"].map({3: 1.0, 2: 0.1, 1: 0.01, 0: 0.0}))
    expected = [ndcg_score([of["gain"]], [of["logit"]], ignore_ties=True) for _, of in gains.groupby("query")]
    assert len(expected) == 2
    assert len(frame) == shop.rows(CANDIDATES).count() == 8, "only what is tested on is scored"
    line = next(line.split() for line in printed if line.split()[:2] == ["ndcg", "model"])
    assert float(line[2]) == pytest.approx(np.mean(expected), abs=6e-5)
    assert {line.split()[1] for line in printed if line.startswith("ndcg ")} >= {"final", "model", "bm25", "chance"}

    assert cli.main(command) == 0
    assert "done already" in capsys.readouterr().out
    assert cli.main([*command[:5], "--set", "evaluate_rankings.kk=1"]) == 2, "a fault of the last job is found first"

    # What came in: grades, ids of two columns, sides.
    counts = {row["job"]: row["rows"] for row in shop.rows(RUNS).where("run_id = 'b'").collect()}
    items = {row["item_id"]: (row["locale"], row["title"]) for row in shop.rows(ITEMS).collect()}
    assert items["us-A"] == ("us", "Red Mug")
    assert items["es-A"] == ("es", "Taza Roja")
    assert len(items) == 5
    grades = judged(shop)
    assert grades["candle holder", "us-D"] == 3
    assert grades["candle holder", "us-A"] == 2
    assert grades["candle holder", "us-B"] == 1
    assert grades["candle holder", "us-C"] == 0
    assert grades["taza roja", "es-A"] == 3
    assert not [query for query, _ in grades if query == "glass plate"], "it is of the large version only"
    assert counts["import_queries"]["folded"] > 0, "the rows of one query are one alias"

    found = sides(shop)
    assert found["us", "red mug"] == "test", "what is tested on in other letters is not learnt from"
    assert counts["import_splits"]["queries_on_two_sides"] == 1
    assert {query for (_, query), side in found.items() if side == "test"} == {"red mug", "candle holder"}
    assert set(found.values()) == {"train", "validation", "test"}
    assert len(found) == 7

    # The same draw again; another share moves only from training to validation.
    module = cli.pipeline("import_splits")
    again = module.run(shop.spark, launch.load_settings(module, ROOT / "conf/esci.yaml", overrides), "again", None)
    assert again.status == "nothing_to_do"
    none = launch.load_settings(module, ROOT / "conf/esci.yaml", [*overrides, "import_splits.validation_share=0"])
    module.run(shop.spark, none, "none", None)
    assert {query for (_, query), side in sides(shop).items() if side == "test"} == {"red mug", "candle holder"}
    assert set(sides(shop).values()) == {"train", "test"}


def test_a_file_without_figures_is_no_benchmark(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "some.yaml").write_text("warehouse: w\nbuild_texts: {}\n")
    assert cli.main(["benchmark", "--conf", str(tmp_path / "some.yaml"), "--run-id", "x"]) == 2
    assert "a benchmark ends with its figures" in capsys.readouterr().err
