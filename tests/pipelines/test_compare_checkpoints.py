"""Comparing end to end: the figures are those of the two models in one process, and nothing is scored twice."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from conftest import ROOT
from pyspark.sql import functions as F
from shop import AS_OF, ITEMS, QUERIES, Shop
from sklearn.metrics import ndcg_score, roc_auc_score

from ecomspark import cli, tables, text
from ecomspark.config import GAIN_PRESETS
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.models import cross_encoder, embedder
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.schemas import EMBEDDINGS, JUDGMENTS, RUN_METRICS, RUNS, SCORES, SPLITS
from ecomspark.schemas import QUERIES as QUERIES_TABLE
from ecomspark.tables import Author
from ecomspark.text import TextRecipe

SECTION = {
    "a": "other",
    "b": "relevance-1",
    "judgment_set": "ours",
    "split": "whole",
    "resamples": 200,
    "min_queries": 2,
}


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The command sends the project's log to stderr; other tests want it as it was."""
    log = logging.getLogger("ecomspark")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]


@pytest.fixture
def shop(copied: Shop) -> Shop:
    """The ranked shop with a second checkpoint, which reads shorter texts, and a split that has every query to test."""
    tiny.checkpoint(copied.models, "other", seed=8, max_tokens=16)
    queries = copied.rows(JUDGMENTS).select("query_id").distinct()
    rows = queries.select(F.lit("whole").alias("split"), "query_id", F.lit("test").alias("side"))
    change = tables.compare(copied.warehouse, SPLITS, rows, Author("test", "1"), deletes=False)
    tables.publish(copied.warehouse, change, Author("test", "1"))
    return copied


def figures(shop: Shop, run_id: str) -> dict[tuple[str, str, str], Any]:
    rows = shop.rows(RUN_METRICS).where(f"job = 'compare_checkpoints' AND run_id = '{run_id}'").collect()
    return {(row["ranker"], row["slice"], row["metric"]): row for row in rows}


def judged(shop: Shop, *checkpoints: Checkpoint) -> Any:
    """Every judged pair with what each checkpoint says of it, each by itself in this process."""
    titles, recipe = {item[0]: item[1] for item in ITEMS}, TextRecipe()
    asked = {text.normalise_query(query): query for _, query, _ in QUERIES}
    queries = shop.rows(QUERIES_TABLE).select("query_id", "query_text")
    frame = shop.rows(JUDGMENTS).join(queries, on="query_id", how="inner").select(
        F.hex("query_id").alias("query"), "query_text", "item_id", "grade"
    ).toPandas().sort_values(["query", "item_id"], ignore_index=True)  # fmt: skip
    assert set(frame["query_text"]) == set(asked)
    read = [text.query(query, recipe)[0] for query in frame["query_text"]]
    passages = [text.passage({"title": titles[item]}, recipe)[0] for item in frame["item_id"]]
    for of in checkpoints:
        if of.card.kind == "encoder":
            model = embedder.load(of.folder, of.scorer_digest, token_budget=4096)
            said = (model.embed(read, "query") * model.embed(passages, "passage")).sum(axis=1)
        else:
            said = cross_encoder.load(of.folder, of.scorer_digest, token_budget=4096).score(read, passages).logits
        frame[of.name] = np.asarray(said, dtype=float)
    return frame


def ndcg(frame: Any, name: str) -> float:
    gain = frame["grade"].map(GAIN_PRESETS["exponential"])
    worth = frame.assign(gain=gain).groupby("query").filter(lambda of: of["gain"].max() > 0)
    values = [ndcg_score([of["gain"]], [of[name]], k=10, ignore_ties=True) for _, of in worth.groupby("query")]
    return float(np.mean(values))


def test_the_figures_are_those_of_both_models_alone_and_nothing_is_scored_twice(shop: Shop) -> None:
    a, b = open_checkpoint(shop.models, "other"), open_checkpoint(shop.models, "relevance-1")
    before = shop.rows(SCORES).count()
    first = shop.run("compare_checkpoints", "1", **SECTION)
    frame, found = judged(shop, a, b), figures(shop, "1")
    assert first.rows["judged_pairs"] == first.rows["compared_pairs"] == len(frame)
    # i01 and i12 have one title: for q1 they are one pair.
    assert shop.rows(SCORES).count() == before + first.rows["scored"] == before + len(frame) - 1

    for name in ("other", "relevance-1"):
        assert found[name, "all", "ndcg@10"]["value"] == pytest.approx(ndcg(frame, name), abs=1e-4)
        pooled = roc_auc_score(frame["grade"] >= 2, frame[name])
        assert found[name, "all", "pooled_auc"]["value"] == pytest.approx(pooled, abs=1e-4)
        assert found[name, "all", "ndcg@10"]["model_difference"] is None
    of_a = found["other", "all", "ndcg@10"]
    assert of_a["difference"] == pytest.approx(ndcg(frame, "relevance-1") - ndcg(frame, "other"), abs=1e-4)
    assert of_a["difference_low"] <= of_a["difference"] <= of_a["difference_high"]
    assert found["relevance-1", "all", "ndcg@10"]["difference"] is None

    # New to training: what no query on the training side of relevance-1's own split was judged with.
    training = shop.rows(SPLITS).where("split = 'default' AND side = 'train'").select("query_id")
    seen = {row["item_id"] for row in shop.rows(JUDGMENTS).join(training, on="query_id", how="left_semi").collect()}
    new = frame[~frame["item_id"].isin(seen)]
    assert 0 < len(new) < len(frame)
    assert found["other", "items=new", "pooled_auc"]["value"] == pytest.approx(
        roc_auc_score(new["grade"] >= 2, new["other"]), abs=1e-4
    )
    assert found["other", "items=new", "pooled_auc"]["query_count"] == new["query"].nunique()
    two = frame[frame["query_text"].str.split().str.len() == 2]
    assert found["other", "words=2", "ndcg@10"]["value"] == pytest.approx(ndcg(two, "other"), abs=1e-4)
    assert {name.partition("=")[0] for _, name, _ in found} == {"all", "traffic", "words", "items"}, "one locale"

    scored = shop.rows(SCORES).count()
    second = shop.run("compare_checkpoints", "2", **{**SECTION, "a": "relevance-1", "b": "other"})
    assert "scored" not in second.rows
    assert "scores" not in second.tables
    assert shop.rows(SCORES).count() == scored
    assert figures(shop, "2")["relevance-1", "all", "ndcg@10"]["difference"] == -of_a["difference"]
    shop.run("score_candidates", "after", checkpoint="other")
    raw = shop.spark.read.format("delta").load(shop.warehouse.path(SCORES))
    keys = raw.select("query_digest", "passage_digest", "scorer_digest").distinct().count()
    assert raw.count() == keys >= scored, "candidates that were judged need no second score"


@pytest.mark.nightly
def test_an_encoder_is_compared_by_its_cosine_and_vectors_that_are_there_are_used(shop: Shop) -> None:
    said = shop.run("compare_checkpoints", "1", **{**SECTION, "a": "base"})
    vectors, found = shop.rows(EMBEDDINGS).count(), figures(shop, "1")
    frame = judged(shop, open_checkpoint(shop.models, "base"), open_checkpoint(shop.models, "relevance-1"))
    assert found["base", "all", "ndcg@10"]["value"] == pytest.approx(ndcg(frame, "base"), abs=1e-4)
    assert said.rows["embedded"] > 0, "evaluate_rankings embedded its own side only"
    assert "embedded" not in shop.run("compare_checkpoints", "2", **{**SECTION, "a": "base"}).rows
    assert shop.rows(EMBEDDINGS).count() == vectors


def test_the_command_prints_what_the_run_found_also_when_it_is_replayed(shop: Shop, capsys: Any) -> None:
    shared = {"warehouse": shop.warehouse.location, "models_folder": str(shop.models), "buckets": 2,
              "spark_properties": str(ROOT / "conf/spark-local.conf")}  # fmt: skip
    path = shop.folder / "compare.yaml"
    path.write_text(yaml.safe_dump({**shared, "compare_checkpoints": {"resamples": 200, "min_queries": 2}}))
    asked = ["compare", "other", "relevance-1", "--judgments", "ours", "--split", "whole", "--conf", str(path),
             "--run-id", "1", "--as-of", str(AS_OF)]  # fmt: skip
    assert cli.main(asked) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[:2] == [
        "judgments ours, the test side of split whole",
        "A: other; B: relevance-1; every interval is over resampled queries, that of B - A over pairs of figures",
    ]
    assert lines[3].split()[:2] == ["all", "ndcg@10"]
    assert any(line.startswith("not shown by these queries") for line in lines)
    assert any("slices are left out: fewer than 2 queries" in line for line in lines)
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == printed, "a replayed run shows the same"
    assert cli.main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["a"], said["b"], said["side"]) == ("replayed", "other", "relevance-1", "test")
    assert len(said["comparisons"]) == sum(line.count("[") == 3 for line in lines)
    assert cli.main([*asked[:2], "other", *asked[3:], "--run-id", "3", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_status"] == 2, "one checkpoint twice"


def test_what_cannot_be_compared_is_refused(shop: Shop) -> None:
    tiny.checkpoint(shop.models, "cased", seed=9, recipe={"is_lowercase": False})
    with pytest.raises(ContractError, match="expected a text for every judged pair under the recipe of cased"):
        shop.run("compare_checkpoints", "cased", **{**SECTION, "a": "cased"})
    with pytest.raises(ContractError, match="on the validation side of split whole that both checkpoints have scored"):
        shop.run("compare_checkpoints", "none", **SECTION, side="validation")
    runs = shop.rows(RUNS).count()
    with pytest.raises(CheckpointError, match="nobody: no such checkpoint"):
        shop.run("compare_checkpoints", "nobody", **{**SECTION, "b": "nobody"})
    assert shop.rows(RUNS).count() == runs, "before anything starts"
