"""The heads of a cross-encoder in training: how judged pairs become the trainer's rows, and which loss they get.

All losses are sentence-transformers'. Whatever the head, scoring reads one logit a pair, and calibration on the
validation queries turns that into expected gain: bands and thresholds keep their meaning.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, losses

from ecomspark.models.classes import class_of
from ecomspark.models.options import PAIR_HEADS, Auxiliary, Head

_WHOLE = -1  # of a loss over queries: all pairs of a step in one forward pass
_NO_CLASS = -1


def rows_of(
    head: Head, train: pd.DataFrame, gains: Mapping[int, float], class_edges: list[float], auxiliary: Auxiliary | None
) -> Dataset:
    """The trainer's rows: of a head that learns pairs query, passage, label; of one that compares, a query a row.

    Labels: bce and mse the grade between the worst (0) and the best (1); classes the class; the others the grade above
    the worst. With an auxiliary head a label is a pair, the second its class, -1 for none. Raises ValueError when a
    grade has no class.
    """
    worst, best = min(gains), max(gains)
    above = train["grade"].to_numpy(dtype=float) - worst
    if head not in PAIR_HEADS:
        by_query = train.assign(above=above).groupby("query_id", sort=True)
        kept = [of for _, of in by_query if of["grade"].nunique() > 1]  # one grade: there is nothing to compare
        if not kept:
            raise ValueError(f"head {head}: no training query has items of two grades; take bce or mse")
        return Dataset.from_dict(
            {
                "query": [str(of["query_text"].iloc[0]) for of in kept],
                "passage": [list(of["passage_text"]) for of in kept],
                "label": [list(of["above"]) for of in kept],
            }
        )
    labels: list[Any] = (above / (best - worst)).tolist()
    if head == "classes":
        labels = class_of(list(train["grade"]), gains, class_edges).tolist()
    if auxiliary is not None:
        labels = [list(both) for both in zip(labels, field_classes(train, auxiliary), strict=True)]
    return Dataset.from_dict(
        {"query": list(train["query_text"]), "passage": list(train["passage_text"]), "label": labels}
    )


def field_classes(train: pd.DataFrame, auxiliary: Auxiliary) -> list[float]:
    """The class of each pair's item by its category or brand, the most frequent first; -1 for none or a rare one."""
    values = train[auxiliary.field]
    frequent = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    places = {value: float(place) for place, value in enumerate(frequent.index[: auxiliary.max_classes])}
    return [places.get(value, float(_NO_CLASS)) for value in values]


def loss_of(head: Head, model: CrossEncoder) -> torch.nn.Module:
    """The loss: BCE, MSE and cross-entropy a pair; RankNet (Burges et al. 2005), LambdaLoss (Wang et al. 2018) and
    ListNet (Cao et al. 2007) a query."""
    made: dict[Head, Callable[[], torch.nn.Module]] = {
        "bce": lambda: losses.BinaryCrossEntropyLoss(model),
        # Both read the logit through a sigmoid: what `scores.activation` is.
        "mse": lambda: losses.MSELoss(model, activation_fn=torch.nn.Sigmoid()),
        "classes": lambda: losses.CrossEntropyLoss(model),
        "ranknet": lambda: losses.RankNetLoss(model, mini_batch_size=_WHOLE),
        "lambda": lambda: losses.LambdaLoss(model, mini_batch_size=_WHOLE),
        "listnet": lambda: losses.ListNetLoss(model, mini_batch_size=_WHOLE),
    }
    return made[head]()


class WithAuxiliary(torch.nn.Module):
    """A pair's loss and, weighted, the cross-entropy of a second head over the vector that the first one reads."""

    def __init__(self, loss: torch.nn.Module, model: CrossEncoder, auxiliary: Auxiliary) -> None:
        super().__init__()
        self.loss, self.model, self._weight = loss, model, auxiliary.weight
        whole: Any = model.model
        encoder = whole.base_model
        self.head = torch.nn.Linear(int(encoder.config.hidden_size), auxiliary.max_classes)
        self._first: torch.Tensor | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        self._first = output.last_hidden_state[:, 0]

    def forward(
        self, inputs: Any, labels: Sequence[torch.Tensor], prompt: Any = None, task: Any = None
    ) -> torch.Tensor:
        both = torch.stack(list(labels)).float()  # (pairs, 2)
        relevance, classes = both[:, 0], both[:, 1].long()
        if isinstance(self.loss, losses.CrossEntropyLoss):
            relevance = relevance.long()
        whole: torch.Tensor = self.loss(inputs, relevance)
        if (classes != _NO_CLASS).any() and self._first is not None:
            named = self.head(self._first.float())
            other = torch.nn.functional.cross_entropy(named, classes.to(named.device), ignore_index=_NO_CLASS)
            whole = whole + self._weight * other
        self._first = None
        return whole


def rows_a_step(head: Head, rows: Dataset, batch_size: int) -> int:
    """Rows of a batch that have about `batch_size` pairs."""
    if head in PAIR_HEADS:
        return batch_size
    return max(1, round(batch_size / float(np.mean([len(passages) for passages in rows["passage"]]))))
