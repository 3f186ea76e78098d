"""Calibration rises with the logit, whatever the judgments say."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecomspark.metrics import expected_gain
from ecomspark.models.calibration import calibrate


@given(st.lists(st.tuples(st.floats(-8, 8), st.sampled_from([0.0, 1 / 7, 3 / 7, 1.0])), min_size=2, max_size=60))
def test_points_rise_and_stay_inside(pairs: list[tuple[float, float]]) -> None:
    logits, gains = [logit for logit, _ in pairs], [gain for _, gain in pairs]
    if len(np.unique(np.round(logits, 6))) < 2:
        with pytest.raises(ValueError, match="two distinct"):
            calibrate(logits, gains)
        return
    points = calibrate(logits, gains)
    assert len(points) >= 2
    for (x, low), (y, high) in pairwise(points):
        assert x < y
        assert 0 < low < high < 1


def test_logits_that_hardly_differ_are_one() -> None:
    points = calibrate([0.0, 1.7e-205, -1.0], [0.0, 0.0, 0.0])
    assert all(np.isfinite(points).ravel())


def test_a_block_is_worth_the_mean_gain_of_its_pairs() -> None:
    # Two violators pool: gains 1 and 0 at logits 1 and 2 become one block of mean 0.5 at mean logit 1.5.
    assert calibrate([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0]) == [(0.0, 1e-3), (1.5, 0.5), (3.0, 1 - 1e-3)]


def test_calibrated_gains_are_right_on_average() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 2, 4_000)
    gains = (generator.random(4_000) < 1 / (1 + np.exp(-logits))).astype(float)
    points = calibrate(logits.tolist(), gains.tolist())
    for x in (-3.0, -1.0, 0.0, 1.0, 3.0):
        assert expected_gain(x, points) == pytest.approx(1 / (1 + np.exp(-x)), abs=0.08)
