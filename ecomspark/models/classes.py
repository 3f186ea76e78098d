"""Grades as classes: which class a grade is in, what a class is worth, and the logit of what is expected of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ecomspark.metrics import gain_of


def class_of(grades: Sequence[float], gains: Mapping[int, float], edges: Sequence[float]) -> NDArray[np.int64]:
    """The class of each grade, 0 the worst: its place among the grades of `gains`, or the interval between `edges`.

    A grade on an edge is in the class above. Raises ValueError without edges when a grade is not one of `gains`: the
    mean of several judges has no class.
    """
    values = np.array(grades, dtype=float)
    if len(edges):
        return np.searchsorted(np.array(edges, dtype=float), values, side="right")
    scale = np.array(sorted(gains), dtype=float)
    found = np.searchsorted(scale, values).clip(max=len(scale) - 1)
    if (strange := int((scale[found] != values).sum())) > 0:
        raise ValueError(
            f"head classes: expected grades of {', '.join(map(str, sorted(gains)))}, found {strange} others; "
            "set class_edges, or take a head that learns numbers (bce, mse)"
        )
    return found


def class_gains(grades: Sequence[float], gains: Mapping[int, float], edges: Sequence[float]) -> list[float]:
    """What each class is worth: a grade's gain, or between edges the mean gain of the grades there.

    Raises ValueError when an interval between edges has none.
    """
    if not len(edges):
        return [gains[grade] for grade in sorted(gains)]
    classes = class_of(grades, gains, edges)
    worth = np.array([gain_of(grade, gains) for grade in grades])
    if empty := sorted(set(range(len(edges) + 1)) - set(classes.tolist())):
        raise ValueError(f"class_edges: expected training pairs in each of {len(edges) + 1} classes, none in {empty}")
    return [float(worth[classes == each].mean()) for each in range(len(edges) + 1)]


def expected_gain_logits(outputs: torch.Tensor, gains: Sequence[float]) -> torch.Tensor:
    """The logit of the gain that a classifier expects, shape (pairs,), from its outputs of shape (pairs, classes).

    With p = softmax(outputs): log(sum p g) - log(sum p (1 - g)), by logsumexp, so that strong matches stay apart where
    the expected gain itself would round to 1.
    """
    worth = torch.tensor(list(gains), dtype=outputs.dtype, device=outputs.device)
    return torch.logsumexp(outputs + worth.log(), dim=1) - torch.logsumexp(outputs + (1 - worth).log(), dim=1)
