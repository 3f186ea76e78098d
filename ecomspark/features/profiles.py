"""Profiles: what a shopper's behaviour until the end of a day says of them.

Of what happened later nothing is in it: times, prices, kinds and ratings are the interactions' own. What an item *is*
(category, brand, title, embedding) is as the shop describes it now, because no older description is kept.

A thing counts by its kind's weight, halved with every half-life of age, and age is counted back from the shopper's own
last interaction: shares do not depend on the day, so a profile stands until the shopper does something. What was
returned is taken off the same item, and leaves nothing below 0. Weights are whole billionths, so that a sum of them is
the same in any order.
"""

from datetime import date
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ecomspark import schemas
from ecomspark.config import Section, setting
from ecomspark.features.digests import digest_of
from ecomspark.features.sessions import Kind, TimeZone, local_date
from ecomspark.features.vectors import as_vectors, by_group, matrix_of, starts_of, units
from ecomspark.schemas import PROFILES

_MICROS_A_DAY = 86_400_000_000
_WHOLE = 1_000_000_000
_MILLION = 1_000_000
_DECIMALS = 6
_NOTHING = 1e-9  # a sum of directions so short is what rounding left of none
_LONGEST_SECONDS = 86_400  # that are believed of one interaction: a page left open over the weekend is not read
_KEY = ("shopper_id", "as_of_date")

# A word of two letters or more with no digit beside it: `12cm` and `No.3` are none.
_WORD = r"(?<![\p{L}\p{M}\p{N}])\p{L}[\p{L}\p{M}]+(?![\p{L}\p{M}]|\.?\p{N})"
_LINKING = ("and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with")  # English; they name nothing


class ProfileRules(Section):
    """What a profile is made of."""

    time_zone: TimeZone = setting("UTC", "in which a day begins and ends, such as Europe/London")
    half_life_days: float = setting(90.0, "age at which a thing counts half", unit="days", gt=0)
    kind_weights: dict[Kind, Annotated[float, Field(ge=-100, le=100)]] = setting(
        {"purchase": 1.0, "cart": 0.5, "favourite": 0.5, "click": 0.2, "review": 0.2, "return": -1.0},
        "what a thing counts for by its kind; kinds that are not named count for nothing",
        min_length=1,
    )
    category_from: Literal["category", "title_head"] = setting(
        "category", "what stands for an item's category: its own, or the last word of its title"
    )
    price_bands: Annotated[list[float], Field(min_length=1)] = setting(
        [2.0, 5.0, 10.0, 20.0],
        "edges between price bands, rising, in the currency that most of a shopper's prices have",
    )
    weights_count: int = setting(
        50, "categories, and brands, that are kept: the strongest", unit="categories", ge=1, le=1_000
    )
    interests_count: int = setting(5, "interests in words", unit="interests", ge=0, le=50)

    @field_validator("price_bands")
    @classmethod
    def _rising(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value or value[0] <= 0:
            raise ValueError("edges must rise, the first more than 0")
        return value


def newest_profiles(profiles: DataFrame, as_of: date) -> DataFrame:
    """Each shopper's newest profile of a day not later than `as_of` (a date): the one that stands on that day."""
    newest_first = Window.partitionBy("shopper_id").orderBy(F.desc("as_of_date"))
    until = profiles.where(F.col("as_of_date") <= F.lit(as_of))
    return until.withColumn("_place", F.row_number().over(newest_first)).where("_place = 1").drop("_place")


def until_day(interactions: DataFrame, as_of: date, time_zone: str) -> DataFrame:
    """The interactions of a day (a date) in a time zone and of those before it."""
    return interactions.where(local_date(F.col("occurred_at"), time_zone) <= F.lit(as_of))


def settled_date(ended_at: Column, gap_minutes: int, time_zone: str) -> Column:
    """The day at whose end it is known that a session is over: on the evening of the day itself it may still go on."""
    return local_date(ended_at + F.make_dt_interval(mins=F.lit(gap_minutes)), time_zone)


def without_bots(
    interactions: DataFrame, sessions: DataFrame, as_of: date, gap_minutes: int, time_zone: str
) -> DataFrame:
    """The interactions that lie in no session that is taken for a machine's.

    `gap_minutes`: that of `sessions`. A session that may still go on at the end of the day `as_of` is judged the next
    day, else what happens after midnight would show in a profile of the day before.
    """
    is_over = settled_date(F.col("ended_at"), gap_minutes, time_zone) <= F.lit(as_of)
    bots = sessions.where(F.col("bot_rule").isNotNull() & is_over)
    spans = bots.select(F.col("shopper_id").alias("_shopper_id"), "started_at", "ended_at")
    is_in = (F.col("shopper_id") == F.col("_shopper_id")) & F.col("occurred_at").between(
        F.col("started_at"), F.col("ended_at")
    )
    return interactions.join(spans, on=is_in, how="left_anti")


def profiles_of(
    interactions: DataFrame,
    items: DataFrame,
    vectors: DataFrame | None,
    encoder_digest: bytes | None,
    rules: ProfileRules,
) -> DataFrame:
    """One profile a shopper: all columns of `profiles` but as_of_date, settings_digest and changed_by.

    `interactions`: rows of `interactions` under the ids that stay, with `own_id`, the id that each was logged under;
    nothing later than the profile's day (see `until_day`). `vectors`: (item_id, vector); None: no encoder is asked.
    An interaction with an item that `items` lacks counts, but in no category, brand or vector.
    """
    currencies = _currencies(interactions)
    lines = interactions.join(currencies, on="shopper_id", how="left")
    weighted = _weighted(lines, rules)
    by_item = weighted.groupBy("shopper_id", "item_id").agg(F.sum("_weight").alias("_weight")).where("_weight > 0")
    category = F.col("category") if rules.category_from == "category" else _title_head(F.col("title"))
    described = by_item.join(items.select("item_id", "brand", category.alias("_category")), on="item_id", how="left")
    categories, brands = _shares(described, "_category", rules), _shares(described, "brand", rules)
    bands = _shares(weighted.withColumn("_band", price_band(_own_price(), rules.price_bands)), "_band", rules)
    profiles = _activity(lines, rules.time_zone).join(_baskets(lines), on="shopper_id", how="left")
    for name, shares in {"category": categories, "brand": brands, "price_band": bands}.items():
        profiles = profiles.join(_as_map(shares, f"{name}_weights"), on="shopper_id", how="left")
    profiles = profiles.join(_interests(categories, brands, rules.interests_count), on="shopper_id", how="left")
    if vectors is None:
        profiles = profiles.withColumn("vector", F.lit(None).cast("array<float>"))
    else:
        profiles = profiles.join(_vectors(by_item, vectors), on="shopper_id", how="left")
    no_weights = F.map_from_arrays(F.array().cast("array<string>"), F.array().cast("array<double>"))
    given = {
        "basket_count": F.coalesce("basket_count", F.lit(0).cast("bigint")),
        "return_share": F.when(
            F.col("purchase_count") > 0, _rounded(F.least(F.col("return_count") / F.col("purchase_count"), F.lit(1.0)))
        ),
        **{
            f"{name}_weights": F.coalesce(f"{name}_weights", no_weights) for name in ("category", "brand", "price_band")
        },
        "interests": F.coalesce("interests", F.array().cast("array<string>")),
        "encoder_digest": F.when(F.col("vector").isNotNull(), F.lit(encoder_digest)).cast("binary"),
        "sequence_state": F.lit(None).cast("array<float>"),
        "sequence_scorer_digest": F.lit(None).cast("binary"),
    }
    made = [c for c in PROFILES.column_names if c not in ("as_of_date", "settings_digest", "changed_by")]
    return profiles.withColumns(given).select(*made)


def with_sequence_states(profiles: DataFrame, next_items: DataFrame, states: DataFrame, as_of: date) -> DataFrame:
    """Profiles with the state that a sequence model was in when it last proposed items, of a day not later."""
    last = newest_profiles(next_items.where("`rank` = 1"), as_of)
    found = last.join(states, on=["history_digest", "scorer_digest"], how="inner")
    state = found.select("shopper_id", F.col("vector").alias("sequence_state"), "scorer_digest")
    plain = profiles.drop("sequence_state", "sequence_scorer_digest")
    joined = plain.join(state.withColumnRenamed("scorer_digest", "sequence_scorer_digest"), on="shopper_id", how="left")
    return joined.select(*profiles.columns)


def standing_profiles(
    there: DataFrame, made: DataFrame, allowed: DataFrame, as_of: date, keeps_dates: int
) -> DataFrame:
    """The rows that shall stand of some shoppers: all columns of `profiles` but changed_by.

    `there`: their published rows; `made`: their profiles as of a day, rows of `profiles` without changed_by;
    `allowed`: (shopper_id) of those that may have any. Of the day itself a row stands where it says something else than
    the newest of an earlier day. Rows of later days stay as they are, those of earlier days while there is still a
    history; of each shopper the newest `keeps_dates`.
    """
    columns = [name for name in PROFILES.column_names if name != schemas.CHANGED_BY.name]
    day, others = F.lit(as_of), there.select(*columns)
    later = others.where(F.col("as_of_date") > day).join(allowed, on="shopper_id", how="left_semi")
    earlier = others.where(F.col("as_of_date") < day).join(made.select("shopper_id"), on="shopper_id", how="left_semi")
    rows = later.select(*columns).unionByName(earlier.select(*columns)).withColumn("_is_made", F.lit(False))
    rows = rows.unionByName(made.select(*columns).withColumn("_is_made", F.lit(True)))
    in_order, newest_first = (
        Window.partitionBy("shopper_id").orderBy(by) for by in ("as_of_date", F.desc("as_of_date"))
    )
    said = F.struct(
        *(
            F.array_sort(F.map_entries(c.name)).alias(c.name) if c.type.startswith("map<") else F.col(c.name)
            for c in PROFILES.columns
            if c.name not in (*_KEY, schemas.CHANGED_BY.name)
        )
    )
    told = rows.withColumn("_said", said).withColumn("_before", F.lag("_said").over(in_order))
    new = told.where(~(F.col("_is_made") & F.col("_said").eqNullSafe(F.col("_before"))))
    placed = new.withColumn("_place", F.row_number().over(newest_first))
    return placed.where(F.col("_place") <= keeps_dates).select(*columns)


def _rounded(number: Column) -> Column:
    return F.round(number, _DECIMALS)


def _currencies(interactions: DataFrame) -> DataFrame:
    """(shopper_id, _currency): the one that most of a shopper's prices have; of several the first by its name."""
    priced = interactions.where("price IS NOT NULL").groupBy(
        "shopper_id", F.coalesce("currency", F.lit("")).alias("_currency")
    )
    most_first = Window.partitionBy("shopper_id").orderBy(F.desc("count"), "_currency")
    placed = priced.count().withColumn("_place", F.row_number().over(most_first))
    return placed.where("_place = 1").select("shopper_id", "_currency")


def _own_price() -> Column:
    """The price of an interaction where it is in the shopper's currency, else null."""
    return F.when(F.coalesce("currency", F.lit("")) == F.col("_currency"), F.col("price"))


def _activity(lines: DataFrame, time_zone: str) -> DataFrame:
    """How much a shopper did, and when."""
    # Sums of whole milliseconds and millionths of stars: doubles would come out otherwise in another order.
    believed = F.least("dwell_seconds", F.lit(float(_LONGEST_SECONDS)))  # the least of null and a number is the number
    dwell = F.when(F.col("dwell_seconds").isNotNull(), F.round(believed * 1_000).cast("bigint"))
    is_review = F.col("kind") == "review"
    stars = F.least(F.greatest("rating", F.lit(1.0)), F.lit(5.0))
    tone = F.when(is_review & F.col("rating").isNotNull(), F.round((stars - 3) / 2 * _MILLION).cast("bigint"))
    step = F.struct(F.unix_micros("occurred_at").alias("at"), F.col("interaction_id").alias("id"))
    found = lines.groupBy("shopper_id").agg(
        F.array_sort(F.collect_list(step)).alias("_steps"),
        F.size(F.collect_set("own_id")).alias("linked_count"),
        F.count("*").alias("interaction_count"),
        F.count_if(F.col("kind") == "purchase").alias("purchase_count"),
        F.count_if(F.col("kind") == "return").alias("return_count"),
        F.size(F.collect_set(local_date(F.col("occurred_at"), time_zone))).alias("active_days"),
        F.min("occurred_at").alias("first_at"),
        F.max("occurred_at").alias("last_at"),
        (F.sum(dwell) / 1_000).alias("browse_seconds"),
        F.count_if(is_review).alias("review_count"),
        _rounded(F.sum(tone) / _MILLION / F.count(tone)).alias("review_tone"),
    )
    spelled = F.transform("_steps.id", lambda id: F.concat(F.octet_length(id).cast("string"), F.lit(":"), id))
    return found.withColumn("history_digest", digest_of(F.concat_ws("", spelled))).drop("_steps")


def _baskets(lines: DataFrame) -> DataFrame:
    """What a shopper buys at a time. Lines without a basket's id that were bought at one moment are one basket."""
    bought = lines.where("kind = 'purchase'").withColumn(
        "_basket",
        F.struct(F.col("basket_id"), F.when(F.col("basket_id").isNull(), F.unix_micros("occurred_at")).alias("moment")),
    )
    of_basket, of_item = Window.partitionBy("shopper_id", "_basket"), Window.partitionBy("shopper_id", "item_id")
    place = F.struct(F.min(F.unix_micros("occurred_at")).over(of_basket).alias("at"), F.col("_basket").alias("basket"))
    placed = bought.withColumn("_place", place).withColumn("_first", F.min("_place").over(of_item))
    # A value beyond 38 digits is no value: under ANSI rules it would end the run.
    value = F.try_multiply(_own_price(), F.coalesce("quantity", F.lit(1)).cast("decimal(19,0)"))
    baskets = placed.groupBy("shopper_id", "_basket").agg(
        F.min(F.unix_micros("occurred_at")).alias("_at"),
        F.size(F.collect_set("item_id")).alias("_items"),
        F.try_sum(value).alias("_value"),
        F.count("*").alias("_lines"),
        F.count_if(F.col("_place") > F.col("_first")).alias("_repeated"),
    )
    span = (F.max("_at") - F.min("_at")) / _MICROS_A_DAY
    return baskets.groupBy("shopper_id").agg(
        F.count("*").alias("basket_count"),
        F.when(F.count("*") > 1, _rounded(span / (F.count("*") - 1))).alias("days_between_baskets"),
        _rounded(F.sum("_items") / F.count("*")).alias("basket_items"),
        _rounded(F.try_avg("_value").cast("double")).alias("basket_value"),
        _rounded(F.sum("_repeated") / F.sum("_lines")).alias("repeat_share"),
    )


def _weighted(lines: DataFrame, rules: ProfileRules) -> DataFrame:
    """Lines with `_weight`, in billionths; those of kinds that count for nothing left out."""
    weight = F.lit(0.0)
    for kind, of_kind in rules.kind_weights.items():
        weight = F.when(F.col("kind") == kind, F.lit(float(of_kind))).otherwise(weight)
    last = F.max("occurred_at").over(Window.partitionBy("shopper_id"))
    age = (F.unix_micros(last) - F.unix_micros("occurred_at")) / _MICROS_A_DAY
    recency = F.pow(F.lit(2.0), -age / rules.half_life_days)
    billionths = F.round(weight * recency * _WHOLE).cast("bigint")
    return lines.withColumn("_weight", billionths).where("_weight <> 0")


def _title_head(title: Column) -> Column:
    """The last word of a title that names something, in small letters: `mug` of `RED RETROSPOT MUG 12CM`, `pack` of
    `PACK OF 60`; null where there is none."""
    words = F.regexp_extract_all(F.lower(title), F.lit(_WORD), F.lit(0))
    words = F.filter(words, lambda word: ~word.isin(*_LINKING))
    return F.get(words, F.size(words) - 1)


def price_band(price: Column, edges: list[float]) -> Column:
    """The name of a price's band, such as 2-5, of rising edges: an edge belongs to the band that it opens. Null for no
    price."""
    below = [0.0, *edges]
    name = F.lit(f"{below[-1]:g}+")
    for low, high in reversed(list(pairwise(below))):
        name = F.when(price < high, f"{low:g}-{high:g}").otherwise(name)
    return F.when(price.isNotNull(), name)


def _shares(weighted: DataFrame, label: str, rules: ProfileRules) -> DataFrame:
    """(shopper_id, label, share) of what is labelled, the strongest; shares of all of it, to six places."""
    summed = weighted.where(F.col(label).isNotNull()).groupBy("shopper_id", F.col(label).alias("label"))
    net = summed.agg(F.sum("_weight").alias("_weight")).where("_weight > 0")
    strongest_first = Window.partitionBy("shopper_id").orderBy(F.desc("_weight"), "label")
    share = _rounded(F.col("_weight") / F.sum("_weight").over(Window.partitionBy("shopper_id")))
    placed = net.withColumn("share", share).withColumn("_place", F.row_number().over(strongest_first))
    is_kept = (F.col("_place") <= rules.weights_count) & (F.col("share") > 0)
    return placed.where(is_kept).select("shopper_id", "label", "share")


def _as_map(shares: DataFrame, name: str) -> DataFrame:
    entries = F.array_sort(F.collect_list(F.struct("label", "share")))
    return shares.groupBy("shopper_id").agg(F.map_from_entries(entries).alias(name))


def _interests(categories: DataFrame, brands: DataFrame, count: int) -> DataFrame:
    """(shopper_id, interests): the strongest categories (the last part of a path) and brands, in words."""
    last = F.element_at(F.split("label", " > "), -1)
    phrases = categories.withColumn("phrase", last).unionByName(
        brands.withColumn("phrase", F.concat(F.lit("by "), "label"))
    )
    summed = phrases.groupBy("shopper_id", "phrase").agg(F.max("share").alias("share"))
    strongest_first = Window.partitionBy("shopper_id").orderBy(F.desc("share"), "phrase")
    placed = summed.withColumn("_place", F.row_number().over(strongest_first)).where(F.col("_place") <= count)
    in_order = F.array_sort(F.collect_list(F.struct("_place", "phrase")))
    named = placed.groupBy("shopper_id").agg(in_order.alias("_named"))
    return named.select("shopper_id", F.col("_named.phrase").alias("interests"))


def _vectors(by_item: DataFrame, vectors: DataFrame) -> DataFrame:
    """(shopper_id, vector): the weighted mean of the directions of a shopper's items, of unit length, six places.

    Summed in the order of item_id, so that it comes out the same wherever the rows lay. A vector of zeros has no
    direction and counts for nothing; a shopper whose vectors cancel out has none.
    """
    read = by_item.join(vectors, on="item_id", how="inner").select("shopper_id", "item_id", "_weight", "vector")
    return by_group(read, "shopper_id", [F.col("item_id")], _unit_means, "shopper_id string, vector array<float>")


def _unit_means(rows: pa.Table) -> pa.RecordBatch:
    weighted = units(matrix_of(rows["vector"])) * (rows["_weight"].to_numpy() / _WHOLE)[:, None]
    starts = starts_of(rows["shopper_id"])
    sums = np.add.reduceat(weighted, starts, axis=0)
    length = np.linalg.norm(sums, axis=1)
    is_some = length > _NOTHING
    means = np.round(sums[is_some] / length[is_some, None], _DECIMALS).astype(np.float32)
    of = rows["shopper_id"].take(pa.array(starts[is_some])).combine_chunks()
    return pa.RecordBatch.from_arrays([of, as_vectors(means)], names=["shopper_id", "vector"])
