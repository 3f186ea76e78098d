"""What can be said of a training of a sequence model. No torch here.

The job's settings and the plan of the process that trains are made of the same section.
"""

from typing import Literal

from pydantic import model_validator

from ecomspark.config import Section, setting


class SequenceTraining(Section):
    """One training of a sequence model."""

    architecture: Literal["transformer", "gru", "both", "linear", "spectral"] = setting(
        "transformer",
        "what reads the items: a causal transformer (SASRec), a recurrent network (GRU4Rec), or both, trained one "
        "after the other, their scores averaged. At once and without epochs: linear, a ridge autoencoder for whole "
        "histories of baskets, and spectral, for sessions; of these `width`, `max_items`, `half_life_items`, "
        "`own_weight` and, of linear, `shrinkage`, of spectral, `again`, `popularity` and `seed` decide alone",
    )
    width: int = setting(64, "length of an item's vector; of each, where there are both", ge=1)
    layers: int = setting(2, "of the transformer or of the recurrent network", ge=1)
    heads: int = setting(2, "heads of the transformer's attention; they divide `width`", ge=1)
    max_items: int = setting(20, "items of a history that are read, the newest", unit="items", gt=0)
    epochs: int = setting(10, "times through the training sequences at most", ge=1)
    batch_size: int = setting(1_024, "items of a step, in sequences of like length", unit="items", ge=1)
    learning_rate: float = setting(3e-3, "highest rate of AdamW", gt=0)
    warmup_share: float = setting(0.05, "share of the steps in which the rate rises; then it falls to 0", ge=0, lt=1)
    weight_decay: float = setting(0.0, "of AdamW", ge=0)
    dropout: float = setting(0.2, "within the network", ge=0, lt=1)
    input_dropout: float = setting(0.2, "of the vectors of items that are read", ge=0, lt=1)
    id_dropout: float = setting(
        0.2,
        "with texts: part of the items that a step knows by their text alone, as it would know new ones",
        ge=0,
        lt=1,
    )
    negatives: int = setting(
        8_192, "items that a step tells the next one from; all, where there are no more", unit="items", ge=1
    )
    half_life: float | None = setting(
        None,
        "sequences so many places back from the newest count half; a share of all of them; null: all alike",
        unit="share",
        gt=0,
    )
    half_life_items: float = setting(
        100.0, "of linear and spectral: an item so many back counts half; of sessions 1 or so", unit="items", gt=0
    )
    shrinkage: float = setting(40.0, "of the linear model: its ridge, as a multiple of the median item's weight", gt=0)
    again: float = setting(
        0.05, "of spectral: how much an item speaks for itself beyond what the rank of its vector tells", ge=0
    )
    popularity: float = setting(0.1, "of spectral: weight of log(1 + times seen) beside 14 times the cosine", ge=0)
    own_weight: float = setting(
        0.0,
        "an item's score gains so many times log(1 + how often it was read): for what is bought again and again; "
        "0.17 for histories of baskets with `linear`",
        ge=0,
    )
    patience: int = setting(2, "epochs without a better validation MRR before it stops", unit="epochs", ge=1)
    seed: int = setting(13, "of initialisation, order, dropout and negatives")
    threads: int | None = setting(
        None, "of the CPU; null: all. Sums in another order: equal to rounding", decides=False, ge=1
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> "SequenceTraining":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        return self
