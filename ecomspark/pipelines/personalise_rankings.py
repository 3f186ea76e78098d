"""Rankings for named shoppers and segments: the general ones, reordered inside their bands by profile, session, price.

Only the pairs of an audience and a query that are named get one, never all shoppers times all queries. A pair is done
again when something that its ranking is made of changed since the last run of its variant: the general ranking, an
item's price or vector, the shopper's profile, last session, consent or links, any of these of a segment's members; and
when it is named for the first time. One that is named no more loses its ranking, and of a shopper who may not be known
there is none: search shows them what it shows everybody.
"""

import logging
from dataclasses import dataclass
from datetime import date
from functools import reduce

from pydantic import field_validator, model_validator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ecomspark import tables, text
from ecomspark.behaviour import allowed_now
from ecomspark.config import Name, Section, Settings, setting
from ecomspark.errors import ConfigError, ContractError, OnHold
from ecomspark.features.conform import ColumnMap, usable
from ecomspark.features.consents import of_people, people
from ecomspark.features.personal import (
    KEY,
    REASONS,
    SEGMENT,
    SHOPPER,
    Segment,
    Weights,
    cosines,
    last_sessions,
    mean_vectors,
    members,
    moved,
    personal_rankings,
    segment_standing,
    shopper_standing,
)
from ecomspark.features.profiles import newest_profiles, price_band
from ecomspark.features.sessions import TimeZone
from ecomspark.features.vectors import item_vectors
from ecomspark.importing import conformed_rows
from ecomspark.ledger import Watermark
from ecomspark.models.checkpoint import Checkpoint, open_checkpoint
from ecomspark.plans import Plan, as_pins
from ecomspark.runs import Run, Summary, open_run, planned_run
from ecomspark.schemas import (
    CONSENTS,
    EMBEDDINGS,
    HOLDS,
    ITEMS,
    PERSONAL_RANKINGS,
    PROFILES,
    QUERIES,
    RANKINGS,
    SESSIONS,
    SHOPPER_LINKS,
    TEXTS,
    Table,
    column,
)
from ecomspark.tables import Snapshot, Source, Sourced, Warehouse, read_source
from ecomspark.text import IDENTITY_MAX_CHARACTERS, settings_digest

log = logging.getLogger("ecomspark")

JOB = "personalise_rankings"

READS = (
    RANKINGS, PROFILES, SESSIONS, CONSENTS, SHOPPER_LINKS, ITEMS, QUERIES, TEXTS, EMBEDDINGS, PERSONAL_RANKINGS
)  # fmt: skip

PUBLISHES = (PERSONAL_RANKINGS,)

# What a pair's ranking is made of: any change of one of these columns does it again.
_MADE_OF: dict[Table, tuple[str, ...]] = {
    RANKINGS: ("rank", "final_score", "availability", "band"),
    ITEMS: ("price", "source_digest"),
    TEXTS: (),
    EMBEDDINGS: (),
    PROFILES: ("history_digest", "settings_digest", "encoder_digest", "vector", "price_band_weights"),
    SESSIONS: ("shopper_id", "session_date", "started_at", "item_ids", "kinds", "bot_rule"),
    CONSENTS: (),
}

PAIRS = Table(
    "pairs",
    one_row="a shopper and a query that shall have a ranking of its own",
    kind="log",
    key=("shopper_id", "query_text", "locale"),
    columns=(
        column("shopper_id", "string", "pseudonym, as in `interactions`"),
        column("query_text", "string", "the query, as somebody typed it"),
        column("locale", "string", "its market and language"),
    ),
    bytes_a_row=100,
)

_PAIR = ("variant", *KEY)


class Query(Section):
    """A query, as somebody typed it."""

    text: str = setting(..., "the query", min_length=1)
    locale: str = setting(..., "its market and language", min_length=1)


class Config(Settings):
    """Who gets rankings of their own, for which queries, and what the personal terms count for."""

    encoder: Name = setting(..., "the encoder of the profiles' vectors: a folder in models_folder")
    variants: list[Name] = setting(
        ["main"], "the variants of `rankings` that are followed; what one had that is not named goes", min_length=1
    )
    pairs: Source | None = setting(None, "a source of pairs of a shopper and a query; null: none")
    columns: dict[str, ColumnMap] = setting(
        {name: ColumnMap.model_validate(name) for name in PAIRS.key},
        "of `pairs`: column of ours to where it comes from, as import jobs have it",
    )
    shoppers: list[str] = setting([], "pseudonyms of shoppers who get rankings of the queries named below")
    segments: dict[Name, Segment] = setting({}, "segments by name, which get rankings of the queries named below")
    queries: list[Query] = setting([], "queries for every one of `shoppers` and `segments`")
    top_queries: int = setting(0, "and so many of those most asked, by traffic", unit="queries", ge=0)
    min_members: int = setting(
        20,
        "members with a vector that a segment needs: below, it would speak of single shoppers",
        unit="shoppers",
        ge=2,
    )
    weights: Weights = setting(Weights(), "weights of the personal terms; the general ones together have 1")
    price_bands: list[float] = setting(
        [2.0, 5.0, 10.0, 20.0], "lower edges of the price bands above the lowest, rising, as build_profiles has them"
    )
    purpose: Name = setting("personalisation", "the purpose that shoppers must have consented to")
    time_zone: TimeZone = setting("UTC", "in which a day ends, such as Europe/London: build_sessions' own")
    gap_minutes: int = setting(
        30, "build_sessions' own: a session may still go on for so long", unit="minutes", ge=1, le=7 * 1440
    )
    max_pairs: int = setting(
        1_000_000, "stop when more pairs of an audience and a query are named", unit="pairs", decides=False, ge=1
    )
    full: bool = setting(False, "do every pair again, whatever changed: `--full`", decides=False)

    @field_validator("price_bands")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or any(edge <= 0 for edge in value):
            raise ValueError("edges must rise, each above 0")
        return value

    @model_validator(mode="after")
    def _both_sides(self) -> "Config":
        if bool(self.shoppers or self.segments) != bool(self.queries or self.top_queries):
            raise ValueError("shoppers and segments need queries or top_queries, and these need shoppers or segments")
        return self


def run(spark: SparkSession, config: Config, run_id: str, as_of: date | None = None) -> Summary:
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    held = _held(warehouse, config)
    with open_run(
        warehouse,
        JOB,
        run_id,
        reads=READS,
        publishes=PUBLISHES,
        covers=_covers(encoder, config, held),
        source=config.pairs,
        settings_digest=config.deciding_digest(encoder.scorer_digest.hex()),
        as_of=as_of,
        leases=config.leases,
        plan=config.plan,
    ) as current:
        if not current.is_replayed:
            # Again, now that the lease is ours: a rollback may have set one while this run waited for it.
            held = _held(warehouse, config)
            for variant in held:
                current.covers.pop(variant, None)
            allowed = current.settle(_allowed(current, config))
            if held:
                with current.stage("withdraw"):
                    _withdraw(current, held, allowed)
            if not current.covers:
                raise _on_hold(held)
            with current.stage("changes"):
                work = find(current, encoder, config, current.source, allowed)
                current.count(**work.counts)
            if work.counts["redone_pairs"] or work.counts["gone_pairs"]:
                with current.stage("rank"):
                    _publish(current, work, encoder, config, held, allowed)
    if held and not current.is_replayed:
        raise _on_hold(held)
    return current.summary()


def plan(spark: SparkSession, config: Config, as_of: date | None = None) -> Plan:
    """Which pairs `run` would do again now, by the same search."""
    encoder = _encoder(config)
    warehouse = Warehouse(spark, config.warehouse, config.buckets)
    covers = _covers(encoder, config, _held(warehouse, config))
    with planned_run(warehouse, JOB, reads=READS, publishes=PUBLISHES, covers=covers, as_of=as_of) as current:
        sourced = read_source(spark, config.pairs) if config.pairs else None
        allowed = current.settle(_allowed(current, config))
        counts = find(current, encoder, config, sourced, allowed).counts if covers else {"redone_pairs": 0}
        digest = config.deciding_digest(encoder.scorer_digest.hex()).hex()
        return Plan(JOB, current.as_of, digest, as_pins(current.inputs), covers, counts)


def _encoder(config: Config) -> Checkpoint:
    """Raises ConfigError, too, when nobody is named: all that is there would go."""
    if config.pairs is None and not (config.shoppers or config.segments):
        raise ConfigError(f"{JOB}: name pairs, or shoppers or segments with queries: nobody else gets a ranking")
    data_type = config.data_types.get(config.encoder)
    return open_checkpoint(config.models_folder, config.encoder, "encoder", data_type=data_type)


def _row_digest(encoder: Checkpoint, config: Config) -> bytes:
    """What decides a row beside the tables, and beside who is named."""
    policy = config.model_dump(mode="json", include={"weights", "price_bands", "purpose", "min_members"})
    return settings_digest({"encoder": encoder.scorer_digest.hex(), **policy})


def _covers(encoder: Checkpoint, config: Config, held: list[str]) -> dict[str, str]:
    segments = {name: segment.model_dump(mode="json") for name, segment in config.segments.items()}
    digest = settings_digest({"row": _row_digest(encoder, config).hex(), "segments": segments}).hex()
    return {variant: digest for variant in config.variants if variant not in held}


def _held(warehouse: Warehouse, config: Config) -> list[str]:
    at = tables.snapshot(warehouse, HOLDS)
    rows = tables.read(warehouse, HOLDS, at).where(F.col("table_name") == RANKINGS.name).collect() if at else []
    return sorted(row["variant"] for row in rows if row["variant"] in config.variants)


def _on_hold(held: list[str]) -> OnHold:
    return OnHold(
        f"personal_rankings: the variant {', '.join(held)} is on hold and was not followed; "
        "`ecomspark release --variant NAME --run-id ID --conf FILE` lets it go on"
    )


def _withdraw(current: Run, held: list[str], allowed: DataFrame) -> None:
    """Of variants on hold take away what there is of shoppers who do not consent any more: that does not wait."""
    there = current.read_if_there(PERSONAL_RANKINGS).where(F.col("variant").isin(held))
    may_stay = allowed.select(F.col("shopper_id").alias("audience"))
    of_shoppers = there.where(F.col("audience_kind") == SHOPPER)
    gone = current.keep(of_shoppers.join(may_stay, on="audience", how="left_anti").select(*_PAIR).distinct())
    if not gone.isEmpty():
        none = there.drop("changed_by").limit(0)
        change = tables.compare(current.warehouse, PERSONAL_RANKINGS, none, current.author, within=gone)
        current.count(removed=change.deleted)
        current.commit(tables.publish(current.warehouse, change, current.author))


def _allowed(current: Run, config: Config) -> DataFrame:
    return allowed_now(current, config.purpose)


@dataclass(frozen=True)
class Work:
    """`pairs`: (variant, audience_kind, audience, query_id) to do again; `touched`: those and the ones that go."""

    pairs: DataFrame
    touched: DataFrame
    counts: dict[str, int]


def find(current: Run, encoder: Checkpoint, config: Config, sourced: Sourced | None, allowed: DataFrame) -> Work:
    """The pairs whose ranking must be made or goes, and why.

    Raises ContractError when `pairs` are not what the settings say, or too many are named.
    """
    named, counts = _named(current, config, sourced, allowed)
    rankings = current.read(RANKINGS).where(F.col("variant").isin(list(current.covers)))
    pairs = current.settle(named.join(rankings.select("variant", "query_id").distinct(), on="query_id", how="inner"))
    held = [variant for variant in config.variants if variant not in current.covers]
    there = current.settle(
        current.read_if_there(PERSONAL_RANKINGS).where(~F.col("variant").isin(held)).select(*_PAIR).distinct()
    )
    gone = current.settle(there.join(pairs, on=list(_PAIR), how="left_anti"))
    found = [_because("new", pairs.join(there, on=list(_PAIR), how="left_anti"))]
    for variant in current.covers:
        mine = pairs.where(F.col("variant") == variant)
        since = None if config.full else current.watermark(variant)
        changed = _changed(current, encoder, mine, since) if since else None
        found += [_because("whole", mine)] if changed is None else changed
    reasons = current.settle(reduce(DataFrame.unionByName, found).distinct())
    redone = current.settle(reasons.select(*_PAIR).distinct())
    counts |= {
        "named_pairs": named.count(),
        "unranked_queries": named.select("query_id").distinct().join(pairs, on="query_id", how="left_anti").count(),
        "redone_pairs": redone.count(),
        **{f"because_{row['reason']}": int(row["count"]) for row in reasons.groupBy("reason").count().collect()},
        "gone_pairs": gone.count(),
    }
    return Work(redone, current.settle(redone.unionByName(gone.select(*_PAIR))), counts)


def _because(reason: str, pairs: DataFrame) -> DataFrame:
    return pairs.select(*_PAIR, F.lit(reason).alias("reason"))


def _named(
    current: Run, config: Config, sourced: Sourced | None, allowed: DataFrame
) -> tuple[DataFrame, dict[str, int]]:
    """(audience_kind, audience, query_id) of every pair that is named, with a query that is known; and what was not."""
    spark, queries, counts = current.warehouse.spark, current.read(QUERIES), {"unusable_pairs": 0}
    pair = "audience_kind string, audience string"
    asked = spark.createDataFrame([], f"{pair}, locale string, query_text string")
    if sourced is not None:
        conformed = current.keep(conformed_rows(sourced, config.columns, PAIRS, {}))
        counts["unusable_pairs"] = conformed.where(F.size("_reasons") > 0).count()
        kept = F.substring("query_text", 1, 4 * IDENTITY_MAX_CHARACTERS).alias("query_text")  # as far as it is read
        asked = usable(conformed).select(F.lit(SHOPPER).alias("audience_kind"), F.col("shopper_id").alias("audience"),
                                         "locale", kept)  # fmt: skip
    audiences = [(SHOPPER, name) for name in config.shoppers] + [(SEGMENT, name) for name in config.segments]
    listed = spark.createDataFrame(audiences, pair)
    texts = [(query.locale, query.text) for query in config.queries]
    of_lists = listed.crossJoin(spark.createDataFrame(texts, "locale string, query_text string"))
    asked = current.keep(asked.unionByName(of_lists.select(*asked.columns)).distinct())
    most_asked = queries.orderBy(F.desc("traffic"), "query_id").limit(config.top_queries).select("query_id")
    of_top = current.keep(listed.crossJoin(most_asked))
    if (count := asked.count() + of_top.count()) > config.max_pairs:
        raise ContractError(
            f"pairs: expected at most {config.max_pairs:,} of an audience and a query, found {count:,}; name fewer, or "
            "raise max_pairs; nothing was ranked"
        )
    # A query's id is made of its text by Python: here, of the distinct texts, and never in what feeds the merge.
    spelled = [(row["locale"], row["query_text"]) for row in asked.select("locale", "query_text").distinct().collect()]
    ids = [(locale, words, bytearray(_query_id(locale, words))) for locale, words in spelled]
    known = spark.createDataFrame(ids, "locale string, query_text string, query_id binary")
    known = current.keep(known.join(queries.select("query_id"), on="query_id", how="left_semi"))
    found = asked.join(known, on=["locale", "query_text"], how="inner").select("audience_kind", "audience", "query_id")
    named = current.keep(found.unionByName(of_top).distinct())
    shoppers = named.where(F.col("audience_kind") == SHOPPER).select(F.col("audience").alias("shopper_id")).distinct()
    links = current.read_if_there(SHOPPER_LINKS)
    heard_of = [current.read_if_there(table).select("shopper_id") for table in (CONSENTS, PROFILES, SESSIONS)]
    heard_of += [links.select("shopper_id"), links.select(F.col("other_id").alias("shopper_id"))]
    unknown = shoppers.join(reduce(DataFrame.unionByName, heard_of).distinct(), on="shopper_id", how="left_anti")
    # Of who may not be known nothing is kept, not even that they have the general ranking, which search shows them.
    refused = current.keep(shoppers.join(allowed, on="shopper_id", how="left_anti"))
    is_refused = (F.col("audience_kind") == SHOPPER) & (F.col("audience") == F.col("shopper_id"))
    counts |= {
        "unknown_queries": len(ids) - known.count(),
        "unknown_shoppers": unknown.count(),
        "shoppers_without_consent": refused.count(),
    }
    return current.settle(named.join(refused, on=is_refused, how="left_anti")), counts


def _query_id(locale: str, words: str) -> bytes:
    return text.digest(locale, text.normalise_query(words))


def _changed(current: Run, encoder: Checkpoint, pairs: DataFrame, since: Watermark) -> list[DataFrame] | None:
    """(variant, audience_kind, audience, query_id, reason) of a variant's pairs that something changed for since a run;
    None when that cannot be known."""
    then, now = since.inputs.get(PERSONAL_RANKINGS.name), current.inputs[PERSONAL_RANKINGS.name]
    links_moved = current.inputs[SHOPPER_LINKS.name] != since.inputs.get(SHOPPER_LINKS.name)
    if then is None or links_moved or since.as_of is None or current.as_of is None:
        return None  # of links: other ids are one person now
    left = Snapshot(then.table_id, since.left.get(PERSONAL_RANKINGS.name, then.version))
    # What a run published that died and was never resumed stands there, and what another job took away does not.
    strays = None if now == left else current.between(PERSONAL_RANKINGS, left, now, ("changed_by",))
    if now != left and strays is None:
        return None
    moved_on = [table for table in _MADE_OF if current.inputs[table.name] != since.inputs.get(table.name)]
    feeds = {table.name: current.changes(table, since, _MADE_OF[table]) for table in moved_on}
    if any(rows is None for rows in feeds.values()):
        return None
    changed = {name: rows for name, rows in feeds.items() if rows is not None}
    found = []
    if strays is not None:
        rows = strays.select(*_PAIR).distinct()
        found.append(_because(PERSONAL_RANKINGS.name, pairs.join(rows, on=list(_PAIR), how="left_semi")))
    if RANKINGS.name in changed:
        of_rankings = changed[RANKINGS.name].select("variant", "query_id").distinct()
        found.append(_because("rankings", pairs.join(of_rankings, on=["variant", "query_id"], how="left_semi")))
    if items := _items_of(current, encoder, changed):
        offered = current.read(RANKINGS).join(reduce(DataFrame.unionByName, items), on="item_id", how="left_semi")
        queries = offered.select("variant", "query_id").distinct()
        found.append(_because("items", pairs.join(queries, on=["variant", "query_id"], how="left_semi")))
    of_shoppers = {
        name: changed[name].select("shopper_id") for name in (PROFILES.name, CONSENTS.name) if name in changed
    }
    if SESSIONS.name in changed:
        both = F.explode(F.array("old.shopper_id", "new.shopper_id")).alias("shopper_id")
        of_shoppers[SESSIONS.name] = changed[SESSIONS.name].select(both).where("shopper_id IS NOT NULL")
    days = {PROFILES: "as_of_date", SESSIONS: "session_date"}
    for table, day in days.items() if since.as_of < current.as_of else ():
        is_new = (F.col(day) > F.lit(since.as_of)) & (F.col(day) <= F.lit(current.as_of))
        of_days = current.read_if_there(table).where(is_new).select("shopper_id")
        of_shoppers[table.name] = of_days.unionByName(of_shoppers.get(table.name, of_days.limit(0)))
    linked = current.settle(people(current.read_if_there(SHOPPER_LINKS)))
    of_audiences = _with_person(pairs.where(F.col("audience_kind") == SHOPPER), linked, "audience")
    for name, ids in of_shoppers.items():
        touched = current.keep(_with_person(ids.distinct(), linked, "shopper_id").select("_person").distinct())
        found.append(_because(name, of_audiences.join(touched, on="_person", how="left_semi")))
        # A segment is of many: whom it lost cannot be seen in its row, so it is done again for anybody's change.
        if name != SESSIONS.name and not touched.isEmpty():
            found.append(_because(name, pairs.where(F.col("audience_kind") == SEGMENT)))
    return found


def _items_of(current: Run, encoder: Checkpoint, changed: dict[str, DataFrame]) -> list[DataFrame]:
    """(item_id) of the items whose price, text or vector changed."""
    found, items, recipe = [], current.read(ITEMS), F.lit(encoder.card.recipe.digest)
    if ITEMS.name in changed:
        found.append(changed[ITEMS.name].select("item_id"))
    sources = []
    if TEXTS.name in changed:
        sources.append(changed[TEXTS.name].where((F.col("role") == "passage") & (F.col("recipe_digest") == recipe)))
    if EMBEDDINGS.name in changed:
        is_ours = (F.col("role") == "passage") & (F.col("scorer_digest") == F.lit(encoder.scorer_digest))
        vectors = changed[EMBEDDINGS.name].where(is_ours).select("text_digest").distinct()
        texts = tables.read_memory(current.warehouse, TEXTS)
        mine = texts.where((F.col("role") == "passage") & (F.col("recipe_digest") == recipe))
        sources.append(mine.join(vectors, on="text_digest", how="left_semi"))
    found += [
        items.join(of.select("source_digest").distinct(), on="source_digest", how="left_semi").select("item_id")
        for of in sources
    ]
    return found


def _with_person(rows: DataFrame, linked: DataFrame, shopper_id: str) -> DataFrame:
    """Rows with `_person`, the id that a shopper's history is told under. `linked`: as `consents.people` gives it."""
    named = linked.withColumnsRenamed({"shopper_id": shopper_id, "person_id": "_stays"})
    joined = rows.join(named, on=shopper_id, how="left")
    return joined.withColumn("_person", F.coalesce("_stays", shopper_id)).drop("_stays")


def _publish(
    current: Run, work: Work, encoder: Checkpoint, config: Config, held: list[str], allowed: DataFrame
) -> None:
    """Make the rankings of the pairs at hand, publish what differs, and say how far the personal terms moved things."""
    as_of, warehouse = current.as_of, current.warehouse
    if as_of is None:
        raise ContractError("as_of: expected a date, found no input that has one; give --as-of")
    tables.create(warehouse, PERSONAL_RANKINGS)
    queries = current.keep(work.touched.select("query_id").distinct())
    shown = current.read_of_queries(RANKINGS, queries)
    general = current.settle(shown.join(work.pairs, on=["variant", "query_id"], how="inner"))
    standing = current.settle(_standing(current, work.pairs, allowed, encoder, config, as_of))
    affinities = _affinities(current, general, standing, allowed, encoder, config, as_of)
    price = F.col("price").cast("double")
    bands = current.read(ITEMS).select("item_id", price_band(price, config.price_bands).alias("price_band"))
    at = current.inputs[RANKINGS.name]
    rows = personal_rankings(general, standing.drop("person_id"), affinities, bands, config.weights).select(
        "*",
        F.lit(at.version if at else 0).cast("bigint").alias("rankings_version"),
        F.lit(_row_digest(encoder, config)).alias("settings_digest"),
    )
    made = work.pairs.join(standing, on=["audience_kind", "audience"], how="inner")
    by_reason = {row["reason"]: int(row["count"]) for row in made.groupBy("reason").count().collect()}
    current.count(
        personal_rankings=by_reason.get(None, 0),
        general_rankings=sum(count for reason, count in by_reason.items() if reason),
        **{f"general_{reason}": by_reason[reason] for reason in REASONS if reason in by_reason},
    )
    change = tables.compare(
        warehouse,
        PERSONAL_RANKINGS,
        rows,
        current.author,
        scope=~F.col("variant").isin(held),
        within=work.touched,
        buckets=tables.buckets_of(warehouse, PERSONAL_RANKINGS, queries),
    )
    current.count(new=change.inserted, changed=change.updated, removed=change.deleted)
    current.commit(tables.publish(warehouse, change, current.author))
    _say_how_far(current, config)


def _standing(
    current: Run, pairs: DataFrame, allowed: DataFrame, encoder: Checkpoint, config: Config, as_of: date
) -> DataFrame:
    """How every audience of some pairs stands: see `features.personal`."""
    # A profile and a session are told under the id that stays: what still stands under a retired one is not read.
    stays = allowed.where("shopper_id = person_id")
    profiles = newest_profiles(of_people(current.read_if_there(PROFILES), stays), as_of)
    names = pairs.select("audience_kind", "audience").distinct()
    shoppers = names.where(F.col("audience_kind") == SHOPPER).select("audience")
    standing = shopper_standing(shoppers, allowed, profiles, encoder.scorer_digest)
    if not config.segments:
        return standing
    of_encoder = profiles.where(F.col("encoder_digest") == F.lit(encoder.scorer_digest))
    segments = names.where(F.col("audience_kind") == SEGMENT).select("audience")
    of_segments = segment_standing(members(of_encoder, config.segments), segments, config.min_members)
    return standing.unionByName(of_segments.withColumn("person_id", F.lit(None).cast("string")))


def _affinities(
    current: Run,
    general: DataFrame,
    standing: DataFrame,
    allowed: DataFrame,
    encoder: Checkpoint,
    config: Config,
    as_of: date,
) -> DataFrame:
    """(audience_kind, audience, item_id, profile_cosine, session_cosine) of the items that an audience is shown."""
    audience = ["audience_kind", "audience"]
    personal = standing.where("reason IS NULL")
    wanted = current.settle(
        general.join(personal, on=audience, how="left_semi").select(*audience, "item_id").distinct()
    )
    persons = personal.where("person_id IS NOT NULL").select("person_id").distinct()
    stays = allowed.where("shopper_id = person_id")
    sessions = of_people(current.read_if_there(SESSIONS), stays)
    of_last = current.settle(last_sessions(sessions, persons, as_of, config.gap_minutes, config.time_zone))
    needed = wanted.select("item_id").unionByName(of_last.select("item_id")).distinct()
    vectors = current.settle(_item_vectors(current, needed, encoder))
    of_sessions = mean_vectors(
        of_last.join(vectors, on="item_id", how="inner").select("person_id", "vector"), "person_id"
    )
    profile = personal.select(*audience, F.col("profile_vector").alias("vector"))
    session = personal.join(of_sessions, on="person_id", how="inner").select(*audience, "vector")
    by_profile = cosines(wanted, profile, vectors, "profile_cosine")
    by_session = cosines(wanted, session, vectors, "session_cosine")
    key = [*audience, "item_id"]
    return wanted.join(by_profile, on=key, how="left").join(by_session, on=key, how="left")


def _item_vectors(current: Run, needed: DataFrame, encoder: Checkpoint) -> DataFrame:
    """(item_id, vector) of those of some items that have one."""
    items = current.read(ITEMS).join(needed, on="item_id", how="left_semi").select("item_id", "source_digest")
    texts = tables.read_memory(current.warehouse, TEXTS, items.select("source_digest").distinct())
    embeddings = tables.read_memory(current.warehouse, EMBEDDINGS, texts.select("text_digest").distinct())
    recipe_digest, scorer_digest = encoder.card.recipe.digest, encoder.scorer_digest
    return item_vectors(items, texts, embeddings, recipe_digest, scorer_digest).select("item_id", "vector")


def _say_how_far(current: Run, config: Config) -> None:
    """Count and say how far the personal terms move things in all that is published now."""
    now = tables.read(current.warehouse, PERSONAL_RANKINGS, tables.snapshot(current.warehouse, PERSONAL_RANKINGS))
    row = moved(now.where(F.col("variant").isin(list(current.covers)))).collect()[0]
    said = {"published_personal": "personal", "personal_rows": "rows", "moved_places": "places"}
    said |= {"top_rows": "top", "came_into_top": "came_in"}
    current.count(**{name: int(row[of]) for name, of in said.items()})
    log.info(
        "%s: %s personal rankings are published: an item stands %.2f places from where everybody sees it on average, "
        "and %.1f %% of the first ten are others than everybody's",
        JOB,
        f"{row['personal']:,}",
        row["places"] / max(1, row["rows"]),
        100 * row["came_in"] / max(1, row["top"]),
    )
