"""Give every item's and query's text its vector by an encoder: each distinct text once, what is there not again.

What must be looked at is found from what changed since the last run of the encoder: items and queries that came or
have another text. Where that cannot be known, or where vectors of it were taken away, all of them are looked at.
"""

from dataclasses import dataclass, replace
from datetime import date
from typing import Annotated

from pydantic import Field
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.embedding import Role, embed_by_parts, embedder_of, lacking_vectors
from ecomspark.errors import ContractError
from ecomspark.ledger import Watermark
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.plans import Plan, as_pins
from ecomspark.resources import StageResources, profile_of
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import EMBEDDINGS, ITEMS, QUERIES, TEXTS, Table
from ecomspark.tables import Warehouse
from ecomspark.text import settings_digest

JOB = "embed_texts"

READS = (ITEMS, QUERIES, EMBEDDINGS)

PUBLISHES = (EMBEDDINGS,)

_SOURCES: dict[Role, tuple[Table, str]] = {
    "passage": (ITEMS, "source_digest"),
    "query": (QUERIES, "text_source_digest"),
}


class Config(Settings):
    """Which encoder, and how its work is cut up."""

    encoder: Name = setting(..., "whose vectors: a folder in models_folder")
    roles: Annotated[list[Role], Field(min_length=1)] = setting(
        ["passage", "query"], "what is embedded: items as passages, queries as queries"
    )
    token_budget: int | None = setting(
        None, "tokens of one forward pass; null: found by trying", unit="tokens", decides=False, ge=1
    )
    resources: StageResources | None = setting(
        None, "a resource profile for the stage that embeds; null: none; local mode never has one", decides=False
    )
    full: bool = setting(False, "look at all items and queries, whatever changed: `--full`", decides=False)
    texts_per_commit: int = setting(
        100_000, "texts embedded between two commits: the most that a death loses", unit="texts", decides=False, ge=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    checkpoint, data_type = _checkpoint(config), config.data_types.get(config.encoder)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=_covers(checkpoint, config),
        settings_digest=config.deciding_digest(checkpoint.scorer_digest.hex()),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            with current.stage("texts"):
                work = find(current, checkpoint, config)
                current.count(**work.counts)
            embedder = embedder_of(checkpoint, data_type, config.token_budget)
            profile = profile_of(spark, config.resources)
            with current.stage("embed"):
                for role, missing in work.missing.items():
                    embed_by_parts(current, missing, embedder, role, config.texts_per_commit, profile)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would do now, by the same search; no model is loaded."""
    checkpoint = _checkpoint(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    covers = _covers(checkpoint, config)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        work = find(current, checkpoint, config)
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest(checkpoint.scorer_digest.hex()).hex(),
            inputs=as_pins(current.inputs),
            covers=covers,
            counts=work.counts,
            fields={} if work.is_part else None,
        )


def _checkpoint(config: Config) -> Checkpoint:
    data_type = config.data_types.get(config.encoder)
    return open_checkpoint(config.models_folder, config.encoder, "encoder", data_type=data_type)


def _covers(checkpoint: Checkpoint, config: Config) -> dict[str, str]:
    return {checkpoint.scorer_digest.hex(): settings_digest({"roles": sorted(config.roles)}).hex()}


@dataclass(frozen=True)
class Work:
    """What must be embedded. `missing`: by role the texts that lack a vector, (text_digest, text), each once; roles
    without any are left out. `is_part`: whether only what changed was looked at."""

    missing: dict[Role, DataFrame]
    counts: dict[str, int]
    is_part: bool


def find(current: Run, checkpoint: Checkpoint, config: Config) -> Work:
    """The texts that need a vector. Raises ContractError when an item or query that is looked at has no text."""
    since = None if config.full else current.watermark(checkpoint.scorer_digest.hex())
    since = None if since is None or _were_taken_away(current, checkpoint, since) else since
    is_part = True
    found: dict[Role, DataFrame] = {}
    counts = {"texts": 0, "there": 0, "to_embed": 0}
    lacking, sources_count = 0, 0
    for role in config.roles:
        table, column = _SOURCES[role]
        sources, is_changed = _sources(current, table, column, since)
        is_part &= is_changed
        of_role = _with_texts(current, sources, role, checkpoint, is_changed)
        said = of_role.agg(
            F.count("*").alias("sources"), F.count("text_digest").alias("with_text"),
            F.count_distinct("text_digest").alias("texts"),
        ).collect()[0]  # fmt: skip
        sources_count, lacking = sources_count + said["sources"], lacking + said["sources"] - said["with_text"]
        needed = lacking_vectors(
            current, of_role.where(F.col("text_digest").isNotNull()), checkpoint.scorer_digest, role
        )
        missing = current.keep(needed.select("text_digest", "text"))
        if count := missing.count():
            found[role] = missing
        for name, number in (("texts", said["texts"]), ("there", said["texts"] - count), ("to_embed", count)):
            counts[name] += number
        counts[f"to_embed_{role}"] = count
    if lacking:
        recipe = checkpoint.card.recipe
        raise ContractError(
            f"texts: expected a text for every item and query under the recipe of {checkpoint.name} "
            f"({recipe.digest.hex()}), found none for {lacking:,} of {sources_count:,}; run build_texts with that "
            "recipe first"
        )
    return Work(found, counts, is_part)


def _were_taken_away(current: Run, checkpoint: Checkpoint, since: Watermark) -> bool:
    """Whether vectors of the encoder went since a run, or may have: maintenance takes those that nothing refers to."""
    read = since.inputs.get(EMBEDDINGS.name)
    # What the run appended itself is no news: nobody else appends while it has the lease.
    left = read and replace(read, version=since.left.get(EMBEDDINGS.name, read.version))
    of_vectors = current.between(EMBEDDINGS, left, current.inputs[EMBEDDINGS.name], ("scorer_digest",))
    if of_vectors is None:
        return True
    is_mine = F.col("scorer_digest") == F.lit(checkpoint.scorer_digest)
    return not of_vectors.where(is_mine & F.col("new").isNull()).isEmpty()


def _sources(current: Run, table: Table, column: str, since: Watermark | None) -> tuple[DataFrame, bool]:
    """(source_digest) of what is looked at in a table, each once, and whether that is only what changed."""
    changed = None if since is None else current.changes(table, since, (column,))
    if changed is None:
        return current.read(table).select(F.col(column).alias("source_digest")).distinct(), False
    came = changed.where(F.col("new").isNotNull())
    return came.select(F.col(f"new.{column}").alias("source_digest")).distinct(), True


def _with_texts(current: Run, sources: DataFrame, role: Role, checkpoint: Checkpoint, is_part: bool) -> DataFrame:
    """The sources with text_digest and text under the encoder's recipe; null where there is none."""
    buckets = tables.buckets_of(current.warehouse, TEXTS, sources) if is_part else None
    texts = tables.read_memory(current.warehouse, TEXTS, sources if is_part else None, buckets)
    is_mine = (F.col("role") == role) & (F.col("recipe_digest") == F.lit(checkpoint.card.recipe.digest))
    return sources.join(texts.where(is_mine).select("source_digest", "text_digest", "text"), "source_digest", "left")
