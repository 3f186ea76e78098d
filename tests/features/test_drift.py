"""Drift: the formula in numpy, the same in Spark, and an interval that holds what it says."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ecomspark.features.drift import drift

NOW, LAST, HALF_LIFE = datetime(2026, 3, 1, tzinfo=UTC), 5, 30.0
QUANTILE = float(stats.t.ppf(0.975, LAST - 1))


def reference(late: NDArray[Any], early: NDArray[Any], weights: NDArray[Any]) -> tuple[float, float]:
    """Drift and its standard error, as the module's docstring has them."""
    w, n = weights / weights.sum(), len(late)
    l, e = late.mean(axis=0), w @ early  # noqa: E741 - as in the formula
    l2 = l @ l - ((late - l) ** 2).sum() / (n * (n - 1))
    e2 = e @ e - (w**2 @ ((early - e) ** 2).sum(axis=1)) / (1 - w @ w)
    cosine = l @ e / np.sqrt(l2 * e2)
    of_late = ((late - l) @ e / np.sqrt(l2 * e2) - cosine * ((late - l) @ l) / l2) / n
    of_early = w * ((early - e) @ l / np.sqrt(l2 * e2) - cosine * ((early - e) @ e) / e2)
    return 1 - cosine, np.sqrt(of_late @ of_late * n / (n - 1) + of_early @ of_early / (1 - w @ w))


def test_spark_says_what_the_formula_says_and_nothing_of_few_sessions(spark: Any) -> None:
    generator = np.random.default_rng(3)
    people = {"moved": (10, 1.5), "stayed": (9, 0.0), "few": (7, 1.0)}
    rows, wanted = [], {}
    for name, (count, shift) in people.items():
        ages = np.sort(generator.uniform(0, 90, count))
        vectors = np.array([1.0, 0.5, 0.2]) + 0.2 * generator.normal(size=(count, 3))
        vectors[:LAST, 1] += shift
        rows += [
            (name, f"{name}{n}", NOW - timedelta(days=float(age)), vector.tolist())
            for n, (age, vector) in enumerate(zip(ages, vectors, strict=True))
        ]
        wanted[name] = reference(vectors[:LAST], vectors[LAST:], 0.5 ** ((ages[LAST:] - ages[0]) / HALF_LIFE))
    rows += [("flat", f"flat{n}", NOW - timedelta(days=n), [0.0, 0.0, 0.0]) for n in range(9)]
    # A session is two things: one done three times, which lies off by so much, and one that balances it.
    off = np.array([0.3, -0.2, 0.1])
    done = [
        (shopper, session, at, f"{session}-{item}")
        for shopper, session, at, _ in rows
        for item in ("thrice", "thrice", "thrice", "once", "unknown")
    ]
    events = spark.createDataFrame(
        done, "shopper_id string, session_id string, session_started_at timestamp, item_id string"
    )
    of_items = [
        (f"{session}-{item}", (np.array(vector) + by * off * (shopper != "flat")).tolist())
        for shopper, session, _, vector in rows
        for item, by in (("thrice", 1), ("once", -3))
    ]
    vectors = spark.createDataFrame(of_items, "item_id string, vector array<double>")
    told = drift(events.repartition(3), vectors, LAST, HALF_LIFE, QUANTILE)
    found = {row["shopper_id"]: row for row in told.collect()}
    assert set(found) == {"moved", "stayed"}, "seven sessions are too few, and vectors of no length have no direction"
    for name, row in found.items():
        at, error = wanted[name]
        assert row["drift"] == pytest.approx(max(0, at), abs=2e-5)
        assert row["drift_low"] == pytest.approx(max(0, at - QUANTILE * error), abs=2e-5)
        assert row["drift_high"] == pytest.approx(min(2, at + QUANTILE * error), abs=2e-5)
    assert found["stayed"]["drift_low"] == 0 < found["moved"]["drift_low"]


@pytest.mark.parametrize(("earlier", "noise", "shift"), [(5, 0.5, 0.8), (5, 0.5, 0.0), (20, 0.7, 0.8)])
def test_the_interval_holds_the_drift_between_where_sessions_are_drawn_from(
    earlier: int, noise: float, shift: float
) -> None:
    generator, size, held, found = np.random.default_rng(1), 32, [], []
    before = generator.normal(size=size)
    before /= np.linalg.norm(before)
    now = before + shift * generator.normal(size=size) / np.sqrt(size)
    true = 1 - before @ now / np.linalg.norm(now)
    for _ in range(500):
        spread = 2 * noise / np.sqrt(size)
        late = now + spread * generator.normal(size=(LAST, size))
        early = before + spread * generator.normal(size=(earlier, size))
        at, error = reference(late, early, 0.5 ** np.sort(generator.uniform(0, 3, earlier)))
        found.append(at)
        held.append(at - QUANTILE * error <= true <= at + QUANTILE * error)
    assert np.mean(held) >= 0.93, "95 % of few sessions; the plain cosine's own interval holds it in 30 to 60 %"
    assert np.median(found) == pytest.approx(true, abs=0.06), "sessions that differ do not look like drift"
