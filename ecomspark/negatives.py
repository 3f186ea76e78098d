"""Hard negatives: candidates that nobody judged, taken for irrelevant to train on, with a guard against false ones.

A candidate without a judgment may be as good as those with one, and the better the source that proposed it, the more
likely. So a candidate is taken only when a teacher's similarity of query and passage stays clearly below that of the
query's relevant items (positive-aware mining, Moreira et al. 2024, NV-Retriever, "TopK-PercPos"), and when it does not
read as one of them. Whatever the guard takes out is counted by its reason.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ecomspark.text import Analyser, terms

# The similarity of each (query, passage), higher is closer: what `models.similarity` gives.
Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[Any]]

# Why a candidate was left out, in the order in which it is asked; it is counted under the first that holds.
REASONS = (
    "not_a_training_query",
    "judged",
    "first_places",
    "reads_as_relevant",
    "reads_as_another",
    "nothing_relevant",
    "not_finite",
    "near_relevant",
    "too_similar",
    "beyond_count",
)


class HardNegatives(BaseModel):
    """Which candidates without a judgment are trained on as irrelevant. None by default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_query: Annotated[int, Field(ge=0)] = Field(default=0, description="taken for a training query at most; 0: none")
    places: Annotated[int, Field(gt=0)] = Field(
        default=50,
        description="candidates without a judgment that are looked at for a query, the best by their source's score",
    )
    skip_first: Annotated[int, Field(ge=0)] = Field(
        default=5, description="places of a query's candidates, judged ones counted, of which none is taken"
    )
    relevant_from: float | None = Field(
        default=None, description="grade from which a judged item is relevant; null: above the middle of the scale"
    )
    of_positives: Literal["mean", "lowest"] = Field(
        default="lowest", description="which similarity of the query's relevant items a candidate's is held against"
    )
    max_share_of_positive: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="a candidate as similar as this share of that similarity, or more, may be relevant"
    )
    max_similarity: float = Field(
        default=1.0, description="a candidate as similar as this or more is left out; 1: no bound but the one above"
    )
    max_overlap: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8, description="shared terms of all terms of two passages from which one reads as the other"
    )


def mined(
    candidates: pd.DataFrame,
    judged: pd.DataFrame,
    similarity: Similarity,
    settings: HardNegatives,
    grades: Sequence[float],
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Examples of the lowest grade for training queries, and how many candidates were left out for which reason.

    `candidates`: query_id, item_id, passage_text, place (1 is best). `judged`: query_id, query_text, item_id,
    passage_text, grade, side (without it all are train); pairs of other sides are only kept from being taken.
    `grades`: the scale. The most similar that pass the guard are taken. Comes back: query_id, query_text, item_id,
    passage_text, grade, side (train), is_mined (true), ordered by query_id and item_id whatever the order given; the
    counts have all of REASONS and `taken`.
    """
    counts = dict.fromkeys((*REASONS, "taken"), 0)
    # One order before anything is asked: of two candidates that read alike, the better place is kept.
    left = candidates.sort_values(["query_id", "place", "item_id"], ignore_index=True)
    if settings.per_query == 0 or left.empty:
        return _examples(left.iloc[:0].assign(query_text=""), min(grades)), counts

    def leave_out(reason: str, is_out: "pd.Series[bool] | NDArray[np.bool_]") -> None:
        nonlocal left
        counts[reason] = int(is_out.sum())
        left = left[~is_out].reset_index(drop=True)

    train = judged[judged["side"] == "train"] if "side" in judged else judged
    texts = train.drop_duplicates("query_id").set_index("query_id")["query_text"]
    relevant = _relevant(train, settings.relevant_from, grades)

    leave_out("not_a_training_query", ~left["query_id"].isin(texts.index))
    pairs = pd.MultiIndex.from_frame(judged[["query_id", "item_id"]])
    leave_out("judged", pd.MultiIndex.from_frame(left[["query_id", "item_id"]]).isin(pairs))
    leave_out("first_places", left["place"] <= settings.skip_first)
    read = _Read(settings.max_overlap)
    of_query = {query_id: list(of) for query_id, of in relevant.groupby("query_id")["passage_text"]}
    leave_out("reads_as_relevant", read.as_one_of(left, of_query))
    leave_out("reads_as_another", read.as_an_earlier(left))
    # The teacher is asked last, and only of what is still there.
    relevant = relevant[relevant["query_id"].isin(left["query_id"])]
    near = pd.Series(similarity(list(relevant["query_text"]), list(relevant["passage_text"])), relevant["query_id"])
    by_query = near[np.isfinite(near)].astype(float).groupby(level=0)
    positive = by_query.mean() if settings.of_positives == "mean" else by_query.min()
    left["positive"] = left["query_id"].map(positive).astype(float)
    # Below zero, a share of it would be above it: nothing can be said of such a query.
    leave_out("nothing_relevant", ~(left["positive"] > 0))
    left["query_text"] = left["query_id"].map(texts)
    left["similarity"] = np.asarray(similarity(list(left["query_text"]), list(left["passage_text"])), dtype=float)
    leave_out("not_finite", ~np.isfinite(left["similarity"]))
    leave_out("near_relevant", left["similarity"] >= settings.max_share_of_positive * left["positive"])
    leave_out("too_similar", left["similarity"] >= settings.max_similarity)
    left = left.sort_values(["query_id", "similarity", "item_id"], ascending=[True, False, True], ignore_index=True)
    leave_out("beyond_count", left.groupby("query_id").cumcount() >= settings.per_query)
    counts["taken"] = len(left)
    return _examples(left, min(grades)), counts


def _relevant(judged: pd.DataFrame, from_grade: float | None, grades: Sequence[float]) -> pd.DataFrame:
    if from_grade is None:
        return judged[judged["grade"] > (min(grades) + max(grades)) / 2]
    return judged[judged["grade"] >= from_grade]


def _examples(taken: pd.DataFrame, grade: float) -> pd.DataFrame:
    rows = taken.assign(grade=grade, side="train", is_mined=True)
    names = ["query_id", "query_text", "item_id", "passage_text", "grade", "side", "is_mined"]
    return rows[names].sort_values(["query_id", "item_id"], ignore_index=True)


class _Read:
    """Whether a passage reads as another one: by the terms that they share (Jaccard), each text's terms made once."""

    def __init__(self, max_overlap: float) -> None:
        self._max_overlap = max_overlap
        self._terms: dict[str, frozenset[str]] = {}

    def as_one_of(self, candidates: pd.DataFrame, passages: dict[Any, list[str]]) -> NDArray[np.bool_]:
        """Of each candidate, whether it reads as one of the passages that its query has."""
        pairs = zip(candidates["query_id"], candidates["passage_text"], strict=True)
        found = [any(self._alike(text, other) for other in passages.get(query_id, ())) for query_id, text in pairs]
        return np.array(found, dtype=bool)

    def as_an_earlier(self, candidates: pd.DataFrame) -> NDArray[np.bool_]:
        """Of each candidate, whether it reads as one of its query before it that does not itself."""
        kept: dict[Any, list[str]] = {}
        found = []
        for query_id, text in zip(candidates["query_id"], candidates["passage_text"], strict=True):
            before = kept.setdefault(query_id, [])
            found.append(any(self._alike(text, other) for other in before))
            if not found[-1]:
                before.append(text)
        return np.array(found, dtype=bool)

    def _alike(self, one: str, other: str) -> bool:
        if one == other:
            return True
        these, those = self._of(one), self._of(other)
        return len(these & those) >= self._max_overlap * len(these | those)

    def _of(self, text: str) -> frozenset[str]:
        if text not in self._terms:
            self._terms[text] = frozenset(terms(text, Analyser()))
        return self._terms[text]
