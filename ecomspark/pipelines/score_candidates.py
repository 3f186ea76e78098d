"""Score what has no score: each distinct pair of a query's and an item's text, once per scorer.

What must be looked at is found from what changed since the last run of the scorer: candidates that came, items and
queries with another text, errors that may pass. Where that cannot be known, all candidates are looked at.
"""

import logging
from dataclasses import dataclass, replace
from datetime import date

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError
from ecomspark.features.changed import (
    NEW,
    RETRIED,
    SCORER,
    TEXT,
    candidates_of_pairs,
    changed_fields,
    gone_candidates,
    queries_of_pairs,
    touched_candidates,
)
from ecomspark.features.scores import (
    PAIR,
    distinct_pairs,
    lacking,
    pair_texts,
    sources_of,
    standing,
    with_texts,
)
from ecomspark.features.texts import ITEM_FIELDS
from ecomspark.landing import check_texts, score_by_parts
from ecomspark.ledger import Watermark
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.plans import Estimate, Plan, as_pins
from ecomspark.resources import StageResources, profile_of
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CANDIDATES, ITEMS, QUERIES, RANKINGS, SCORES, TEXTS
from ecomspark.scoring import CrossEncoderAt, Description
from ecomspark.tables import Snapshot, Warehouse
from ecomspark.text import settings_digest

log = logging.getLogger("ecomspark")

JOB = "score_candidates"

READS = (CANDIDATES, QUERIES, ITEMS, SCORES)

PUBLISHES = (SCORES,)

# Of several causes that a pair has, the first names it.
_CAUSES = (RETRIED, SCORER, TEXT, NEW)


class Config(Settings):
    """Which checkpoint, and how its work is cut up."""

    checkpoint: Name = setting(..., "the cross-encoder: a folder in models_folder")
    token_budget: int | None = setting(
        None,
        "tokens of one forward pass; null: the best one, which each host finds by trying and remembers",
        unit="tokens",
        decides=False,
        ge=1,
    )
    resources: StageResources | None = setting(
        None, "a resource profile for the stage that scores; null: none; local mode never has one", decides=False
    )
    full: bool = setting(False, "look at all candidates, whatever changed: `--full`", decides=False)
    pairs_per_commit: int = setting(
        500_000, "pairs scored between two commits: the most that a death loses", unit="pairs", decides=False, ge=1
    )
    pairs_per_task: int = setting(
        2_000, "pairs of one Spark task: what a failed task does again", unit="pairs", decides=False, ge=1
    )
    max_tries: int = setting(3, "tries of a pair whose error may pass", unit="tries", ge=1)
    max_failed_share: float = setting(
        0.01, "stop when errors are more than this share of all candidates", decides=False, ge=0, le=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    checkpoint, data_type = _checkpoint(config), config.data_types.get(config.checkpoint)
    folder = str(checkpoint.folder.resolve())
    scorer = CrossEncoderAt(folder, checkpoint.scorer_digest, config.token_budget, data_type)
    return run_with(spark, config, run_id, checkpoint, scorer, as_of)


def run_with(
    spark: SparkSession,
    config: Config,
    run_id: str,
    checkpoint: Checkpoint,
    scorer: Description,
    as_of: date | None = None,
) -> Summary:
    """The run with any scorer that goes by the checkpoint's digest: what `run` does with the checkpoint itself."""
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
            with current.stage("pairs"):
                work = find(current, checkpoint, config)
                current.count(**{name: count for name, count in work.counts.items() if count is not None})
            if work.to_score:
                with current.stage("score"):
                    _score(current, work.needed, checkpoint, scorer, config)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """What `run` would do now, by the same search; no model is loaded."""
    checkpoint = _checkpoint(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    covers = _covers(checkpoint, config)
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        work = find(current, checkpoint, config)
        size, queries = 0, 0
        if work.to_score:
            texts = tables.read_memory(warehouse, TEXTS)
            read = with_texts(work.needed, texts, checkpoint.card.recipe.digest)
            text_bytes = F.sum(F.octet_length("query_text") + F.octet_length("passage_text")).alias("bytes")
            row = read.agg(text_bytes, F.count_distinct("query_digest").alias("queries")).collect()[0]
            size, queries = int(row["bytes"]), int(row["queries"])
        is_known = work.counts["gone"] is not None
        return Plan(
            job=JOB,
            as_of=current.as_of,
            settings_digest=config.deciding_digest(checkpoint.scorer_digest.hex()).hex(),
            inputs=as_pins(current.inputs),
            covers=covers,
            counts={**work.counts, "queries_to_score_for": queries},
            fields=changed_fields(work.of_items, ITEM_FIELDS) if work.of_items else {} if is_known else None,
            estimate=Estimate.of(current.past.over, work.to_score, size),
        )


def _checkpoint(config: Config) -> Checkpoint:
    data_type = config.data_types.get(config.checkpoint)
    return open_checkpoint(config.models_folder, config.checkpoint, "cross_encoder", data_type=data_type)


def _covers(checkpoint: Checkpoint, config: Config) -> dict[str, str]:
    return {checkpoint.scorer_digest.hex(): settings_digest({"max_tries": config.max_tries}).hex()}


@dataclass(frozen=True)
class Work:
    """What must be scored. `needed`: distinct pairs with cause and attempt, persisted. `counts`: None where it cannot
    be known without the change feed. `of_items`: the changes of the texts of items; None likewise."""

    needed: DataFrame
    counts: dict[str, int | None]
    of_items: DataFrame | None

    @property
    def to_score(self) -> int:
        return self.counts["to_score"] or 0


def find(current: Run, checkpoint: Checkpoint, config: Config) -> Work:
    """The distinct pairs that need a score, and how the candidates stand.

    Raises ContractError when a candidate that must be looked at has no text.
    """
    since = None if config.full else current.watermark(checkpoint.scorer_digest.hex())
    touched = _touched(current, checkpoint, since) if since else None
    if since is not None and touched is not None and touched.pairs is None:
        return _nothing(current, since)
    is_part = touched is not None
    looked_at = touched.pairs if touched is not None and touched.pairs is not None else _all_candidates(current)
    pairs = current.keep(_with_digests(current, looked_at, checkpoint, is_part))
    looked_at_count = check_texts(pairs, checkpoint, "candidate")
    wanted = pairs.select(*PAIR).distinct()
    buckets = tables.buckets_of(current.warehouse, SCORES, pairs.select("query_digest")) if is_part else None
    scores = tables.read_memory(current.warehouse, SCORES, wanted, buckets)
    by_others = scores.where((F.col("scorer_digest") != F.lit(checkpoint.scorer_digest)) & F.col("logit").isNotNull())
    needs = lacking(pairs, standing(scores, checkpoint.scorer_digest), config.max_tries)
    marked = needs.join(by_others.select(*PAIR, F.lit(True).alias("_other")).distinct(), on=PAIR, how="left")
    cause = F.when(F.col("attempt") > 1, RETRIED).when(F.col("_other"), SCORER).otherwise(F.col("cause"))
    needed = current.keep(distinct_pairs(marked.withColumn("cause", cause), _CAUSES))
    found = needed.groupBy("cause").agg(F.count("*").alias("pairs"), F.sum("candidates").alias("candidates")).collect()
    by_cause = {row["cause"]: int(row["pairs"]) for row in found}
    to_score = sum(by_cause.values())
    # Of all candidates, those whose pair has its score are unchanged; of the touched ones they are twins.
    moved = looked_at_count if is_part else sum(int(row["candidates"]) for row in found)
    candidates = current.read(CANDIDATES).count()
    counts: dict[str, int | None] = {
        "candidates": candidates,
        "to_score": to_score,
        **{name: by_cause.get(name, 0) for name in reversed(_CAUSES)},
        "twins": moved - to_score,
        "unchanged": candidates - moved,
        "gone": touched.gone if touched else None,
    }
    return Work(needed, counts, touched.of_items if touched else None)


def _nothing(current: Run, since: Watermark) -> Work:
    """Nothing has changed since a run: what it left is as it was."""
    last = since.rows["candidates"]
    counts = {**dict.fromkeys((*reversed(_CAUSES), "twins", "gone"), 0), "candidates": last, "unchanged": last}
    return Work(current.warehouse.spark.createDataFrame([], "cause string"), {"to_score": 0, **counts}, None)


@dataclass(frozen=True)
class _Touched:
    """`pairs`: None when there are none."""

    pairs: DataFrame | None
    gone: int
    of_items: DataFrame | None


def _touched(current: Run, checkpoint: Checkpoint, since: Watermark) -> _Touched | None:
    """The candidates that something changed for since a run, with the cause; None when that cannot be known."""
    now = current.inputs[SCORES.name]
    of_scores = current.between(SCORES, _to_look_through(since), now, ("error_kind", "scorer_digest"))
    if of_scores is None:
        return None
    is_mine = F.col("new.scorer_digest") == F.lit(checkpoint.scorer_digest)
    # What maintenance collected when nothing referred to it may be asked for again.
    was_mine = F.col("new").isNull() & (F.col("scorer_digest") == F.lit(checkpoint.scorer_digest))
    again = of_scores.where((is_mine & (F.col("new.error_kind") == "passing")) | was_mine)
    is_any = not current.is_as_it_was(SCORES, since) and not again.isEmpty()
    if not is_any and all(current.is_as_it_was(table, since) for table in (CANDIDATES, QUERIES, ITEMS)):
        return _Touched(None, 0, None)
    of_candidates = current.changes(CANDIDATES, since)
    of_items = current.changes(ITEMS, since, ("source_digest", *ITEM_FIELDS))
    of_queries = current.changes(QUERIES, since, ("text_source_digest",))
    if of_candidates is None or of_items is None or of_queries is None:
        return None
    queries, items, recipe = current.read(QUERIES), current.read(ITEMS), checkpoint.card.recipe.digest
    of_texts = of_items.where(~F.col("old.source_digest").eqNullSafe(F.col("new.source_digest")))
    if of_texts.isEmpty():  # else any query may have a candidate whose text changed
        of_some = of_candidates.select("query_id").unionByName(of_queries.select("query_id")).distinct()
        candidates = current.read_of_queries(CANDIDATES, current.keep(of_some))
    else:
        candidates = current.read(CANDIDATES)
    touched = touched_candidates(candidates, of_candidates, of_texts, of_queries)
    if is_any:
        texts = tables.read_memory(current.warehouse, TEXTS)
        asked = current.keep(queries_of_pairs(again, queries, texts, recipe))
        near = current.read_of_queries(CANDIDATES, asked)
        of_pairs = candidates_of_pairs(again, near, queries, items, texts, recipe)
        more = of_pairs.join(touched, on=["query_id", "item_id"], how="left_anti")
        touched = touched.unionByName(more.withColumn("cause", F.lit(NEW)))  # of one that was tried: see `find`
    gone = gone_candidates(candidates, of_candidates, of_texts, of_queries).count()
    return _Touched(touched, gone, of_texts)


def _to_look_through(since: Watermark) -> Snapshot | None:
    """From where on `scores` may hold an error to try again. What a run appended itself does only if some of it failed:
    nobody else appends while it has the lease."""
    read = since.inputs.get(SCORES.name)
    if read is None or since.rows.get("failed"):
        return read
    return replace(read, version=since.left.get(SCORES.name, read.version))


def _all_candidates(current: Run) -> DataFrame:
    """All candidates; the cause of one that was ranked before is its text, of another that it is new."""
    ranked = tables.snapshot(current.warehouse, RANKINGS)
    shown = tables.read(current.warehouse, RANKINGS, ranked).select("query_id", "item_id").distinct()
    candidates = current.read(CANDIDATES).select("query_id", "item_id")
    marked = candidates.join(shown.withColumn("_shown", F.lit(True)), on=["query_id", "item_id"], how="left")
    return marked.select("query_id", "item_id", F.when(F.col("_shown"), TEXT).otherwise(NEW).alias("cause"))


def _with_digests(current: Run, candidates: DataFrame, checkpoint: Checkpoint, is_part: bool) -> DataFrame:
    recipe = checkpoint.card.recipe
    queries, items = current.read(QUERIES), current.read(ITEMS)
    sources = sources_of(candidates, queries, items) if is_part else None
    buckets = None if sources is None else tables.buckets_of(current.warehouse, TEXTS, sources)
    texts = tables.read_memory(current.warehouse, TEXTS, sources, buckets)
    return pair_texts(candidates, queries, items, texts, recipe.digest).drop("query_text", "passage_text")


def _score(current: Run, needed: DataFrame, checkpoint: Checkpoint, scorer: Description, config: Config) -> None:
    """Score the pairs part by part, and look after each whether too much failed."""
    profile = profile_of(current.warehouse.spark, config.resources)
    sizes = (config.pairs_per_commit, config.pairs_per_task)
    for mine in score_by_parts(current, needed, checkpoint, scorer, *sizes, profile):
        _check(current, mine, checkpoint.scorer_digest, config.max_failed_share)


def _check(current: Run, tried: DataFrame, scorer_digest: bytes, max_failed_share: float) -> None:
    """Count what came of it. Raises ContractError when too much failed so far: nothing should be ranked then."""
    buckets = tables.buckets_of(current.warehouse, SCORES, tried.select("query_digest"))
    scores = tables.read_memory(current.warehouse, SCORES, tried.select(*PAIR), buckets)
    of_scorer = scores.where(F.col("scorer_digest") == F.lit(scorer_digest))
    mine = of_scorer.join(tried.select(*PAIR, "attempt"), on=[*PAIR, "attempt"], how="inner")
    counts = mine.agg(
        F.count("logit").alias("scored"),
        F.count("error").alias("failed"),
        F.sum("token_count").alias("tokens"),
        F.count_if(F.col("cut_query_tokens") + F.col("cut_passage_tokens") > 0).alias("cut"),
    ).collect()[0]
    current.count(**{name: int(counts[name] or 0) for name in ("scored", "failed", "tokens", "cut")})
    # Of all candidates: of the few pairs of a quiet night one error would be a large share.
    failed, whole = current.rows["failed"], max(current.rows["candidates"], current.rows["to_score"])
    if failed > max_failed_share * whole:
        kinds = mine.where("error IS NOT NULL").groupBy("error", "error_kind").count().orderBy("error").collect()
        listed = ", ".join(f"{row['error']} ({row['error_kind']}) {row['count']:,}" for row in kinds)
        raise ContractError(
            f"scores: expected at most {max_failed_share:.2%} of the pairs to fail, found {failed:,} of "
            f"{whole:,}: {listed}; they are in the table scores; passing errors are "
            "tried again by the next run, lasting ones want the text or the checkpoint mended"
        )
