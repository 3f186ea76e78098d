"""Fine-tune an encoder so that what belongs together lies together, in a process of its own: torch stays out of Spark's
driver.

    python -m ecomspark.models.finetune_embedder FOLDER

reads FOLDER/plan.json and FOLDER/examples.parquet, writes the checkpoint, and prints its progress as JSON lines.
"""

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    MarginMSELoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from transformers import PrinterCallback, TrainerCallback, set_seed

from ecomspark.errors import way
from ecomspark.models.checkpoint import TOKENIZER_FILES, Card, Checkpoint, open_checkpoint, seal, workroom
from ecomspark.models.embedder_options import EmbedderTraining, MinedNegatives
from ecomspark.models.encoder import padded, sorted_by_length
from ecomspark.models.loading import load_tokenizer
from ecomspark.models.precision import learning_precision
from ecomspark.models.similarity import similarities
from ecomspark.models.tokens import SequenceTokenizer, Texts

_TOKEN_BUDGET = 2048
_REPORT_STEPS = 20
_SORTED_BATCHES = 50  # batches of a draw among which pairs are sorted by length
_BLOCK = 256  # anchors that are looked up at a time

Report = Callable[[dict[str, Any]], None]
Numbers = NDArray[np.int64]


class Plan(BaseModel):
    """What to train, from what, and how. Written by the job, read by the process that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_folder: Path
    base: str
    name: str
    card: Card
    training: EmbedderTraining


def fine_tune(plan: Plan, examples: pd.DataFrame, report: Report) -> Checkpoint:
    """Train, keep the state that finds most of the validation pairs, and seal the checkpoint.

    `examples`: role (query or passage), anchor_text, passage_text, is_relevant, and side: train, validation, or
    catalogue: an item that anchors are asked among, with nothing but passage_text. Pairs that are not
    relevant only make their item one of the catalogue. Raises CheckpointError when the base, the teacher or the outcome
    does not verify, ValueError when a side has no relevant pair, or a size is beyond the encoder's.
    """
    settings = plan.training
    base = open_checkpoint(plan.models_folder, plan.base, "encoder")
    teacher = open_checkpoint(plan.models_folder, settings.teacher, "cross_encoder") if settings.teacher else None
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    tokenizer = SequenceTokenizer(load_tokenizer(base.folder), plan.card.max_tokens)
    corpus = Corpus(examples, tokenizer, plan.card, settings)
    model = encoder_of(base, plan.card)
    if settings.sizes and settings.sizes[-1] > _width(model):
        raise ValueError(f"sizes: expected {_width(model)} at most, the encoder's, found {settings.sizes[-1]}")
    vectors = Vectors(model, corpus, settings.dimensions)
    pairs = Pairs(corpus, vectors, settings, teacher, report)
    judge = Judge(lambda: recall(corpus, vectors, settings.recall_at), model, settings, report)
    before = recall(corpus, vectors, settings.recall_at)
    name = f"recall@{settings.recall_at}"
    report({"step": "before", "recall": before, "recall_at": settings.recall_at, "of": "the untuned encoder"})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and settings.dropout is not None:
            module.p = settings.dropout
    encoder: Any = model[0].auto_model
    encoder.get_input_embeddings().weight.requires_grad_(settings.trains_word_vectors)
    with tempfile.TemporaryDirectory() as folder:
        _train(model, pairs, judge, vectors, settings, Path(folder))
    made = {
        "before": {name: before},
        "after": {name: judge.best["recall"], "epoch": round(judge.best["epoch"], 3)},
        "pairs": {"train": float(len(pairs)), "validation": float(sum(map(len, corpus.wanted.values())))},
        "read": {"tokens": float(pairs.token_count), "padding": float(pairs.padding_count)},
    }
    return _sealed(plan, base, encoder, made)


def encoder_of(base: Checkpoint, card: Card) -> SentenceTransformer:
    """The base as sentence-transformers trains it: pooled as the card says, of unit length."""
    reads = Transformer(
        str(base.folder), **{f"{of}_kwargs": {"local_files_only": True} for of in ("model", "processor", "config")}
    )
    width = int(reads.auto_model.config.hidden_size)
    pooling = Pooling(width, "cls" if card.pooling == "first" else "mean")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return SentenceTransformer(modules=[reads, pooling, Normalize()], device=device)


class Corpus:
    """The distinct texts of a training, each behind the prefix of its role and tokenised once: a text is a number.

    `anchors`, `positives`: of the training pairs, in one order whatever the order given; `is_asked`: whether the anchor
    is a query, of which a teacher knows what to say. `wanted`: what belongs to a validation anchor. `known`: what is no
    negative of an anchor: what belongs to it on either side, for an item may be an anchor on both, and its own text.
    `pool`: the items that anchors are asked among.
    """

    def __init__(
        self, examples: pd.DataFrame, tokenizer: SequenceTokenizer, card: Card, settings: EmbedderTraining
    ) -> None:
        prefixes = {"query": card.query_prefix, "passage": card.passage_prefix}
        order = ["side", "role", "anchor_text", "passage_text"]
        pairs = examples[examples["side"].isin(["train", "validation"]) & examples["is_relevant"].eq(True)]
        pairs = pairs.drop_duplicates(order).sort_values(order, ignore_index=True)
        items = sorted(examples["passage_text"].drop_duplicates())
        counts = pairs["side"].value_counts()
        if len(counts) < 2:
            raise ValueError(f"relevant pairs by side: {counts.to_dict()}; expected some of train and of validation")
        anchors = [prefixes[role] + text for role, text in zip(pairs["role"], pairs["anchor_text"], strict=True)]
        passages, all_items = ([card.passage_prefix + text for text in of] for of in (pairs["passage_text"], items))
        texts = Texts.of([*anchors, *passages, *all_items])
        self.sequences = tokenizer.texts(Texts(texts.distinct, np.arange(len(texts.distinct))))
        self.padding_id = tokenizer.padding_id
        of_anchor, of_passage = texts.rows[: len(pairs)], texts.rows[len(pairs) : 2 * len(pairs)]
        self.plain = dict(zip(of_anchor.tolist(), pairs["anchor_text"], strict=True))
        self.plain |= dict(zip(texts.rows[2 * len(pairs) :].tolist(), items, strict=True))  # as a teacher reads them
        is_train = (pairs["side"] == "train").to_numpy()
        self.anchors, self.positives = of_anchor[is_train], of_passage[is_train]
        self.is_asked = (pairs["role"] == "query").to_numpy()[is_train]
        self.known = _by_anchor(of_anchor, of_passage)
        for anchor, belongs in self.known.items():
            belongs.add(anchor)
        self.wanted = _by_anchor(of_anchor[~is_train], of_passage[~is_train])
        drawn = np.random.default_rng(settings.seed).permutation(texts.rows[2 * len(pairs) :])[: settings.max_items]
        self.pool = np.unique(np.concatenate([drawn, of_passage[~is_train]]))

    def inputs(self, numbers: Numbers) -> dict[str, torch.Tensor]:
        """The texts as a rectangle that the model reads."""
        rectangle = padded(self.sequences, numbers, self.padding_id)
        return {name: torch.from_numpy(values) for name, values in rectangle.items()}


def _width(model: SentenceTransformer) -> int:
    return int(model.get_embedding_dimension() or 0)


def _by_anchor(anchors: Numbers, passages: Numbers) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for anchor, passage in zip(anchors.tolist(), passages.tolist(), strict=True):
        found.setdefault(anchor, set()).add(passage)
    return found


class Vectors:
    """What the model makes of texts as it is now, cut to `size` as they will be used; kept until it has learnt more."""

    def __init__(self, model: SentenceTransformer, corpus: Corpus, size: int | None) -> None:
        self._model, self._corpus = model, corpus
        self._size = size or _width(model)
        self._kept = np.zeros((len(corpus.sequences), self._size), dtype=np.float32)
        self._is_kept = np.zeros(len(corpus.sequences), dtype=bool)

    def of(self, numbers: Numbers) -> NDArray[np.float32]:
        """Of unit length, shape (numbers, width)."""
        new = np.unique(numbers[~self._is_kept[numbers]])
        was_training = self._model.training
        self._model.eval()
        with torch.inference_mode():
            for rows in sorted_by_length(self._corpus.sequences.token_counts[new], _TOKEN_BUDGET):
                inputs = {n: v.to(self._model.device) for n, v in self._corpus.inputs(new[rows]).items()}
                # The class's own forward, in fp32: the trainer lays its precision around the instance's for good.
                whole = SentenceTransformer.forward(self._model, inputs)["sentence_embedding"]
                self._kept[new[rows]] = torch.nn.functional.normalize(whole[:, : self._size], dim=1).cpu().numpy()
        self._model.train(was_training)
        self._is_kept[new] = True
        return self._kept[numbers]

    def forget(self) -> None:
        self._is_kept[:] = False


def recall(corpus: Corpus, vectors: Vectors, places: int) -> float:
    """Share of a validation anchor's items that are among the nearest `places` of the pool, mean over the anchors. What
    is known of an anchor from training, and its own text, take no place."""
    anchors, of_pool = np.array(sorted(corpus.wanted)), vectors.of(corpus.pool)
    found, place_of = [], {text: place for place, text in enumerate(corpus.pool.tolist())}
    for start in range(0, len(anchors), _BLOCK):
        block = anchors[start : start + _BLOCK]
        for anchor, near in zip(block.tolist(), vectors.of(block) @ of_pool.T, strict=True):
            wanted = corpus.wanted[anchor]
            near[[place_of[text] for text in corpus.known[anchor] - wanted if text in place_of]] = -np.inf
            nearest = np.argsort(-near, kind="stable")[:places]
            found.append(len(wanted.intersection(corpus.pool[nearest].tolist())) / len(wanted))
    return float(np.mean(found))


class Pairs:
    """The training pairs with their negatives of the epoch, in batches."""

    valid_label_columns: Sequence[str] = ()  # the trainer asks its collator

    def __init__(
        self, corpus: Corpus, vectors: Vectors, settings: EmbedderTraining, teacher: Checkpoint | None, report: Report
    ) -> None:
        self._corpus, self._vectors, self._settings = corpus, vectors, settings
        self._teacher, self._report = teacher, report
        self._said: dict[tuple[int, int], float] = {}  # by the teacher of (anchor, passage)
        self._negatives = np.empty((len(self), 0), dtype=np.int64)
        self.token_count = self.padding_count = 0

    def __len__(self) -> int:
        return len(self._corpus.anchors)

    @property
    def batch_count(self) -> int:
        return math.ceil(len(self) / self._settings.batch_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """The rows of each batch of an epoch: of like length, in a random order that the seed decides."""
        settings = self._settings
        draw = np.random.default_rng([settings.seed, epoch])
        if settings.hard_negatives.per_pair and epoch >= settings.hard_negatives.from_epoch:
            self._mine(draw)
        return self.packed(draw)

    def packed(self, draw: np.random.Generator) -> list[list[int]]:
        """The same with the negatives that there are."""
        order, size = draw.permutation(len(self)), self._settings.batch_size
        lengths = self._corpus.sequences.token_counts[self._corpus.positives]
        found = []
        for start in range(0, len(order), size * _SORTED_BATCHES):
            together = order[start : start + size * _SORTED_BATCHES]
            together = together[np.argsort(-lengths[together], kind="stable")]
            found += [together[at : at + size].tolist() for at in range(0, len(together), size)]
        return [found[place] for place in draw.permutation(len(found))]

    def has_negatives(self) -> bool:
        """Whether any anchor has a pair's passage that is not known to belong to it."""
        passages, anchors = set(self._corpus.positives.tolist()), np.unique(self._corpus.anchors)
        return any(not self._corpus.known[anchor].issuperset(passages) for anchor in anchors.tolist())

    def belongs(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which passages of some rows, all positives before the first negatives and so on, are no negatives of an
        anchor, because they are known to belong to it: shape (rows, rows x (1 + negatives)). A row's own positive is
        the one that is to be found, and false.
        """
        passages = np.concatenate([self._corpus.positives[rows, None], self._negatives[rows]], axis=1).T.ravel()
        known = [self._corpus.known[anchor] for anchor in self._corpus.anchors[rows].tolist()]
        found = np.array([[passage in of for passage in passages.tolist()] for of in known])
        found[np.arange(len(rows)), np.arange(len(rows))] = False
        return found

    def margins(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """How far the teacher has a row's positive before each of its negatives, shape (rows, negatives); not a number
        where the anchor is no query."""
        made = np.full((len(rows), self._negatives.shape[1]), np.nan, dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            if self._corpus.is_asked[row]:
                anchor, own = int(self._corpus.anchors[row]), self._said_of(row)
                made[place] = [own - self._said[anchor, other] for other in self._negatives[row].tolist()]
        return made

    def _said_of(self, row: int) -> float:
        return self._said[int(self._corpus.anchors[row]), int(self._corpus.positives[row])]

    def _mine(self, draw: np.random.Generator) -> None:
        corpus, settings = self._corpus, self._settings.hard_negatives
        drawn = settings.per_pair * (2 if self._teacher else 1)  # the teacher takes some out
        found, counts = mined(corpus, self._vectors, settings, drawn, draw)
        chosen = np.empty((len(self), settings.per_pair), dtype=np.int64)
        # What is bought together need not be alike: of items as anchors a teacher of relevance has nothing to say.
        is_asked = corpus.is_asked if self._teacher else np.zeros(len(self), dtype=bool)
        of_queries = np.flatnonzero(is_asked).tolist()
        self._ask([(int(corpus.anchors[row]), int(corpus.positives[row])) for row in of_queries])
        self._ask([(int(corpus.anchors[row]), passage) for row in of_queries for passage in found[row]])
        left_out = filled = 0
        for row, anchor in enumerate(corpus.anchors.tolist()):
            left = found[row]
            if is_asked[row]:
                bound = settings.max_share_of_positive * self._said_of(row)
                left = [passage for passage in left if self._said[anchor, passage] < bound]
                left_out += len(found[row]) - len(left)
            left = left[: settings.per_pair]
            filled += settings.per_pair - len(left)
            while len(left) < settings.per_pair:
                other = int(draw.choice(corpus.pool))
                if other not in corpus.known[anchor]:
                    left = [*left, other]
                elif corpus.known[anchor].issuperset(corpus.pool.tolist()):
                    raise ValueError("hard_negatives: an anchor to which every item belongs has none")
            chosen[row] = left
        self._negatives = chosen
        self._ask([(int(corpus.anchors[row]), passage) for row in of_queries for passage in chosen[row].tolist()])
        self._report({"step": "negatives", **counts, "left_out_by_the_teacher": left_out, "drawn_at_random": filled})

    def _ask(self, pairs: Sequence[tuple[int, int]]) -> None:
        new = sorted(set(pairs) - self._said.keys())
        plain = self._corpus.plain
        if new and self._teacher:
            said = similarities(
                self._teacher, [plain[a] for a, _ in new], [plain[p] for _, p in new], token_budget=_TOKEN_BUDGET
            )
            self._said |= dict(zip(new, np.nan_to_num(said).tolist(), strict=True))

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        """What the trainer hands to the loss of some rows: the token ids that `models.embedder` would read, and which
        rows they are."""
        at = np.array([row["row"] for row in rows])
        anchors, positives = self._corpus.anchors[at], self._corpus.positives[at]
        negatives = self._negatives[at]
        columns = {"anchor": anchors, "positive": positives}
        columns |= {f"negative_{place}": negatives[:, place] for place in range(negatives.shape[1])}
        made: dict[str, torch.Tensor] = {}
        for column, numbers in columns.items():
            inputs = self._corpus.inputs(numbers)
            made |= {f"{column}_{name}": values for name, values in inputs.items()}
            tokens = int(self._corpus.sequences.token_counts[numbers].sum())
            self.token_count += tokens
            self.padding_count += inputs["input_ids"].numel() - tokens
        made["label"] = torch.from_numpy(at)
        return made


def mined(
    corpus: Corpus, vectors: Vectors, settings: MinedNegatives, count: int, draw: np.random.Generator
) -> tuple[list[list[int]], dict[str, int]]:
    """Of each training pair up to `count` items of the pool that lie near its anchor and do not belong to it, in the
    order drawn; and how many places were looked at, and how many of them may be relevant by their nearness."""
    of_pool, places = vectors.of(corpus.pool), settings.places
    own = np.einsum("ij,ij->i", vectors.of(corpus.anchors), vectors.of(corpus.positives))
    rows_of: dict[int, list[int]] = {}
    for row, anchor in enumerate(corpus.anchors.tolist()):
        rows_of.setdefault(anchor, []).append(row)
    anchors, place_of = np.array(sorted(rows_of)), {text: place for place, text in enumerate(corpus.pool.tolist())}
    found: list[list[int]] = [[] for _ in range(len(own))]
    counts = {"looked_at": 0, "near_the_positive": 0}
    for start in range(0, len(anchors), _BLOCK):
        block = anchors[start : start + _BLOCK]
        near = vectors.of(block) @ of_pool.T
        for anchor, similarity in zip(block.tolist(), near, strict=True):
            similarity[[place_of[text] for text in corpus.known[anchor] if text in place_of]] = -np.inf
            nearest = np.argsort(-similarity, kind="stable")[:places]
            nearest = nearest[similarity[nearest] > -np.inf][settings.skip_first :]
            for row in rows_of[anchor]:
                is_far = similarity[nearest] < settings.max_share_of_positive * own[row]
                left = nearest[is_far]
                counts["looked_at"] += len(nearest)
                counts["near_the_positive"] += len(nearest) - len(left)
                taken = draw.permutation(len(left))[:count]
                found[row] = corpus.pool[left[taken]].tolist()
    return found, counts


class _Sampler(DefaultBatchSampler):
    """The batches of each epoch."""

    def __init__(self, dataset: Dataset, batch_size: int, pairs: Pairs, seed: int) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=False, seed=seed)
        self._pairs = pairs

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._pairs.batches(self.epoch or 0)

    def __len__(self) -> int:
        return self._pairs.batch_count  # not by `batch_size`: with several GPUs the trainer multiplies that


class Together(torch.nn.Module):
    """The losses of a batch, whose texts are embedded once for all of them. `labels`: the rows of the batch."""

    def __init__(self, model: SentenceTransformer, pairs: Pairs, settings: EmbedderTraining) -> None:
        super().__init__()
        self.model = model
        self._pairs, self._weights = pairs, settings.losses
        self._belongs = torch.empty(0, 0, dtype=torch.bool)
        self._ranking = MultipleNegativesRankingLoss(model, scale=settings.scale, similarity_fct=self._similarity)
        self._margin = MarginMSELoss(model, similarity_fct=pairwise_cos_sim)

    def forward(self, features: Sequence[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        embeddings, rows = embed_columns(self.model, features), labels.cpu().numpy()
        loss = embeddings[0].sum() * 0.0
        if weight := self._weights.get("ranking"):
            self._belongs = torch.from_numpy(self._pairs.belongs(rows)).to(labels.device)
            loss = loss + weight * self._ranking.compute_loss_from_embeddings(embeddings, labels)
        # Before from_epoch there are no negatives.
        if (weight := self._weights.get("margin")) and len(embeddings) > 2:
            margins = torch.from_numpy(self._pairs.margins(rows)).to(labels.device)
            is_asked = ~margins.isnan().any(dim=1)
            if is_asked.any():
                of_queries = [of[is_asked] for of in embeddings]
                loss = loss + weight * self._margin.compute_loss_from_embeddings(of_queries, margins[is_asked])
        return loss

    def _similarity(self, anchors: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
        """Cosines; of what is known to belong together and is not to be found now, none: no false negatives."""
        return cos_sim(anchors, passages).masked_fill(self._belongs, float("-inf"))


class Judge(TrainerCallback):
    """Judges the model at each epoch's end, keeps the best state, stops when patience is out."""

    def __init__(
        self, judge: Callable[[], float], model: SentenceTransformer, settings: EmbedderTraining, report: Report
    ) -> None:
        self._judge, self._model, self._settings, self._report = judge, model, settings, report
        self._state: dict[str, torch.Tensor] = {}
        self._looks: list[dict[str, float]] = []

    @property
    def best(self) -> dict[str, float]:
        """Epoch and recall of the best look; the first of equals."""
        return max(self._looks, key=lambda look: look["recall"])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % _REPORT_STEPS == 0:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            seen = {"at": state.global_step, "of": state.max_steps, "loss": losses[-1] if losses else None}
            self._report({"step": "train", **seen})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        found = {"epoch": float(state.epoch), "recall": self._judge()}
        self._looks.append(found)
        if self.best is found:
            self._state = {name: of.detach().cpu().clone() for name, of in self._model.state_dict().items()}
        self._report(
            {"step": "epoch", "at": round(found["epoch"], 2), "of": self._settings.epochs, "best": self.best["recall"],
             "global_step": state.global_step, "recall": found["recall"], "recall_at": self._settings.recall_at}
        )  # fmt: skip
        if len(self._looks) - 1 - self._looks.index(self.best) >= self._settings.patience:
            control.should_training_stop = True

    def restore(self) -> None:
        """Put the best state back into the model."""
        self._model.load_state_dict(self._state)


class _Forgets(TrainerCallback):
    """Vectors are of the model before it learnt more."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._vectors.forget()


class _Trainer(SentenceTransformerTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: the library's own card would keep examples of the texts; ours is card.json."""


def _train(
    model: SentenceTransformer, pairs: Pairs, judge: Judge, vectors: Vectors, settings: EmbedderTraining, folder: Path
) -> None:
    """Train; the judge's best state is in the model afterwards."""
    loss: torch.nn.Module = Together(model, pairs, settings)
    if settings.sizes:
        loss = MatryoshkaLoss(model, loss, sorted({*settings.sizes, _width(model)}, reverse=True))
    rows = Dataset.from_dict({"row": list(range(len(pairs)))})
    if not (settings.hard_negatives.per_pair or pairs.has_negatives()):
        raise ValueError(
            "train: no two pairs that are not known to belong together; set hard_negatives.per_pair above 0"
        )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        optim="adamw_torch_fused",
        bf16=learning_precision(settings.precision) == "bf16",
        seed=settings.seed,
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=_REPORT_STEPS,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )

    def sampler(dataset: Dataset, batch_size: int, **_: Any) -> _Sampler:
        return _Sampler(dataset, batch_size, pairs, settings.seed)

    arguments.batch_sampler = sampler
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        data_collator=pairs,  # type: ignore[arg-type]
        callbacks=[_Forgets(vectors), judge],
    )
    trainer.remove_callback(PrinterCallback)  # the judge reports
    trainer.train()
    judge.restore()


def _sealed(plan: Plan, base: Checkpoint, encoder: Any, metrics: dict[str, dict[str, float]]) -> Checkpoint:
    settings = {**plan.card.settings, "precision": learning_precision(plan.training.precision)}
    card = plan.card.model_copy(
        update={"settings": settings, "metrics": metrics, "dimensions": plan.training.dimensions}
    )
    made = workroom(plan.models_folder)
    try:
        encoder.save_pretrained(made, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (base.folder / name).exists():
                shutil.copyfile(base.folder / name, made / name)
        return seal(made, plan.models_folder, plan.name, card)
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
    at = plan.training.recall_at
    before, after = (made.card.metrics[when][f"recall@{at}"] for when in ("before", "after"))
    report({"step": "done", "name": made.name, "before": before, "after": after, "recall_at": at})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
