"""Scoring end to end: each distinct pair once per scorer, errors kept and tried again, nothing behind doubled."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from fakes import Traced, logit
from pyspark.sql import functions as F
from safetensors.numpy import load_file, save_file
from shop import AS_OF, Shop

from ecomspark import tables
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.models import cross_encoder
from ecomspark.models.checkpoint import open_checkpoint, sha256
from ecomspark.pipelines import score_candidates
from ecomspark.schemas import CANDIDATES, EMBEDDINGS, RANKINGS, RUNS, SCORES, TERMS, TEXTS
from ecomspark.tables import Author


def run_traced(shop: Shop, run_id: str, scorer: Traced, **changes: Any) -> Any:
    """Score as another checkpoint, `other`, with a fake in its place."""
    if not (shop.models / "other").exists():
        tiny.checkpoint(shop.models, "other", seed=8)
    config = shop.config("score_candidates", **{"checkpoint": "other", "max_failed_share": 0.5, **changes})
    checkpoint = open_checkpoint(shop.models, "other", "cross_encoder")
    return score_candidates.run_with(shop.spark, config, run_id, checkpoint, scorer, AS_OF)


def test_each_distinct_pair_has_the_score_of_the_model_in_one_process(ranked_shop: Shop) -> None:
    candidates = ranked_shop.rows(CANDIDATES).count()
    scores = ranked_shop.rows(SCORES)
    keys = scores.select("query_digest", "passage_digest").distinct().count()
    assert scores.count() == keys < candidates, "i01 and i12 have one title, so one pair"

    texts = ranked_shop.rows(TEXTS).select(F.col("text_digest"), "role", "text").distinct()
    queries = texts.where("role = 'query'").select(F.col("text_digest").alias("query_digest"), F.col("text").alias("q"))
    passages = texts.where("role = 'passage'").select(
        F.col("text_digest").alias("passage_digest"), F.col("text").alias("p")
    )
    rows = scores.join(queries, on="query_digest", how="inner").join(passages, on="passage_digest", how="inner")
    frame = rows.select("q", "p", "logit", "activation", "token_count").distinct().toPandas()
    assert len(frame) == keys
    made = open_checkpoint(ranked_shop.models, "relevance-1")
    alone = cross_encoder.load(made.folder, made.scorer_digest, token_budget=4096).score(
        list(frame["q"]), list(frame["p"])
    )
    assert list(frame["logit"]) == pytest.approx(alone.logits.tolist(), abs=1e-5)
    assert list(frame["activation"]) == pytest.approx(alone.activations.tolist(), abs=1e-5)
    assert list(frame["token_count"]) == alone.token_counts.tolist()


def test_another_type_is_another_scorer_and_a_run_says_what_it_cost(copied: Shop) -> None:
    pairs = copied.rows(SCORES).count()
    whole = {"data_types": {"relevance-1": "int8"}}
    said = copied.run("score_candidates", "int8", **whole)
    assert said.rows["scored"] == said.rows["to_score"] == pairs
    scores = copied.rows(SCORES)
    assert scores.select("scorer_digest").distinct().count() == 2
    assert said.rows["padding_tokens"] == 0
    assert 0 <= said.rows["model_loads"] <= 2
    assert said.rows["tokens_per_second"] > 0
    assert said.rows["seconds_a_million"] > 0
    assert said.rows["peak_memory_mib"] > 50
    assert {"score.tokenising", "score.waiting", "score.forward", "score.loading"} <= set(said.seconds)
    copied.run("rank_candidates", "int8", **whole)
    digest = open_checkpoint(copied.models, "relevance-1", data_type="int8").scorer_digest
    ranked_by = {
        bytes(row["scorer_digest"]) for row in copied.rows(RANKINGS).select("scorer_digest").distinct().collect()
    }
    assert ranked_by == {digest}, "no ranking mixes scorers"


def test_a_pair_that_cannot_be_scored_is_kept_with_its_error_and_the_rest_goes_on(  # R7
    copied: Shop, tmp_path: Path
) -> None:
    scorer = Traced(str(tmp_path), poison="garden wall clock")
    first = run_traced(copied, "1", scorer)
    assert first.rows["failed"] > 0
    assert first.rows["scored"] + first.rows["failed"] == first.rows["to_score"]
    errors = copied.rows(SCORES).where("error IS NOT NULL").collect()
    assert {(row["error"], row["error_kind"], row["logit"]) for row in errors} == {("ValueError", "lasting", None)}
    assert run_traced(copied, "2", scorer).rows["to_score"] == 0, "a lasting error is not tried again"
    rank = {"checkpoint": "other", "max_failed_share": 0.5}
    ranked = copied.run("rank_candidates", "with-errors", **rank)
    assert ranked.rows["kept_back_queries"] == 0, "lasting errors keep no query back"
    ranked_items = {row["item_id"] for row in copied.rows(RANKINGS).collect()}
    assert "i07" not in ranked_items
    assert "i08" in ranked_items
    with pytest.raises(ContractError, match=r"expected at most 1\.00% of the candidates to have an error"):
        copied.run("rank_candidates", "too-many", checkpoint="other", full=True)


def test_too_many_errors_stop_the_run_before_anything_is_ranked(copied: Shop, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"expected at most 1\.00% of the pairs to fail, .*ValueError \(lasting\)"):
        run_traced(copied, "1", Traced(str(tmp_path), poison="garden wall clock"), max_failed_share=0.01)
    row = copied.rows(RUNS).where("job = 'score_candidates' AND run_id = '1'").collect()[0]
    assert (row["status"], row["error"]) == ("failed", "ContractError")
    assert copied.rows(SCORES).where("logit IS NOT NULL").count() > 0, "what was scored is kept"


def test_a_passing_error_is_tried_again_until_it_has_been_tried_enough(copied: Shop, tmp_path: Path) -> None:
    broken = Traced(str(tmp_path), poison="garden wall clock", poison_error="OSError")
    counts = [run_traced(copied, f"{n}", broken, max_tries=2, max_failed_share=1.0).rows["to_score"] for n in range(3)]
    assert counts[0] > counts[1] > counts[2] == 0
    attempts = {row["attempt"] for row in copied.rows(SCORES).where("error IS NOT NULL").collect()}
    assert attempts == {1, 2}
    healed = run_traced(copied, "healed", Traced(str(tmp_path)), max_tries=3)
    assert healed.rows["scored"] == counts[1]
    assert healed.rows["failed"] == 0
    rows = copied.rows(SCORES).where("logit IS NOT NULL AND attempt = 3").count()
    assert rows == counts[1]


@pytest.mark.nightly
def test_a_doubled_append_doubles_nothing_behind_it(copied: Shop) -> None:
    """Every row of every memory table a second time, as two writers or a lost answer would leave it."""
    before = sorted(map(str, copied.rows(RANKINGS).collect()))
    for table in (TEXTS, TERMS, SCORES, EMBEDDINGS):
        rows = copied.rows(table)
        assert tables.append_memory(copied.warehouse, table, rows, Author("twice", "1")).inserted == rows.count() > 0
    for job in ("build_texts", "build_candidates", "score_candidates", "rank_candidates"):
        summary = copied.run(job, "doubled")
        assert summary.status == "nothing_to_do", (job, summary)
    assert sorted(map(str, copied.rows(RANKINGS).collect())) == before
    metrics = copied.run("evaluate_rankings", "doubled")
    assert metrics.rows["judged_pairs"] == copied.run("evaluate_rankings", "first").rows["judged_pairs"]
    assert "embedded" not in metrics.rows


@pytest.mark.parametrize(
    ("fault", "said"),
    [("byte", "model.safetensors: not the file that the card was written for"),
     ("missing", "tokenizer.json: in the card, not in the folder"),
     ("vocabulary", "its largest id is 5000"),
     ("head", "no trained head; loading would make a random one"),
     ("kind", "expected a cross_encoder, found a encoder"),
     ("link", "config.json: a link; expected the file itself"),
     ("pickle", "state.pkl: a format that can carry code")],
)  # fmt: skip
def test_a_wrong_checkpoint_is_refused_before_anything_starts(copied: Shop, fault: str, said: str) -> None:  # R14
    runs, jobs = copied.rows(RUNS).count(), copied.spark.sparkContext.statusTracker()
    spoil(copied.models / "relevance-1", fault)
    copied.spark.sparkContext.setJobGroup(f"wrong-{fault}", "")
    with pytest.raises(CheckpointError, match=re.escape(said)):
        copied.run("score_candidates", "wrong", checkpoint="base" if fault == "kind" else "relevance-1")
    assert len(jobs.getJobIdsForGroup(f"wrong-{fault}")) == 0, "no Spark stage was started"
    copied.spark.sparkContext.setJobGroup("", "")
    assert copied.rows(RUNS).count() == runs


def spoil(folder: Path, fault: str) -> None:
    """Make a checkpoint what it must not be; where the card would tell, it is written anew, to be told by what is in it."""
    weights, tokens = folder / "model.safetensors", folder / "tokenizer.json"
    if fault == "byte":
        whole = bytearray(weights.read_bytes())
        whole[-1] ^= 1
        weights.write_bytes(bytes(whole))
    if fault == "missing":
        tokens.unlink()
    if fault == "vocabulary":
        found = json.loads(tokens.read_text())
        found["model"]["vocab"]["zebra"] = 5000
        tokens.write_text(json.dumps(found))
    if fault == "head":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config))
        state = load_file(weights)
        save_file({name: of for name, of in state.items() if "classifier" not in name}, weights)
    if fault == "link":
        (folder / "config.json").rename(folder.parent / "elsewhere.json")
        (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")
    if fault == "pickle":
        (folder / "state.pkl").write_bytes(b"N.")
    if fault in ("vocabulary", "head", "pickle"):
        card = json.loads((folder / "card.json").read_text())
        card["files"] = {path.name: sha256(path) for path in folder.iterdir() if path.name != "card.json"}
        (folder / "card.json").write_text(json.dumps(card))


def test_texts_of_another_recipe_are_not_scored(copied: Shop) -> None:
    tiny.checkpoint(copied.models, "cased", seed=9, recipe={"is_lowercase": False})
    with pytest.raises(ContractError, match=r"expected a text for every candidate under the recipe of cased"):
        copied.run("score_candidates", "cased", checkpoint="cased")


def test_the_logit_of_the_fake_is_what_is_stored(copied: Shop, tmp_path: Path) -> None:
    run_traced(copied, "1", Traced(str(tmp_path)))
    other = open_checkpoint(copied.models, "other").scorer_digest
    stored = copied.rows(SCORES).where(F.col("scorer_digest") == F.lit(other))
    lowest = stored.agg(F.min("logit").alias("logit")).collect()[0]["logit"]
    texts = {row["text"] for row in copied.rows(TEXTS).where("role = 'passage'").collect()}
    queries = {row["text"] for row in copied.rows(TEXTS).where("role = 'query'").collect()}
    assert lowest in [pytest.approx(logit(q, p), abs=1e-6) for q in queries for p in texts]
