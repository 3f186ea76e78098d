"""Learning from teachers: what cross-encoders that were trained before say of a pair, beside or in place of its grade.

Grades are few and differ by who gave them; the mean of several models' scores is nearer to what a pair is worth than
either, and costs nothing when scoring (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ecomspark.models.options import Distillation

# What the teachers say of each (query, passage), 0 (worst) to 1 (best).
Scores = Callable[[Sequence[str], Sequence[str]], NDArray[Any]]

_COLUMNS = ["query_id", "query_text", "item_id", "passage_text", "grade", "side"]


def distilled(
    train: pd.DataFrame,
    candidates: pd.DataFrame,
    judged: pd.DataFrame,
    scores: Scores,
    settings: Distillation,
    grades: Sequence[float],
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The training pairs with grades that are in part the teachers', and candidates whose grades are theirs alone.

    `train`: query_id, query_text, item_id, passage_text, grade, side. `candidates`: query_id, item_id, passage_text,
    place (1 is best); those of `judged` (query_id, item_id), of no training query, and beyond `candidates_per_query`
    are left. `grades`: the scale. Ordered by query_id and item_id. A pair of which the teachers say nothing keeps its
    grade; a candidate is left.
    """
    worst, best = min(grades), max(grades)

    def graded(pairs: pd.DataFrame) -> NDArray[np.float64]:
        said = np.asarray(scores(list(pairs["query_text"]), list(pairs["passage_text"])), dtype=np.float64)
        return worst + (best - worst) * said

    of_teachers = graded(train)
    mixed = (1 - settings.share) * train["grade"] + settings.share * of_teachers
    made = train.assign(grade=mixed.where(np.isfinite(of_teachers), train["grade"]))
    counts = {"pairs": len(train)}
    if settings.candidates_per_query:
        texts = train.drop_duplicates("query_id").set_index("query_id")["query_text"]
        left = candidates[candidates["query_id"].isin(texts.index)].sort_values(["query_id", "place", "item_id"])
        known = pd.MultiIndex.from_frame(pd.concat([judged, train])[["query_id", "item_id"]])
        left = left[~pd.MultiIndex.from_frame(left[["query_id", "item_id"]]).isin(known)]
        left = left[left.groupby("query_id").cumcount() < settings.candidates_per_query]
        left = left.assign(query_text=left["query_id"].map(texts), side="train")
        left = left.assign(grade=graded(left))
        left = left[np.isfinite(left["grade"])]
        counts["candidates"] = len(left)
        made = pd.concat([made, left[_COLUMNS]])
    return made.sort_values(["query_id", "item_id"], ignore_index=True), counts
