"""Teach an encoder the words of a shop by masked language modelling, in a process of its own.

    python -m ecomspark.models.pretrain FOLDER

reads FOLDER/plan.json and FOLDER/texts.parquet, writes an encoder's checkpoint, and prints its progress as JSON lines.
A share of the tokens is hidden and guessed from the others (Devlin et al. 2019, section 3.1): it needs no judgments.
"""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ecomspark.errors import way
from ecomspark.models.checkpoint import TOKENIZER_FILES, Card, Checkpoint, open_checkpoint, seal, workroom
from ecomspark.models.encoder import sorted_by_length
from ecomspark.models.loading import load_tokenizer
from ecomspark.models.new_encoder import Size, new_model, new_tokenizer
from ecomspark.models.tokens import Sequences, SequenceTokenizer, Texts

_TOKEN_BUDGET = 4096  # of a batch that is only judged

Report = Callable[[dict[str, Any]], None]
Batch = Mapping[str, torch.Tensor]


class Plan(BaseModel):
    """What to train, from what, and how. Written by the job, read by the process that trains.

    `base`: an encoder's checkpoint; None: a new encoder of the size `new`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_folder: Path
    base: str | None
    new: Size | None
    name: str
    card: Card
    max_tokens: int
    masked_share: float
    epochs: int
    batch_size: int
    accumulation: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    max_gradient_norm: float
    patience: int
    seed: int
    threads: int | None


def pretrain(plan: Plan, texts: pd.DataFrame, report: Report) -> Checkpoint:
    """Train, keep the state with the lowest validation loss, and seal the encoder without the head that guesses.

    `texts`: text, and side (train or validation). What is hidden of the validation texts is drawn once, so that all
    epochs answer the same questions. Raises CheckpointError when the base or the outcome does not verify, ValueError
    when a side is empty, neither or both of base and size are given, or the loss is no number any more.
    """
    sides = {side: list(texts[texts["side"] == side]["text"]) for side in ("train", "validation")}
    if not all(sides.values()):
        raise ValueError(f"{len(sides['train'])} texts to train on, {len(sides['validation'])} to validate on")
    base = open_checkpoint(plan.models_folder, plan.base, "encoder") if plan.base is not None else None
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    set_seed(plan.seed)
    model, tokenizer = _begun(plan, base, sides["train"])
    reads = SequenceTokenizer(tokenizer, plan.max_tokens)  # the very ids that embedding reads
    rows, judged = (_Rows(reads.texts(Texts.of(of_side)), tokenizer) for of_side in sides.values())
    questions = _questions(judged, tokenizer, plan)
    before = _found(model, questions)
    report({"step": "before", "masked": before, "of": "the encoder as it was, with a new head where it had none"})

    best = _Best(questions, plan, report)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=plan.epochs,
            per_device_train_batch_size=plan.batch_size,
            gradient_accumulation_steps=plan.accumulation,
            train_sampling_strategy="group_by_length",
            learning_rate=plan.learning_rate,
            warmup_steps=plan.warmup_share,
            weight_decay=plan.weight_decay,
            max_grad_norm=plan.max_gradient_norm,
            optim="adamw_torch",
            seed=plan.seed,
            remove_unused_columns=False,  # the mask of special tokens is the collator's, not the model's
            save_strategy="no",  # the trainer would write its states as pickles
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        )
        hides = DataCollatorForLanguageModeling(tokenizer, mlm_probability=plan.masked_share)
        _Trainer(model=model, args=arguments, train_dataset=rows, data_collator=hides, callbacks=[best]).train()
    best.restore(model)
    card = plan.card.model_copy(update={"metrics": {"before": before, "after": best.found}})
    return _sealed(plan, base, model, tokenizer, card)


def _begun(plan: Plan, base: Checkpoint | None, texts: Sequence[str]) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model that guesses tokens, and its tokenizer. A base brings its head or is given a new one; the last layer of
    either is the table of word vectors itself."""
    if base is not None and plan.new is None:
        model = AutoModelForMaskedLM.from_pretrained(
            str(base.folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            tie_word_embeddings=True,
        )
        tokenizer = load_tokenizer(base.folder)
    elif base is None and plan.new is not None:
        tokenizer = new_tokenizer(texts, plan.new.vocabulary, plan.card.recipe.is_lowercase)
        model = new_model(plan.new, tokenizer)
    else:
        raise ValueError("expected either a base or the size of a new encoder")
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError("its head has word vectors of its own, which would learn in the place of the encoder's")
    model.accepts_loss_kwargs = True  # the trainer counts what is hidden in all batches of a step
    return model, tokenizer


class _Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenised texts as the collator wants them. What stands for an unknown token is never asked for."""

    def __init__(self, sequences: Sequences, tokenizer: PreTrainedTokenizerBase) -> None:
        self._sequences = sequences
        self._is_special = np.isin(sequences.ids.flat, tokenizer.all_special_ids)

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row >= len(self):
            raise IndexError(row)  # by which the trainer's sampler finds the end
        start, end = self._sequences.ids.starts[row : row + 2]
        made = {
            "input_ids": self._sequences.ids.flat[start:end].tolist(),
            "special_tokens_mask": self._is_special[start:end].astype(int).tolist(),
        }
        if self._sequences.type_ids is not None:
            made["token_type_ids"] = self._sequences.type_ids[start:end].tolist()
        return made

    @property
    def token_counts(self) -> Any:
        return self._sequences.token_counts


class _Trainer(Trainer):
    """The mean over all hidden tokens of a step, whichever of its batches they are in."""

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        logits, answers = guesses(model, inputs)
        count = len(answers) if num_items_in_batch is None else int(num_items_in_batch)
        return torch.nn.functional.cross_entropy(logits, answers, reduction="sum") / max(1, count)


def guesses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of shape (hidden tokens, vocabulary), the tokens that were hidden), of a batch with `labels`.

    The head sees the vectors of the hidden tokens alone: over all of them it would cost as much as a small encoder.
    """
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    is_hidden = batch["labels"] != -100

    def keep_hidden(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[is_hidden][None]
        return output

    hook = model.base_model.register_forward_hook(keep_hidden)
    try:
        return model(**inputs).logits[0].float(), batch["labels"][is_hidden]
    finally:
        hook.remove()


def _questions(rows: _Rows, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> list[Batch]:
    """The validation texts in batches, hidden once and for all."""
    hides = DataCollatorForLanguageModeling(tokenizer, mlm_probability=plan.masked_share, seed=plan.seed)
    batches = sorted_by_length(rows.token_counts, _TOKEN_BUDGET)
    made: list[Batch] = [dict(hides([rows[row] for row in batch])) for batch in batches]
    if not any((batch["labels"] != -100).any() for batch in made):
        raise ValueError("no token of the validation texts is hidden: more texts, or a larger share")
    return made


def _found(model: Any, questions: Sequence[Batch]) -> dict[str, float]:
    """Loss in nats a hidden token, perplexity, and the share that was guessed right."""
    device = model.get_input_embeddings().weight.device
    loss, right, count = 0.0, 0, 0
    model.eval()
    with torch.inference_mode():
        for batch in questions:
            logits, answers = guesses(model, {name: values.to(device) for name, values in batch.items()})
            loss += float(torch.nn.functional.cross_entropy(logits, answers, reduction="sum"))
            right += int((logits.argmax(dim=1) == answers).sum())
            count += len(answers)
    mean = loss / count
    return {"loss": mean, "perplexity": math.exp(min(mean, 100.0)), "accuracy": right / count}


class _Best(TrainerCallback):
    """Asks the questions after each epoch, keeps the best state in memory, stops when patience is out."""

    def __init__(self, questions: Sequence[Batch], plan: Plan, report: Report) -> None:
        self._questions, self._plan, self._report = questions, plan, report
        self._state: dict[str, torch.Tensor] = {}
        self.found: dict[str, float] = {"loss": math.inf, "epoch": 0.0}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 20 == 0:
            self._report({"step": "train", "at": state.global_step, "of": state.max_steps})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: torch.nn.Module = kwargs["model"]
        found, epoch = _found(model, self._questions), round(state.epoch)
        if not math.isfinite(found["loss"]):
            raise ValueError("the validation loss is no number any more; a lower learning rate may help")
        if found["loss"] < self.found["loss"]:
            self.found = {**found, "epoch": float(epoch)}
            self._state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        best = self.found["loss"]
        self._report({"step": "epoch", "at": epoch, "of": self._plan.epochs, "masked": found, "best": best})
        if epoch - self.found["epoch"] >= self._plan.patience:
            control.should_training_stop = True
        model.train()

    def restore(self, model: torch.nn.Module) -> None:
        model.load_state_dict(self._state)


def _sealed(
    plan: Plan, base: Checkpoint | None, model: Any, tokenizer: PreTrainedTokenizerBase, card: Card
) -> Checkpoint:
    made = workroom(plan.models_folder)
    try:
        _encoder(base, model.base_model).save_pretrained(made)
        if base is None:
            tokenizer.save_pretrained(made)
        else:
            for name in (name for name in TOKENIZER_FILES if (base.folder / name).exists()):
                shutil.copyfile(base.folder / name, made / name)
        return seal(made, plan.models_folder, plan.name, card)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _encoder(base: Checkpoint | None, trained: Any) -> Any:
    """The trained encoder, with the base's pooler, where it had one: guessing tokens needs none, a classifier does."""
    if base is None:
        return trained
    whole, loading = AutoModel.from_pretrained(
        str(base.folder), local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
    )
    if loading["missing_keys"]:
        return trained
    whole.load_state_dict({**whole.state_dict(), **trained.state_dict()})  # refuses weights of another name
    return whole


def main(folder: Path) -> int:
    """Train what FOLDER/plan.json says; the last line printed names the checkpoint."""

    def report(progress: dict[str, Any]) -> None:
        print(json.dumps(progress), flush=True)

    plan = Plan.model_validate_json((folder / "plan.json").read_text(encoding="utf-8"))
    try:
        made = pretrain(plan, pd.read_parquet(folder / "texts.parquet"), report)
    except Exception as error:  # by its class and place only: a message may hold a text
        report({"step": "failed", "error": type(error).__name__, "way": way(error)})
        return 1
    before, after = (made.card.metrics[when] for when in ("before", "after"))
    report({"step": "done", "name": made.name, "before": before, "masked": after})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
