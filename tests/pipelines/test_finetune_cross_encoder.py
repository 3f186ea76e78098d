"""Fine-tuning end to end: from judgments to a checkpoint whose card says all that made it."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from conftest import build_rows
from shop import Shop

from ecomspark import tables
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.models.checkpoint import open_checkpoint, sha256
from ecomspark.pipelines.finetune_cross_encoder import JOB, run
from ecomspark.schemas import CANDIDATES, JUDGMENTS, QUERIES, RUNS, SPLITS
from ecomspark.tables import Author
from ecomspark.text import digest, normalise_query


def test_the_card_says_what_made_the_checkpoint(ranked_shop: Shop) -> None:
    made = open_checkpoint(ranked_shop.models, "relevance-1", "cross_encoder")
    card = made.card
    assert card.base == "base"
    assert {"judgments", "queries", "items"} <= set(card.data)
    assert card.settings["epochs"] == 2
    assert card.settings["seed"] == 5
    assert set(card.metrics) == {"before", "after", "pairs", "read"}
    assert all(0 <= card.metrics[when]["ndcg@10"] <= 1 for when in ("before", "after"))
    logits, gains = zip(*card.calibration, strict=True)
    assert list(logits) == sorted(set(logits))
    assert list(gains) == sorted(set(gains))
    found = {path.name: sha256(path) for path in made.folder.iterdir() if path.name != "card.json"}
    assert found == card.files
    assert {path.suffix for path in made.folder.iterdir()} <= {".safetensors", ".json", ".txt"}
    text = (made.folder / "card.json").read_text()
    assert "mug" not in text, "no text of the shop is in the card"
    assert sorted(path.name for path in ranked_shop.models.iterdir()) == ["base", "relevance-1"], "nothing left behind"


NEAR = {"red mug": "mugs, red", "wall clock": "clock wall", "candle holder": "candel holders", "gift": "gifts",
        "teapot": "teapots"}  # fmt: skip


def sides(shop: Shop) -> dict[str, str]:
    """The side of each query's text."""
    placed = shop.rows(SPLITS).join(shop.rows(QUERIES), on="query_id", how="inner").select("query_text", "side")
    return {row["query_text"]: row["side"] for row in placed.collect()}


def add_queries(shop: Shop, *texts: str) -> None:
    """Judged ones, each of one item."""
    shop.write("queries", "id,query,traffic", [(f"n{at}", text, 1) for at, text in enumerate(texts)])
    shop.write("judgments", "id,sku,grade", [(f"n{at}", "i01", 3) for at in range(len(texts))])
    for job in ("import_queries", "import_judgments"):
        shop.run(job, "more", mode="upsert")
    shop.run("build_texts", "more")


def put(shop: Shop, text: str, side: str) -> None:
    """Put a query on a side, as an earlier draw would have that did not look for near-duplicates."""
    row = {"split": "default", "query_id": digest("uk", normalise_query(text)), "side": side}
    change = tables.compare(
        shop.warehouse,
        SPLITS,
        build_rows(shop.spark, SPLITS, row).drop("changed_by"),
        Author("test", "put"),
        deletes=False,
    )
    tables.publish(shop.warehouse, change, Author("test", "put"))


def test_queries_are_split_whole_keep_their_side_and_draw_their_near_duplicates_there(copied: Shop) -> None:
    before = sides(copied)
    judged = {bytes(row["query_id"]) for row in copied.rows(JUDGMENTS).collect()}
    assert {bytes(row["query_id"]) for row in copied.rows(SPLITS).collect()} == judged
    add_queries(copied, *NEAR.values(), "cake stand")
    summary = copied.run("finetune_cross_encoder", "near", name="relevance-2")
    found = sides(copied)
    assert {text: found[text] for text in before} == before
    assert "cake stand" in found
    assert [found[text] for text in NEAR.values()] == [found[text] for text in NEAR]
    assert {found[text] for text in NEAR} == {"train", "validation", "test"}, "one side for all would prove nothing"
    assert summary.rows["split_queries"] == len(NEAR) + 1
    assert (summary.rows["leaks"], summary.rows["dropped_queries"]) == (0, 0)
    card = open_checkpoint(copied.models, "relevance-2").card
    assert card.settings["split"] == "default"
    assert card.data["splits"]["version"] == summary.tables["splits"]["after"], "the version with the new queries"


def test_queries_that_leak_end_the_run_or_are_left_out(copied: Shop) -> None:
    """The near-duplicate of a test query is on the training side, and a side is for ever."""
    tested = next(text for text, side in sides(copied).items() if side == "test")
    add_queries(copied, NEAR[tested])
    put(copied, NEAR[tested], "train")
    leak = r"found 1 leaks of 6 queries looked at: 1 of train near test by (tokens|edits); .*near_duplicates: drop"
    with pytest.raises(ContractError, match=leak) as told:
        copied.run("finetune_cross_encoder", "refused", name="relevance-2")
    assert NEAR[tested] not in str(told.value)
    assert not (copied.models / "relevance-2").exists()
    with pytest.raises(ContractError, match=r"of train near test by cosine"):
        copied.run("finetune_cross_encoder", "by-cosine", name="relevance-2", min_cosine=0.01)
    runs = {row["run_id"]: row["rows"] for row in copied.rows(RUNS).where(f"job = '{JOB}'").collect()}
    assert runs["by-cosine"]["embedded"] >= 1, "those that had no vector yet"
    summary = copied.run("finetune_cross_encoder", "dropped", name="relevance-2", near_duplicates="drop")
    assert (summary.rows["leaks"], summary.rows["dropped_queries"]) == (1, 1)
    assert summary.rows["train_pairs"] == runs["first"]["train_pairs"], "its pair is not learnt from"
    assert sides(copied)[NEAR[tested]] == "train"


def test_the_same_training_is_done_once_and_another_takes_another_name(copied: Shop) -> None:
    before = (copied.models / "relevance-1" / "card.json").stat().st_mtime_ns
    again = copied.run("finetune_cross_encoder", "again")
    assert again.status == "nothing_to_do"
    assert "checkpoints" not in again.rows
    assert (copied.models / "relevance-1" / "card.json").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="a checkpoint never changes"):
        copied.run("finetune_cross_encoder", "other", epochs=1)


def test_the_same_seed_trains_the_same_weights(copied: Shop) -> None:
    """With a pair a step: the shop's one step an epoch starts at the rate 0, and would train nothing in the first."""
    for name in ("twin-1", "twin-2"):
        summary = copied.run("finetune_cross_encoder", name, name=name, batch_size=1)
        assert summary.status == "published", "a checkpoint is something new, though no table changed"
    first, second = (open_checkpoint(copied.models, name).card for name in ("twin-1", "twin-2"))
    assert first.files["model.safetensors"] == second.files["model.safetensors"]
    assert first.calibration == second.calibration
    assert first.metrics == second.metrics
    untrained = open_checkpoint(copied.models, "relevance-1").card
    assert first.files["model.safetensors"] != untrained.files["model.safetensors"]


def test_training_that_breaks_keeps_nothing_and_says_no_text(copied: Shop, monkeypatch: Any) -> None:
    base = copied.models / "base"
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    card = json.loads((base / "card.json").read_text())
    card["files"]["config.json"] = sha256(base / "config.json")
    (base / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"relevance-9: training ended early with status 1 \(\w+, by way of"):
        copied.run("finetune_cross_encoder", "broken", name="relevance-9")
    assert not (copied.models / "relevance-9").exists()
    assert not list(copied.models.glob("making-*"))
    row = copied.rows(RUNS).where("run_id = 'broken'").collect()[0]
    assert (row["status"], row["error"]) == ("failed", "CheckpointError")


def test_a_side_without_judgments_is_said_before_training(copied: Shop, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="expected pairs of nobody on the train side of split default, found none"):
        copied.run("finetune_cross_encoder", "nobody", judgment_set="nobody", name="x")


def test_classes_want_whole_grades_or_edges(copied: Shop) -> None:
    means = [
        (query, item, grade) for query in ("q1", "q2", "q3", "q4", "q5") for item, grade in (("i01", 2.5), ("i08", 1))
    ]
    copied.write("judgments", "id,sku,grade", means)
    copied.run("import_judgments", "means", mode="upsert", fractional_grades=True)
    copied.run("build_texts", "means")
    said = (
        r"head classes: expected grades of 0, 1, 2, 3, found \d+ between them; set finetune_cross_encoder.class_edges"
    )
    with pytest.raises(ContractError, match=said):
        copied.run("finetune_cross_encoder", "classes", name="classes", head="classes")


def test_teachers_that_may_know_the_tested_queries_or_say_no_grade_are_refused_without_spark(copied: Shop) -> None:
    config = copied.config(JOB)
    fits = {"split": "default", "min_cosine": config.min_cosine, "max_edits": config.max_edits, "head": "mse"}
    foreign = {"fields": {"title": 7}}
    for name, recipe, settings, said in (
        ("foreign", foreign, fits, "expected the text recipe of these settings, found another"),
        ("ranks", config.recipe, {**fits, "head": "lambda"}, "expected a head of bce or mse, found lambda"),
        ("elsewhere", config.recipe, {**fits, "split": "other"}, "it may know the queries"),
        ("loose", config.recipe, {**fits, "min_cosine": 0.987}, "it may know the queries"),
    ):
        tiny.checkpoint(copied.models, name, recipe=recipe, settings=settings)
        config = copied.config(JOB, name="x", distillation={"teachers": [name]})
        with pytest.raises(CheckpointError, match=f"distillation.teachers: {name}: .*{said}"):
            run(None, config, name)  # type: ignore[arg-type]
    config = copied.config(JOB, name="x", teacher="loose", hard_negatives={"per_query": 1})
    with pytest.raises(CheckpointError, match=r"finetune_cross_encoder\.teacher: loose: .*it may know the queries"):
        run(None, config, "negatives")  # type: ignore[arg-type]


def test_classes_negatives_auxiliary_resuming_and_curves_reach_the_training(copied: Shop, tmp_path: Path) -> None:
    """All at once, since each run costs seconds: what each does is tested in models/test_finetune."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # BM25 proposes little in a shop of twelve items: candidates that nobody judged are put there.
    train = [bytes(row["query_id"]) for row in copied.rows(SPLITS).where("side = 'train'").collect()]
    judged = {(bytes(row["query_id"]), row["item_id"]) for row in copied.rows(JUDGMENTS).collect()}
    rows = [
        {"query_id": query, "item_id": item, "sources": {"bm25": 1.0}}
        for query in train for item in ("i03", "i06", "i10") if (query, item) not in judged
    ]  # fmt: skip
    frame = build_rows(copied.spark, CANDIDATES, *rows).drop("changed_by")
    change = tables.compare(copied.warehouse, CANDIDATES, frame, Author("test", "put"), deletes=False)
    tables.publish(copied.warehouse, change, Author("test", "put"))
    summary = copied.run(
        "finetune_cross_encoder",
        "all",
        name="all",
        hard_negatives={"per_query": 2, "skip_first": 0, "max_share_of_positive": 1.0, "max_overlap": 1.0},
        head="classes",
        class_edges=[1.5],
        auxiliary={"field": "brand"},
        augmentation={"typos": 1.0},
        resume_folder=str(tmp_path / "kept"),
        tracking={"tensorboard": str(tmp_path / "curves")},
    )
    assert summary.rows["candidate_pairs"] >= len(rows) > 0
    card = open_checkpoint(copied.models, "all").card
    assert "candidates" in card.data
    assert len(card.class_gains) == 2
    assert "resume_folder" not in card.settings, "a path of this machine"
    curves = EventAccumulator(str(tmp_path / "curves" / "all-all")).Reload()
    assert curves.Scalars("validation/ndcg_at_10")
    assert not list((tmp_path / "kept").glob("*")), "what was kept is taken away at the end"
    taught = copied.run(
        "finetune_cross_encoder",
        "taught",
        name="taught",
        epochs=1,
        distillation={"teachers": ["relevance-1"], "candidates_per_query": 1},
    )
    assert taught.rows["candidate_pairs"] > 0
    pairs = open_checkpoint(copied.models, "taught").card.metrics["pairs"]
    assert (pairs["train"], pairs["unjudged"]) == (taught.rows["train_pairs"], len(train)), "one candidate a query"
    with pytest.raises(ValueError, match="expected a folder outside models_folder"):
        copied.run("finetune_cross_encoder", "inside", name="x", resume_folder=str(copied.models / "kept"))
