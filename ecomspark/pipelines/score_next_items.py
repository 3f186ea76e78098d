"""What shoppers will want next: the likeliest items after their history, the chances of a purchase and a return, and
how far their last sessions lie from what came before.

A list is made again only when the history, the model, the items that could be proposed or the settings are others than
those of the list that stands. Chances change with every day that passes, so what they are made of is looked at whole
each day, in Spark alone; the model reads only histories that no run has read yet.
"""

import json
import logging
import math
import time
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from pyspark import Broadcast
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy import stats

from ecomspark import parts, tables
from ecomspark.behaviour import allowed_now, is_as_left
from ecomspark.chances import Chances, open_chances
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ConfigError, ContractError
from ecomspark.features.chances import at_cuts, last_of_shopper, logit, session_features, shopper_features
from ecomspark.features.consents import remaining, states_of_nobody
from ecomspark.features.drift import drift
from ecomspark.features.histories import bought, end_of, events_until, histories, told_by
from ecomspark.features.ranking import expected_gain
from ecomspark.features.sessions import TimeZone
from ecomspark.features.standing import gone_dates, in_force
from ecomspark.features.vectors import item_vectors
from ecomspark.models.checkpoint import ITEMS as ITEMS_FILE
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.next_items import Shelf, next_items, sequence_states
from ecomspark.plans import Plan, as_pins
from ecomspark.resources import StageResources, profile_of
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import (
    CONSENTS,
    EMBEDDINGS,
    INTERACTIONS,
    ITEMS,
    NEXT_ITEMS,
    OUTLOOKS,
    SEQUENCE_STATES,
    SESSIONS,
    SHOPPER_LINKS,
    TEXTS,
    Table,
)
from ecomspark.scoring import Description, SequenceAt, costs_of
from ecomspark.tables import Warehouse
from ecomspark.text import digest, settings_digest

log = logging.getLogger("ecomspark")

JOB = "score_next_items"

_FOLLOWED = (INTERACTIONS, SESSIONS, CONSENTS, SHOPPER_LINKS, ITEMS)

READS = (*_FOLLOWED, EMBEDDINGS, NEXT_ITEMS, OUTLOOKS)

PUBLISHES = (SEQUENCE_STATES, NEXT_ITEMS, OUTLOOKS)

# Of the job's own settings those that decide; other jobs' keys at the top of the file change nothing here.
_OF_LISTS = ("k", "purpose", "of", "kinds", "max_items", "time_zone", "gap_minutes", "excludes_bought", "keeps_dates")
_OF_OUTLOOKS = ("purpose", "kinds", "time_zone", "gap_minutes", "sessions_for_drift", "half_life_days")

_CHANCE_DECIMALS = 6
_CHANCE_STEP = 1e-6
_CHANCES = ("session_purchase_chance", "purchase_chance", "return_chance", "drift", "drift_low", "drift_high")


class Config(Settings):
    """Which model, whose histories, what may be proposed."""

    checkpoint: Name = setting(..., "the sequence model: a folder in models_folder")
    k: int = setting(20, "items of a list", unit="items", ge=1, le=1_000)
    purpose: Name = setting("personalisation", "what shoppers must have consented to")
    of: Literal["sessions", "shoppers"] = setting(
        "shoppers", "a history is a shopper's last session, or all that they did"
    )
    kinds: list[Literal["impression", "click", "cart", "favourite", "purchase", "return", "review"]] = setting(
        ["click", "cart", "favourite", "purchase"], "interactions that a history is of", min_length=1
    )
    max_items: int | None = setting(
        None, "items of a history, the newest; null: as many as the model reads", unit="items", ge=1
    )
    time_zone: TimeZone = setting("UTC", "in which a day ends, such as Europe/London")
    gap_minutes: int = setting(30, "that of build_sessions: for so long a session may go on", unit="minutes", ge=1)
    excludes_bought: bool = setting(False, "propose nothing that the shopper ever bought")
    chances: Name | None = setting(
        None, "what train_chances made: a folder in models_folder; null: no chances are told"
    )
    encoder: Name | None = setting(
        None, "whose vectors of items drift is told by, out of `embeddings`; null: no drift is told"
    )
    sessions_for_drift: int = setting(5, "the last sessions, held against those before them", unit="sessions", ge=2)
    half_life_days: float = setting(30.0, "an earlier session this much older counts half", unit="days", gt=0)
    keeps_dates: int = setting(3, "days of a shopper that are kept, the newest; a list stands until a newer one", ge=1)
    full: bool = setting(False, "make every list anew, whatever changed: `--full`", decides=False)
    histories_per_commit: int = setting(
        500_000,
        "histories read between two commits: the most that a death loses",
        unit="histories",
        decides=False,
        ge=1,
    )
    rows_per_task: int = setting(
        2_000,
        "histories or shoppers of one Spark task: what a failed task does again",
        unit="rows",
        decides=False,
        ge=1,
    )
    scores_at_once: int = setting(
        4_000_000,
        "scores of items that a worker holds at once, about 40 bytes each",
        unit="scores",
        decides=False,
        ge=1,
    )
    resources: StageResources | None = setting(
        None, "a resource profile for the stages of the model; null: none; local mode never has one", decides=False
    )


@dataclass(frozen=True)
class Model:
    """What the driver knows of a sequence model. `confidence_digest`: of its calibration, in hex. `item_ids`: those
    that it learnt, and `text_scorer_digest`: the encoder by whose vectors it knows others; None: it knows no others."""

    scorer_digest: bytes
    confidence_digest: str
    max_items: int
    item_ids: frozenset[str] = frozenset()
    text_scorer_digest: bytes | None = None
    recipe_digest: bytes = b""


@dataclass(frozen=True)
class Encoder:
    """Whose vectors of items are read."""

    scorer_digest: bytes
    recipe_digest: bytes


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    checkpoint = _checkpoint(config)
    scorer = SequenceAt(str(checkpoint.folder.resolve()), checkpoint.scorer_digest)
    return run_with(spark, config, run_id, model_of(checkpoint), scorer, as_of)


def run_with(
    spark: SparkSession, config: Config, run_id: str, model: Model, scorer: Description, as_of: date | None = None
) -> Summary:
    """The run with any scorer that goes by the model's digest: what `run` does with a checkpoint."""
    asked = _asked(config, model)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=asked.covers,
        settings_digest=config.deciding_digest(*asked.covers, *asked.covers.values()),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            with current.stage("histories"):
                work = find(current, config, asked)
                current.count(**{name: number for name, number in work.counts.items() if number})
            if work.lists is not None:
                _publish_lists(current, config, asked, scorer, work, work.lists)
            if work.outlooks is not None:
                with current.stage("outlooks"):
                    _publish(current, OUTLOOKS, work.outlooks.rows, work.outlooks.replaced)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would do now, by the same search; no model is loaded."""
    checkpoint = _checkpoint(config)
    return plan_with(spark, config, model_of(checkpoint), as_of)


def _checkpoint(config: Config) -> Checkpoint:
    """Raises ConfigError when it was trained on other histories than it shall read: its confidence would not hold."""
    checkpoint = open_checkpoint(config.models_folder, config.checkpoint, "sequence")
    for key, found in (("of", config.of), ("kinds", sorted(config.kinds))):
        said = checkpoint.card.settings.get(key, found)
        expected = said if isinstance(said, str) else sorted(said)
        if expected != found:
            raise ConfigError(
                f"{JOB}.{key}: expected {expected}, which {config.checkpoint} was trained on, found {found}; set it "
                f"so, or train another with finetune_sequence.{key}: {found}"
            )
    return checkpoint


def plan_with(spark: SparkSession, config: Config, model: Model, as_of: date | None = None) -> Plan:
    """The plan for any model: what `plan` says of a checkpoint's."""
    asked = _asked(config, model)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=asked.covers, as_of=as_of) as current:
        work = find(current, config, asked)
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest(*asked.covers, *asked.covers.values()).hex(),
            inputs=as_pins(current.inputs),
            covers=asked.covers,
            counts=work.counts,
            fields={},
        )


def model_of(checkpoint: Checkpoint) -> Model:
    """What a verified checkpoint says of its model."""
    card = checkpoint.card
    learnt = json.loads((checkpoint.folder / ITEMS_FILE).read_text(encoding="utf-8"))
    return Model(
        scorer_digest=checkpoint.scorer_digest,
        confidence_digest=card.calibration_digest.hex(),
        max_items=card.max_items or 1,
        item_ids=frozenset(learnt),
        text_scorer_digest=bytes.fromhex(card.text_scorer_digest) if card.text_scorer_digest else None,
        recipe_digest=card.recipe.digest,
    )


@dataclass(frozen=True)
class _Asked:
    """What a run goes by beside its settings. `covers`: the model, to the digest of all else that decides."""

    model: Model
    chances: Chances | None
    encoder: Encoder | None
    covers: dict[str, str]


def _asked(config: Config, model: Model) -> _Asked:
    """Raises CheckpointError when the chances or the encoder that are named do not verify."""
    chances = open_chances(config.models_folder, config.chances) if config.chances else None
    encoder = None
    if config.encoder:
        opened = open_checkpoint(
            config.models_folder, config.encoder, "encoder", data_type=config.data_types.get(config.encoder)
        )
        encoder = Encoder(opened.scorer_digest, opened.card.recipe.digest)
    others = {
        "confidence": model.confidence_digest,
        "chances": chances and chances.scorer_digest.hex(),
        "encoder": encoder and encoder.scorer_digest.hex(),
        "settings": config.model_dump(mode="json", include=set(_OF_LISTS) | set(_OF_OUTLOOKS)),
    }
    return _Asked(model, chances, encoder, {model.scorer_digest.hex(): settings_digest(others).hex()})


@dataclass(frozen=True)
class Lists:
    """`needed`: (shopper_id, item_ids, history_digest, excluded) of those whose list is to be made, persisted.
    `lacking`: (history_digest, item_ids) of the histories that the model has not read. `replaced`: (shopper_id,
    as_of_date) of the rows that go or are made anew. `forgotten`: (history_digest, scorer_digest) of those who consent
    no more."""

    needed: DataFrame
    needed_count: int
    lacking: DataFrame
    replaced: DataFrame
    forgotten: DataFrame
    shelf: Shelf


@dataclass(frozen=True)
class Outlooks:
    """`rows`: those that differ from what stands; `replaced`: (shopper_id, as_of_date) of these and of what goes."""

    rows: DataFrame
    replaced: DataFrame


@dataclass(frozen=True)
class Work:
    """What must be made; None: nothing has changed since a run of this day."""

    lists: Lists | None
    outlooks: Outlooks | None
    counts: dict[str, int | None]


def find(current: Run, config: Config, asked: _Asked) -> Work:
    """Whose list, which states and which outlooks are to be made."""
    as_of = current.as_of
    if as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    model = asked.model
    since = None if config.full else current.watermark(model.scorer_digest.hex())
    # Lists of another model, or of a run with other settings that died, may stand there; what is gone is made anew.
    is_known = since is not None and all(
        current.inputs[table.name] is None or is_as_left(current, table, since, but_for_removed=True)
        for table in (NEXT_ITEMS, OUTLOOKS)
    )
    followed = (*_FOLLOWED, *((EMBEDDINGS,) if asked.encoder or model.text_scorer_digest else ()))
    names = ("to_make", "histories_to_read", "lists_dropped", "outlooks_to_write")
    if since is not None and is_known and since.as_of == as_of and all(
        current.is_as_it_was(table, since) or current.inputs[table.name] is None for table in followed
    ):  # fmt: skip
        return Work(None, None, {"shoppers": since.rows.get("shoppers", 0), **dict.fromkeys(names, 0)})
    current.read(CONSENTS)  # without any nobody has a list: said before anything is looked for
    allowed = current.settle(allowed_now(current, config.purpose))
    end = end_of(as_of, config.time_zone)
    events = current.keep(
        events_until(current.read(INTERACTIONS), current.read(SESSIONS), allowed, end, config.gap_minutes)
    )
    shelf, spelled = _shelf(current, model)
    lists = _lists(current, config, model, events, allowed, shelf, spelled, as_of, is_known)
    outlooks = _outlooks(current, config, asked, events, as_of)
    shoppers = events.select("shopper_id").distinct().count()
    counts: dict[str, int | None] = {
        "shoppers": shoppers,
        "items_on_shelf": len(shelf.item_ids),
        "to_make": lists.needed_count,
        "histories_to_read": lists.lacking.count(),
        "lists_dropped": lists.replaced.join(
            lists.needed.select("shopper_id", F.lit(as_of).alias("as_of_date")),
            on=["shopper_id", "as_of_date"],
            how="left_anti",
        ).count(),
        "outlooks_to_write": outlooks.rows.count(),
    }
    return Work(lists, outlooks, counts)


def _shelf(current: Run, model: Model) -> tuple[Shelf, DataFrame]:
    """What can be proposed, and (item_id, spelling) of the items that the model knows by their text alone: their text
    is part of what names a history or a shelf that they are in."""
    spark, items = current.warehouse.spark, current.read(ITEMS)
    on_sale = items.where(F.coalesce("is_in_stock", F.lit(True))).select("item_id")
    if model.text_scorer_digest is None:
        spelled = spark.createDataFrame([], "item_id string, spelling string")
        ids = sorted(on_sale.toArrow().column("item_id").to_pylist())
        return Shelf(tuple(ids), digest(*ids)), spelled
    learnt = spark.createDataFrame([(item_id,) for item_id in sorted(model.item_ids)], "item_id string")
    others = items.join(learnt, on="item_id", how="left_anti")
    texts, embeddings = (tables.read_memory(current.warehouse, table) for table in (TEXTS, EMBEDDINGS))
    told = item_vectors(others, texts, embeddings, model.recipe_digest, model.text_scorer_digest)
    spelling = F.concat("item_id", F.lit("\x1f"), F.hex("text_digest")).alias("spelling")
    told = current.keep(told.select("item_id", "vector", spelling))
    vectors = told.toArrow()
    by_id = {
        item_id: np.array(vector, dtype=np.float32)
        for item_id, vector in zip(vectors["item_id"].to_pylist(), vectors["vector"].to_pylist(), strict=True)
    }
    spellings = dict(zip(vectors["item_id"].to_pylist(), vectors["spelling"].to_pylist(), strict=True))
    ids = sorted(on_sale.toArrow().column("item_id").to_pylist())
    named = digest(*(spellings.get(item_id, item_id) for item_id in ids))
    return Shelf(tuple(ids), named, by_id), told.select("item_id", "spelling")


def _lists(
    current: Run,
    config: Config,
    model: Model,
    events: DataFrame,
    allowed: DataFrame,
    shelf: Shelf,
    spelled: DataFrame,
    as_of: date,
    is_known: bool,
) -> Lists:
    max_items = min(config.max_items or model.max_items, model.max_items)
    read = histories(events, spelled, of=config.of, kinds=config.kinds, max_items=max_items)
    if config.excludes_bought:
        read = read.join(bought(events).withColumnRenamed("bought", "excluded"), on="shopper_id", how="left")
    else:
        read = read.withColumn("excluded", F.lit(None).cast("array<string>"))
    read = current.keep(read)
    rows = current.read_if_there(NEXT_ITEMS)
    standing = in_force(rows, as_of).groupBy("shopper_id").agg(
        F.min(F.struct("history_digest", "scorer_digest", "item_set_digest")).alias("made_of"),
        F.collect_set("item_id").alias("shown"),
    )  # fmt: skip
    made_of = F.struct(
        "history_digest",
        F.lit(model.scorer_digest).alias("scorer_digest"),
        F.lit(shelf.digest).alias("item_set_digest"),
    )
    is_same = F.col("made_of").eqNullSafe(made_of) & ~F.coalesce(F.arrays_overlap("shown", "excluded"), F.lit(False))
    needed = read.join(standing, on="shopper_id", how="left").where(F.lit(not is_known) | ~is_same)
    needed = current.settle(needed.select("shopper_id", "item_ids", "history_digest", "excluded"))
    wanted = needed.select("history_digest").distinct()
    states = tables.read_memory(current.warehouse, SEQUENCE_STATES, wanted)
    there = states.where(F.col("scorer_digest") == F.lit(model.scorer_digest)).select("history_digest")
    lacking = needed.select("history_digest", "item_ids").dropDuplicates(["history_digest"])
    lacking = current.settle(lacking.join(there, on="history_digest", how="left_anti"))
    gone = gone_dates(rows, read, needed, as_of, config.keeps_dates)
    today = needed.select("shopper_id", F.lit(as_of).alias("as_of_date"))
    kept = remaining(allowed)
    refused = rows.join(kept, on="shopper_id", how="left_anti").select(*SEQUENCE_STATES.key).distinct()
    asked_for = wanted.withColumn("scorer_digest", F.lit(model.scorer_digest))
    forgotten = states_of_nobody(refused, rows, kept).join(asked_for, on=list(SEQUENCE_STATES.key), how="left_anti")
    return Lists(needed, needed.count(), lacking, current.keep(gone.unionByName(today).distinct()), forgotten, shelf)


def _publish_lists(current: Run, config: Config, asked: _Asked, scorer: Description, work: Work, lists: Lists) -> None:
    """Read the histories, make the lists, publish them, and forget the states of those who consent no more."""
    spark, warehouse = current.warehouse.spark, current.warehouse
    tables.create(warehouse, SEQUENCE_STATES)
    # Before the rows by which they are found: a run that dies in between finds them again.
    states = tables.read_memory(warehouse, SEQUENCE_STATES, lists.forgotten).select(*SEQUENCE_STATES.key)
    commit = tables.collect(warehouse, SEQUENCE_STATES, states, current.author)
    current.count(states_forgotten=commit.deleted)
    current.commit(commit)
    shelf = spark.sparkContext.broadcast(lists.shelf)
    try:
        if work.counts["histories_to_read"]:
            with current.stage("states"):
                _read_histories(current, config, asked.model, scorer, lists.lacking, shelf)
        with current.stage("next_items"):
            rows = tables.empty(warehouse, NEXT_ITEMS).drop("changed_by")
            if lists.needed_count:
                rows = _made(current, config, asked.model, scorer, lists, shelf)
            # For whom nothing could be proposed no older list may stand.
            without = lists.needed.join(rows.select("shopper_id"), on="shopper_id", how="left_anti")
            there = current.read_if_there(NEXT_ITEMS).join(without, on="shopper_id", how="left_semi")
            replaced = lists.replaced.unionByName(there.select("shopper_id", "as_of_date")).distinct()
            _publish(current, NEXT_ITEMS, rows, replaced)
    finally:
        shelf.destroy()


def _read_histories(
    current: Run,
    config: Config,
    model: Model,
    scorer: Description,
    lacking: DataFrame,
    shelf: Broadcast[Shelf],
) -> None:
    """The states of histories that have none, landed part by part."""
    warehouse, spark = current.warehouse, current.warehouse.spark
    profile = profile_of(spark, config.resources)
    place = tables.place_of(warehouse, SEQUENCE_STATES, F.col("history_digest"))
    placed = current.keep(lacking.withColumn("place", place))
    counts = [(row["place"], int(row["count"])) for row in placed.groupBy("place").count().collect()]
    for part, said in parts.told(parts.cut(counts, config.histories_per_commit), "histories"):
        log.info("%s: %s", JOB, said)
        mine = placed.where(F.col("place").between(part.first, part.last))
        tasks = mine.repartition(math.ceil(part.count / config.rows_per_task), "history_digest")
        costs, start = costs_of(spark), time.monotonic()
        states = sequence_states(tasks, scorer, shelf, costs, profile)
        rows = states.withColumn("scorer_digest", F.lit(model.scorer_digest))
        commit = tables.append_memory(warehouse, SEQUENCE_STATES, rows, current.author)
        current.commit(commit)
        current.spent("states", costs.value, time.monotonic() - start)


def _made(
    current: Run, config: Config, model: Model, scorer: Description, lists: Lists, shelf: Broadcast[Shelf]
) -> DataFrame:
    """The lists, rows of `next_items`, landed once beside the table."""
    warehouse, spark = current.warehouse, current.warehouse.spark
    wanted = lists.needed.select("history_digest").distinct()
    of_model = F.col("scorer_digest") == F.lit(model.scorer_digest)
    states = tables.read_memory(warehouse, SEQUENCE_STATES, wanted).where(of_model).select("history_digest", "vector")
    rows = lists.needed.join(states, on="history_digest", how="inner")
    tasks = rows.repartition(math.ceil(lists.needed_count / config.rows_per_task), "shopper_id")
    costs, start = costs_of(spark), time.monotonic()
    profile = profile_of(spark, config.resources)
    made = next_items(tasks, scorer, shelf, config.k, config.scores_at_once, costs, profile)
    staged = current.staged(
        NEXT_ITEMS,
        made.select(
            "*",
            F.lit(current.as_of).alias("as_of_date"),
            F.lit(model.scorer_digest).alias("scorer_digest"),
            F.lit(lists.shelf.digest).alias("item_set_digest"),
        ),
    )
    current.spent("next_items", costs.value, time.monotonic() - start)
    return staged


def _publish(current: Run, table: Table, rows: DataFrame, replaced: DataFrame) -> None:
    """Publish rows in the place of those of some shoppers and days."""
    change = tables.compare(current.warehouse, table, rows, current.author, within=replaced)
    counts = {f"{table.name}_{what}": getattr(change, what) for what in ("inserted", "updated", "deleted")}
    current.count(**counts)
    current.commit(tables.publish(current.warehouse, change, current.author))


def _outlooks(current: Run, config: Config, asked: _Asked, events: DataFrame, as_of: date) -> Outlooks:
    """The outlooks that differ from those that stand. None are told where neither chances nor an encoder are named."""
    told, rows = told_by(events), current.read_if_there(OUTLOOKS)
    chances = asked.chances
    of_chances = {kind: F.lit(None).cast("double") for kind in ("session_purchase", "purchase", "return")}
    if chances:
        session = F.struct("session_started_at", "session_id")
        newest = events.groupBy("shopper_id").agg(F.max(session).alias("last"), F.max("occurred_at").alias("at"))
        # A session that is over has no chance to tell of.
        goes_on = F.col("at") + F.make_dt_interval(mins=F.lit(config.gap_minutes)) >= end_of(as_of, config.time_zone)
        newest = newest.where(goes_on).select("shopper_id", "last.session_id")
        last = events.join(newest, on=["shopper_id", "session_id"], how="left_semi")
        sides = {
            "session_purchase": last_of_shopper(session_features(last)),
            "purchase": shopper_features(at_cuts(events, [as_of], config.time_zone)),
        }
        sides["return"] = sides["purchase"]
        for kind, model in chances.models.items():
            value = F.round(expected_gain(logit(model.terms, model.bias), model.points), _CHANCE_DECIMALS)
            told = told.join(sides[kind].select("shopper_id", value.alias(f"_{kind}")), on="shopper_id", how="left")
            of_chances[kind] = F.col(f"_{kind}")
    told = told.join(_drift(current, config, asked.encoder, events), on="shopper_id", how="left")
    by = asked.encoder.scorer_digest.hex() if asked.encoder else None
    settings = settings_digest({"encoder": by, **config.model_dump(mode="json", include=set(_OF_OUTLOOKS))})
    made = told.select(
        "shopper_id",
        F.lit(as_of).alias("as_of_date"),
        *(value.alias(f"{kind}_chance") for kind, value in of_chances.items()),
        "drift", "drift_low", "drift_high", "history_digest",
        F.lit(chances.scorer_digest if chances else None).cast("binary").alias("scorer_digest"),
        F.lit(settings).alias("settings_digest"),
    )  # fmt: skip
    standing = in_force(rows, as_of).select("shopper_id", F.struct("*").alias("standing"))
    news = made.join(standing, on="shopper_id", how="left").where(_differs()).drop("standing")
    if not chances and not asked.encoder:
        news = news.limit(0)
    news = current.keep(news)
    gone = gone_dates(rows, told, news, as_of, config.keeps_dates)
    return Outlooks(news, gone.unionByName(news.select("shopper_id", "as_of_date")).distinct())


def _differs() -> Column:
    """Whether an outlook says anything else than the one that stands."""
    differs = F.col("standing").isNull()
    for name in _CHANCES:
        new, old = F.col(name), F.col(f"standing.{name}")
        differs |= F.coalesce(F.abs(new - old) > _CHANCE_STEP, new.isNull() != old.isNull())
    for name in ("history_digest", "scorer_digest", "settings_digest"):
        differs |= ~F.col(name).eqNullSafe(F.col(f"standing.{name}"))
    return differs


def _drift(current: Run, config: Config, encoder: Encoder | None, events: DataFrame) -> DataFrame:
    """(shopper_id, drift, drift_low, drift_high); no rows without an encoder."""
    if encoder is None:
        return current.warehouse.spark.createDataFrame(
            [], "shopper_id string, drift double, drift_low double, drift_high double"
        )
    texts, embeddings = (tables.read_memory(current.warehouse, table) for table in (TEXTS, EMBEDDINGS))
    vectors = item_vectors(current.read(ITEMS), texts, embeddings, encoder.recipe_digest, encoder.scorer_digest)
    read = events.where(F.col("kind").isin(*config.kinds))
    quantile = float(stats.t.ppf(0.975, config.sessions_for_drift - 1))
    return drift(read, vectors, config.sessions_for_drift, config.half_life_days, quantile)
