"""From the texts of catalogue and queries to an encoder that knows their words: what fine-tuning may start from.

No judgment is read. Trains in a process of its own; optional, before `finetune_cross_encoder`.
"""

import logging
from datetime import date
from typing import Any

import pandas as pd
from pydantic import model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Section, Settings, setting
from ecomspark.errors import ConfigError, ContractError
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import ITEMS, QUERIES, SPLITS, TEXTS, Table
from ecomspark.tables import Warehouse
from ecomspark.text import digest
from ecomspark.tracking import Tracking, tracked
from ecomspark.training import is_trained, train

JOB = "pretrain_encoder"

READS = (QUERIES, ITEMS, SPLITS)

PUBLISHES: tuple[Table, ...] = ()  # a checkpoint, no table

_POSITIONS = 512  # of a new encoder: models.new_encoder.POSITIONS

log = logging.getLogger("ecomspark")


class New(Section):
    """The size of an encoder that is made anew, tokenizer included."""

    layers: int = setting(4, "layers of the encoder", ge=1)
    width: int = setting(256, "length of its vectors", ge=1)
    heads: int = setting(4, "heads of its attention; they divide `width`", ge=1)
    inner_width: int = setting(1024, "length of the vectors between the two halves of a layer", ge=1)
    vocabulary: int = setting(8000, "tokens of the vocabulary that is learnt from the texts, about", gt=100)

    @model_validator(mode="after")
    def _heads_divide(self) -> "New":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        return self


class Config(Settings):
    """What is trained, on which texts, how."""

    base: Name | None = setting(None, "the encoder to start from: a folder in models_folder; null: `new` says what")
    new: New | None = setting(
        None, "size of an encoder made from nothing, for a language that no weights at hand can read; null: none"
    )
    name: Name = setting(..., "what the checkpoint is called; it never changes, so a new training takes a new name")
    split: Name | None = setting(
        ...,
        "the texts of this split's validation and test queries are left out; items all stay: what a catalogue says of "
        "them holds no judgment; null: every query is read, and figures on test queries are of a model that knew them",
    )
    max_texts: int = setting(1_000_000, "texts read at most, drawn by their digests", unit="texts", ge=2)
    validation_share: float = setting(0.05, "part of the texts to choose the best epoch by", gt=0, lt=1)
    max_tokens: int = setting(128, "tokens read of a text, special ones included", unit="tokens", gt=4)
    masked_share: float = setting(0.15, "part of the tokens that is hidden and guessed", gt=0, lt=1)
    epochs: int = setting(3, "times through the texts at most", ge=1)
    batch_size: int = setting(32, "texts of a forward pass, of like length", unit="texts", ge=1)
    accumulation: int = setting(1, "forward passes of a step", ge=1)
    learning_rate: float = setting(1e-4, "highest rate of AdamW; a new encoder wants some five times as much", gt=0)
    warmup_share: float = setting(0.1, "share of the steps in which the rate rises; then it falls linearly", ge=0, lt=1)
    weight_decay: float = setting(0.01, "of AdamW", ge=0)
    max_gradient_norm: float = setting(1.0, "longer gradients are cut to this length", gt=0)
    patience: int = setting(2, "epochs without a lower validation loss before it stops", unit="epochs", ge=1)
    seed: int = setting(13, "of initialisation, order, dropout and what is hidden, and of the validation texts")
    tracking: Tracking = setting(Tracking(), "where the curves of trainings are kept", decides=False)
    threads: int | None = setting(
        None, "of the CPU; null: all. Sums in another order: equal to rounding", decides=False, ge=1
    )

    @model_validator(mode="after")
    def _base_or_new(self) -> "Config":
        if (self.base is None) == (self.new is None):
            raise ValueError("expected either `base` or `new`")
        if self.new is not None and self.max_tokens > _POSITIONS:
            raise ValueError(f"max_tokens {self.max_tokens}: a new encoder reads {_POSITIONS} at most")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    base = _base(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    settings_digest = config.deciding_digest(base.scorer_digest.hex() if base else "")
    with open_run(
        warehouse, JOB, run_id, reads=READS, settings_digest=settings_digest, as_of=as_of, leases=config.leases
    ) as current:
        if not current.is_replayed:
            with current.stage("texts"):
                texts = _texts(current, config)
            training = digest(settings_digest.hex(), *(str(part) for row in texts.itertuples() for part in row)).hex()
            if not is_trained(config.models_folder, config.name, "encoder", training, JOB):
                with current.stage("train"):
                    card = _card(config, base).model_copy(
                        update={
                            "data": {name: vars(at) for name, at in current.inputs.items() if at},
                            "settings": config.model_dump(mode="json", exclude={*Settings.model_fields, "tracking"}),
                            "training_digest": training,
                        }
                    )
                    with tracked(config.tracking, JOB, run_id, config.name, card.settings) as track:
                        train(_plan(config, card), texts, "ecomspark.models.pretrain", "texts.parquet", see=track.see)
                        track.made(open_checkpoint(config.models_folder, config.name, "encoder"))
                    current.made(config.name)
    return current.summary()


def corpus(texts: DataFrame, queries: DataFrame, items: DataFrame, split: DataFrame, recipe_digest: bytes) -> DataFrame:
    """(text_digest, text): each distinct text under the recipe of the queries and items that are there, once.

    `split`: (query_id, side) of the queries that are on one. A text of a query on another side than `train` is left
    out, whoever else asks it: in another locale it is another query. As an item's text it stays.
    """
    made = texts.where((F.col("recipe_digest") == F.lit(recipe_digest)) & (F.col("text") != ""))
    of_items = made.where("role = 'passage'").join(items.select("source_digest"), on="source_digest", how="left_semi")
    of_query = made.where("role = 'query'").withColumnRenamed("source_digest", "text_source_digest")
    asked = of_query.join(queries.select("query_id", "text_source_digest"), on="text_source_digest", how="inner")
    unseen = asked.join(split.where("side <> 'train'").select("query_id"), on="query_id", how="left_semi")
    learnt = asked.join(unseen.select("text_digest"), on="text_digest", how="left_anti")
    both = of_items.select("text_digest", "text").unionByName(learnt.select("text_digest", "text"))
    return both.groupBy("text_digest").agg(F.min("text").alias("text"))


def _texts(current: Run, config: Config) -> pd.DataFrame:
    """(text, side) of the corpus, in the order of their digests: the same texts, the same training."""
    split = current.read_if_there(SPLITS).where(F.col("split") == F.lit(config.split))
    if config.split is not None and split.isEmpty():
        raise ContractError(
            f"splits: expected queries on the sides of split {config.split}, found none; make it first "
            f"(finetune_cross_encoder does), or set {JOB}.split to null"
        )
    made = tables.read_memory(current.warehouse, TEXTS)
    read = corpus(made, current.read(QUERIES), current.read(ITEMS), split, config.recipe.digest)
    drawn = read.orderBy("text_digest").limit(config.max_texts).toPandas()
    sides = [_side(config, bytes(text_digest)) for text_digest in drawn["text_digest"]]
    texts = pd.DataFrame({"text": drawn["text"], "side": sides})
    counts = {side: sides.count(side) for side in ("train", "validation")}
    current.count(**{f"{side}_texts": count for side, count in counts.items()})
    if not all(counts.values()):
        raise ContractError(
            f"texts: expected some under the settings' recipe to train and to validate on, found {counts['train']} and "
            f"{counts['validation']}; run build_texts first, or change {JOB}.validation_share"
        )
    return texts


def _side(config: Config, text_digest: bytes) -> str:
    """Each text by its own draw, as `features.splits` draws queries."""
    draw = int.from_bytes(digest(JOB, str(config.seed), text_digest.hex())[:6], "big") / 2**48
    return "validation" if draw < config.validation_share else "train"


def _base(config: Config) -> Checkpoint | None:
    if config.base is None:
        return None
    base = open_checkpoint(config.models_folder, config.base, "encoder")
    if config.max_tokens > base.card.max_tokens:
        raise ConfigError(
            f"{JOB}.max_tokens: expected {base.card.max_tokens} at most, which is what {config.base} reads, "
            f"found {config.max_tokens}"
        )
    return base


def _card(config: Config, base: Checkpoint | None) -> Card:
    """How the encoder is meant to be used: as its base is."""
    if base is None:
        return Card(kind="encoder", base="none: made anew", recipe=config.recipe, max_tokens=config.max_tokens)
    return base.card.model_copy(update={"base": base.name, "recipe": config.recipe})


def _plan(config: Config, card: Card) -> dict[str, Any]:
    """What `models.pretrain.Plan` reads."""
    keys = ("base", "name", "max_tokens", "masked_share", "epochs", "batch_size", "accumulation", "learning_rate",
            "warmup_share", "weight_decay", "max_gradient_norm", "patience", "seed", "threads")  # fmt: skip
    return {
        **{key: getattr(config, key) for key in keys},
        "new": config.new and config.new.model_dump(),
        "models_folder": str(config.models_folder.resolve()),
        "card": card.model_dump(mode="json"),
    }
