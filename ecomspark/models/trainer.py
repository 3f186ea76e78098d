"""sentence-transformers' trainer with what ours needs besides: length-grouped batches, noise, resuming without pickles
of models, and judging on validation queries.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from transformers import PrinterCallback, TrainerCallback, TrainerState

from ecomspark.models import layers
from ecomspark.models.options import Training
from ecomspark.models.precision import learning_precision

_STATE, _BEST, _LOOKS = "trainer_state.json", "best.safetensors", "looks.json"
_WEIGHTS = "loss.safetensors"
_SORTED_BATCHES = 50  # batches of a draw among which pairs are sorted by length; as many as transformers takes
_REPORT_STEPS = 20

Report = Callable[[dict[str, Any]], None]


class ByLength(DefaultBatchSampler):
    """Batches of rows of like length, in a random order that (seed, epoch) alone decide: resuming finds the same."""

    def __init__(self, dataset: Dataset, batch_size: int, lengths: NDArray[np.int64], seed: int, **_: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=False, seed=seed)
        self._lengths = lengths

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch or 0])
        order, size = draw.permutation(len(self._lengths)), self.batch_size
        batches = []
        for start in range(0, len(order), size * _SORTED_BATCHES):
            together = order[start : start + size * _SORTED_BATCHES]
            together = together[np.argsort(-self._lengths[together], kind="stable")]
            batches += [together[at : at + size].tolist() for at in range(0, len(together), size)]
        for place in draw.permutation(len(batches)):
            yield batches[place]

    def __len__(self) -> int:
        return -(-len(self._lengths) // self.batch_size)


class Trainer(CrossEncoderTrainer):
    """Trains a loss. `noise` > 0: after each pass a second one, over word vectors moved against the loss."""

    def __init__(self, *, noise: float, **given: Any) -> None:
        super().__init__(**given)
        self._learnt: torch.nn.Module = given["loss"]
        model: Any = given["model"].model
        self._noise = Noise(model.get_input_embeddings(), noise) if noise else None

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the library's own card would keep examples of the texts; ours is card.json."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if self._noise is None:
            return super().training_step(model, inputs, num_items_in_batch)
        with self._noise.listening():
            loss = super().training_step(model, dict(inputs), num_items_in_batch)
        with self._noise.moved():
            super().training_step(model, dict(inputs), num_items_in_batch)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Of a training that may be resumed: the weights of the loss and of the model in it, as safetensors."""
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_own(self._learnt), folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        found = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        self._learnt.load_state_dict(found, strict=False)  # shared tensors are written once; the names below are all
        if missing := set(_own(self._learnt)) - set(found):
            raise ValueError(f"{len(missing)} weights are not in what was kept of an interrupted training")


class Noise:
    """Fast gradient steps on word vectors (Miyato et al. 2017): each sequence's vectors are moved by `length` along
    their own gradient, and the loss there is learnt from, too."""

    def __init__(self, embeddings: torch.nn.Module, length: float) -> None:
        self._length, self._hears, self._adds = length, False, False
        self._vectors: list[torch.Tensor] = []
        self._moves: Iterator[torch.Tensor] = iter(())
        embeddings.register_forward_hook(self._hook)

    def _hook(self, _: torch.nn.Module, __: Any, vectors: torch.Tensor) -> torch.Tensor:
        if self._adds:
            return vectors + next(self._moves)
        if self._hears:
            vectors = vectors if vectors.requires_grad else vectors.requires_grad_(True)
            vectors.retain_grad()
            self._vectors.append(vectors)
        return vectors

    def listening(self) -> "_Switched":
        self._vectors = []
        return _Switched(self, "_hears")

    def moved(self) -> "_Switched":
        gradients = [of.grad for of in self._vectors if of.grad is not None]
        lengths = [torch.linalg.vector_norm(of, dim=(1, 2), keepdim=True).clamp_min(1e-12) for of in gradients]
        self._moves = iter([self._length * of / at for of, at in zip(gradients, lengths, strict=True)])
        return _Switched(self, "_adds")


class _Switched:
    """A flag of `Noise` that is up within a block."""

    def __init__(self, noise: Noise, flag: str) -> None:
        self._noise, self._flag = noise, flag

    def __enter__(self) -> None:
        setattr(self._noise, self._flag, True)

    def __exit__(self, *_: Any) -> None:
        setattr(self._noise, self._flag, False)


class EachEpoch(TrainerCallback):
    """Does something at the beginning of each epoch, also of one that is gone on with."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._act(int(state.epoch or 0))


class Judge(TrainerCallback):
    """Judges the model on validation queries so many times an epoch, keeps the best state, stops when patience is out.
    `judge` finds ndcg and spearman.

    With a folder the best state and what was found lie there too, so that a resumed training goes on from them.
    """

    def __init__(
        self,
        judge: Callable[[], dict[str, float]],
        loss: torch.nn.Module,
        settings: Training,
        report: Report,
        folder: Path | None,
    ) -> None:
        self._judge, self._loss, self._settings, self._report, self._folder = judge, loss, settings, report, folder
        self._state: dict[str, torch.Tensor] = {}
        self._looks: list[dict[str, float]] = []  # step, epoch, and what the judge found, of each
        self._is_out_of_patience = False

    @property
    def best(self) -> dict[str, float]:
        """Step, epoch, ndcg and spearman of the best look; the first of equals."""
        return max(self._looks, key=lambda look: look[self._settings.chosen_by])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.remember(state.global_step)
        steps = max(1, round(state.max_steps / args.num_train_epochs))
        # The trainer keeps a state at an epoch's end before it is judged.
        if state.global_step and state.global_step % steps == 0 and not self._has_seen(state.global_step):
            self._look(state, control)

    def remember(self, step: int) -> None:
        """Take up what was found up to the step that an interrupted training goes on from: what was seen behind it will
        be seen again."""
        if self._folder is not None and (self._folder / _LOOKS).exists():
            looks = json.loads((self._folder / _LOOKS).read_text(encoding="utf-8"))
            self._looks = [look for look in looks if look["step"] <= step]
            self._state = load_file(self._folder / _BEST)

    def has_ended(self, state: Any) -> bool:
        """Whether a training that was kept in this state has nothing left to do but to be judged."""
        self.remember(state.global_step)
        return bool(state.global_step >= state.max_steps) or self._is_over()

    def end(self, state: Any, control: Any) -> None:
        """Judge what a training that had ended came to, unless it was judged then."""
        if not self._is_over() and not self._has_seen(state.global_step):
            self._look(state, control)

    def _has_seen(self, step: int) -> bool:
        return any(look["step"] == step for look in self._looks)

    def _is_over(self) -> bool:
        """Whether patience is out."""
        return bool(self._looks) and len(self._looks) - 1 - self._looks.index(self.best) >= self._settings.patience

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % _REPORT_STEPS == 0:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            seen = {"at": state.global_step, "of": state.max_steps, "loss": losses[-1] if losses else None}
            self._report({"step": "train", **seen})
        steps = max(1, round(state.max_steps / args.num_train_epochs))
        every, in_epoch = max(1, round(steps / self._settings.validations)), state.global_step % steps
        if in_epoch and in_epoch % every == 0 and steps - in_epoch >= every / 2:  # the epoch's end is one by itself
            self._look(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._is_out_of_patience:  # in the middle of an epoch the trainer ends that, too
            self._look(state, control)

    def _look(self, state: Any, control: Any) -> None:
        found, by = self._judge(), self._settings.chosen_by
        is_best = not self._looks or found[by] > self.best[by]
        self._looks.append({"step": state.global_step, "epoch": float(state.epoch), **found})
        if is_best:
            self._state = {name: tensor.detach().cpu().clone() for name, tensor in _own(self._loss).items()}
        self._keep(is_best)
        at = {"at": round(float(state.epoch), 2), "of": self._settings.epochs, "global_step": state.global_step}
        seen = {"ndcg@10": found["ndcg"], "spearman": found["spearman"]}
        self._report({"step": "epoch", **at, **seen, "best": self.best[by]})
        if self._is_over():
            self._is_out_of_patience = control.should_training_stop = True

    def _keep(self, is_best: bool) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if is_best:
            save_file(self._state, self._folder / f"new-{_BEST}")
            (self._folder / f"new-{_BEST}").replace(self._folder / _BEST)
        (self._folder / f"new-{_LOOKS}").write_text(json.dumps(self._looks), encoding="utf-8")
        (self._folder / f"new-{_LOOKS}").replace(self._folder / _LOOKS)

    def restore(self) -> None:
        """Put the best state back into the model."""
        self._loss.load_state_dict(self._state, strict=False)


def train(
    model: CrossEncoder,
    loss: torch.nn.Module,
    rows: Dataset,
    lengths: Sequence[int],
    batch_size: int,
    settings: Training,
    judge: Judge,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Train the loss over rows, `batch_size` of them a step; the judge's best state is in the model afterwards.

    `lengths`: tokens of each row, to put like ones together. In `folder` an interrupted training is found again when
    `settings.resume_folder` is set.
    """
    encoder: Any = model.model
    is_kept = settings.resume_folder is not None
    precision = learning_precision(settings.precision)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        learning_rate_mapping=layers.rates(encoder, settings),
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        optim=settings.optimiser,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        gradient_checkpointing=settings.recomputes,
        seed=settings.seed,
        save_strategy="steps" if is_kept else "no",
        save_steps=settings.resume_steps,
        save_total_limit=2,  # the one before, should the last have been cut short
        logging_strategy="steps",
        logging_steps=_REPORT_STEPS,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    if settings.groups_by_length:
        of_rows = np.array(lengths, dtype=np.int64)

        def sampler(dataset: Dataset, batch_size: int, **_: Any) -> ByLength:
            return ByLength(dataset, batch_size, of_rows, settings.seed)

        arguments.batch_sampler = sampler
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        noise=settings.adversarial_noise,
        callbacks=[*callbacks, judge],
    )
    trainer.remove_callback(PrinterCallback)  # the judge reports
    last = _last(folder) if is_kept else None
    state = TrainerState.load_from_json(str(Path(last) / _STATE)) if last else None
    if last and state and judge.has_ended(state):  # the trainer would begin one epoch more
        trainer._load_from_checkpoint(last)
        judge.end(state, trainer.control)
    else:
        trainer.train(resume_from_checkpoint=last)
    judge.restore()


def forget(folder: Path) -> None:
    """Take away what was kept of a training that has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def _last(folder: Path) -> str | None:
    """The newest state that is whole: its last file is there and can be read."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _own(loss: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a loss and its model, each tensor once: what a wrapper holds twice has two names."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    found = {}
    for name, tensor in loss.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen or not tensor.numel():
            seen.add(place)
            found[name] = tensor.contiguous()
    return found
