"""What comes next: our sequence models against simple ones, on sessions of Diginetica and baskets of Online Retail.

    make figures OUT=figures.json ONLY=shoppers

Everything is chosen on a validation part; the test part is read once, at the end. Each model is trained with one thread
and kept in a folder, so that figures which were cut short go on. Baselines read the same rows.

Diginetica: the rows stand in order of time; the last tenth is for testing; the last item of a session is predicted from
the rest, all items ranked. Items are given names by a digest, so that their numbers, which follow the order of their
first appearance, say nothing.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
AT = 20
NEIGHBOURS, SAMPLE, STEPS = 500, 2_500, 10

# Chosen on the last part of the training rows.
SESSIONS: dict[str, Any] = {"architecture": "transformer", "threads": 1, "seed": 1}
VALIDATION_SHARE = 0.04  # of the training rows, the newest

Sessions = list[NDArray[np.int64]]
Found = Iterator[tuple[str, float, str]]


def diginetica() -> tuple[Sessions, Sessions]:
    """Sessions to train on and to test on, in order of time."""
    rows = pd.read_parquet(DATA / "diginetica_sessions.parquet")["item_ids"]
    sessions = [np.asarray(row, dtype=np.int64) for row in rows]
    cut = int(len(sessions) * 0.9)
    return sessions[:cut], sessions[cut:]


def name_of(item: int) -> str:
    from ecomspark.text import digest

    return digest("diginetica", str(item)).hex()


def quality(ranks: NDArray[np.int64], sessions: Sessions) -> dict[str, float]:
    """`ranks`: place of each session's last item, 0 where it is not in the list at all."""
    is_hit = (ranks > 0) & (ranks <= AT)
    is_new = np.array([session[-1] not in session[:-1] for session in sessions])
    return {
        "HR@20": float(is_hit.mean()),
        "MRR@20": float((is_hit / np.maximum(ranks, 1)).mean()),
        "HR@20 where the item is not in the prefix": float(is_hit[is_new].mean()),
    }


def rank_of(scores: NDArray[Any], item: int) -> int:
    """Place by falling score, then by rising number; 0 of an item without a score."""
    if item >= len(scores) or not scores[item] > 0:
        return 0
    own = scores[item]
    return 1 + int((scores > own).sum() + (scores[:item] == own).sum())


def by_popularity(train: Sessions, test: Sessions) -> NDArray[np.int64]:
    counts = np.bincount(np.concatenate(train))
    place = np.empty(len(counts), dtype=np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    return np.array([place[of[-1]] if of[-1] < len(counts) and counts[of[-1]] else 0 for of in test])


def by_prefix(test: Sessions) -> NDArray[np.int64]:
    """The prefix shown again, the newest first."""
    ranks = []
    for session in test:
        shown = list(dict.fromkeys(session[-2::-1].tolist()))
        ranks.append(shown.index(session[-1]) + 1 if session[-1] in shown else 0)
    return np.array(ranks)


def by_rules(train: Sessions, test: Sessions) -> NDArray[np.int64]:
    """Sequential rules (Ludewig & Jannach 2018): what followed the last item within ten steps, 1 / steps each."""
    rules = sequential_rules(train)
    return np.array([_sparse_rank(rules, session[-2], session[-1]) for session in test])


def sequential_rules(train: Sessions) -> sparse.csr_matrix:
    count = 1 + max(int(session.max()) for session in train)
    flat, ends = np.concatenate(train), np.cumsum([len(session) for session in train])
    session_of = np.repeat(np.arange(len(train)), np.diff(np.concatenate([[0], ends])))
    parts = []
    for step in range(1, STEPS + 1):
        is_one = session_of[:-step] == session_of[step:]
        before, after = flat[:-step][is_one], flat[step:][is_one]
        parts.append((before, after, np.full(len(before), 1 / step)))
    before, after, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.csr_matrix((weights, (before, after)), shape=(count, count))


def _sparse_rank(rules: sparse.csr_matrix, last: int, item: int) -> int:
    if last >= rules.shape[0]:
        return 0
    start, end = rules.indptr[last], rules.indptr[last + 1]
    items, weights = rules.indices[start:end], rules.data[start:end]
    own = weights[items == item]
    return 0 if not len(own) else 1 + int((weights > own[0]).sum() + ((weights == own[0]) & (items < item)).sum())


def by_neighbours(train: Sessions, test: Sessions) -> NDArray[np.int64]:
    """V-SkNN (Ludewig & Jannach 2018): the items of the nearest 500 of the newest 2,500 sessions that share an item,
    later items of the prefix counting more, rare items more by their idf."""
    count = 1 + max(int(session.max()) for session in train)
    flat = np.concatenate(train)
    lengths = np.array([len(session) for session in train])
    session_of = np.repeat(np.arange(len(train)), lengths)
    pairs = np.unique(flat * len(train) + session_of)  # by item, then by session
    items, holders = pairs // len(train), pairs % len(train)
    bounds = np.searchsorted(items, np.arange(count + 1))
    idf = np.log(len(train) / np.maximum(1, np.diff(bounds)))
    distinct = np.unique(session_of * count + flat)
    of_session, content = distinct // count, distinct % count
    content_starts = np.searchsorted(of_session, np.arange(len(train) + 1))
    ranks = np.zeros(len(test), dtype=np.int64)
    similarity, scores = np.zeros(len(train)), np.zeros(count)
    nearest_place = np.zeros(len(train))
    for place, session in enumerate(test):
        prefix = session[:-1]
        known = [(item, (at + 1) / len(prefix)) for at, item in enumerate(prefix) if item < count]
        weights = dict(known)  # of a repeated item its last place
        found = [holders[bounds[item] : bounds[item + 1]] for item in weights]
        if not found or not sum(map(len, found)):
            continue
        near = np.unique(np.concatenate(found))[-SAMPLE:]
        oldest = near[0]
        for (_, weight), of_item in zip(weights.items(), found, strict=True):
            of_item = of_item[np.searchsorted(of_item, oldest) :]
            similarity[of_item] += weight
            nearest_place[of_item] = np.maximum(nearest_place[of_item], weight)
        best = near[np.argsort(-similarity[near] - near * 1e-9, kind="stable")[:NEIGHBOURS]]
        # How far back the newest shared item lies decides what a neighbour says.
        steps = len(prefix) - np.round(nearest_place[best] * len(prefix))
        said = similarity[best] / len(prefix) * np.maximum(0.0, 1 - 0.1 * steps)
        sizes = content_starts[best + 1] - content_starts[best]
        offsets = np.repeat(content_starts[best] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        proposed = content[np.arange(sizes.sum()) + offsets]
        np.add.at(scores, proposed, np.repeat(said, sizes) * (1 + idf[proposed]))
        ranks[place] = rank_of(scores, int(session[-1]))
        scores[proposed] = 0.0
        similarity[near] = nearest_place[near] = 0.0
    return ranks


def trained(name: str, train: Sessions, settings: dict[str, Any], folder: Path) -> Any:
    """The sequence model of that name; trained, where it is not there yet, and validated on the newest rows."""
    from ecomspark.models import sequence
    from ecomspark.models.checkpoint import CARD, Card, open_checkpoint
    from ecomspark.models.finetune_sequence import Plan, fine_tune
    from ecomspark.models.sequence_options import SequenceTraining

    if not (folder / name / CARD).exists():
        cut = int(len(train) * (1 - VALIDATION_SHARE))
        named = [[name_of(item) for item in session] for session in train]
        sides = ["train"] * cut + ["validation"] * (len(train) - cut)
        rows = pd.DataFrame({"item_ids": named, "side": sides})
        training = SequenceTraining.model_validate(settings)
        card = Card(kind="sequence", base="none: made anew", settings=settings)
        plan = Plan(models_folder=folder, name=name, card=card, training=training)
        start = time.monotonic()
        made = fine_tune(plan, rows, None, lambda said: print(json.dumps(said), file=sys.stderr, flush=True))
        (folder / f"{name}.seconds").write_text(f"{time.monotonic() - start:.0f}")
    made = open_checkpoint(folder, name, "sequence")
    if made.card.settings != settings:
        raise ValueError(f"{made.folder}: made with {made.card.settings}, wanted {settings}; take it away")
    return sequence.load(made.folder, made.scorer_digest, "cpu")


def answers(model: Any, test: Sessions) -> dict[str, NDArray[Any]]:
    """Of each test session the place of its last item among all, and how sure the model was of its list of 20."""
    numbers = {item_id: place for place, item_id in enumerate(model.item_ids)}
    table = model.items(model.item_ids)
    ranks, sure = [], []
    for start in range(0, len(test), 500):
        some = test[start : start + 500]
        states = model.states([[name_of(item) for item in session[:-1]] for session in some])
        scores = np.hstack([states, np.ones((len(states), 1), dtype=np.float32)]) @ table.T
        wanted = np.array([numbers.get(name_of(session[-1]), -1) for session in some])
        own = scores[np.arange(len(some)), np.maximum(wanted, 0)]
        ranks.append((scores >= own[:, None]).sum(1) * (wanted >= 0))
        sure.append(model.confidence(scores, AT)[1])
    return {"ranks": np.concatenate(ranks), "sure": np.concatenate(sure)}


def calibration_error(sure: NDArray[Any], is_true: NDArray[np.bool_], bins: int = 15) -> float:
    """ECE over bins of equal width (Guo et al. 2017)."""
    bin_of = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [abs(sure[bin_of == one].sum() - is_true[bin_of == one].sum()) for one in range(bins)]
    return float(sum(gaps) / len(sure))


_MUST = {
    "HR@20": (">= 0.48", "aim >= 0.53"),
    "MRR@20": (">= 0.195", "aim >= 0.215"),
    "HR@20 where the item is not in the prefix": (">= 0.37", "aim >= 0.4"),
}


def session_figures(folder: Path) -> Found:
    """Diginetica: the sequence model and its confidence beside the baselines."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = diginetica()
    kept = folder / "diginetica-baselines.npz"
    if not kept.exists():
        made = {
            "V-SkNN": by_neighbours(train, test),
            "sequential rules": by_rules(train, test),
            "prefix shown again": by_prefix(test),
            "popularity": by_popularity(train, test),
        }
        np.savez(kept, **made)
    with np.load(kept) as ranks:
        baselines = {name: quality(ranks[name], test) for name in ranks}
    yield "next item, Diginetica: test sessions", float(len(test)), ""
    for name, found in baselines.items():
        for figure, value in found.items():
            yield f"next item, Diginetica: {name}: {figure}", value, ""
    said = answers(trained("sequence-diginetica", train, SESSIONS, folder), test)
    found = quality(said["ranks"], test)
    for figure, value in found.items():
        for must in _MUST[figure]:
            yield f"next item, Diginetica: sequence model: {figure}", value, must
        best = max(of[figure] for of in baselines.values())
        yield f"next item, Diginetica: sequence model above the best baseline: {figure}", value - best, "aim > 0"
    yield (
        "next item, Diginetica: seconds of training, one thread",
        float((folder / "sequence-diginetica.seconds").read_text()),
        "",
    )
    is_hit = (said["ranks"] > 0) & (said["ranks"] <= AT)
    error = calibration_error(said["sure"], is_hit)
    for must in ("<= 0.03", "aim <= 0.015"):
        yield "next item, Diginetica: confidence of the list of 20: ECE over 15 bins", error, must
    brier, base = float(((said["sure"] - is_hit) ** 2).mean()), float(is_hit.mean() * (1 - is_hit.mean()))
    yield "next item, Diginetica: confidence: Brier score less the base rate's", brier - base, "<= 0"
    yield "next item, Diginetica: confidence: Brier score", brier, ""
