"""A query's ranking for one shopper or segment: personal terms inside the bands of the general one.

    final_score = availability + band + (general terms + profile + session + price terms) / (1 + sum of their weights)

The general terms come to at most 1 and the personal ones to at most their weights, so what is divided is at most 1 too:
a personal term moves an item within its band and never out of it.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import model_validator
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.config import Section, setting
from ecomspark.features.profiles import settled_date
from ecomspark.features.ranking import SCORE_DECIMALS, Share
from ecomspark.features.vectors import as_vectors, by_group, matrix_of, starts_of, units

KEY = ("audience_kind", "audience", "query_id")
TERMS = ("profile", "session", "price")
SHOPPER, SEGMENT = "shopper", "segment"

# Why an audience has the general ranking.
NO_CONSENT, NO_PROFILE, OTHER_ENCODER, TOO_FEW = "no_consent", "no_profile", "other_encoder", "too_few_members"
REASONS = (NO_CONSENT, NO_PROFILE, OTHER_ENCODER, TOO_FEW)

_SAYS_NOTHING = ("impression", "return")
_TOP = 10
_PAIR = ("audience_kind", "audience", "item_id")

_VECTOR_DECIMALS = 9  # a mean's last digits depend on the order in which it was added up


class Weights(Section):
    """What the personal terms count for against the general terms, which together count for 1.

    The defaults are those that did best on Online Retail's baskets (`tests/benchmarks/personal.py`).
    """

    profile: Share = setting(0.5, "affinity of the profile and the item")
    session: Share = setting(0.5, "affinity of the last session and the item")
    price: Share = setting(0.0, "share of the profile's behaviour in the item's price band; try it on your own shop")

    @property
    def total(self) -> float:
        return self.profile + self.session + self.price


def affinity_term(weight: float, cosine: Any) -> Any:
    """weight x (1 + cosine) / 2. `cosine`: a number, an array, or a Column."""
    return weight * (1.0 + cosine) / 2.0


def personal_score(tier: Any, within: Any, personal: Any, total: float) -> Any:
    """A final score: `tier` is availability + band, `within` the general terms' sum, `personal` that of the personal
    terms, `total` their weights' sum. Numbers, arrays or Columns; not rounded."""
    return tier + (within + personal) / (1.0 + total)


class Segment(Section):
    """Shoppers whose strongest category, brand or price band this is; of several keys all must hold."""

    category: str | None = setting(None, "their strongest category", min_length=1)
    brand: str | None = setting(None, "their strongest brand", min_length=1)
    price_band: str | None = setting(None, "their strongest price band, such as 2-5", min_length=1)

    @model_validator(mode="after")
    def _says_something(self) -> "Segment":
        if not self.model_dump(exclude_none=True):
            raise ValueError("name a category, a brand or a price_band")
        return self


def members(profiles: DataFrame, segments: Mapping[str, Segment]) -> DataFrame:
    """(audience, vector, price_band_weights) of the profiles that are of each segment; one may be of several.

    Those without a vector are no members: a segment's vector must be of as many people as the segment has.
    """
    profiles = profiles.where(F.col("vector").isNotNull())
    of_each = []
    for name, segment in segments.items():
        is_member = F.lit(True)
        for column, value in segment.model_dump(exclude_none=True).items():
            is_member &= _strongest(f"{column}_weights").eqNullSafe(F.lit(value))
        mine = profiles.where(is_member)
        of_each.append(mine.select(F.lit(name).alias("audience"), "vector", "price_band_weights"))
    return reduce(DataFrame.unionByName, of_each)


def segment_standing(members: DataFrame, names: DataFrame, min_members: int) -> DataFrame:
    """How every segment stands: (audience_kind, audience, reason, profile_vector, price_weights, profile_digest).

    The vector is the mean of the members' unit vectors, the price weights the means of theirs. `reason` is why there
    are none: too few members to say anything of them that would not be said of one. `names`: (audience).
    """
    sizes = members.groupBy("audience").agg(F.count("*").alias("_members"))
    weights = members.select("audience", F.explode("price_band_weights").alias("band", "share"))
    sums = weights.groupBy("audience", "band").agg(F.sum("share").alias("_sum")).join(sizes, on="audience", how="inner")
    share = F.round(F.col("_sum") / F.col("_members"), SCORE_DECIMALS)
    of_bands = sums.groupBy("audience").agg(F.map_from_entries(F.collect_list(F.struct("band", share))).alias("_bands"))
    means = mean_vectors(members.select("audience", "vector"), "audience")
    is_large = F.coalesce(F.col("_members") >= min_members, F.lit(False))
    return (
        names.join(sizes, on="audience", how="left")
        .join(of_bands, on="audience", how="left")
        .join(means, on="audience", how="left")
        .select(
            F.lit(SEGMENT).alias("audience_kind"),
            "audience",
            F.when(~is_large, TOO_FEW).alias("reason"),
            F.when(is_large, F.col("vector")).alias("profile_vector"),
            F.when(is_large, F.col("_bands")).alias("price_weights"),
            F.lit(None).cast("binary").alias("profile_digest"),
        )
    )


def shopper_standing(names: DataFrame, allowed: DataFrame, profiles: DataFrame, encoder_digest: bytes) -> DataFrame:
    """How every named shopper stands: as `segment_standing`, and `person_id`, whom their profile is told under.

    `names`: (audience); `allowed`: as `consents.consenting` gives it; `profiles`: one a person. A profile by another
    encoder says nothing of these vectors: it counts as none (`other_encoder`).
    """
    is_ours = F.col("encoder_digest").eqNullSafe(F.lit(encoder_digest)) | F.col("encoder_digest").isNull()
    known = profiles.select(
        F.col("shopper_id").alias("person_id"),
        is_ours.alias("_is_ours"),
        F.col("vector").alias("profile_vector"),
        F.col("price_band_weights").alias("price_weights"),
        F.col("history_digest").alias("profile_digest"),
    )
    reason = (
        F.when(F.col("person_id").isNull(), NO_CONSENT)
        .when(F.col("_is_ours").isNull(), NO_PROFILE)
        .when(~F.col("_is_ours"), OTHER_ENCODER)
    )
    standing = (
        names.join(allowed.withColumnRenamed("shopper_id", "audience"), on="audience", how="left")
        .join(known, on="person_id", how="left")
        .withColumn("reason", reason)
    )
    said = ("profile_vector", "price_weights", "profile_digest")
    return standing.select(
        F.lit(SHOPPER).alias("audience_kind"),
        "audience",
        "reason",
        *(F.when(F.col("reason").isNull(), F.col(name)).alias(name) for name in said),
        F.when(F.col("reason").isNull(), F.col("person_id")).alias("person_id"),
    )


def last_sessions(sessions: DataFrame, people: DataFrame, as_of: date, gap_minutes: int, time_zone: str) -> DataFrame:
    """(person_id, item_id) of each person's last session that was over at the end of a day, each item once.

    What a machine did, what was only shown and what was sent back says nothing; a session of nothing else is none.
    `people`: (person_id).
    """
    mine = sessions.withColumnRenamed("shopper_id", "person_id").join(people, on="person_id", how="left_semi")
    # One that may still go on shows what came after the day, and whether a machine did it is not known yet.
    is_over = settled_date(F.col("ended_at"), gap_minutes, time_zone) <= F.lit(as_of)
    mine = mine.where(is_over & F.col("bot_rule").isNull())
    done = mine.select(
        "person_id",
        "started_at",
        "session_id",
        F.explode(F.arrays_zip(F.col("item_ids").alias("item_id"), F.col("kinds").alias("kind"))).alias("_did"),
    ).where(~F.col("_did.kind").isin(*_SAYS_NOTHING))
    last = Window.partitionBy("person_id").orderBy(F.desc("started_at"), F.desc("session_id"))
    of_last = done.withColumn("_place", F.dense_rank().over(last)).where("_place = 1")
    return of_last.select("person_id", F.col("_did.item_id").alias("item_id")).distinct()


def mean_vectors(vectors: DataFrame, by: str) -> DataFrame:
    """(`by`, vector): the mean of the unit vectors of each, one of zeros counting as it is; those without are left out.

    A segment may have more members than a worker can hold: what comes together in a batch is added up first.
    """
    schema = f"`{by}` string, total array<double>, count bigint"

    def add_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                yield _sums(pa.Table.from_batches([batch]).sort_by(by), by)

    def divide(parts: pa.Table) -> pa.RecordBatch:
        starts = starts_of(parts[by])
        totals = np.add.reduceat(matrix_of(parts["total"]), starts, axis=0)
        means = totals / np.add.reduceat(parts["count"].to_numpy(), starts)[:, None]
        of = parts[by].take(pa.array(starts)).combine_chunks()
        return pa.RecordBatch.from_arrays([of, as_vectors(np.round(means, _VECTOR_DECIMALS))], names=[by, "vector"])

    added = vectors.where(F.col("vector").isNotNull()).select(by, "vector").mapInArrow(add_up, schema)
    return by_group(added, by, [], divide, f"`{by}` string, vector array<double>")


def _sums(rows: pa.Table, by: str) -> pa.RecordBatch:
    vectors, starts = units(matrix_of(rows["vector"])), starts_of(rows[by])
    totals = as_vectors(np.add.reduceat(vectors, starts, axis=0))
    counts = pa.array(np.diff(np.append(starts, len(vectors))))
    of = rows[by].take(pa.array(starts)).combine_chunks()
    return pa.RecordBatch.from_arrays([of, totals, counts], names=[by, "total", "count"])


def cosines(wanted: DataFrame, audiences: DataFrame, items: DataFrame, name: str) -> DataFrame:
    """`wanted` (audience_kind, audience, item_id, each once) with the cosine of two vectors, rounded to six places.

    `audiences`: audience_kind, audience, vector; `items`: item_id, vector. Pairs of which one has no vector are left
    out; with one of zeros the cosine is 0.
    """
    left = audiences.where(F.col("vector").isNotNull()).withColumnRenamed("vector", "_one")
    right = items.where(F.col("vector").isNotNull()).select("item_id", F.col("vector").alias("_other"))
    both = wanted.join(left, on=["audience_kind", "audience"], how="inner").join(right, on="item_id", how="inner")

    def compare(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                one, other = (units(matrix_of(batch.column(of))) for of in ("_one", "_other"))
                values = pa.array(np.round(np.einsum("ij,ij->i", one, other), SCORE_DECIMALS))
                yield pa.RecordBatch.from_arrays([*map(batch.column, _PAIR), values], names=[*_PAIR, name])

    pairs = both.select(*_PAIR, "_one", "_other")
    return pairs.mapInArrow(compare, "audience_kind string, audience string, item_id string, " + f"`{name}` double")


def personal_rankings(
    general: DataFrame, standing: DataFrame, affinities: DataFrame, bands: DataFrame, weights: Weights
) -> DataFrame:
    """Rows for `personal_rankings` but the digests and versions: each audience's ranking of each of its queries.

    `general`: audience_kind, audience, and of `rankings` variant, query_id, item_id, rank, final_score, availability,
    band. `standing`: as `shopper_standing` and `segment_standing` give it. `affinities`: audience_kind, audience,
    item_id, profile_cosine, session_cosine, null where one has no vector. `bands`: item_id, price_band.
    """
    shown = general.select(
        "audience_kind", "audience", "variant", "query_id", "item_id", "rank", "final_score", "availability", "band"
    )
    placed = (
        shown.join(standing, on=["audience_kind", "audience"], how="inner")
        .join(affinities, on=["audience_kind", "audience", "item_id"], how="left")
        .join(bands, on="item_id", how="left")
    )
    is_personal = F.col("reason").isNull()
    share = F.coalesce(F.try_element_at("price_weights", F.col("price_band")), F.lit(0.0))
    terms = {
        "profile": affinity_term(weights.profile, F.coalesce("profile_cosine", F.lit(0.0))),
        "session": affinity_term(weights.session, F.coalesce("session_cosine", F.lit(0.0))),
        "price": weights.price * share,
    }
    with_terms = placed.select(
        "*",
        is_personal.alias("is_personal"),
        *(
            F.when(is_personal, F.round(of, SCORE_DECIMALS)).otherwise(0.0).alias(f"{n}_term")
            for n, of in terms.items()
        ),
    )
    tier = F.col("availability") + F.col("band")
    within = F.col("final_score") - tier
    score = personal_score(tier, within, sum((F.col(f"{n}_term") for n in TERMS), F.lit(0.0)), weights.total)
    best_first = Window.partitionBy("variant", *KEY).orderBy(
        F.desc("availability"), F.desc("band"), F.desc("_score"), "item_id"
    )
    return (
        with_terms.withColumn(
            "_score", F.when(F.col("is_personal"), F.round(score, SCORE_DECIMALS)).otherwise(F.col("final_score"))
        )
        .withColumn("_place", F.row_number().over(best_first))
        .select(
            "variant", *KEY, "item_id",
            # Without personal terms the general order itself, however it came about.
            F.when(F.col("is_personal"), F.col("_place")).otherwise(F.col("rank")).cast("int").alias("rank"),
            F.col("rank").alias("general_rank"), F.col("_score").alias("final_score"),
            F.col("final_score").alias("general_score"),
            *(f"{n}_term" for n in TERMS), "is_personal", "profile_digest",
        )
    )  # fmt: skip


def moved(rankings: DataFrame) -> DataFrame:
    """How far the personal terms moved things, one row: `personal` rankings, their `rows`, `places` that these moved in
    sum, `top` rows in the first ten, `came_in`: those of them that are not among everybody's first ten."""
    mine = rankings.where("is_personal")
    is_top = F.col("rank") <= _TOP
    return mine.agg(
        F.count_distinct("variant", *KEY).alias("personal"),
        F.count("*").alias("rows"),
        F.coalesce(F.sum(F.abs(F.col("rank") - F.col("general_rank"))), F.lit(0)).alias("places"),
        F.count_if(is_top).alias("top"),
        F.count_if(is_top & (F.col("general_rank") > _TOP)).alias("came_in"),
    )


def _strongest(weights: str) -> Column:
    """The key of a map's largest value, of equals the first by name; null for an empty map."""
    falling = F.transform(F.map_entries(weights), lambda entry: F.struct(-entry["value"], entry["key"].alias("key")))
    return F.array_min(falling)["key"]
