"""The sample: as many queries and judgments as promised, from stated sources, that no rule gives away."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from ecomspark.demo_data import make_sample
from ecomspark.text import Analyser, digest, normalise_query, terms

DATA = ROOT / "ecomspark" / "demo_data"
ENGLISH = Analyser(language="english")


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def titles() -> pd.Series:
    return make_sample.titles()


def test_the_sample_fits_into_the_package() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 6_000_000


def test_there_are_queries_of_every_kind() -> None:
    queries = rows("queries.csv")
    assert len(queries) >= 120
    assert len({query["query_text"] for query in queries}) == len(queries)
    assert set(Counter(query["kind"] for query in queries)) == {
        "short", "long", "misspelt", "attribute", "use", "occasion", "colour", "size",
    }  # fmt: skip


def test_pairs_were_pooled_from_three_sources_and_each_is_recorded() -> None:
    judgments = rows("judgments.csv")
    assert len(judgments) >= 2_400
    assert {judgment["grade"] for judgment in judgments} == {"0", "1", "2", "3"}
    by_source = Counter(source for judgment in judgments for source in judgment["proposed_by"].split("+"))
    assert set(by_source) == {"bm25", "cosine", "random"}
    assert len({(j["source_query_id"], j["item_id"]) for j in judgments}) == len(judgments)
    assert {j["source_query_id"] for j in judgments} == {query["source_query_id"] for query in rows("queries.csv")}


def test_the_second_grading_agrees_as_the_readme_says() -> None:
    found = make_sample.check()
    assert found["graded a second time"] >= 150
    first = {(j["source_query_id"], j["item_id"]): int(j["grade"]) for j in rows("judgments.csv")}
    second = {(j["source_query_id"], j["item_id"]): int(j["second_grade"]) for j in rows("second_grades.csv")}
    kappa = cohen_kappa_score([first[pair] for pair in second], list(second.values()), weights="quadratic")
    assert found["quadratic kappa"] == pytest.approx(kappa)
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"{kappa:.2f}" in readme
    assert f"{len(first):,} pairs" in readme


def test_shared_words_alone_do_not_give_the_grades_away(titles: pd.Series) -> None:
    """A ranker that counts the share of the query's stems that a title has must leave something to learn."""
    queries = {query["source_query_id"]: set(terms(query["query_text"], ENGLISH)) for query in rows("queries.csv")}
    words = {item: set(terms(title, ENGLISH)) for item, title in titles.items()}
    overlap, is_good = [], []
    by_query: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for judgment in rows("judgments.csv"):
        query = queries[judgment["source_query_id"]]
        share = len(query & words[judgment["item_id"]]) / len(query)
        overlap.append(share)
        is_good.append(int(judgment["grade"]) >= 2)
        by_query[judgment["source_query_id"]].append((share, is_good[-1]))
    assert roc_auc_score(is_good, overlap) < 0.9
    within = [roc_auc_score([good for _, good in of], [share for share, _ in of])
              for of in by_query.values() if 0 < sum(good for _, good in of) < len(of)]  # fmt: skip
    assert sum(within) / len(within) < 0.9


def test_every_judged_item_has_a_title(titles: pd.Series) -> None:
    assert {judgment["item_id"] for judgment in rows("judgments.csv")} <= set(titles.index)


def test_the_licence_of_the_data_is_stated() -> None:
    readme = (Path(DATA) / "README.md").read_text(encoding="utf-8")
    for said in ("CC0", "own judgments", "invented"):
        assert said in readme


def test_at_least_forty_queries_are_in_the_test_split_of_the_demo() -> None:
    """The draw of `features.splits.sides` in plain Python, with the shares and the seed of conf/demo.yaml."""
    section = yaml.safe_load((ROOT / "conf/demo.yaml").read_text())["finetune_cross_encoder"]
    learnt, seed = sum(section["shares"].values()), section.get("seed", 13)
    query_ids = {digest("uk", normalise_query(query["query_text"])).hex().upper() for query in rows("queries.csv")}
    draws = [int.from_bytes(digest("default", str(seed), query)[:6], "big") / 2**48 for query in query_ids]
    assert sum(draw >= learnt for draw in draws) >= 40
