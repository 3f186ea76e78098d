"""What can be said of the training of an encoder that finds items by meaning: losses, negatives, sizes. No torch here.

The job's settings and the plan of the process that trains are made of the same section.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ecomspark.config import Section, setting

Loss = Literal["ranking", "margin"]


class MinedNegatives(Section):
    """Hard negatives: items that the encoder itself, as far as it has learnt, puts near what they do not belong to.

    A judged relevant item is never taken, nor one with the text of one, nor one that may be relevant though nobody said
    so: as near as `max_share_of_positive` of the pair's own item, or nearer (Moreira et al. 2024, "TopK-PercPos").
    """

    per_pair: int = setting(1, "drawn for a pair; 0: in-batch negatives alone", ge=0)
    from_epoch: int = setting(
        1, "the first epoch that has them, counted from 0: until then others are hard enough", ge=0
    )
    places: int = setting(50, "nearest items without the relevant ones that are drawn from", unit="places", ge=1)
    skip_first: int = setting(0, "of these the nearest, of which none is drawn", unit="places", ge=0)
    max_share_of_positive: float = setting(
        0.95, "similarity as a share of that to the pair's own item from which one may be relevant", gt=0, le=1
    )

    @model_validator(mode="after")
    def _some_left(self) -> "MinedNegatives":
        if self.skip_first >= self.places:
            raise ValueError(f"skip_first {self.skip_first} leaves none of {self.places} places")
        return self


class EmbedderTraining(Section):
    """One training of an encoder on pairs that belong together."""

    losses: dict[Loss, Annotated[float, Field(gt=0)]] = setting(
        {"ranking": 1.0},
        "weight of each loss. ranking: the pair's item before all others of the batch (InfoNCE, Oord et al. 2018). "
        "margin: as far before its hard negatives as the teacher has it (MarginMSE, Hofstätter et al. 2020); cosines "
        "and the teacher's 0 to 1 are small numbers, so it wants a weight of 10 or more",
        min_length=1,
    )
    scale: float = setting(20.0, "of `ranking`: cosines are multiplied by it; 1 / temperature", gt=0)
    teacher: str | None = setting(
        None,
        "a cross-encoder in models_folder, trained on no other side: tells `margin`, and hard negatives from false "
        "ones; null: none",
    )
    hard_negatives: MinedNegatives = setting(MinedNegatives(), "taken anew in each epoch")
    sizes: list[Annotated[int, Field(gt=0)]] = setting(
        [], "the first so many numbers of a vector are taught to serve alone, too (Matryoshka, Kusupati et al. 2022)"
    )
    dimensions: int | None = setting(None, "of `sizes` the one that is used; null: whole vectors", gt=0)
    epochs: float = setting(2, "times through the pairs at most; of 1.5 the second time ends half-way", gt=0)
    batch_size: int = setting(64, "pairs of a step: what one does not belong to are its negatives", unit="pairs", ge=2)
    learning_rate: float = setting(1e-4, "highest rate of AdamW", gt=0)
    warmup_share: float = setting(0.1, "share of the steps in which the rate rises; then it falls linearly", ge=0, lt=1)
    weight_decay: float = setting(0.01, "of AdamW; not of biases and norms", ge=0)
    max_gradient_norm: float = setting(1.0, "longer gradients are cut to this length", gt=0)
    dropout: float | None = setting(0.0, "while training; null: what the base says", ge=0, lt=1)
    trains_word_vectors: bool = setting(False, "train the word vectors, too")
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "what layers compute in while they learn; auto: bf16 where the GPU or CPU computes in it, else fp32"
    )
    max_items: int = setting(
        20_000, "items, drawn with the seed, among which hard negatives and validation look", unit="items", ge=1
    )
    recall_at: int = setting(100, "places in which validation looks for the relevant items", unit="places", ge=1)
    patience: int = setting(2, "epochs without better validation recall before it stops", unit="epochs", ge=1)
    seed: int = setting(13, "of order, dropout, hard negatives and the items that are drawn")
    threads: int | None = setting(
        None, "of the CPU; null: all. Sums in another order: equal to rounding", decides=False, ge=1
    )

    @field_validator("sizes")
    @classmethod
    def _once(cls, value: list[int]) -> list[int]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _fits(self) -> "EmbedderTraining":
        if "margin" in self.losses and not (self.teacher and self.hard_negatives.per_pair):
            raise ValueError("losses: margin needs a teacher, and hard_negatives.per_pair above 0")
        if set(self.losses) == {"margin"} and self.hard_negatives.from_epoch > 0:
            raise ValueError("losses: margin alone teaches nothing before hard_negatives.from_epoch: set that to 0")
        if self.teacher and not self.hard_negatives.per_pair:
            raise ValueError("teacher: it is asked of hard negatives only, and hard_negatives.per_pair is 0")
        if self.dimensions is not None and self.dimensions not in self.sizes:
            raise ValueError(f"dimensions: expected one of sizes {self.sizes}, found {self.dimensions}")
        return self
