"""How far a shopper's last sessions lie from what came before them, and how sure that is.

    drift = 1 - L·E / (|L|' |E|')     L: mean vector of the last sessions, E: recency-weighted mean of the earlier ones

Means of few sessions that differ among themselves point apart even where nothing has changed. So from the squared
length of each mean what its sessions' spread adds to it is taken off (|L|'² = |L|² - sum |v - L|² / n(n - 1), and with
weights w that sum to 1, |E|'² = |E|² - sum w² |v - E|² / (1 - sum w²)): both squares, and L·E, are then unbiased.

The interval is that of the infinitesimal jackknife over sessions (Jaeckel 1972; Efron 1982, chapter 6): the squared
influences of the sessions, summed within the last and the earlier ones, with Student's t of the last ones less one.
On simulated sessions it covered in 92 to 99 % (tests/features/test_drift.py has some of them).
"""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark.features.vectors import by_group, matrix_of, starts_of

LEAST_EARLIER = 3  # sessions before the last ones: of fewer the spread is not known

_MOST_EARLIER = 200  # older ones have next to no weight
_DECIMALS = 6
_DAY = 86_400 * 1e6  # microseconds
_DRIFT = "shopper_id string, drift double, drift_low double, drift_high double"


def drift(events: DataFrame, vectors: DataFrame, last: int, half_life_days: float, quantile: float) -> DataFrame:
    """(shopper_id, drift, drift_low, drift_high), 0 to 2, for those with `last` sessions and LEAST_EARLIER before them.

    `events`: as `features.histories.events_until` gives them; `vectors`: (item_id, vector). A session is the mean of
    its items' vectors in float64; those without one do not count. An earlier session counts half for every
    `half_life_days` by which it began before the shopper's newest. `quantile`: standard errors to each side. A shopper
    whose sessions have no direction in common has no row.
    """
    sessions = ("shopper_id", "session_id", F.unix_micros("session_started_at").alias("started"))
    counted = events.groupBy(*sessions, "item_id").agg(F.count("*").alias("times"))
    # Most shoppers have few sessions: their vectors need not be fetched.
    are_many = F.count_distinct("session_id") >= last + LEAST_EARLIER
    many = events.groupBy("shopper_id").agg(are_many.alias("are_many")).where("are_many").select("shopper_id")
    read = counted.join(many, on="shopper_id", how="left_semi").join(
        vectors.select("item_id", "vector"), on="item_id", how="inner"
    )
    newest_first = [F.desc("started"), F.desc("session_id"), F.col("item_id")]
    compute = partial(_drifts, last=last, half_life_days=half_life_days, quantile=quantile)
    return by_group(read, "shopper_id", newest_first, compute, _DRIFT)


def _drifts(rows: pa.Table, last: int, half_life_days: float, quantile: float) -> pa.RecordBatch:
    """Of whole shoppers, their sessions newest first."""
    times, starts = rows["times"].to_numpy().astype(np.float64), starts_of(rows["shopper_id"], rows["session_id"])
    sums = np.add.reduceat(matrix_of(rows["vector"]) * times[:, None], starts, axis=0)
    sessions = sums / np.add.reduceat(times, starts)[:, None]
    of = rows.select(["shopper_id", "started"]).take(pa.array(starts))
    ids, started = of["shopper_id"], of["started"].to_numpy()
    firsts = starts_of(ids)
    found: dict[str, list[Any]] = {"shopper_id": [], "drift": [], "drift_low": [], "drift_high": []}
    for first, end in zip(firsts, [*firsts[1:], len(ids)], strict=True):
        end = min(end, first + last + _MOST_EARLIER)
        if end - first < last + LEAST_EARLIER:
            continue
        late, early = sessions[first : first + last], sessions[first + last : end]
        ages = (started[first] - started[first + last : end]) / _DAY
        told = drift_of(late, early, 0.5 ** (ages / half_life_days))
        if told is None:
            continue
        at, half = told[0], told[1] * quantile
        bounds = np.clip([at, at - half, at + half], 0.0, 2.0).round(_DECIMALS)
        for name, value in zip(found, (ids[first].as_py(), *bounds.tolist()), strict=True):
            found[name].append(value)
    types = [pa.string(), pa.float64(), pa.float64(), pa.float64()]
    columns = [pa.array(values, of) for values, of in zip(found.values(), types, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=list(found))


def drift_of(
    late: NDArray[np.float64], early: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[float, float] | None:
    """Drift and its standard error, as the module has them. `late`, `early`: sessions' vectors, rows, at least two of
    each; `weights`: of the early ones. None: one side's sessions have no direction in common."""
    shares, count = weights / weights.sum(), len(late)
    mean_late, mean_early = late.mean(axis=0), shares @ early
    left = 1.0 - shares @ shares
    of_late, of_early = late - mean_late, early - mean_early
    late_2 = mean_late @ mean_late - (of_late**2).sum() / (count * (count - 1))
    early_2 = mean_early @ mean_early - shares**2 @ (of_early**2).sum(axis=1) / left
    if not (late_2 > 0 and early_2 > 0):
        return None
    both = np.sqrt(late_2 * early_2)
    cosine = mean_late @ mean_early / both
    # What a session adds to the product of both means, less what it adds to the length of its own.
    influence_late = (of_late @ mean_early / both - cosine * (of_late @ mean_late) / late_2) / count
    influence_early = shares * (of_early @ mean_late / both - cosine * (of_early @ mean_early) / early_2)
    variance = (influence_late**2).sum() * count / (count - 1) + (influence_early**2).sum() / left
    return float(1.0 - cosine), float(np.sqrt(variance))
