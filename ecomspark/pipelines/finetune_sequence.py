"""From sessions to a checkpoint that says what comes next after a sequence of items. Trains in a process of its own."""

import logging
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal

import pandas as pd
from pydantic import model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.behaviour import allowed_now
from ecomspark.config import Name, Settings, setting
from ecomspark.embedding import embedded, embedder_of
from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.consents import remaining
from ecomspark.features.sequences import sequences
from ecomspark.features.sessions import Kind
from ecomspark.models.checkpoint import CARD, Card, Checkpoint, open_checkpoint
from ecomspark.models.sequence_options import SequenceTraining
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CONSENTS, ITEMS, SESSIONS, SHOPPER_LINKS, TEXTS, Table
from ecomspark.tables import Warehouse
from ecomspark.text import digest
from ecomspark.tracking import Tracking, tracked
from ecomspark.training import is_trained, train

JOB = "finetune_sequence"

READS = (SESSIONS, CONSENTS, SHOPPER_LINKS, ITEMS)

PUBLISHES: tuple[Table, ...] = ()  # a checkpoint; and vectors to `embeddings`, without its lease

_PURPOSES = {"train": "train", "validation": "validate"}

log = logging.getLogger("ecomspark")


class Config(SequenceTraining, Settings):
    """What is trained, on which sessions; how stands in `models.sequence_options`."""

    name: Name = setting(..., "what the checkpoint is called; it never changes, so a new training takes a new name")
    of: Literal["sessions", "shoppers"] = setting(
        "sessions", "a sequence is one session, or all that a shopper did, session after session"
    )
    kinds: list[Kind] = setting(
        ["click", "cart", "favourite", "purchase"], "interactions that a sequence is of", min_length=1
    )
    validation_from: date = setting(
        ...,
        "sessions that ended before this day (UTC) are trained on; those that began on it or later, up to as_of, "
        "choose the epoch and say how sure the model may be",
    )
    encoder: Name | None = setting(
        None, "an encoder whose vectors of items' texts are read, so that new items are known, too; null: ids alone"
    )
    purpose: Name = setting(
        "personalisation", "shoppers who agree to it, by `consents` as they are now, are learnt from"
    )
    tracking: Tracking = setting(Tracking(), "where the curves of trainings are kept", decides=False)

    @model_validator(mode="after")
    def _closed_forms_read_ids(self) -> "Config":
        if self.architecture in ("linear", "spectral") and self.encoder is not None:
            raise ValueError(
                f"architecture {self.architecture} knows no texts: set encoder to null, or take another architecture"
            )
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    settings_digest = _settings_digest(config, encoder)
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
            with current.stage("sequences"):
                found = _sequences(current, config)
            vectors = None
            if encoder is not None:
                with current.stage("texts"):
                    vectors = _vectors(current, config, encoder, found)
            training = digest(settings_digest.hex(), *_content(found, vectors)).hex()
            if not is_trained(config.models_folder, config.name, "sequence", training, JOB):
                with current.stage("train"):
                    card = _card(config, encoder, current, training)
                    more = {} if vectors is None else {"vectors.parquet": vectors}
                    with tracked(config.tracking, JOB, run_id, config.name, card.settings) as track:
                        module = "ecomspark.models.finetune_sequence"
                        train(_plan(config, card), found, module, "sequences.parquet", track.see, more)
                        track.made(open_checkpoint(config.models_folder, config.name, "sequence"))
                    current.made(config.name)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would learn from, by the same search; nothing is embedded or trained."""
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers={}, as_of=as_of) as current:
        _sequences(current, config)
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=_settings_digest(config, encoder).hex(),
            inputs=as_pins(current.inputs),
            covers={},
            counts={**current.rows, "checkpoints_there": int((config.models_folder / config.name / CARD).exists())},
            fields={},
        )


def _encoder(config: Config) -> Checkpoint | None:
    if config.encoder is None:
        return None
    data_type = config.data_types.get(config.encoder)
    return open_checkpoint(config.models_folder, config.encoder, "encoder", data_type=data_type)


def _settings_digest(config: Config, encoder: Checkpoint | None) -> bytes:
    return config.deciding_digest(encoder.scorer_digest.hex() if encoder else "")


def _sequences(current: Run, config: Config) -> pd.DataFrame:
    """(sequence_id, item_ids, side) in order of time. Raises ConfigError when nothing can lie between the two days,
    ContractError when a side has no sequence."""
    if current.as_of is not None and current.as_of < config.validation_from:
        raise ConfigError(
            f"{JOB}.validation_from: expected a day up to as_of {current.as_of}, found {config.validation_from}"
        )
    # Asked again: a no may have come since the sessions were built.
    allowed = allowed_now(current, config.purpose)
    sessions = current.read(SESSIONS).join(remaining(allowed), on="shopper_id", how="left_semi")
    if current.as_of is not None:
        end = datetime.combine(current.as_of + timedelta(days=1), time(), UTC)
        sessions = sessions.where(F.col("ended_at") < F.lit(end))
    since = F.lit(datetime.combine(config.validation_from, time(), UTC))
    found = sequences(sessions, config.of, since, config.kinds).toPandas()
    found = found.assign(sequence_id=[bytes(one).hex() for one in found["sequence_id"]])
    found = found.sort_values(["ends_at", "sequence_id"], ignore_index=True)[["sequence_id", "item_ids", "side"]]
    by_side = found["side"].value_counts()
    counts = {side: int(by_side.get(side, 0)) for side in ("train", "validation")}
    of_train = found["item_ids"][found["side"] == "train"]
    current.count(
        **{f"{side}_sequences": count for side, count in counts.items()},
        items=len({item_id for item_ids in of_train for item_id in item_ids}),
    )
    for side, count in counts.items():
        if not count:
            raise ContractError(
                f"sessions: expected {config.of} of two items or more to {_PURPOSES[side]} on, found none of "
                f"consenting shoppers with validation_from {config.validation_from} and as_of {current.as_of}; run "
                f"import_consents and build_sessions, or change {JOB}.validation_from"
            )
    return found


def _vectors(current: Run, config: Config, encoder: Checkpoint, found: pd.DataFrame) -> pd.DataFrame:
    """(item_id, text_digest, vector) of the items of the training sequences that have a text; what `embeddings` lacks
    is made. Raises ContractError when none has one."""
    learnt = sorted({item_id for item_ids in found["item_ids"][found["side"] == "train"] for item_id in item_ids})
    wanted = current.warehouse.spark.createDataFrame(pd.DataFrame({"item_id": learnt}))
    texts = tables.read_memory(current.warehouse, TEXTS)
    of_items = current.keep(with_texts(wanted, current.read(ITEMS), texts, encoder.card.recipe.digest))
    embedder = embedder_of(encoder, config.data_types.get(encoder.name), None)
    vectors = embedded(current, of_items.select("text_digest", "text"), embedder, "passage")
    read = (
        of_items.join(vectors, on="text_digest", how="inner")
        .select("item_id", F.hex("text_digest").alias("text_digest"), "vector")
        .toPandas()
    )
    current.count(items_with_text=len(read))
    if read.empty:
        raise ContractError(
            f"texts: expected some of the items under the recipe of {config.encoder}, found none; run build_texts "
            f"first, or set {JOB}.encoder to null"
        )
    return read.sort_values("item_id", ignore_index=True)


def with_texts(wanted: DataFrame, items: DataFrame, texts: DataFrame, recipe_digest: bytes) -> DataFrame:
    """(item_id, text_digest, text) of the items wanted that are there and have a text under the recipe."""
    of_items = texts.where((F.col("recipe_digest") == F.lit(recipe_digest)) & (F.col("role") == "passage"))
    sources = items.join(wanted, on="item_id", how="left_semi").select("item_id", "source_digest")
    made = of_items.where("text <> ''").select("source_digest", "text_digest", "text")
    return sources.join(made, on="source_digest", how="inner").select("item_id", "text_digest", "text")


def _content(found: pd.DataFrame, vectors: pd.DataFrame | None) -> list[str]:
    """All that is learnt from, in order."""
    made = [digest(side, *item_ids).hex() for side, item_ids in zip(found["side"], found["item_ids"], strict=True)]
    if vectors is not None:
        made += [digest(*of_item).hex() for of_item in zip(vectors["item_id"], vectors["text_digest"], strict=True)]
    return made


def _card(config: Config, encoder: Checkpoint | None, current: Run, training: str) -> Card:
    return Card(
        kind="sequence",
        base="none: made anew",
        recipe=encoder.card.recipe if encoder else config.recipe,
        architecture=config.architecture,
        max_items=config.max_items,
        text_scorer_digest=encoder.scorer_digest.hex() if encoder else "",
        data={name: vars(at) for name, at in current.inputs.items() if at},
        settings=config.model_dump(mode="json", exclude={*Settings.model_fields, "tracking"}),
        training_digest=training,
    )


def _plan(config: Config, card: Card) -> dict[str, Any]:
    """What `models.finetune_sequence.Plan` reads."""
    return {
        "models_folder": str(config.models_folder.resolve()),
        "name": config.name,
        "card": card.model_dump(mode="json"),
        "training": config.model_dump(mode="json", include=set(SequenceTraining.model_fields)),
    }
