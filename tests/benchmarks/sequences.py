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
SESSIONS: dict[str, Any] = {
    "architecture": "spectral", "width": 640, "max_items": 20, "half_life_items": 1.0, "threads": 1, "seed": 1
}  # fmt: skip
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
    """Sequential rules (Ludewig & Jannach 2018): what followed an item within ten steps, 1 / steps each, summed over
    the prefix, an item so many places from its end counting 1 / places. By the last item alone it is 0.394 HR@20."""
    rules = sequential_rules(train)
    scores, ranks = np.zeros(rules.shape[0]), []
    for session in test:
        scores[:] = 0.0
        for places, item in enumerate(session[-2::-1], start=1):
            if item < len(scores):
                start, end = rules.indptr[item], rules.indptr[item + 1]
                scores[rules.indices[start:end]] += rules.data[start:end] / places
        ranks.append(rank_of(scores, int(session[-1])))
    return np.array(ranks)


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
        rows = pd.DataFrame({"sequence_id": [str(n) for n in range(len(named))], "item_ids": named, "side": sides})
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


# Chosen on June to September, each trained on what was before it.
BASKETS: dict[str, Any] = {
    "architecture": "linear", "width": 512, "max_items": 1_000, "half_life_items": 100.0, "shrinkage": 40.0,
    "own_weight": 0.17, "threads": 1,
}  # fmt: skip
PROFILE_DAYS = (30.0, 90.0, 365.0)
TOWERS_DAYS = 30.0
POPULARITY_WEIGHTS = (0.0, 0.02, 0.05, 0.1)
_IS_PRODUCT = r"\d{5}[A-Z]{0,2}"
_NOTES = (
    "check|damage|lost|found|sold as|sample|wrong|mix|thrown|adjust|dotcom|amazon|ebay|smashed|missing|barcode|crush"
)


class Month:
    """What stood in Online Retail's log before a day, and what known customers first bought in the month from it.

    Matrices are customers (of the targets) times items (bought before).
    """

    def __init__(self, lines: pd.DataFrame, day: str) -> None:
        cut = pd.Timestamp(day)
        self.day = day
        bought = lines[(lines["Quantity"] > 0) & ~lines["InvoiceNo"].str.startswith("C")]
        bought = bought.sort_values(["InvoiceDate", "InvoiceNo", "item"])
        before = bought[bought["InvoiceDate"] < cut].drop_duplicates(["InvoiceNo", "item"])
        self.items = sorted(before["item"].unique())
        numbers = {item: number for number, item in enumerate(self.items)}
        known = before[before["CustomerID"].notna()]
        since = bought[(bought["InvoiceDate"] >= cut) & (bought["InvoiceDate"] < cut + pd.DateOffset(months=1))]
        since = since[since["CustomerID"].isin(set(known["CustomerID"]))]
        targets = since[since["InvoiceNo"] == since.groupby("CustomerID")["InvoiceNo"].transform("first")]
        targets = targets.drop_duplicates(["CustomerID", "item"])
        self.customers = sorted(targets["CustomerID"].unique())
        places = {customer: place for place, customer in enumerate(self.customers)}
        self.histories = known.groupby("CustomerID")["item"].agg(list)
        self.times = known.groupby("CustomerID")["InvoiceDate"].agg(list)

        mine = known[known["CustomerID"].isin(places)]
        rows, columns = mine["CustomerID"].map(places), mine["item"].map(numbers)
        self.shape = (len(self.customers), len(self.items))
        self.age = (cut - mine["InvoiceDate"]).dt.total_seconds().to_numpy() / 86_400
        self._at = (rows.to_numpy(), columns.to_numpy())
        self.own = self.weighed(None)
        self.wanted = np.zeros(self.shape, dtype=bool)
        there = targets[targets["item"].isin(numbers)]
        self.wanted[there["CustomerID"].map(places), there["item"].map(numbers)] = True
        # An item that was never sold before cannot be proposed, but counts as missed.
        self.counts = targets.groupby("CustomerID").size().reindex(self.customers).to_numpy()
        self.new_counts = self.counts - (self.wanted & (self.own > 0)).sum(1)
        ages = (cut - before["InvoiceDate"]).dt.total_seconds().to_numpy() / 86_400
        all_items = before["item"].map(numbers).to_numpy()
        self.popularity = np.log1p(np.bincount(all_items[ages <= 30], minlength=len(self.items)))
        baskets = pd.factorize(before["InvoiceNo"])[0]
        held = sparse.csr_matrix((np.ones(len(before)), (baskets, all_items)))
        # A pair of a small basket says more than one of a basket that holds half the shop.
        sizes = np.asarray(held.sum(1)).ravel()
        together = (held.T @ sparse.diags((sizes + 1) ** -0.5) @ held).toarray()
        seen = np.maximum(1.0, np.asarray(held.sum(0)).ravel())
        np.fill_diagonal(together, 0.0)
        self.near = together / np.sqrt(seen[:, None] * seen[None, :])
        titles = before[
            before["Description"].notna() & ~before["Description"].str.contains(_NOTES, case=False, na=True)
        ]
        most = titles.groupby(["item", "Description"]).size().reset_index(name="count")
        most = most.sort_values(["item", "count", "Description"], ascending=[True, False, True]).drop_duplicates("item")
        named = dict(zip(most["item"], most["Description"].str.strip(), strict=True))
        self.titles = [named.get(item, item) for item in self.items]

    def weighed(self, half_life_days: float | None) -> NDArray[np.float64]:
        """Baskets of each customer that held each item, those of `half_life_days` ago counting half."""
        weights = np.ones(len(self.age)) if half_life_days is None else 0.5 ** (self.age / half_life_days)
        return sparse.csr_matrix((weights, self._at), self.shape).toarray()

    def recall(self, scores: NDArray[Any], is_new_only: bool = False) -> NDArray[np.float64]:
        """Recall@20 of each customer, of the items new to them only where asked; without those who bought none."""
        held = np.where(self.own > 0, -np.inf, scores) if is_new_only else scores
        best = np.argsort(-held, axis=1, kind="stable")[:, :AT]
        wanted = self.wanted & (self.own == 0) if is_new_only else self.wanted
        counts = self.new_counts if is_new_only else self.counts
        hits = np.take_along_axis(wanted, best, axis=1).sum(1)
        return hits[counts > 0] / counts[counts > 0]

    def co_occurrence(self) -> NDArray[np.float64]:
        """Mean nearness of an item to those that the customer has bought, those of 60 days ago counting half."""
        bought = self.weighed(60.0)
        return bought @ self.near / np.maximum(1e-12, bought.sum(1, keepdims=True))  # type: ignore[no-any-return]

    def profile(self, vectors: NDArray[Any], half_life_days: float) -> NDArray[np.float64]:
        """Cosine of each item and the recency-weighted mean of the vectors of what was bought."""
        made = self.weighed(half_life_days) @ vectors
        cosines: NDArray[np.float64] = made / np.linalg.norm(made, axis=1, keepdims=True) @ vectors.T
        return cosines

    def without_model(self) -> NDArray[np.float64]:
        """Most frequent own items, then by co-occurrence and popularity."""
        rest = self.co_occurrence() + 0.01 * self.popularity
        return self.own + 0.5 * rest / rest.max()  # type: ignore[no-any-return]


def retail_lines() -> pd.DataFrame:
    lines = pd.read_parquet(DATA / "online_retail_lines.parquet")
    lines["item"] = lines["StockCode"].str.strip().str.upper()
    return lines[lines["item"].str.fullmatch(_IS_PRODUCT)].reset_index(drop=True)


def basket_scores(month: Month, folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores by a model trained on all histories before the month, whole histories read: with what items gain for
    having been bought, and without."""
    from ecomspark.models import sequence
    from ecomspark.models.checkpoint import CARD, Card, open_checkpoint
    from ecomspark.models.finetune_sequence import Plan, fine_tune
    from ecomspark.models.sequence_options import SequenceTraining

    name = f"sequence-retail-own-{month.day}"
    if not (folder / name / CARD).exists():
        # No setting is chosen by this validation, and the confidence that it gives is not used here.
        judged = month.histories[month.histories.map(len) > 1]
        rows = pd.DataFrame(
            {
                "sequence_id": [*month.histories.index, *judged.index],
                "item_ids": [*month.histories, *judged],
                "side": ["train"] * len(month.histories) + ["validation"] * len(judged),
            }
        )
        card = Card(kind="sequence", base="none: made anew", settings=BASKETS)
        training = SequenceTraining.model_validate(BASKETS)
        plan = Plan(models_folder=folder, name=name, card=card, training=training)
        start = time.monotonic()
        fine_tune(plan, rows, None, lambda said: print(json.dumps(said), file=sys.stderr, flush=True))
        (folder / f"{name}.seconds").write_text(f"{time.monotonic() - start:.0f}")
    made = open_checkpoint(folder, name, "sequence")
    if made.card.settings != BASKETS:
        raise ValueError(f"{made.folder}: made with {made.card.settings}, wanted {BASKETS}; take it away")
    model = sequence.load(made.folder, made.scorer_digest, "cpu")
    histories = list(month.histories.loc[month.customers])
    states = model.states(histories)
    alone = np.hstack([states, np.ones((len(states), 1))]) @ model.items(month.items).T
    scores = alone.copy()
    places = {item: place for place, item in enumerate(month.items)}
    for row, own in enumerate(model.own(histories)):
        scores[row, [places[item] for item in own]] += list(own.values())
    return scores, alone


def title_vectors(month: Month, encoder: str, folder: Path) -> NDArray[np.float32]:
    """Unit vectors of the titles by a checkpoint in the folder."""
    from ecomspark import text
    from ecomspark.models import embedder
    from ecomspark.models.checkpoint import open_checkpoint

    made = open_checkpoint(folder, encoder, "encoder")
    kept = folder / f"titles-{month.day}-{made.scorer_digest.hex()}.npz"
    if not kept.exists():
        model = embedder.load(made.folder, made.scorer_digest, "cpu", token_budget=2048)
        texts = [text.passage({"title": title}, made.card.recipe)[0] for title in month.titles]
        np.savez(kept, vectors=model.embed(texts, "passage").astype(np.float32))
    with np.load(kept) as found:
        vectors = found["vectors"]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


def interval(differences: NDArray[np.float64], resamples: int = 2_000) -> tuple[float, float]:
    """95 % of the mean's bootstrap over customers."""
    drawn = np.random.default_rng(1).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def basket_figures(folder: Path) -> Found:
    """Online Retail: the next basket. What is chosen here is chosen on September; October is for the figures alone.

    The towers' weight of popularity is chosen with towers that have seen September's baskets: too small, if anything.
    """
    import towers_online_retail as towers  # beside this file, as `training`
    import training

    folder.mkdir(parents=True, exist_ok=True)
    lines = retail_lines()
    september, october = Month(lines, "2011-09-01"), Month(lines, "2011-10-01")
    name = "next basket, Online Retail"
    yield f"{name}: customers", float(len(october.customers)), ""
    yield f"{name}: ceiling of recall@20", float(np.mean(np.minimum(1.0, AT / october.counts))), ""

    untuned = training.base(folder)
    towers.train(folder)
    scores = {month.day: basket_scores(month, folder) for month in (september, october)}
    with_popularity = max(
        POPULARITY_WEIGHTS,
        key=lambda one: float(september.recall(scores[september.day][1] + one * september.popularity, True).mean()),
    )
    yield f"{name}: weight of popularity among new items, chosen on September", with_popularity, ""

    ours, alone = scores[october.day]
    lists = {
        "most frequent own items, then co-occurrence and popularity": october.without_model(),
        "popularity of 30 days": np.broadcast_to(october.popularity, october.shape),
        "co-occurrence": october.co_occurrence(),
        "the same model without own_weight": alone,
    }
    mean = float(october.recall(ours).mean())
    for must in (">= 0.225", "aim >= 0.25"):
        yield f"{name}: recall@20 of the sequence model", mean, must
    for of, made in lists.items():
        yield f"{name}: recall@20 of {of}", float(october.recall(made).mean()), ""
    low, high = interval(october.recall(ours) - october.recall(october.without_model()))
    yield f"{name}: ours less the list without the model, low end of 95 %", low, "> 0"
    yield f"{name}: ours less the list without the model, high end", high, ""

    new = f"{name}, new items only"
    ours_new = alone + with_popularity * october.popularity
    for must in (">= 0.076", "aim >= 0.09"):
        yield f"{new}: recall@20 of the sequence model", float(october.recall(ours_new, True).mean()), must
    yield f"{new}: recall@20 of the personal list", float(october.recall(ours, True).mean()), ""
    for of in ("popularity of 30 days", "co-occurrence"):
        yield f"{new}: recall@20 of {of}", float(october.recall(lists[of], True).mean()), ""
    for encoder, said in ((untuned, "untuned MiniLM"), (towers.NAME, "fine-tuned towers")):
        vectors = {month.day: title_vectors(month, encoder, folder) for month in (september, october)}
        days = max(
            # The towers have seen September's baskets: of them it was chosen with towers of what was before August.
            PROFILE_DAYS if encoder == untuned else (TOWERS_DAYS,),
            key=lambda one: float(september.recall(september.profile(vectors[september.day], one), True).mean()),
        )
        near = october.profile(vectors[october.day], days)
        musts = (">= 0.055", "aim >= 0.075") if encoder == towers.NAME else ("",)
        for must in musts:
            yield (
                f"{new}: recall@20 of the profile vector alone, {said}",
                float(october.recall(near, True).mean()),
                must,
            )
        added = max(
            POPULARITY_WEIGHTS,
            key=lambda one: float(
                september.recall(
                    september.profile(vectors[september.day], days) + one * september.popularity, True
                ).mean()
            ),
        )
        both = near + added * october.popularity
        yield f"{new}: recall@20 of profile and popularity, {said}", float(october.recall(both, True).mean()), ""


def figures(folder: Path) -> Found:
    """Everything of this module, the cheap part first."""
    yield from basket_figures(folder)
    yield from session_figures(folder)


def main() -> int:
    """Print the figures of a part, as they come: `sequences.py sessions|baskets [FOLDER]`."""
    part = {"sessions": session_figures, "baskets": basket_figures}[sys.argv[1]]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else "/tmp/ecomspark-figures")
    for name, value, must in part(folder):
        print(f"{name}: {value:.4f} {must}".rstrip(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
