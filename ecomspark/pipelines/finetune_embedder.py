"""From what belongs together to an encoder that lays it together: judged pairs, and what shoppers bought.

Trains in a process of its own. Needs no shopper's id: what was bought is counted by item and query first.
"""

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, field_validator, model_validator
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Section, Settings, setting
from ecomspark.embedding import embedder_of
from ecomspark.errors import CheckpointError, ConfigError, ContractError
from ecomspark.features.related import asked_and_bought, bought_together
from ecomspark.features.scores import pair_texts
from ecomspark.features.texts import queries_by_alias
from ecomspark.models.checkpoint import Card, Checkpoint, open_checkpoint
from ecomspark.models.embedder_options import EmbedderTraining
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import INTERACTIONS, ITEMS, JUDGMENTS, QUERIES, QUERY_ALIASES, SPLITS, TEXTS
from ecomspark.splitting import Split, Wanted, split_queries
from ecomspark.tables import Warehouse
from ecomspark.text import digest
from ecomspark.tracking import Tracking, tracked
from ecomspark.training import is_trained, train

JOB = "finetune_embedder"

READS = (JUDGMENTS, QUERIES, ITEMS, SPLITS, INTERACTIONS, QUERY_ALIASES)

PUBLISHES = (SPLITS,)  # and vectors to `embeddings`, without its lease, as finetune_cross_encoder does

Source = Literal["judged", "bought_together", "asked_and_bought"]

_COLUMNS = ["role", "anchor_text", "passage_text", "is_relevant", "side"]


class Shares(Section):
    """Parts of the judged queries; what is left is for testing."""

    train: float = setting(0.5, "share of the queries to train on", gt=0, lt=1)
    validation: float = setting(0.15, "share to choose the best epoch on", gt=0, lt=1)

    @model_validator(mode="after")
    def _some_left(self) -> "Shares":
        if self.train + self.validation >= 1:
            raise ValueError("train and validation must leave queries to test on")
        return self


class Bought(Section):
    """What is made of purchases. They are counts without ids; of few shoppers they may still tell of one, so raise
    `min_count` where that matters."""

    min_count: int = setting(2, "baskets, or purchases after a query, from which a pair counts", ge=1)
    per_anchor: int = setting(
        6,
        "items of an item at most, the nearest by the baskets that held both; of a query the most bought",
        unit="items",
        ge=1,
    )
    max_basket: int = setting(100, "baskets of more items are left out", unit="items", ge=2)
    validation_share: float = setting(
        0.1, "part of the pairs to choose the best epoch on, where none is judged", gt=0, lt=1
    )


class Config(EmbedderTraining, Settings):
    """What is trained, on which pairs; how stands in `models.embedder_options.EmbedderTraining`."""

    base: Name = setting(..., "the encoder to start from: a folder in models_folder")
    name: Name = setting(..., "what the checkpoint is called; it never changes, so a new training takes a new name")
    sources: Annotated[list[Source], Field(min_length=1)] = setting(
        ["judged"],
        "what belongs together. judged: queries and items by judgments. bought_together: items of a basket. "
        "asked_and_bought: queries and what was bought after them. Validation is on judged queries where there are any",
    )
    judgment_set: Name | None = setting(None, "which judgments; null: none")
    min_grade: float | None = setting(
        None, "grade from which an item belongs to a query; null: above the scale's middle"
    )
    bought: Bought = setting(Bought(), "of bought_together and asked_and_bought")
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
    max_tokens: int | None = setting(None, "tokens read of a text, special ones included; null: what `base` reads",
                                     unit="tokens", gt=4)  # fmt: skip
    query_prefix: str | None = setting(None, "put before a query; null: what `base` has")
    passage_prefix: str | None = setting(None, "put before an item's text; null: what `base` has")
    tracking: Tracking = setting(Tracking(), "where the curves of trainings are kept", decides=False)
    seed: int = setting(13, "of order, dropout, negatives and the items drawn, and of the split")

    @field_validator("sources")
    @classmethod
    def _each_once(cls, value: list[Source]) -> list[Source]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _judged_by_a_set(self) -> "Config":
        if ("judged" in self.sources) != (self.judgment_set is not None):
            raise ValueError("judgment_set: expected one with the source judged, and none without it")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    base = _base(config)
    settings_digest = config.deciding_digest(*(of.scorer_digest.hex() for of in (base, *_teacher(config))))
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        settings_digest=settings_digest,
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            with current.stage("split"):
                split = _split(current, config, base)
            with current.stage("examples"):
                examples = _examples(current, config, split)
                _check(current, config, examples)
            training = digest(settings_digest.hex(), _content(examples)).hex()
            if not is_trained(config.models_folder, config.name, "encoder", training, JOB):
                with current.stage("train"):
                    card = _card(config, base, {**current.inputs, **split.read}, training)
                    with tracked(config.tracking, JOB, run_id, config.name, card.settings) as track:
                        train(_plan(config, card), examples, "ecomspark.models.finetune_embedder", see=track.see)
                        track.made(open_checkpoint(config.models_folder, config.name, "encoder"))
                    current.made(config.name)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would train on now, by the same search over the split as it stands: queries that are new to it are
    counted, not placed, and near-duplicates among them are not known before they are."""
    base = _base(config)
    settings_digest = config.deciding_digest(*(of.scorer_digest.hex() for of in (base, *_teacher(config))))
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers={}, as_of=as_of) as current:
        placed = _as_it_stands(current, config)
        _examples(current, config, placed)
        new = 0
        if config.judgment_set is not None:
            judged = current.read(JUDGMENTS).where(F.col("judgment_set") == F.lit(config.judgment_set))
            new = judged.select("query_id").distinct().join(placed.rows, on="query_id", how="left_anti").count()
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=settings_digest.hex(),
            inputs=as_pins(current.inputs),
            covers={},
            counts={**current.rows, "queries_to_place": new, "dropped_queries": None if new else 0},
            fields={},
        )


def _base(config: Config) -> Checkpoint:
    base = open_checkpoint(config.models_folder, config.base, "encoder")
    if config.max_tokens is not None and config.max_tokens > base.card.max_tokens:
        raise ConfigError(
            f"{JOB}.max_tokens: expected {base.card.max_tokens} at most, which is what {config.base} reads, "
            f"found {config.max_tokens}"
        )
    return base


def _teacher(config: Config) -> list[Checkpoint]:
    """Raises CheckpointError when it does not verify, reads other texts, or was trained on other sides of the queries
    than this training will be: it may know those that this one is judged on."""
    if config.teacher is None:
        return []
    teacher = open_checkpoint(config.models_folder, config.teacher, "cross_encoder")
    place = f"{JOB}.teacher: {config.teacher}"
    if teacher.card.recipe.digest != config.recipe.digest:
        raise CheckpointError(
            f"{place}: expected the text recipe of these settings, found another: train it anew with this one"
        )
    names = ("split", "min_cosine", "max_edits")
    found, wanted = ([of.get(name) for name in names] for of in (teacher.card.settings, vars(config)))
    if found != wanted:
        raise CheckpointError(
            f"{place}: expected a training with {', '.join(names)} {wanted}, found {found}: it may know the queries "
            "that this one is judged on"
        )
    return [teacher]


def _as_it_stands(current: Run, config: Config) -> Split:
    """The split without looking for queries that are new to it, or leak."""
    nothing = current.warehouse.spark.createDataFrame([], "query_id binary")
    return Split(current.read_if_there(SPLITS).where(F.col("split") == config.split), {}, nothing)


def _split(current: Run, config: Config, base: Checkpoint) -> Split:
    """The split, without queries that leak."""
    if config.judgment_set is None:
        return _as_it_stands(current, config)
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


def _examples(current: Run, config: Config, split: Split) -> pd.DataFrame:
    """What `models.finetune_embedder` reads, counted: pairs by source, and the catalogue."""
    frames = [*_sources(current, config, split), _catalogue(current, config)]
    examples = pd.concat([frame[_COLUMNS] for frame in frames], ignore_index=True)
    order = ["side", "role", "anchor_text", "passage_text"]
    examples = examples.sort_values([*order, "is_relevant"], ascending=[True] * 4 + [False])
    examples = examples.drop_duplicates(order, ignore_index=True)  # judged by one name of it, and not by another
    relevant = examples[examples["is_relevant"].eq(True)]
    current.count(**{f"{side}_pairs": int((relevant["side"] == side).sum()) for side in ("train", "validation")})
    current.count(catalogue=int((examples["side"] == "catalogue").sum()))
    return examples


def _sources(current: Run, config: Config, split: Split) -> Iterator[pd.DataFrame]:
    texts, items, queries = tables.read_memory(current.warehouse, TEXTS), current.read(ITEMS), current.read(QUERIES)
    recipe = config.recipe.digest
    if "judged" in config.sources:
        of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == F.lit(config.judgment_set))
        learnt = split.rows.where(F.col("side").isin("train", "validation")).select("query_id", "side")
        pairs = of_set.join(learnt, on="query_id", how="inner").select("query_id", "item_id", "grade", "side")
        read = pair_texts(pairs, queries, items, texts, recipe)
        found = read.select("query_text", "passage_text", "grade", "side").toPandas()
        middle = (min(config.gains) + max(config.gains)) / 2
        least = config.min_grade
        relevant = found["grade"] > middle if least is None else found["grade"] >= least
        yield found.assign(role="query", anchor_text=found["query_text"], is_relevant=relevant)
    interactions = current.read_if_there(INTERACTIONS)
    if current.as_of is not None:
        interactions = interactions.where(F.to_date("occurred_at") <= F.lit(current.as_of))
    bought = config.bought
    if "asked_and_bought" in config.sources:
        known = queries_by_alias(current.read_if_there(QUERY_ALIASES), texts)
        unseen = split.rows.where("side <> 'train'").select("query_id").unionByName(split.dropped)
        known = known.join(unseen, on="query_id", how="left_anti")
        pairs = asked_and_bought(interactions, known, bought.min_count, bought.per_anchor)
        read = pair_texts(pairs.select("query_id", "item_id"), queries, items, texts, recipe)
        found = read.select(F.col("query_text").alias("anchor_text"), "passage_text").toPandas()
        yield _sided(config, found.assign(role="query"))
    if "bought_together" in config.sources:
        pairs = bought_together(interactions, bought.min_count, bought.per_anchor, bought.max_basket)
        made = texts.where((F.col("recipe_digest") == F.lit(recipe)) & (F.col("role") == "passage"))
        named = items.select("item_id", "source_digest").join(made, on="source_digest", how="left")
        one, other = (named.select(F.col("item_id").alias(key), F.col("text").alias(text))
                      for key, text in (("item_id", "anchor_text"), ("other_id", "passage_text")))  # fmt: skip
        read = pairs.join(one, on="item_id", how="inner").join(other, on="other_id", how="inner")
        found = read.select("anchor_text", "passage_text").toPandas()
        found = found[found["anchor_text"] != found["passage_text"]]  # two items of one text: nothing to learn
        yield _sided(config, found.assign(role="passage"))


def _sided(config: Config, found: pd.DataFrame) -> pd.DataFrame:
    """Pairs of behaviour: all to train on where judgments are there to validate on; else each by its own draw, the two
    directions of a pair together."""
    sides = ["train"] * len(found)
    if "judged" not in config.sources:
        pairs = found[["anchor_text", "passage_text"]].itertuples(index=False)
        draws = [digest(JOB, str(config.seed), *sorted(map(str, pair))) for pair in pairs]
        least = config.bought.validation_share
        sides = ["validation" if int.from_bytes(draw[:6], "big") / 2**48 < least else "train" for draw in draws]
    return found.assign(is_relevant=True, side=sides)


def _catalogue(current: Run, config: Config) -> pd.DataFrame:
    """The texts of items in the shop, `max_items` of them at most, drawn by their digests."""
    texts = tables.read_memory(current.warehouse, TEXTS)
    made = texts.where((F.col("recipe_digest") == F.lit(config.recipe.digest)) & (F.col("role") == "passage"))
    sold = made.join(current.read(ITEMS).select("source_digest"), on="source_digest", how="left_semi")
    each = sold.where("text <> ''").groupBy("text_digest").agg(F.min("text").alias("passage_text"))
    drawn = each.orderBy("text_digest").limit(config.max_items).select("passage_text").toPandas()
    return drawn.assign(role=None, anchor_text=None, is_relevant=None, side="catalogue")


def _check(current: Run, config: Config, examples: pd.DataFrame) -> None:
    """Raises ContractError when there is nothing to train on or to validate on."""
    pairs = examples[examples["side"] != "catalogue"]
    if pairs[["anchor_text", "passage_text"]].isna().any(axis=None):
        raise ContractError("texts: a query or item has none under the settings' recipe; run build_texts first")
    for side in ("train", "validation"):
        if not current.rows[f"{side}_pairs"]:
            raise ContractError(
                f"{', '.join(config.sources)}: expected pairs that belong together on the {side} side, found none; "
                f"judge more queries, or change {JOB}.min_grade, shares, or bought"
            )


def _content(examples: pd.DataFrame) -> str:
    return digest(*(str(value) for row in examples.itertuples(index=False) for value in row)).hex()


def _card(config: Config, base: Checkpoint, read: dict[str, Any], training: str) -> Card:
    """How the encoder is meant to be used: as its base is, where the settings say nothing else."""
    said = {name: getattr(config, name) for name in ("max_tokens", "query_prefix", "passage_prefix")}
    return base.card.model_copy(
        update={
            **{name: value for name, value in said.items() if value is not None},
            "base": base.name,
            "recipe": config.recipe,
            "data": {name: vars(at) for name, at in read.items() if at},
            "settings": config.model_dump(mode="json", exclude={*Settings.model_fields, "tracking"}),
            "training_digest": training,
            "files": {},
            "metrics": {},
        }
    )


def _plan(config: Config, card: Card) -> dict[str, Any]:
    """What `models.finetune_embedder.Plan` reads."""
    return {
        "models_folder": str(config.models_folder.resolve()),
        "base": config.base,
        "name": config.name,
        "card": card.model_dump(mode="json"),
        "training": config.model_dump(mode="json", include=set(EmbedderTraining.model_fields)),
    }
