"""From judgments and a base encoder to a cross-encoder's checkpoint. Trains in a process of its own."""

import logging
from datetime import date
from typing import Any, Literal

import pandas as pd
from pydantic import field_validator, model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Section, Settings, setting
from ecomspark.embedding import embedder_of
from ecomspark.errors import CheckpointError, ContractError
from ecomspark.features.scores import pair_texts
from ecomspark.features.unjudged import unjudged_candidates
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.options import Training
from ecomspark.runs import Run, Summary, open_run
from ecomspark.schemas import CANDIDATES, ITEMS, JUDGMENTS, QUERIES, SPLITS, TEXTS
from ecomspark.splitting import Split, Wanted, split_queries
from ecomspark.tables import Warehouse
from ecomspark.text import digest
from ecomspark.tracking import Tracking, tracked
from ecomspark.training import is_trained, train

JOB = "finetune_cross_encoder"

READS = (JUDGMENTS, QUERIES, ITEMS, SPLITS)

PUBLISHES = (SPLITS,)  # and vectors to `embeddings`, without its lease: an evaluation need not wait for a training

_TEACHING_HEADS = ("bce", "mse")  # their score is a place between the worst and the best grade
_SPECIAL_TOKENS = 4  # of a pair, at most: RoBERTa's

log = logging.getLogger("ecomspark")


class Shares(Section):
    """Parts of the judged queries; what is left is for testing."""

    train: float = setting(0.5, "share of the queries to train on", gt=0, lt=1)
    validation: float = setting(0.15, "share to choose the best epoch and to calibrate on", gt=0, lt=1)


class Config(Training, Settings):
    """What is trained, on which judgments; how stands in `models.options.Training`."""

    base: Name = setting(..., "the encoder to start from: a folder in models_folder")
    name: Name = setting(..., "what the checkpoint is called; it never changes, so a new training takes a new name")
    judgment_set: Name = setting(..., "which judgments")
    split: Name = setting("default", "name of the split of the queries; those not in it yet are put on a side")
    shares: Shares = setting(Shares(), "parts of the split")
    near_duplicates: Literal["refuse", "drop"] = setting(
        "refuse", "training and validation queries that nearly equal one of a stricter side: end, or leave them out"
    )
    max_edits: int = setting(
        2, "edits that near-duplicates differ by at most, one for each six characters", unit="edits", ge=0, le=2
    )
    min_cosine: float | None = setting(
        0.92, "cosine under `base` from which queries are near-duplicates; null: vectors are not looked at", gt=0, le=1
    )
    max_tokens: int = setting(128, "tokens of a pair, special ones included", unit="tokens", gt=4)
    query_max_tokens: int = setting(32, "tokens kept of a query; then only the passage is cut", unit="tokens", gt=0)
    teacher: Name | None = setting(
        None, "checkpoint that tells hard negatives from false ones, trained on no other side; null: `base`"
    )
    tracking: Tracking = setting(Tracking(), "where the curves of trainings are kept", decides=False)
    seed: int = setting(13, "of initialisation, order, dropout and changes of texts, and of the split")

    @field_validator("shares")
    @classmethod
    def _some_left(cls, value: Shares) -> Shares:
        if value.train + value.validation >= 1:
            raise ValueError("train and validation must leave queries to test on")
        return value

    @property
    def unjudged_places(self) -> int:
        """Candidates of a query that nobody judged, to be learnt from or chosen among; 0: none are read."""
        places = self.hard_negatives.places if self.hard_negatives.per_query else 0
        return max(places, self.distillation.candidates_per_query)

    @model_validator(mode="after")
    def _room_for_a_passage(self) -> "Config":
        if self.max_tokens < self.query_max_tokens + _SPECIAL_TOKENS + 1:
            raise ValueError(f"max_tokens {self.max_tokens} leaves no room behind {self.query_max_tokens} of a query")
        return self

    @model_validator(mode="after")
    def _apart_from_models(self) -> "Config":
        if self.resume_folder and self.resume_folder.resolve().is_relative_to(self.models_folder.resolve()):
            raise ValueError(
                "resume_folder: expected a folder outside models_folder: what lies in there is half a model"
            )
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    base = open_checkpoint(config.models_folder, config.base, "encoder")
    learnt_from = [
        base,
        *(_teacher(config, name) for name in config.distillation.teachers),
        *_teacher_of_negatives(config),
    ]
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    settings_digest = config.deciding_digest(*(of.scorer_digest.hex() for of in learnt_from))
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=(*READS, *((CANDIDATES,) if config.unjudged_places else ())),
        publishes=PUBLISHES,
        settings_digest=settings_digest,
        as_of=as_of,
        leases=config.leases,
    ) as current:
        if not current.is_replayed:
            with current.stage("split"):
                split = _split(current, config, base)
            with current.stage("examples"):
                examples = _examples(current, config, split.rows)
            training = digest(settings_digest.hex(), _content(examples)).hex()
            if not is_trained(config.models_folder, config.name, "cross_encoder", training, JOB):
                with current.stage("train"):
                    read = {name: vars(at) for name, at in {**current.inputs, **split.read}.items() if at}
                    card = _card(config, read, training)
                    with tracked(config.tracking, JOB, run_id, config.name, card.settings) as track:
                        train(_plan(config, card), examples, see=track.see)
                        track.made(open_checkpoint(config.models_folder, config.name, "cross_encoder"))
                    current.made(config.name)
    return current.summary()


def _teacher(config: Config, name: str) -> Checkpoint:
    """One that hands its scores on. Raises CheckpointError when it does not verify, reads other texts, has a head whose
    score is no grade, or may have learnt from queries that this training is judged on."""
    teacher = open_checkpoint(config.models_folder, name, "cross_encoder")
    place = f"{JOB}.distillation.teachers: {name}"
    if teacher.card.recipe.digest != config.recipe.digest:
        raise CheckpointError(
            f"{place}: expected the text recipe of these settings, found another: train it anew with this one"
        )
    head = teacher.card.settings.get("head")
    if head not in _TEACHING_HEADS:
        raise CheckpointError(f"{place}: expected a head of {' or '.join(_TEACHING_HEADS)}, found {head}")
    _apart(config, place, teacher)
    return teacher


def _apart(config: Config, place: str, teacher: Checkpoint) -> None:
    """Raises CheckpointError when a teacher was trained on other sides of the queries than this training will be."""
    names = ("split", "min_cosine", "max_edits")
    found, wanted = ([of.get(name) for name in names] for of in (teacher.card.settings, vars(config)))
    if found != wanted:
        raise CheckpointError(
            f"{place}: expected a training with {', '.join(names)} {wanted}, found {found}: it may know the queries "
            "that this one is judged on"
        )


def _teacher_of_negatives(config: Config) -> list[Checkpoint]:
    """What tells hard negatives from false ones, if it is not the base: an encoder, or a cross-encoder of ours. Raises
    CheckpointError as `_apart` does, or when it does not verify."""
    if config.teacher is None or not config.hard_negatives.per_query:
        return []
    teacher = open_checkpoint(config.models_folder, config.teacher)
    if teacher.card.kind == "cross_encoder":
        _apart(config, f"{JOB}.teacher: {config.teacher}", teacher)
    return [teacher]


def _split(current: Run, config: Config, base: Checkpoint) -> Split:
    wanted = Wanted(
        judgment_set=config.judgment_set,
        split=config.split,
        seed=config.seed,
        train=config.shares.train,
        validation=config.shares.validation,
        is_dropping=config.near_duplicates == "drop",
        max_edits=config.max_edits,
        min_cosine=config.min_cosine,
        analysers=config.analysers,
        recipe_digest=config.recipe.digest,
    )
    embedder = embedder_of(base, None, None)
    return split_queries(current, wanted, embedder)


def _examples(current: Run, config: Config, split: DataFrame) -> pd.DataFrame:
    """The judged pairs of the training and validation queries with the texts that scoring would read, and on the side
    `candidate` those that nobody judged. Raises ContractError when a side has none."""
    judged = current.read(JUDGMENTS)
    of_set = judged.where(F.col("judgment_set") == config.judgment_set)
    learnt = split.where(F.col("side").isin("train", "validation")).select("query_id", "side")
    pairs = of_set.join(learnt, on="query_id", how="inner")
    pairs = pairs.select("query_id", "item_id", "grade", "side", F.lit(None).cast("int").alias("place"))
    if config.unjudged_places:
        train_queries = learnt.where("side = 'train'")
        candidates = current.read(CANDIDATES)
        unjudged = unjudged_candidates(candidates, judged, train_queries, config.unjudged_places)
        grade = F.lit(None).cast("double").alias("grade")
        pairs = pairs.unionByName(
            unjudged.select("query_id", "item_id", grade, F.lit("candidate").alias("side"), "place")
        )
    field = config.auxiliary.field if config.auxiliary else None
    texts, items = tables.read_memory(current.warehouse, TEXTS), current.read(ITEMS)
    read = pair_texts(pairs, current.read(QUERIES), items, texts, config.recipe.digest)
    names = ["item_id", "query_text", "passage_text", "grade", "side", "place"]
    if field:
        read, names = read.join(items.select("item_id", field), on="item_id", how="inner"), [*names, field]
    joined = read.select(F.lower(F.hex("query_id")).alias("query_id"), *names)
    examples: pd.DataFrame = joined.toPandas().sort_values(["query_id", "item_id"], ignore_index=True)
    by_side = examples["side"].value_counts()
    current.count(train_pairs=int(by_side.get("train", 0)), validation_pairs=int(by_side.get("validation", 0)))
    if candidate_pairs := int(by_side.get("candidate", 0)):
        current.count(candidate_pairs=candidate_pairs)
    _check(config, examples, by_side)
    return examples


def _check(config: Config, examples: pd.DataFrame, by_side: "pd.Series[int]") -> None:
    """Raises ContractError when there is nothing to train on, or not what the head learns."""
    if examples[["query_text", "passage_text"]].isna().any(axis=None):
        raise ContractError("texts: a judged query or item has none under the settings' recipe; run build_texts first")
    for side in ("train", "validation"):
        if not by_side.get(side, 0):
            raise ContractError(
                f"judgments: expected pairs of {config.judgment_set} on the {side} side of split {config.split}, "
                "found none; judge more queries or change the shares"
            )
    heads = config.auto.heads if config.head == "auto" else [config.head]
    means = int((~examples["grade"].isin(list(config.gains)) & examples["grade"].notna()).sum())
    if "classes" in heads and not config.class_edges and means:
        raise ContractError(
            f"judgments: head classes: expected grades of {', '.join(map(str, sorted(config.gains)))}, found {means:,} "
            f"between them; set {JOB}.class_edges, or take a head that learns numbers (bce, mse)"
        )


def _content(examples: pd.DataFrame) -> str:
    return digest(*(str(value) for row in examples.itertuples(index=False) for value in row)).hex()


def _card(config: Config, read: dict[str, Any], training: str) -> Card:
    return Card(
        kind="cross_encoder",
        base=config.base,
        recipe=config.recipe,
        max_tokens=config.max_tokens,
        query_max_tokens=config.query_max_tokens,
        data=read,
        settings=config.model_dump(mode="json", exclude={*Settings.model_fields, "resume_folder", "tracking"}),
        training_digest=training,
    )


def _plan(config: Config, card: Card) -> dict[str, Any]:
    """What `models.finetune.Plan` reads."""
    folder = config.resume_folder
    training = config.model_dump(mode="json", include=set(Training.model_fields))
    return {
        "models_folder": str(config.models_folder.resolve()),
        "base": config.base,
        "name": config.name,
        "card": card.model_dump(mode="json"),
        "gains": config.gains,
        "training": {**training, "resume_folder": str(folder.resolve()) if folder else None},
        "teacher": config.teacher,
    }
