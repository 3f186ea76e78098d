"""Rankings from scores, prices, sales, ratings, stock and age. Needs no model: a card's calibration is enough.

A query is ranked again when something that its ranking is made of changed since the last run of its variant: an item's
facts or text, its candidates, a score, a step of freshness, the policy, the scorer; and when it was kept back.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Literal

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import parts, tables
from ecomspark.config import Name, Settings, setting
from ecomspark.errors import ContractError, OnHold
from ecomspark.features.changed import candidates_of_pairs, changed_fields, queries_of_items, queries_of_pairs
from ecomspark.features.ranking import Policy, aged, closed_up, incomplete, of_policy, ranked, scored_shares
from ecomspark.features.scores import PAIR, pair_texts, sources_of, standing
from ecomspark.features.texts import ITEM_FIELDS
from ecomspark.ledger import Watermark
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.parts import Part
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import CANDIDATES, HOLDS, ITEMS, KEPT_BACK, QUERIES, RANKINGS, SCORES, TEXTS
from ecomspark.tables import Snapshot, Warehouse
from ecomspark.text import settings_digest

log = logging.getLogger("ecomspark")

JOB = "rank_candidates"

READS = (CANDIDATES, QUERIES, ITEMS, SCORES, RANKINGS)

PUBLISHES = (RANKINGS, KEPT_BACK)

_ALL = Part(0, 2**31 - 1, 0)  # every place there is

_ITEM_FACTS = ("price", "currency", "category", "sold_count", "rating", "rating_count", "is_in_stock", "listed_at")


class Config(Settings):
    """Which scores, and the policy of each variant."""

    checkpoint: Name = setting(..., "the cross-encoder whose scores are ranked: a folder in models_folder")
    variants: dict[Name, Policy] = setting(
        {"main": Policy()}, "policy by name; a variant that is not named keeps what it has published", min_length=1
    )
    min_scored_share: float = setting(
        1.0,
        "share of a query's candidates, lasting errors aside, that must be scored; else its old ranking stays",
        ge=0,
        le=1,
    )
    switch: Literal["by_query", "atomic"] = setting(
        "by_query",
        "how a variant goes over to another checkpoint: each query when it is scored, or in one commit when all are",
    )
    max_failed_share: float = setting(
        0.01,
        "stop when more than this share of all candidates has an error instead of a score",
        decides=False,
        ge=0,
        le=1,
    )
    full: bool = setting(False, "rank every query again, whatever changed: `--full`", decides=False)
    candidates_per_commit: int = setting(
        2_000_000, "candidates ranked between two commits, whole queries each", unit="candidates", decides=False, ge=1
    )


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    checkpoint = _checkpoint(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    held = _held(warehouse, config)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=_covers(checkpoint, config, held),
        settings_digest=_digest(checkpoint, config),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            # Again, now that the leases are ours: a rollback may have set one while this run waited for them.
            held = _held(warehouse, config)
            for variant in held:
                current.covers.pop(variant, None)
            if not current.covers:
                raise _on_hold(held)
            with current.stage("changes"):
                touched = find(current, checkpoint, config)
                touched = touched and current.keep(touched)
                current.count(**_counts(touched))
            if touched is not None and current.rows["reranked_queries"]:
                _rank(current, touched, checkpoint, config)
    # The run is over for the variants that it covers; those on hold are brought forward by the first after the release.
    if held and not current.is_replayed:
        raise _on_hold(held)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """Which queries `run` would rank again now, by the same search."""
    checkpoint = _checkpoint(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    covers = _covers(checkpoint, config, _held(warehouse, config))
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        counts = _counts(find(current, checkpoint, config)) if covers else {"reranked_queries": 0}
        digest = _digest(checkpoint, config).hex()
        return Plan(JOB, current.as_of, digest, as_pins(current.inputs), covers, counts, _fields(current, config))


def _fields(current: Run, config: Config) -> dict[str, int] | None:
    """In how many items each field changed that a ranking is made of; None when that cannot be known."""
    marks = [mark for name in current.covers if (mark := current.watermark(name))]
    columns = tuple(dict.fromkeys((*_ITEM_FACTS, *ITEM_FIELDS)))
    changed = None if config.full or not marks else current.changes(ITEMS, marks[0], columns)
    return None if changed is None else changed_fields(changed, columns)


def _checkpoint(config: Config) -> Checkpoint:
    data_type = config.data_types.get(config.checkpoint)
    return open_checkpoint(config.models_folder, config.checkpoint, "cross_encoder", data_type=data_type)


def _digest(checkpoint: Checkpoint, config: Config) -> bytes:
    return config.deciding_digest(checkpoint.scorer_digest.hex(), checkpoint.card.calibration_digest.hex())


def _covers(checkpoint: Checkpoint, config: Config, held: list[str]) -> dict[str, str]:
    """The variants that may be published, to all that decides their rankings beside the tables."""
    made_of = [checkpoint.scorer_digest.hex(), checkpoint.card.calibration_digest.hex(), config.min_scored_share]
    variants = {name: policy for name, policy in config.variants.items() if name not in held}
    return {
        name: settings_digest({"made_of": made_of, "policy": policy.model_dump(mode="json")}).hex()
        for name, policy in variants.items()
    }


def _held(warehouse: Warehouse, config: Config) -> list[str]:
    at = tables.snapshot(warehouse, HOLDS)
    rows = tables.read(warehouse, HOLDS, at).where(F.col("table_name") == RANKINGS.name).collect() if at else []
    return sorted(row["variant"] for row in rows if row["variant"] in config.variants)


def _on_hold(held: list[str]) -> OnHold:
    return OnHold(
        f"rankings: the variant {', '.join(held)} is on hold and was not published; "
        "`ecomspark release --variant NAME --run-id ID --conf FILE` lets it go on"
    )


def find(current: Run, checkpoint: Checkpoint, config: Config) -> DataFrame | None:
    """What must be ranked again, and why: (variant, query_id, reason); a query may have several reasons. None: nothing
    changed."""
    marks = {name: None if config.full else current.watermark(name) for name in current.covers}
    found: dict[str | None, list[DataFrame]] = {}
    rows = []
    for variant, since in marks.items():
        by_run = since.run_id if since else None
        if by_run not in found:
            changed = _changed(current, checkpoint, since) if since else None
            found[by_run] = [_every_query(current)] if changed is None else changed
        # What is of one variant alone says so; all else is of every variant that this run brought up to date.
        mine = [
            of if "variant" not in of.columns else of.where(F.col("variant") == variant).drop("variant")
            for of in found[by_run]
        ]
        if since is not None and since.as_of and current.as_of and since.as_of < current.as_of:
            crossed = aged(current.read(ITEMS), config.variants[variant], since.as_of, current.as_of)
            mine.append(_because("freshness", queries_of_items(current.read(CANDIDATES), crossed)))
        rows += [of_reason.withColumn("variant", F.lit(variant)) for of_reason in mine]
    waiting = tables.snapshot(current.warehouse, KEPT_BACK)
    if waiting is not None and waiting.version:
        kept = tables.read(current.warehouse, KEPT_BACK, waiting).where(F.col("variant").isin(list(current.covers)))
        rows.append(_because("kept_back", kept, "variant"))
    return reduce(DataFrame.unionByName, rows).distinct() if rows else None


def _because(reason: str, of: DataFrame, *more: str) -> DataFrame:
    return of.select("query_id", F.lit(reason).alias("reason"), *more)


def _changed(current: Run, checkpoint: Checkpoint, since: Watermark) -> list[DataFrame] | None:
    """(query_id, reason, and variant where it is of one alone) of the queries that something changed for since a run;
    None when that cannot be known."""
    of_rankings, now = since.inputs.get(RANKINGS.name), current.inputs[RANKINGS.name]
    if of_rankings is None or now is None or of_rankings.table_id != now.table_id:
        return None
    left = Snapshot(now.table_id, since.left.get(RANKINGS.name, of_rankings.version))
    # What a run published that died and was never resumed stands there, whatever has changed back since.
    strays = None if left == now else current.between(RANKINGS, left, now, ("changed_by",))
    if left != now and strays is None:
        return None
    facts = (*_ITEM_FACTS, "source_digest")
    columns = {CANDIDATES: ("sources",), ITEMS: facts, QUERIES: ("text_source_digest",), SCORES: ("scorer_digest",)}
    moved = {table: of for table, of in columns.items() if not current.is_as_it_was(table, since)}
    changed = {table.name: current.changes(table, since, of) for table, of in moved.items()}
    if any(rows is None for rows in changed.values()):
        return None
    candidates, rows = current.read(CANDIDATES), []
    if strays is not None:
        rows.append(_because(RANKINGS.name, strays, "variant"))
    for name, of_table in changed.items():
        if of_table is None:
            raise AssertionError("looked at above")
        if name in (CANDIDATES.name, QUERIES.name):
            rows.append(_because(name, of_table))
        elif name == ITEMS.name:
            rows.append(_because(name, queries_of_items(candidates, of_table)))
        else:
            scored = of_table.where(F.col("new.scorer_digest") == F.lit(checkpoint.scorer_digest))
            texts = tables.read_memory(current.warehouse, TEXTS)
            queries, items, recipe = current.read(QUERIES), current.read(ITEMS), checkpoint.card.recipe.digest
            asked = current.keep(queries_of_pairs(scored, queries, texts, recipe))
            near = current.read_of_queries(CANDIDATES, asked)
            of_pairs = candidates_of_pairs(scored, near, queries, items, texts, recipe)
            rows.append(_because(name, of_pairs))
    return rows


def _every_query(current: Run) -> DataFrame:
    """(query_id, reason) of every query that has candidates or a ranking."""
    now = tables.snapshot(current.warehouse, RANKINGS)
    shown = tables.read(current.warehouse, RANKINGS, now).select("query_id")
    queries = current.read(CANDIDATES).select("query_id").unionByName(shown).distinct()
    return queries.withColumn("reason", F.lit("whole"))


def _counts(touched: DataFrame | None) -> dict[str, int]:
    """How many queries there are, in any variant, and for each reason."""
    counts = {"reranked_queries": 0}
    if touched is not None:
        by_query = touched.groupBy("query_id").agg(F.array_sort(F.collect_set("reason")).alias("reasons"))
        for row in by_query.groupBy("reasons").count().collect():
            counts["reranked_queries"] += int(row["count"])
            for reason in row["reasons"]:
                counts[f"because_{reason}"] = counts.get(f"because_{reason}", 0) + int(row["count"])
    return counts


@dataclass(frozen=True)
class _Work:
    """`touched`: (variant, query_id, place); `candidates`: their candidates with place, sources, item facts and the
    standing of their pair: logit, or error_kind, or neither. Persisted. `buckets`: where in rankings they are."""

    touched: DataFrame
    candidates: DataFrame
    buckets: list[int] | None

    def of(self, part: Part) -> "_Work":
        mine = F.col("place").between(part.first, part.last)
        buckets = self.buckets if part == _ALL else list(range(part.first // 256, part.last // 256 + 1))
        return _Work(self.touched.where(mine), self.candidates.where(mine), buckets)


def _rank(current: Run, touched: DataFrame, checkpoint: Checkpoint, config: Config) -> None:
    as_of = current.as_of
    if as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    for table in PUBLISHES:
        tables.create(current.warehouse, table)
    place = tables.place_of(current.warehouse, RANKINGS, F.col("query_id")).alias("place")
    queries = touched.select("query_id").distinct()
    buckets = tables.buckets_of(current.warehouse, RANKINGS, queries)
    with current.stage("scores"):
        mine = current.read_of_queries(CANDIDATES, queries)
        candidates = current.keep(_scored(current, mine, checkpoint, buckets is not None).select("*", place))
        _check(current, candidates, config.max_failed_share)
    with current.stage("rank"):
        work = _Work(touched.select("variant", "query_id", place).distinct(), candidates, buckets)
        switching = _switching(current, checkpoint) if config.switch == "atomic" else []
        _let_wait(current, work, config, switching)
        for part, said in _parts(current, work, 2**62 if switching else config.candidates_per_commit):
            log.info("%s: %s", JOB, said)
            if current.covers:
                _publish(current, work.of(part), checkpoint, config, as_of)


def _parts(current: Run, work: _Work, most: int) -> Iterator[tuple[Part, str]]:
    """The work cut by the layout of rankings: a query is in one part, also one without any candidate left."""
    whole = current.rows["looked_at"] + current.rows["reranked_queries"]
    if whole <= most:
        return parts.told([_ALL], "candidates")
    rows = work.touched.select("place").unionByName(work.candidates.select("place")).groupBy("place").count().collect()
    return parts.told(parts.cut([(row["place"], int(row["count"])) for row in rows], most), "candidates")


def _scored(current: Run, candidates: DataFrame, checkpoint: Checkpoint, is_part: bool) -> DataFrame:
    """Candidates with sources, item facts, and the standing of their pair: logit, or error_kind, or neither."""
    warehouse, queries, items = current.warehouse, current.read(QUERIES), current.read(ITEMS)
    sources = sources_of(candidates, queries, items) if is_part else None
    texts = tables.read_memory(
        warehouse, TEXTS, sources, None if sources is None else tables.buckets_of(warehouse, TEXTS, sources)
    )
    pairs = pair_texts(
        candidates.select("query_id", "item_id", "sources"), queries, items, texts, checkpoint.card.recipe.digest
    ).drop("query_text", "passage_text")
    buckets = tables.buckets_of(warehouse, SCORES, pairs.select("query_digest")) if is_part else None
    scores = tables.read_memory(warehouse, SCORES, pairs.select(*PAIR).distinct(), buckets)
    return pairs.join(items.select("item_id", *_ITEM_FACTS), on="item_id", how="inner").join(
        standing(scores, checkpoint.scorer_digest), on=PAIR, how="left"
    )


def _check(current: Run, candidates: DataFrame, max_failed_share: float) -> None:
    """Count. Raises ContractError, before anything is published, when too many candidates have an error."""
    counts = candidates.agg(
        F.count("*").alias("looked_at"), F.count("logit").alias("scored"), F.count("error_kind").alias("failed")
    ).collect()[0]
    whole = current.read(CANDIDATES).count()
    current.count(candidates=whole, **{name: int(counts[name]) for name in ("looked_at", "scored", "failed")})
    if counts["failed"] > max_failed_share * whole:
        raise ContractError(
            f"scores: expected at most {max_failed_share:.2%} of the candidates to have an error, found "
            f"{counts['failed']:,} of {whole:,}; nothing was ranked; see `error` in the table scores"
        )


def _switching(current: Run, checkpoint: Checkpoint) -> list[str]:
    """The variants that still show the order of another scorer."""
    shown = tables.read(current.warehouse, RANKINGS, tables.snapshot(current.warehouse, RANKINGS))
    others = shown.where(F.col("scorer_digest") != F.lit(checkpoint.scorer_digest)).select("variant").distinct()
    return sorted(row["variant"] for row in others.collect() if row["variant"] in current.covers)


def _let_wait(current: Run, work: _Work, config: Config, switching: list[str]) -> None:
    """Leave the variants as they are that shall go over to a checkpoint all at once and cannot yet: this run does not
    cover them, so the next one looks at all their queries again."""
    for variant in switching:
        mine = of_policy(_of_variant(work, variant), config.variants[variant])
        waiting = incomplete(scored_shares(mine), config.min_scored_share).where("is_kept_back")
        if count := waiting.count():
            log.warning("%s: %s stays as it is until %s more queries are scored", JOB, variant, f"{count:,}")
            current.count(waiting_to_switch=count)
            del current.covers[variant]


def _publish(current: Run, work: _Work, checkpoint: Checkpoint, config: Config, as_of: date) -> None:
    """Publish the rankings of the queries at hand in one commit, each whole or not at all; and who is kept back."""
    variants = list(current.covers)
    mine = {name: of_policy(_of_variant(work, name), config.variants[name]) for name in variants}
    watched = [
        incomplete(scored_shares(rows), config.min_scored_share).withColumn("variant", F.lit(name))
        for name, rows in mine.items()
    ]
    look_again = tables.kept(reduce(DataFrame.unionByName, watched))
    counts = look_again.agg(F.count("*").alias("all"), F.count_if("is_kept_back").alias("kept")).collect()[0]
    kept = look_again.where("is_kept_back").select("variant", "query_id")
    rows = []
    for variant in variants:
        policy = config.variants[variant]
        waiting = kept.where(F.col("variant") == variant).select("query_id")
        ready = mine[variant].join(waiting, on="query_id", how="left_anti")
        of_variant = ranked(ready, variant, policy, checkpoint.card.calibration, as_of)
        rows.append(of_variant.withColumn("settings_digest", F.lit(settings_digest(policy))))
    rankings = reduce(DataFrame.unionByName, rows).select(
        "*",
        F.lit(checkpoint.scorer_digest).alias("scorer_digest"),
        F.lit(checkpoint.card.calibration_digest).alias("calibration_digest"),
    )
    if counts["kept"]:
        rankings = rankings.unionByName(_what_stays(current, kept, mine, work.buckets))
    touched = work.touched.select("variant", "query_id")
    in_scope = F.col("variant").isin(variants)
    change = tables.compare(
        current.warehouse,
        RANKINGS,
        rankings,
        current.author,
        scope=in_scope,
        within=touched,
        buckets=work.buckets,
    )
    current.count(
        ranked=change.given,
        kept_back_queries=int(counts["kept"]),
        new=change.inserted,
        changed=change.updated,
        removed=change.deleted,
    )
    current.commit(tables.publish(current.warehouse, change, current.author))
    before = tables.snapshot(current.warehouse, KEPT_BACK)
    if counts["all"] or (before is not None and before.version):
        of_kept = tables.compare(
            current.warehouse, KEPT_BACK, look_again, current.author, scope=in_scope, within=touched
        )
        current.commit(tables.publish(current.warehouse, of_kept, current.author))
    look_again.unpersist()


def _what_stays(current: Run, kept: DataFrame, mine: dict[str, DataFrame], buckets: list[int] | None) -> DataFrame:
    """The rows of queries that are kept back, less those whose item or candidate is gone."""
    old = tables.read(current.warehouse, RANKINGS, tables.snapshot(current.warehouse, RANKINGS), buckets)
    of_kept = old.join(kept, on=["variant", "query_id"], how="left_semi")
    there = [rows.select(F.lit(name).alias("variant"), "query_id", "item_id") for name, rows in mine.items()]
    still = reduce(DataFrame.unionByName, there)
    return closed_up(of_kept.join(still, on=["variant", "query_id", "item_id"], how="left_semi"))


def _of_variant(work: _Work, variant: str) -> DataFrame:
    queries = work.touched.where(F.col("variant") == variant).select("query_id")
    return work.candidates.join(queries, on="query_id", how="left_semi").drop("place")
