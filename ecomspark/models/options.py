"""What can be said of a training: its head, what of the model learns, how fast, on what texts. No torch here.

The job's settings and the plan of the process that trains are made of the same section.
"""

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from ecomspark.augmentation import Augmentation
from ecomspark.config import Section, setting
from ecomspark.negatives import HardNegatives

PairHead = Literal["bce", "mse", "classes"]
QueryHead = Literal["ranknet", "lambda", "listnet"]
Head = Literal["bce", "mse", "classes", "ranknet", "lambda", "listnet"]
PAIR_HEADS: tuple[PairHead, ...] = ("bce", "mse", "classes")  # one loss a pair; the others compare a query's pairs


class Auto(Section):
    """`head: auto`: every one of `heads` is trained on a part of the queries; the best by validation NDCG is taken."""

    heads: list[Head] = setting(["bce", "mse", "ranknet", "lambda"], "heads to try", min_length=2)
    share: float = setting(0.2, "share of the training queries to try them on", gt=0, le=1)
    epochs: int = setting(1, "times through them", ge=1)


class Lora(Section):
    """Low-rank changes of the encoder's linear layers (Hu et al. 2022), merged into the weights at the end."""

    rank: int = setting(8, "of a layer's change", ge=1)
    alpha: int = setting(16, "the change is multiplied by alpha / rank", gt=0)
    dropout: float = setting(0.0, "of what goes into a change", ge=0, lt=1)


class Auxiliary(Section):
    """A second head that names the pair's item's category or brand; thrown away when training is over."""

    field: Literal["category", "brand"] = setting(..., "which field of the item it names")
    weight: float = setting(0.1, "of its loss beside the relevance head's", gt=0)
    max_classes: int = setting(200, "the most frequent values; items with others do not count for it", ge=2)


class Distillation(Section):
    """Learning from cross-encoders that were trained before, such as several seeds of this one, or a larger one."""

    teachers: list[str] = setting(
        [], "their folders in models_folder, with a head of bce or mse, trained on no other side; none: off"
    )
    share: float = setting(
        0.5, "of the teachers' mean in what is learnt of a pair with a grade; the grade has the rest", gt=0, le=1
    )
    candidates_per_query: int = setting(
        0, "candidates that nobody judged, the best by their source, learnt from by the teachers' mean alone", ge=0
    )

    @model_validator(mode="after")
    def _somebody_to_say(self) -> "Distillation":
        if self.candidates_per_query and not self.teachers:
            raise ValueError("candidates_per_query is above 0 but teachers names none")
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("teachers: each at most once")
        return self


class Training(Section):
    """One training of a cross-encoder."""

    head: Literal[Head, "auto"] = setting(
        "bce",
        "what is learnt of a grade. A pair at a time: bce (cross-entropy of the scaled grade), mse (squared error), "
        "classes (cross-entropy over grades). A query at a time: ranknet, lambda (LambdaLoss, NDCG-Loss2++), listnet. "
        "auto: the best of auto.heads on validation queries",
    )
    auto: Auto = setting(Auto(), "what `head: auto` tries")
    class_edges: list[float] = setting(
        [], "for `classes` where grades are means: a class ends at each edge; empty: every grade is a class"
    )
    trains: Literal["all", "head", "lora"] = setting(
        "all", "what learns: all layers from frozen_layers on, the head alone, or LoRA's changes and the head"
    )
    frozen_layers: int = setting(0, "of `all`: so many of the lowest layers stay as they are", unit="layers", ge=0)
    trains_word_vectors: bool = setting(
        False,
        "of `all`: train the word vectors, too: few judgments move the words that are among them away from all others",
    )
    lora: Lora = setting(Lora(), "of `lora`")
    epochs: float = setting(6, "times through the pairs at most; of 1.5 the second time ends half-way", gt=0)
    batch_size: int = setting(32, "pairs of a step; with a head that compares, about so many of whole queries",
                              unit="pairs", ge=1)  # fmt: skip
    accumulation: int = setting(1, "batches whose gradients are added up for a step", unit="batches", ge=1)
    groups_by_length: bool = setting(True, "put pairs of like length into a batch, so that little is padding")
    optimiser: str = setting("adamw_torch_fused", "as transformers' `optim` names them")
    learning_rate: float = setting(1e-4, "highest rate, of the head and the topmost layer", gt=0)
    layer_rate: float = setting(1.0, "rate of a layer as a share of the next higher one's", gt=0, le=1)
    head_rate: float = setting(1.0, "rate of the head as a multiple of learning_rate", gt=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = setting("linear", "how the rate falls afterwards")
    warmup_share: float = setting(0.1, "share of the steps in which the rate rises", ge=0, lt=1)
    weight_decay: float = setting(0.01, "of the optimiser; not of biases and norms", ge=0)
    max_gradient_norm: float = setting(1.0, "longer gradients are cut to this length", gt=0)
    dropout: float | None = setting(None, "while training; null: what the base says", ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "what layers compute in while they learn; auto: bf16 where the GPU or CPU computes in it, else fp32"
    )
    recomputes: bool = setting(False, "gradient checkpointing: a third slower, memory of a few layers only")
    validations: int = setting(1, "times an epoch that it is judged on the validation queries", ge=1)
    chosen_by: Literal["ndcg", "spearman"] = setting(
        "ndcg",
        "what the state that is kept is best by. ndcg: NDCG@10, the order within each query. spearman: rank "
        "correlation of score and grade over all validation pairs, one order across queries, as thresholds need",
    )
    patience: int = setting(3, "validations without a better one before it stops", unit="validations", ge=1)
    adversarial_noise: float = setting(
        0.0, "length of a step of the word vectors against the loss, learnt from, too (FGM); doubles the work; 0: off",
        ge=0,
    )  # fmt: skip
    augmentation: Augmentation = setting(
        Augmentation(), "training pairs changed as shoppers and shops would write them"
    )
    hard_negatives: HardNegatives = setting(HardNegatives(), "candidates that nobody judged, taken for irrelevant")
    auxiliary: Auxiliary | None = setting(None, "a second head that names a field of the item; null: none")
    distillation: Distillation = setting(Distillation(), "checkpoints whose scores are learnt beside the grades")
    seed: int = setting(13, "of initialisation, order and dropout")
    threads: int | None = setting(
        None, "of the CPU; null: all. Sums in another order: equal to rounding", decides=False, ge=1
    )
    resume_folder: Path | None = setting(
        None, "where an interrupted training is kept to go on with, outside models_folder; null: it starts again",
        decides=False,
    )  # fmt: skip
    resume_steps: int = setting(200, "steps after which it is kept", unit="steps", decides=False, ge=1)

    @field_validator("class_edges")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError("class_edges must rise")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Training":
        if self.auxiliary and self.head not in PAIR_HEADS:
            raise ValueError(f"auxiliary: needs a head of {', '.join(PAIR_HEADS)}, found {self.head}")
        if self.distillation.teachers and self.head not in ("bce", "mse"):
            raise ValueError(f"distillation: needs a head of bce or mse, found {self.head}")
        if self.trains != "all" and (self.frozen_layers or self.trains_word_vectors):
            raise ValueError(f"frozen_layers and trains_word_vectors are of `trains: all`, found {self.trains}")
        if self.trains == "head" and self.adversarial_noise:
            raise ValueError("adversarial_noise: nothing below the head would learn from it")
        return self
