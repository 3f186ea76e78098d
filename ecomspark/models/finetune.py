"""Fine-tune a cross-encoder from graded pairs, in a process of its own: torch stays out of Spark's driver.

    python -m ecomspark.models.finetune FOLDER

reads FOLDER/plan.json and FOLDER/examples.parquet, writes the checkpoint, and prints its progress as JSON lines.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, MSELoss
from transformers import TrainerCallback, set_seed

from ecomspark.errors import way
from ecomspark.metrics import gain_of, ndcg
from ecomspark.models import embedder
from ecomspark.models.calibration import calibrate
from ecomspark.models.checkpoint import TOKENIZER_FILES, Card, Checkpoint, open_checkpoint, seal, workroom
from ecomspark.models.cross_encoder import pair_tokenizer
from ecomspark.models.encoder import padded, sorted_by_length
from ecomspark.models.tokens import SequenceTokenizer, Texts

_TOKEN_BUDGET = 2048
_NDCG_AT = 10

Report = Callable[[dict[str, Any]], None]


class Plan(BaseModel):
    """What to train, from what, and how. Written by the job, read by the process that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_folder: Path
    base: str
    name: str
    card: Card
    loss: Literal["bce", "mse"]
    trains_word_vectors: bool
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    patience: int
    seed: int
    gains: dict[int, float]


def fine_tune(plan: Plan, examples: pd.DataFrame, report: Report) -> Checkpoint:
    """Train, keep the state with the best validation NDCG@10, calibrate it, and seal the checkpoint.

    `examples`: query_id, query_text, item_id, passage_text, grade, and side (train or validation; no query on both).
    The target is the grade divided by the best grade. Raises CheckpointError when the base or the outcome does not
    verify, ValueError when a side is empty.
    """
    base = open_checkpoint(plan.models_folder, plan.base, "encoder")
    train = examples[examples["side"] == "train"]
    validation = examples[examples["side"] == "validation"].sort_values(["query_id", "item_id"])
    if train.empty or validation.empty:
        raise ValueError(f"{len(train)} pairs to train on, {len(validation)} to validate on; both need some")
    set_seed(plan.seed)
    tokenizer = pair_tokenizer(base.folder, plan.card)
    model = CrossEncoder(str(base.folder), num_labels=1, local_files_only=True, trust_remote_code=False)
    if not plan.trains_word_vectors:
        model.model.get_input_embeddings().weight.requires_grad_(False)
    # The trainer reads exactly the ids that scoring will read.
    model.preprocess = lambda pairs, **_: _inputs(tokenizer, pairs)
    best = _Best(tokenizer, validation, plan, report)
    before = _cosine_ndcg(base, validation, plan.gains)
    report({"step": "before", "ndcg@10": before, "of": "the untuned encoder's cosine, validation queries"})

    # Both read the logit through a sigmoid: what `scores.activation` is.
    loss = BinaryCrossEntropyLoss(model) if plan.loss == "bce" else MSELoss(model, activation_fn=torch.nn.Sigmoid())
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            num_train_epochs=plan.epochs,
            per_device_train_batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            warmup_steps=plan.warmup_share,
            weight_decay=plan.weight_decay,
            optim="adamw_torch",
            seed=plan.seed,
            save_strategy="no",  # the trainer would write its states as pickles
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
        )
        top = max(plan.gains)
        rows = Dataset.from_dict(
            {
                "query": list(train["query_text"]),
                "passage": list(train["passage_text"]),
                "label": [grade / top for grade in train["grade"]],
            }
        )
        _Trainer(model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[best]).train()
    best.restore(model.model)
    return _sealed(plan, base, model.model, tokenizer, validation, before, best)


class _Trainer(CrossEncoderTrainer):
    """Without the library's own model card, which would keep examples of the texts; ours is card.json."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        return None


class _Best(TrainerCallback):
    """Judges each epoch on the validation queries, keeps the best state in memory, stops when patience is out."""

    def __init__(self, tokenizer: SequenceTokenizer, validation: pd.DataFrame, plan: Plan, report: Report) -> None:
        self._tokenizer, self._validation, self._plan, self._report = tokenizer, validation, plan, report
        self._state: dict[str, torch.Tensor] = {}
        self.ndcg, self.epoch = -1.0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 20 == 0:
            self._report({"step": "train", "at": state.global_step, "of": state.max_steps})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: torch.nn.Module = kwargs["model"].model
        found = _ndcg(self._validation, _logits(model, self._tokenizer, self._validation), self._plan.gains)
        epoch = round(state.epoch)
        if found > self.ndcg:
            self.ndcg, self.epoch = found, epoch
            self._state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        self._report({"step": "epoch", "at": epoch, "of": self._plan.epochs, "ndcg@10": found, "best": self.ndcg})
        if epoch - self.epoch >= self._plan.patience:
            control.should_training_stop = True
        model.train()

    def restore(self, model: torch.nn.Module) -> None:
        model.load_state_dict(self._state)


def _sealed(
    plan: Plan,
    base: Checkpoint,
    model: Any,
    tokenizer: SequenceTokenizer,
    validation: pd.DataFrame,
    before: float,
    best: _Best,
) -> Checkpoint:
    logits = _logits(model, tokenizer, validation)
    card = plan.card.model_copy(
        update={
            "metrics": {"before": {"ndcg@10": before}, "after": {"ndcg@10": best.ndcg, "epoch": float(best.epoch)}},
            "calibration": calibrate(logits.tolist(), [gain_of(grade, plan.gains) for grade in validation["grade"]]),
        }
    )
    made = workroom(plan.models_folder)
    try:
        model.save_pretrained(made, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (base.folder / name).exists():
                shutil.copyfile(base.folder / name, made / name)
        return seal(made, plan.models_folder, plan.name, card)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _inputs(tokenizer: SequenceTokenizer, pairs: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    made = tokenizer.pairs(Texts.of([query for query, _ in pairs]), Texts.of([passage for _, passage in pairs]))
    inputs = padded(made, np.arange(len(pairs)), tokenizer.padding_id)
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def _logits(model: torch.nn.Module, tokenizer: SequenceTokenizer, pairs: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Logits by the model's plain forward pass: the engine would take its encoder apart while it is trained."""
    device = next(model.parameters()).device
    made = tokenizer.pairs(Texts.of(list(pairs["query_text"])), Texts.of(list(pairs["passage_text"])))
    logits = np.empty(len(made), dtype=np.float32)
    model.eval()
    with torch.inference_mode():
        for rows in sorted_by_length(made.token_counts, _TOKEN_BUDGET):
            inputs = padded(made, rows, tokenizer.padding_id)
            found = model(**{name: torch.from_numpy(values).to(device) for name, values in inputs.items()})
            logits[rows] = found.logits[:, 0].float().cpu().numpy()
    return logits


def _cosine_ndcg(base: Checkpoint, pairs: pd.DataFrame, gains: dict[int, float]) -> float:
    encoder = embedder.load(base.folder, base.scorer_digest, token_budget=_TOKEN_BUDGET)
    queries = encoder.embed(list(pairs["query_text"]), "query")
    passages = encoder.embed(list(pairs["passage_text"]), "passage")
    return _ndcg(pairs, _cosines(queries, passages), gains)


def _cosines(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    one, other = one.astype(np.float64), other.astype(np.float64)  # vectors of whole numbers are not of unit length
    products = (one * other).sum(axis=1)
    return products / np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))  # type: ignore[no-any-return]


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
