"""Whose behaviour may be used, for what, and under which id it is told: consent first, unknown means no."""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from ecomspark.schemas import CONSENTS, SEQUENCE_STATES

_ROUNDS = 30  # a chain of 5,000 ids in any order takes 13


def standing_consents(consents: DataFrame, purpose: str) -> DataFrame:
    """(shopper_id, is_given) of every shopper who ever said something of a purpose: what the newest row says; of
    several of one time any no is a no."""
    newest = Window.partitionBy("shopper_id").orderBy(F.desc("at"))
    of_purpose = consents.where(F.col("purpose") == purpose)
    last = of_purpose.withColumn("_place", F.rank().over(newest)).where("_place = 1")
    return last.groupBy("shopper_id").agg(F.min("is_given").alias("is_given"))


def people(links: DataFrame) -> DataFrame:
    """(shopper_id, person_id) of every id that is linked to another: `person_id` is the id that stays.

    Of linked ids the one stays that never retired into another; where there are several of these, or none because links
    go in a circle, the smallest. Executes `links` some times: they are few.
    """
    pairs = links.select("shopper_id", "other_id").where("shopper_id <> other_id").distinct()
    if pairs.isEmpty():
        return pairs.select("shopper_id", F.col("shopper_id").alias("person_id"))
    both = pairs.unionByName(pairs.select(F.col("other_id").alias("shopper_id"), F.col("shopper_id").alias("other_id")))
    both = both.distinct().persist()
    labels = both.select("shopper_id", F.col("shopper_id").alias("label")).distinct()
    try:
        for _ in range(_ROUNDS):
            # Each id takes the smallest label of its neighbours, and so does the id that its own label names: else that
            # one would not know of what those behind it saw. Then each takes its label's label: what was joined halves.
            near = both.join(
                labels.withColumnsRenamed({"shopper_id": "other_id", "label": "_near"}), on="other_id", how="inner"
            ).join(labels, on="shopper_id", how="inner")
            told = near.select("shopper_id", "_near").unionByName(
                near.select(F.col("label").alias("shopper_id"), "_near")
            )
            least = told.groupBy("shopper_id").agg(F.min("_near").alias("_near"))
            taken = labels.join(least, on="shopper_id", how="inner").select(
                "shopper_id", F.least("label", "_near").alias("label")
            )
            onward = taken.select(F.col("shopper_id").alias("label"), F.col("label").alias("_onward"))
            taken = taken.join(onward, on="label", how="left").select(
                "shopper_id", F.coalesce("_onward", "label").alias("label")
            )
            taken = taken.localCheckpoint()
            is_settled = taken.join(labels, on=["shopper_id", "label"], how="left_anti").isEmpty()
            labels = taken
            if is_settled:
                break
        else:
            raise ValueError(f"links are not settled after {_ROUNDS} rounds")
    finally:
        both.unpersist()
    retired = pairs.select(F.col("other_id").alias("shopper_id"), F.lit(True).alias("_is_retired")).distinct()
    first = Window.partitionBy("label").orderBy(F.coalesce("_is_retired", F.lit(False)), "shopper_id")
    marked = labels.join(retired, on="shopper_id", how="left")
    return marked.select("shopper_id", F.first("shopper_id").over(first).alias("person_id"))


def same_people(ids: DataFrame, links: DataFrame) -> DataFrame:
    """(shopper_id) of some ids and of all that are linked to one of them, each once. Executes `links` as `people`."""
    linked = people(links)
    known = linked.join(ids, on="shopper_id", how="left_semi").select("person_id").distinct()
    theirs = linked.join(known, on="person_id", how="left_semi").select("shopper_id")
    return ids.select("shopper_id").unionByName(theirs).distinct()


def consenting(consents: DataFrame, links: DataFrame, purpose: str) -> DataFrame:
    """(shopper_id, person_id): the ids whose history may be used, and the id that it is told under.

    An id's history may be used when its own newest row says yes, no linked id's newest row says no, and the id that
    stays says yes itself: unknown means no, and a no of one id is a no of the person.
    """
    said = standing_consents(consents, purpose)
    linked = people(links)
    known = said.join(linked, on="shopper_id", how="full_outer").select(
        "shopper_id", F.coalesce("person_id", "shopper_id").alias("person_id"), "is_given"
    )
    of_person = Window.partitionBy("person_id")
    is_refused = F.max(F.coalesce(~F.col("is_given"), F.lit(False))).over(of_person)
    says_so = F.max((F.col("shopper_id") == F.col("person_id")) & F.coalesce("is_given", F.lit(False))).over(of_person)
    marked = known.select("shopper_id", "person_id", "is_given", is_refused.alias("_no"), says_so.alias("_yes"))
    return marked.where(F.col("is_given") & ~F.col("_no") & F.col("_yes")).select("shopper_id", "person_id")


def of_people(rows: DataFrame, allowed: DataFrame) -> DataFrame:
    """Rows with a shopper_id, those of `allowed` (see `consenting`) only, each under the id that stays."""
    mine = rows.join(allowed, on="shopper_id", how="inner")
    return mine.withColumn("shopper_id", F.col("person_id")).drop("person_id").select(*rows.columns)


def declared(interactions: DataFrame, consents: DataFrame, purpose: str, basis: str) -> DataFrame:
    """Rows for `consents`: a yes of every shopper in `interactions` who has no row for the purpose, whatever it says.

    Given at the beginning of 1970, before anything can have been said: whatever a shopper says of their own is newer,
    also what is imported later of an earlier day.
    """
    said = consents.where(F.col("purpose") == purpose).select("shopper_id")
    known = interactions.where(F.col("shopper_id").isNotNull()).select("shopper_id").distinct()
    return (
        known.join(said, on="shopper_id", how="left_anti")
        .select(
            "shopper_id",
            F.lit(purpose).alias("purpose"),
            F.timestamp_seconds(F.lit(0)).alias("at"),
            F.lit(True).alias("is_given"),
            F.lit(basis).alias("basis"),
        )
        .select(*CONSENTS.column_names)
    )


def remaining(allowed: DataFrame) -> DataFrame:
    """(shopper_id) of those under whom something may be derived and kept: the ids that stay, see `consenting`."""
    return allowed.select(F.col("person_id").alias("shopper_id")).distinct()


def of_others(rows: DataFrame, remaining: DataFrame, by: str) -> DataFrame:
    """(shopper_id, count): the shoppers of `rows`, named in the column `by`, who are not among `remaining`."""
    shoppers = rows.groupBy(F.col(by).alias("shopper_id")).count()
    return shoppers.join(remaining, on="shopper_id", how="left_anti")


def states_of_nobody(states: DataFrame, next_items: DataFrame, remaining: DataFrame) -> DataFrame:
    """Those of `states`, keys of `sequence_states`, to which no next items of a shopper of `remaining` refer."""
    of_mine = next_items.join(remaining, on="shopper_id", how="left_semi").select(*SEQUENCE_STATES.key).distinct()
    return states.join(of_mine, on=list(SEQUENCE_STATES.key), how="left_anti")
