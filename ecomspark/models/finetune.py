"""Fine-tune a cross-encoder from graded pairs, in a process of its own: torch stays out of Spark's driver.

    python -m ecomspark.models.finetune FOLDER

reads FOLDER/plan.json and FOLDER/examples.parquet, writes the checkpoint, and prints its progress as JSON lines.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from sentence_transformers.cross_encoder import CrossEncoder
from transformers import set_seed

from ecomspark.augmentation import Augmentation, augmented
from ecomspark.errors import way
from ecomspark.metrics import gain_of, ndcg
from ecomspark.models import heads, layers
from ecomspark.models.calibration import calibrate
from ecomspark.models.checkpoint import TOKENIZER_FILES, Card, Checkpoint, open_checkpoint, seal, workroom
from ecomspark.models.classes import class_gains, expected_gain_logits
from ecomspark.models.cross_encoder import pair_tokenizer
from ecomspark.models.distillation import distilled
from ecomspark.models.encoder import padded, sorted_by_length
from ecomspark.models.options import PAIR_HEADS, Head, Training
from ecomspark.models.precision import learning_precision
from ecomspark.models.similarity import similarities
from ecomspark.models.tokens import SequenceTokenizer, Texts
from ecomspark.models.trainer import EachEpoch, Judge, Report, forget, train
from ecomspark.negatives import mined

_TOKEN_BUDGET = 2048
_NDCG_AT = 10


class Plan(BaseModel):
    """What to train, from what, and how. Written by the job, read by the process that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_folder: Path
    base: str
    name: str
    card: Card
    gains: dict[int, float]
    training: Training
    teacher: str | None = None  # tells hard negatives from false ones; None: the base


def fine_tune(plan: Plan, examples: pd.DataFrame, report: Report) -> Checkpoint:
    """Train, keep the state that is best on the validation queries, calibrate it, and seal the checkpoint.

    `examples`: query_id, query_text, item_id, passage_text, grade, and side (train or validation; no query on both);
    for an auxiliary head its field, too; rows of the side `candidate`, with place, are what hard negatives are taken
    from, and pairs that teachers alone grade. Raises CheckpointError when the base, a teacher or the outcome does not
    verify, ValueError when a side is empty, or when head and grades do not go together.
    """
    base = open_checkpoint(plan.models_folder, plan.base, "encoder")
    of_train = examples[examples["side"] == "train"].reset_index(drop=True)
    validation = examples[examples["side"] == "validation"].sort_values(["query_id", "item_id"], ignore_index=True)
    if of_train.empty or validation.empty:
        raise ValueError(f"{len(of_train)} pairs to train on, {len(validation)} to validate on; both need some")
    if plan.training.threads is not None:
        torch.set_num_threads(plan.training.threads)
    before = _cosine_ndcg(base, validation, plan.gains)
    judged_count = len(of_train)
    of_train = _with_negatives(plan, base, examples, of_train, report)
    of_train = _with_teachers(plan, examples, of_train, report)
    report({"step": "before", "ndcg@10": before, "of": "the untuned encoder's cosine, validation queries"})
    metrics: dict[str, dict[str, float]] = {"before": {"ndcg@10": before}}
    settings = plan.training
    if settings.head == "auto":
        metrics["auto"] = _tried(plan, base, of_train, validation, report)
        best = max(metrics["auto"], key=lambda head: metrics["auto"][head])
        report({"step": "auto", "found": metrics["auto"], "takes": best})
        settings = settings.model_copy(update={"head": best})
    with tempfile.TemporaryDirectory() as temporary:
        kept = settings.resume_folder and settings.resume_folder / (plan.card.training_digest or plan.name)
        learnt = Learnt(plan, base, settings, of_train)
        judge = learnt.fit(of_train, validation, report, Path(kept or temporary))
        best_look = judge.best
        metrics["after"] = {
            "ndcg@10": best_look["ndcg"],
            "spearman": best_look["spearman"],
            "epoch": round(best_look["epoch"], 3),
        }
        unjudged_count = len(of_train) - judged_count  # hard negatives and what teachers alone graded
        metrics["pairs"] = {
            "train": float(judged_count),
            "validation": float(len(validation)),
            "unjudged": float(unjudged_count),
        }
        # Of a training that was resumed: what was read since.
        metrics["read"] = {"tokens": learnt.reader.token_count, "padding": learnt.reader.padding_count}
        made = learnt.sealed(validation, metrics)
        if kept:
            forget(kept)
    return made


class Learnt:
    """A model in training, with the tokenizer that it will be asked with, and the head that it learns."""

    def __init__(self, plan: Plan, base: Checkpoint, settings: Training, of_train: pd.DataFrame) -> None:
        set_seed(settings.seed)
        self._plan, self._base, self._settings = plan, base, settings
        self.head: Head = settings.head  # type: ignore[assignment]  # auto is decided by now
        self._class_gains: list[float] = []
        if self.head == "classes":
            self._class_gains = class_gains(list(of_train["grade"]), plan.gains, settings.class_edges)
        labels = len(self._class_gains) or 1
        self.model = CrossEncoder(str(base.folder), num_labels=labels, local_files_only=True, trust_remote_code=False)
        self._changed = layers.choose(self.model.model, settings)
        self.reader = _Reader(pair_tokenizer(base.folder, plan.card))
        # The trainer reads exactly the ids that scoring will read.
        self.model.preprocess = self.reader.inputs

    def _change(self, of_train: pd.DataFrame, epoch: int) -> dict[str, int]:
        """Let the reader read the texts that an epoch has; how many pairs each kind of change was made to."""
        settings = self._settings
        by_query = self.head not in PAIR_HEADS
        changed, counts = augmented(of_train, settings.augmentation, settings.seed, epoch, is_one_text_a_query=by_query)
        names = ["query_text", "passage_text"]
        pairs = zip(of_train[names].itertuples(index=False), changed[names].itertuples(index=False), strict=True)
        self.reader.changed = {tuple(own): tuple(other) for own, other in pairs if own != other}
        return counts

    def fit(self, of_train: pd.DataFrame, validation: pd.DataFrame, report: Report, folder: Path) -> Judge:
        """Train; the best state is in the model afterwards."""
        settings = self._settings
        rows = heads.rows_of(self.head, of_train, self._plan.gains, settings.class_edges, settings.auxiliary)
        loss = heads.loss_of(self.head, self.model)
        if settings.auxiliary is not None:
            loss = heads.WithAuxiliary(loss, self.model, settings.auxiliary)
        judge = Judge(
            lambda: _found(validation, self.logits(validation), self._plan.gains),
            loss,
            settings,
            report,
            folder if settings.resume_folder else None,
        )
        lengths = self.reader.row_lengths(rows["query"], rows["passage"])
        a_step = heads.rows_a_step(self.head, rows, settings.batch_size)
        changes = EachEpoch(lambda epoch: report({"step": "augmented", **self._change(of_train, epoch)}))
        callbacks = [changes] if settings.augmentation != Augmentation() else []
        train(self.model, loss, rows, lengths, a_step, settings, judge, folder, callbacks)
        return judge

    def logits(self, pairs: pd.DataFrame) -> np.ndarray[Any, Any]:
        """One logit a pair by the plain forward pass: the engine would take the encoder apart while it is trained."""
        model: Any = self.model.model
        was_training = model.training
        device = next(model.parameters()).device
        made = self.reader.tokenizer.pairs(Texts.of(list(pairs["query_text"])), Texts.of(list(pairs["passage_text"])))
        logits = np.empty(len(made), dtype=np.float32)
        model.eval()
        with torch.inference_mode():
            for rows in sorted_by_length(made.token_counts, _TOKEN_BUDGET):
                inputs = padded(made, rows, self.reader.tokenizer.padding_id)
                outputs = model(**{n: torch.from_numpy(v).to(device) for n, v in inputs.items()}).logits.float()
                one = expected_gain_logits(outputs, self._class_gains) if self._class_gains else outputs[:, 0]
                logits[rows] = one.cpu().numpy()
        model.train(was_training)
        return logits

    def sealed(self, validation: pd.DataFrame, metrics: dict[str, dict[str, float]]) -> Checkpoint:
        """Merge, calibrate on the validation queries, and put the checkpoint into its place."""
        plan, model = self._plan, layers.merged(self._changed)
        logits = self.logits(validation)
        settings = {**plan.card.settings, "precision": learning_precision(plan.training.precision)}
        if settings.get("head") == "auto":
            settings["head"] = self.head
        card = plan.card.model_copy(
            update={
                "settings": settings,
                "metrics": metrics,
                "class_gains": self._class_gains,
                "calibration": calibrate(
                    logits.tolist(), [gain_of(grade, plan.gains) for grade in validation["grade"]]
                ),
            }
        )
        made = workroom(plan.models_folder)
        try:
            model.save_pretrained(made, safe_serialization=True)
            for name in TOKENIZER_FILES:
                if (self._base.folder / name).exists():
                    shutil.copyfile(self._base.folder / name, made / name)
            return seal(made, plan.models_folder, plan.name, card)
        finally:
            shutil.rmtree(made, ignore_errors=True)


class _Reader:
    """Makes the trainer's inputs, and counts what the model reads: a pass forward and one backward a token."""

    def __init__(self, tokenizer: SequenceTokenizer) -> None:
        self.tokenizer = tokenizer
        self.token_count = self.padding_count = 0
        self.changed: Mapping[tuple[str, str], tuple[str, str]] = {}  # augmented pairs of the epoch, by the pair

    def inputs(self, pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, torch.Tensor]:
        read = [self.changed.get((query, passage), (query, passage)) for query, passage in pairs]
        made = self.tokenizer.pairs(Texts.of([query for query, _ in read]), Texts.of([passage for _, passage in read]))
        inputs = padded(made, np.arange(len(read)), self.tokenizer.padding_id)
        tokens = int(made.token_counts.sum())
        self.token_count += tokens
        self.padding_count += inputs["input_ids"].size - tokens
        return {name: torch.from_numpy(values) for name, values in inputs.items()}

    def row_lengths(self, queries: Sequence[str], passages: Sequence[Any]) -> list[int]:
        """Tokens of each row of the trainer; of a row of many passages those of its longest pair."""
        counts = [len(of) if isinstance(of, list) else 1 for of in passages]
        flat = [one for of in passages for one in (of if isinstance(of, list) else [of])]
        asked = [query for query, count in zip(queries, counts, strict=True) for _ in range(count)]
        lengths = self.tokenizer.pairs(Texts.of(asked), Texts.of(flat)).token_counts
        return [int(lengths[end - count : end].max()) for count, end in zip(counts, np.cumsum(counts), strict=True)]


def _with_negatives(
    plan: Plan, base: Checkpoint, examples: pd.DataFrame, of_train: pd.DataFrame, report: Report
) -> pd.DataFrame:
    """The training pairs with the hard negatives that the settings ask for, each of the worst grade."""
    settings, candidates = plan.training.hard_negatives, examples[examples["side"] == "candidate"]
    if not settings.per_query:
        return of_train
    # Teachers may have asked for more of them.
    candidates = candidates[candidates.groupby("query_id")["place"].rank(method="first") <= settings.places]
    teacher = open_checkpoint(plan.models_folder, plan.teacher) if plan.teacher else base

    def similarity(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray[Any, Any]:
        return similarities(teacher, queries, passages, token_budget=_TOKEN_BUDGET)

    judged = examples[examples["side"] != "candidate"]
    found, counts = mined(candidates, judged, similarity, settings, sorted(plan.gains))
    report({"step": "negatives", **counts})
    together = pd.concat([of_train, found[["query_id", "query_text", "item_id", "passage_text", "grade", "side"]]])
    return together.sort_values(["query_id", "item_id"], ignore_index=True)


def _with_teachers(plan: Plan, examples: pd.DataFrame, of_train: pd.DataFrame, report: Report) -> pd.DataFrame:
    """The training pairs as the teachers of `distillation` see them, too."""
    settings = plan.training.distillation
    if not settings.teachers:
        return of_train
    teachers = [open_checkpoint(plan.models_folder, name, "cross_encoder") for name in settings.teachers]

    def scores(queries: Sequence[str], passages: Sequence[str]) -> np.ndarray[Any, Any]:
        said = [similarities(teacher, queries, passages, token_budget=_TOKEN_BUDGET) for teacher in teachers]
        return np.mean(said, axis=0)  # type: ignore[no-any-return]

    is_candidate = examples["side"] == "candidate"
    made, counts = distilled(
        of_train, examples[is_candidate], examples[~is_candidate], scores, settings, sorted(plan.gains)
    )
    report({"step": "distilled", **counts})
    return made


def _tried(
    plan: Plan, base: Checkpoint, of_train: pd.DataFrame, validation: pd.DataFrame, report: Report
) -> dict[str, float]:
    """Validation NDCG@10 of each head of `auto`, trained on the same part of the training queries."""
    auto = plan.training.auto
    queries = sorted(set(of_train["query_id"]))
    drawn = np.random.default_rng(plan.training.seed).permutation(len(queries))[
        : max(2, round(auto.share * len(queries)))
    ]
    part = of_train[of_train["query_id"].isin({queries[place] for place in drawn})].reset_index(drop=True)
    found: dict[str, float] = {}
    for head in auto.heads:
        settings = plan.training.model_copy(update={"head": head, "epochs": auto.epochs, "resume_folder": None})
        with tempfile.TemporaryDirectory() as folder:
            try:
                learnt = Learnt(plan, base, settings, part)
                judge = learnt.fit(part, validation, partial(_of_head, report, head), Path(folder))
            except ValueError as error:  # such as a grade or a comparison that this part has none of
                report({"step": "left", "head": head, "error": type(error).__name__, "way": way(error)})
                continue
        found[head] = judge.best["ndcg"]
        report({"step": "head", "head": head, "ndcg@10": found[head], "pairs": len(part)})
    if not found:
        raise ValueError("head auto: none of the heads can be learnt from this part of the queries; raise auto.share")
    return found


def _of_head(report: Report, head: str, said: dict[str, Any]) -> None:
    """What is said of a training on trial names its head, so that its curves are its own."""
    report({**said, "on_trial": head})


def _cosine_ndcg(base: Checkpoint, pairs: pd.DataFrame, gains: dict[int, float]) -> float:
    found = similarities(base, list(pairs["query_text"]), list(pairs["passage_text"]), token_budget=_TOKEN_BUDGET)
    return _ndcg(pairs, found, gains)


def _found(pairs: pd.DataFrame, scores: np.ndarray[Any, Any], gains: dict[int, float]) -> dict[str, float]:
    """ndcg: `_ndcg`. spearman: rank correlation of score and grade over all pairs; 0 where one of them is constant."""
    ranks, of_grades = pd.Series(scores).rank(), pairs["grade"].rank()
    spearman = 0.0 if ranks.nunique() < 2 or of_grades.nunique() < 2 else float(np.corrcoef(ranks, of_grades)[0, 1])
    return {"ndcg": _ndcg(pairs, scores, gains), "spearman": spearman}


def _ndcg(pairs: pd.DataFrame, scores: np.ndarray[Any, Any], gains: dict[int, float]) -> float:
    """Mean NDCG@10 over the queries for which something judged is worth something; 0 if there is none."""
    ranked = pairs.assign(score=scores, gain=[gain_of(grade, gains) for grade in pairs["grade"]])
    ranked = ranked.sort_values(["query_id", "score", "item_id"], ascending=[True, False, True])
    found = [ndcg(list(of["gain"]), list(of["gain"]), _NDCG_AT) for _, of in ranked.groupby("query_id")]
    values = [value for value in found if value is not None]
    return float(np.mean(values)) if values else 0.0


def main(folder: Path) -> int:
    """Train what FOLDER/plan.json says; the last line printed names the checkpoint."""

    def report(progress: dict[str, Any]) -> None:
        print(json.dumps(progress), flush=True)

    plan = Plan.model_validate_json((folder / "plan.json").read_text(encoding="utf-8"))
    try:
        made = fine_tune(plan, pd.read_parquet(folder / "examples.parquet"), report)
    except Exception as error:  # by its class and place only: a message may hold a text
        report({"step": "failed", "error": type(error).__name__, "way": way(error)})
        return 1
    before, after = (made.card.metrics[when]["ndcg@10"] for when in ("before", "after"))
    report({"step": "done", "name": made.name, "before": before, "after": after})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
