"""Calibration: what gain a logit is worth, learnt on the validation split, so that bands outlive a retraining."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

_LEAST_STEP = 1e-6
_LOGIT_DECIMALS = 6


def calibrate(logits: Sequence[float], gains: Sequence[float]) -> list[tuple[float, float]]:
    """Points of logit to expected gain: isotonic regression (Barlow et al. 1972), a point a block of equal gain.

    A point is the block's mean logit and mean gain, gains made strictly rising within (0, 1), at least two points;
    `metrics.expected_gain` reads between them. Raises ValueError when fewer than two distinct logits are given.
    """
    # Logits that differ by less than a single-precision model can mean are one: slopes between them would overflow.
    x, y = np.round(np.array(logits, dtype=float), _LOGIT_DECIMALS), np.array(gains, dtype=float)
    if len(np.unique(x)) < 2:
        raise ValueError("calibration needs at least two distinct logits")
    fitted: NDArray[np.float64] = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(x, y)
    levels = np.unique(fitted)
    if len(levels) == 1:
        # No relation at all: the faintest slope around the mean keeps the model's order.
        level = _inside(float(levels[0]))
        return [(float(x.min()), level), (float(x.max()), level + _LEAST_STEP)]
    points: list[tuple[float, float]] = []
    for level in levels:
        gain = _inside(float(level))
        gain = max(gain, points[-1][1] + _LEAST_STEP) if points else gain
        points.append((float(x[fitted == level].mean()), gain))
    return points


def _inside(gain: float) -> float:
    return float(np.clip(gain, 1e-3, 1 - 1e-3))
