"""Profiles of the shoppers who agreed to it, as of a day: counts, shares, interests in words, and a vector.

A shopper has a row of a day only where it says something else than their row before: it stands until a newer one
(`features.profiles.newest_profiles`). A day that is older than what is published can still be built, and touches no row
of a later day. Whose profile is made anew is found from what changed since the last run, and from the interactions of
the days in between; where that cannot be known, everybody's is made and compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import ledger, tables
from ecomspark.behaviour import allowed_now, changes_of, is_as_left, whose_standing_changed
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features.consents import of_people, same_people
from ecomspark.features.profiles import (
    ProfileRules,
    profiles_of,
    settled_date,
    standing_profiles,
    until_day,
    with_sequence_states,
    without_bots,
)
from ecomspark.features.sessions import local_date
from ecomspark.features.vectors import item_vectors
from ecomspark.ledger import Watermark
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import (
    CONSENTS,
    EMBEDDINGS,
    INTERACTIONS,
    ITEMS,
    NEXT_ITEMS,
    PROFILES,
    SEQUENCE_STATES,
    SESSIONS,
    SHOPPER_LINKS,
    TEXTS,
    Table,
)
from ecomspark.tables import Warehouse
from ecomspark.text import settings_digest

JOB = "build_profiles"

READS = (INTERACTIONS, CONSENTS, SHOPPER_LINKS, ITEMS, SESSIONS, NEXT_ITEMS, TEXTS, EMBEDDINGS, PROFILES)

PUBLISHES = (PROFILES,)

_READ_OF_A_STEP = (
    "shopper_id", "interaction_id", "kind", "item_id", "occurred_at", "quantity", "price", "currency", "basket_id",
    "rating", "dwell_seconds",
)  # fmt: skip


class Config(ProfileRules, Settings):
    """What a profile is made of, of whose behaviour, and how long it is kept."""

    purpose: Name = setting("personalisation", "shoppers who agreed to it, by `consents`, have profiles; no others")
    encoder: Name | None = setting(
        None, "whose embeddings of the items make the vectors: a folder in models_folder; null: no vectors"
    )
    leaves_out_bots: bool = setting(True, "leave out what lies in a session that `sessions` takes for a machine's")
    gap_minutes: int = setting(
        30, "build_sessions' own: a session may still go on for so long", unit="minutes", ge=1, le=7 * 1440
    )
    has_sequence_state: bool = setting(
        False, "take over the sequence model's state from the run that made `next_items`"
    )
    keeps_dates: int = setting(3, "rows of a shopper that are kept, of so many days, the newest", unit="days", ge=1)
    full: bool = setting(False, "make everybody's profile anew, whatever changed: `--full`", decides=False)

    @property
    def rules(self) -> ProfileRules:
        return ProfileRules(**{name: getattr(self, name) for name in ProfileRules.model_fields})


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    warehouse, encoder = Warehouse(spark, config.warehouse, config.buckets), _encoder(config)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=_covers(config, encoder),
        is_ordered=False,
        settings_digest=config.deciding_digest(*_named(encoder)),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            # Any day may be asked for, but not of older tables than a run has read before.
            ledger.refuse_older(current.author, None, current.inputs, None, current.past)
            with current.stage("find"):
                work = find(current, config, encoder)
                current.count(**{name: count for name, count in work.counts.items() if count is not None})
            if work.ids is None or not work.ids.isEmpty():
                with current.stage("publish"):
                    _publish(current, work, config, encoder)
            if work.is_older:
                # The rows of later days are as they were: they are not brought up to what this run has read.
                current.covers.clear()
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """Whose profiles `run` would make now, by the same search."""
    warehouse, encoder = Warehouse(spark, config.warehouse, config.buckets), _encoder(config)
    covers = _covers(config, encoder)
    with planned_run(
        warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of, is_ordered=False
    ) as current:
        work = find(current, config, encoder)
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest(*_named(encoder)).hex(),
            inputs=as_pins(current.inputs),
            covers=covers,
            counts=work.counts,
            fields=None if work.ids is None else {},
        )


def _encoder(config: Config) -> Checkpoint | None:
    if config.encoder is None:
        return None
    data_type = config.data_types.get(config.encoder)
    return open_checkpoint(config.models_folder, config.encoder, "encoder", data_type=data_type)


def _named(encoder: Checkpoint | None) -> list[str]:
    return [encoder.scorer_digest.hex()] if encoder else []


def _digest(config: Config, encoder: Checkpoint | None) -> bytes:
    """Names the settings that decide what a profile says."""
    own = ("purpose", "leaves_out_bots", "gap_minutes", "has_sequence_state", *ProfileRules.model_fields)
    return settings_digest({"rules": config.model_dump(mode="json", include=set(own)), "encoder": _named(encoder)})


def _covers(config: Config, encoder: Checkpoint | None) -> dict[str, str]:
    deciding = {"profile": _digest(config, encoder).hex(), "keeps_dates": config.keeps_dates}
    return {PROFILES.name: settings_digest(deciding).hex()}


@dataclass(frozen=True)
class Work:
    """`allowed`: as `consenting` gives it, persisted. `ids`: the ids, retired ones among them, whose profiles are made
    anew, persisted; None: all. `is_older`: whether profiles of a later day are published."""

    as_of: date
    allowed: DataFrame
    ids: DataFrame | None
    is_older: bool
    counts: dict[str, int | None]


def find(current: Run, config: Config, encoder: Checkpoint | None) -> Work:
    """Whose profiles must be made anew. Raises ContractError without a day, and without `interactions` or `items`."""
    as_of = current.as_of
    if as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    for table in (INTERACTIONS, ITEMS):
        current.read(table)  # one that is not there is said before anything is looked for
    allowed = current.settle(allowed_now(current, config.purpose))
    is_older = not current.read_if_there(PROFILES).where(F.col("as_of_date") > F.lit(as_of)).isEmpty()
    ids = None if config.full or is_older else _changed(current, config, encoder, allowed, as_of)
    counts = {
        "consenting_shoppers": allowed.select("person_id").distinct().count(),
        "changed_shoppers": None if ids is None else _of(allowed, ids).select("person_id").distinct().count(),
    }
    return Work(as_of, allowed, ids, is_older, counts)


def _of(allowed: DataFrame, ids: DataFrame | None) -> DataFrame:
    return allowed if ids is None else allowed.join(ids, on="shopper_id", how="left_semi")


def _changed(
    current: Run, config: Config, encoder: Checkpoint | None, allowed: DataFrame, as_of: date
) -> DataFrame | None:
    """(shopper_id) of the ids that something changed for since the last run; None when that cannot be known."""
    since = current.watermark(PROFILES.name)
    if since is None or since.as_of is None or since.as_of > as_of or not is_as_left(current, PROFILES, since):
        return None
    columns: dict[Table, tuple[str, ...]] = {
        INTERACTIONS: ("shopper_id", "occurred_at"),
        CONSENTS: (),
        SHOPPER_LINKS: (),
        ITEMS: ("category", "brand", "title", "source_digest"),
    }
    if encoder is not None:
        columns |= {TEXTS: (), EMBEDDINGS: ()}
    if config.leaves_out_bots:
        columns[SESSIONS] = ("shopper_id", "started_at", "ended_at", "bot_rule")
    if config.has_sequence_state:
        columns[NEXT_ITEMS] = ("history_digest", "scorer_digest")
    changed = changes_of(current, since, columns)
    standing = None if changed is None else whose_standing_changed(current, changed, config.purpose)
    if changed is None or standing is None:
        return None
    rows, interactions = [standing], current.read(INTERACTIONS).where("shopper_id IS NOT NULL")
    if INTERACTIONS.name in changed:
        # One that went counts as well, and one of a later day will be found when its day has come.
        came = changed[INTERACTIONS.name].select(F.coalesce("new", "old").alias("of")).select("of.*")
        rows.append(until_day(came.where("shopper_id IS NOT NULL"), as_of, config.time_zone))
    touched_items = _touched_items(current, changed, encoder)
    if touched_items is not None:
        rows.append(interactions.join(touched_items, on="item_id", how="left_semi"))
    if since.as_of < as_of:
        rows += _of_the_days_between(current, config, since, as_of)
    if SESSIONS.name in changed:
        is_bot = F.coalesce("old.bot_rule", "new.bot_rule").isNotNull()
        of_sessions = changed[SESSIONS.name].where(is_bot)
        rows += [of_sessions.select(F.col(f"{end}.shopper_id").alias("shopper_id")) for end in ("old", "new")]
    if NEXT_ITEMS.name in changed:
        rows.append(changed[NEXT_ITEMS.name].where("`rank` = 1"))
    ids = reduce(DataFrame.unionByName, [of.select("shopper_id") for of in rows]).where("shopper_id IS NOT NULL")
    return current.settle(same_people(current.keep(ids.distinct()), current.read_if_there(SHOPPER_LINKS)))


def _of_the_days_between(current: Run, config: Config, since: Watermark, as_of: date) -> list[DataFrame]:
    """Rows with shopper_id of what was there at the last run and is of a later day than that run's."""

    def is_between(day: Column) -> Column:
        return (day > F.lit(since.as_of)) & (day <= F.lit(as_of))

    day = local_date(F.col("occurred_at"), config.time_zone)
    rows = [current.read(INTERACTIONS).where(F.col("shopper_id").isNotNull() & is_between(day))]
    if config.leaves_out_bots:
        over = settled_date(F.col("ended_at"), config.gap_minutes, config.time_zone)
        rows.append(current.read_if_there(SESSIONS).where(F.col("bot_rule").isNotNull() & is_between(over)))
    if config.has_sequence_state:
        rows.append(current.read_if_there(NEXT_ITEMS).where((F.col("rank") == 1) & is_between(F.col("as_of_date"))))
    return rows


def _touched_items(current: Run, changed: Mapping[str, DataFrame], encoder: Checkpoint | None) -> DataFrame | None:
    """(item_id) of the items whose facts, text or vector changed; None: no table that says so has moved."""
    rows, items = [], current.read(ITEMS)
    if ITEMS.name in changed:
        rows.append(changed[ITEMS.name].select("item_id"))
    if encoder is not None and TEXTS.name in changed:
        is_mine = (F.col("role") == "passage") & (F.col("recipe_digest") == F.lit(encoder.card.recipe.digest))
        sources = changed[TEXTS.name].where(is_mine).select("source_digest")
        rows.append(items.join(sources, on="source_digest", how="left_semi").select("item_id"))
    if encoder is not None and EMBEDDINGS.name in changed:
        is_mine = (F.col("role") == "passage") & (F.col("scorer_digest") == F.lit(encoder.scorer_digest))
        embedded = changed[EMBEDDINGS.name].where(is_mine).select("text_digest")
        texts = tables.read_memory(current.warehouse, TEXTS).where(
            (F.col("role") == "passage") & (F.col("recipe_digest") == F.lit(encoder.card.recipe.digest))
        )
        sources = texts.join(embedded, on="text_digest", how="left_semi").select("source_digest")
        rows.append(items.join(sources, on="source_digest", how="left_semi").select("item_id"))
    return reduce(DataFrame.unionByName, rows).distinct() if rows else None


def _publish(current: Run, work: Work, config: Config, encoder: Checkpoint | None) -> None:
    """Make the profiles at hand, and publish those that say something new."""
    allowed, there = _of(work.allowed, work.ids), current.read_if_there(PROFILES)
    if work.ids is not None:
        there = there.join(work.ids, on="shopper_id", how="left_semi").select(*there.columns)
    made = current.keep(_made(current, allowed, work.as_of, config, encoder))
    people = allowed.select(F.col("person_id").alias("shopper_id")).distinct()
    profiles = standing_profiles(there, made, people, work.as_of, config.keeps_dates)
    change = tables.compare(current.warehouse, PROFILES, profiles, current.author, within=work.ids)
    of_made = made.agg(F.count("*").alias("all"), F.count("vector").alias("vectors")).collect()[0]
    current.count(
        profiles=int(of_made["all"]),
        with_vector=int(of_made["vectors"]),
        new=change.inserted,
        changed=change.updated,
        removed=change.deleted,
    )
    current.commit(tables.publish(current.warehouse, change, current.author))


def _made(current: Run, allowed: DataFrame, as_of: date, config: Config, encoder: Checkpoint | None) -> DataFrame:
    """The profiles of some people as of a day: rows of `profiles` without changed_by."""
    logged = current.read(INTERACTIONS).select(*_READ_OF_A_STEP, F.col("shopper_id").alias("own_id"))
    history = until_day(of_people(logged, allowed), as_of, config.time_zone)
    if config.leaves_out_bots:
        sessions = current.read_if_there(SESSIONS)
        history = without_bots(history, sessions, as_of, config.gap_minutes, config.time_zone)
    history = current.keep(history)  # read once: a profile is put together from several groupings of it
    items, vectors, scorer_digest = current.read(ITEMS), None, None
    if encoder is not None:
        scorer_digest = encoder.scorer_digest
        texts = tables.read_memory(current.warehouse, TEXTS)
        embeddings = tables.read_memory(current.warehouse, EMBEDDINGS)
        vectors = item_vectors(items, texts, embeddings, encoder.card.recipe.digest, scorer_digest)
    made = profiles_of(history, items, vectors, scorer_digest, config.rules)
    if config.has_sequence_state:
        states = tables.read_memory(current.warehouse, SEQUENCE_STATES)
        made = with_sequence_states(made, current.read_if_there(NEXT_ITEMS), states, as_of)
    digest = F.lit(_digest(config, encoder))
    return made.withColumn("as_of_date", F.lit(as_of)).withColumn("settings_digest", digest)
