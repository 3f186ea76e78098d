"""First-stage retrieval on Home Depot: BM25, the untuned encoder, the fine-tuned one, and what they find together.

    python tests/benchmarks/retrieval_home_depot.py figures

Catalogue: the distinct titles of the set. Relevant: grade of at least 2.33. A query's recall@100 is the share of its
relevant judged titles among the first 100; the figure is the mean over the test queries that have any. The test queries
are read by `figures` alone, after everything was chosen on the validation queries (`train` prints those). Each encoder
is trained in a process of its own with one thread; checkpoints and vectors are kept in a folder, so that figures which
were cut short go on.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import home_depot
import numpy as np
import pandas as pd
import training
from numpy.typing import NDArray
from scipy import sparse

from ecomspark.metrics import Interval, bootstrap

FOLDER = Path("/tmp/ecomspark-figures")
IS_RELEVANT, PLACES, RRF, FUSED = 2.33, 100, 60, 1_000  # FUSED: places of each source that are fused
K1, B = 1.2, 0.75  # config.Bm25

# What is trained in the order in which it is (name, base, settings); the one that finds most of the validation queries'
# items, fused with BM25, is asked the test queries.
IN_BATCH: dict[str, Any] = {
    "epochs": 1, "batch_size": 64, "learning_rate": 1e-4, "threads": 1, "hard_negatives": {"per_pair": 0},
    "max_items": 4_000, "seed": 1, "precision": "fp32",
}  # fmt: skip
HARD: dict[str, Any] = {
    **IN_BATCH, "learning_rate": 5e-5, "max_items": 20_000, "seed": 2, "epochs": 0.5,
    "hard_negatives": {"per_pair": 1, "from_epoch": 0, "places": 100, "max_share_of_positive": 0.9},
}  # fmt: skip
STAGES = [("embedder-mnrl", "minilm", IN_BATCH), ("embedder-hard", "embedder-mnrl", HARD)]

Ranked = NDArray[np.int64]  # shape (queries, places): places in the catalogue, best first; -1 where there is no more


@cache
def catalogue() -> list[str]:
    """Every distinct title of the set, as a model reads it, in order."""
    return sorted(set(read()["passage_text"]))


@cache
def read() -> pd.DataFrame:
    """All pairs with the texts that a model reads; those dropped for nearly equalling a test query have is_dropped."""
    return training.split(None, home_depot.all_pairs())


def asked(side: str) -> pd.DataFrame:
    """(query_text, plain_query, wanted): the queries of a side that have something relevant, and its places in the
    catalogue."""
    place = {title: at for at, title in enumerate(catalogue())}
    pairs = read()
    pairs = pairs[(pairs["side"] == side) & ~pairs["is_dropped"] & (pairs["grade"] >= IS_RELEVANT)]
    of = pairs.assign(place=pairs["passage_text"].map(place)).groupby(["plain_query", "query_text"])["place"]
    return of.agg(lambda places: sorted(set(places))).rename("wanted").reset_index()


def recalls(ranked: Ranked, wanted: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Recall@100 of each query."""
    found = [np.isin(of, near[:PLACES]).mean() for near, of in zip(ranked, wanted, strict=True)]
    return np.array(found, dtype=float)


def stems(text: str) -> list[str]:
    """What the pipelines' BM25 reads: stems, letters and digits split."""
    from ecomspark.text import Analyser, terms

    return terms(text, Analyser(language="english"))


def grams(text: str) -> list[str]:
    """Character 3- and 4-grams within words, their ends marked."""
    words = [f" {word} " for word in text.lower().split()]
    return [word[at : at + size] for word in words for size in (3, 4) for at in range(len(word) - size + 1)]


def bm25(queries: Sequence[str], titles: Sequence[str], analyse: Callable[[str], list[str]]) -> Ranked:
    """Lucene's BM25 (as `ecomspark.features.bm25`, one field), the first FUSED. Equal scores: by place."""
    terms: dict[str, int] = {}
    rows, columns = [], []
    for at, title in enumerate(titles):
        for term in analyse(title):
            rows.append(at)
            columns.append(terms.setdefault(term, len(terms)))
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(titles), len(terms)))  # adds up
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    having = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log1p((len(titles) - having + 0.5) / (having + 0.5))
    weights = counts.tocoo()
    norm = 1 - B + B * lengths / lengths.mean()
    worth = weights.data / norm[weights.row]
    values = idf[weights.col] * worth * (K1 + 1) / (worth + K1)
    of_items = sparse.csr_matrix((values, (weights.row, weights.col)), shape=counts.shape).T.tocsr()
    asked_rows, asked_columns = [], []
    for at, query in enumerate(queries):
        known = [terms[term] for term in analyse(query) if term in terms]
        asked_rows += [at] * len(known)
        asked_columns += known
    of_queries = sparse.csr_matrix(
        (np.ones(len(asked_rows)), (asked_rows, asked_columns)), shape=(len(queries), len(terms))
    )
    ranked = []
    for start in range(0, len(queries), 200):
        scores = np.round((of_queries[start : start + 200] @ of_items).toarray(), 6)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :FUSED]
        ranked.append(np.where(np.take_along_axis(scores, order, axis=1) > 0, order, -1))
    return np.concatenate(ranked)


def nearest(of_queries: NDArray[Any], of_items: NDArray[Any]) -> Ranked:
    """The first FUSED by cosine of unit vectors. Equal ones: by place."""
    ranked = []
    for start in range(0, len(of_queries), 200):
        near = np.round(of_queries[start : start + 200] @ of_items.T, 6)
        ranked.append(np.argsort(-near, axis=1, kind="stable")[:, :FUSED])
    return np.concatenate(ranked)


def fused(*sources: Ranked) -> Ranked:
    """By reciprocal rank (Cormack et al. 2009): the sum over sources of 1 / (60 + rank). Equal sums: by place."""
    ranked = []
    for of in zip(*sources, strict=True):
        scores = np.zeros(len(catalogue()))
        for places in of:
            places = places[places >= 0]
            scores[places] += 1 / (RRF + 1 + np.arange(len(places)))
        ranked.append(np.argsort(-scores, kind="stable")[:PLACES])
    return np.array(ranked)


def vectors(name: str, folder: Path, texts: Sequence[str], role: str, keep: str = "") -> NDArray[Any]:
    """What a checkpoint makes of the texts. `keep`: a name to keep them under, for they take minutes."""
    import torch

    from ecomspark.models import embedder
    from ecomspark.models.checkpoint import open_checkpoint

    made = open_checkpoint(folder, name, "encoder")
    path = folder / f"{name}-{keep}-{made.scorer_digest.hex()[:8]}.npy"
    if keep and path.exists():
        found: NDArray[Any] = np.load(path)
        return found
    torch.set_num_threads(1)
    found = embedder.load(made.folder, made.scorer_digest, "cpu", 2048).embed(texts, role)  # type: ignore[arg-type]
    if keep:
        np.save(path, found)
    return found


def train(name: str, base: str, settings: Mapping[str, Any], folder: Path) -> None:
    """Fine-tune an encoder on the training queries' relevant titles, unless it is there."""
    from ecomspark.models import finetune_embedder
    from ecomspark.models.checkpoint import CARD, Card
    from ecomspark.models.embedder_options import EmbedderTraining

    if (folder / name / CARD).exists():
        return
    start = time.monotonic()
    rows = training.split(None)
    rows = rows[rows["side"] != "test"]
    examples = pd.DataFrame(
        {"role": "query", "anchor_text": rows["query_text"], "passage_text": rows["passage_text"],
         "is_relevant": rows["grade"] >= IS_RELEVANT, "side": rows["side"]}
    )  # fmt: skip
    items = pd.DataFrame({"passage_text": catalogue(), "side": "catalogue"})  # titles hold no judgment
    training.base(folder)
    card = Card(kind="encoder", base=base, recipe=training.RECIPE, max_tokens=training.TOKENS,
                settings=dict(settings))  # fmt: skip
    plan = finetune_embedder.Plan(
        models_folder=folder, base=base, name=name, card=card,
        training=EmbedderTraining.model_validate(dict(settings)),
    )  # fmt: skip
    finetune_embedder.fine_tune(
        plan, pd.concat([examples, items], ignore_index=True), lambda said: print(json.dumps(said), flush=True)
    )
    print(json.dumps({"model": name, "seconds": round(time.monotonic() - start)}), flush=True)


def sources(side: str, names: Sequence[str], folder: Path) -> tuple[dict[str, Ranked], list[list[int]]]:
    """What each source ranks for the queries of a side, and what is wanted of it."""
    queries = asked(side)
    plain, titles = list(queries["plain_query"]), catalogue()
    found = {"bm25": bm25(plain, titles, stems), "grams": bm25(plain, titles, grams)}
    for name in names:
        of_items = vectors(name, folder, titles, "passage", "titles")
        found[name] = nearest(vectors(name, folder, list(queries["query_text"]), "query"), of_items)
    return found, list(queries["wanted"])


def compared(side: str, names: Sequence[str], folder: Path) -> dict[str, NDArray[np.float64]]:
    """Recall@100 of each query of a side: by each source alone, by BM25 with each encoder, with character grams, too."""
    ranked, wanted = sources(side, names, folder)
    found = {name: recalls(of, wanted) for name, of in ranked.items()}
    for name in names:
        found[f"bm25 + {name}"] = recalls(fused(ranked["bm25"], ranked[name]), wanted)
        found[f"bm25 + {name} + grams"] = recalls(fused(ranked["bm25"], ranked[name], ranked["grams"]), wanted)
    return found


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    return bootstrap(list(one - other), 1_000, 13)


def figures(folder: Path) -> Iterator[tuple[str, float, str]]:
    """The figures of retrieval: (figure, value, must)."""
    for name, base, settings in STAGES:
        train(name, base, settings, folder)
    names = [name for name, _, _ in STAGES]
    of_validation = {name: float(of.mean()) for name, of in compared("validation", names, folder).items()}
    for name, value in of_validation.items():
        yield f"retrieval: validation queries, {name}, recall@100", value, ""
    chosen = max(names, key=lambda name: of_validation[f"bm25 + {name}"])
    found = compared("test", ["minilm", chosen], folder)
    tuned, untuned, both = found[chosen], found["minilm"], found[f"bm25 + {chosen}"]
    yield "retrieval: test queries with something relevant", float(len(tuned)), ""
    yield "retrieval: BM25 (stems), recall@100", float(found["bm25"].mean()), ""
    yield "retrieval: untuned MiniLM, recall@100", float(untuned.mean()), ""
    yield "retrieval: BM25 + untuned, fused, recall@100", float(found["bm25 + minilm"].mean()), ""
    yield "retrieval: fine-tuned, recall@100", float(tuned.mean()), "aim >= 0.8"
    yield "retrieval: BM25 + fine-tuned, fused, recall@100", float(both.mean()), ">= 0.81"
    yield "retrieval: the same, for the aim", float(both.mean()), "aim >= 0.85"
    with_grams = found[f"bm25 + {chosen} + grams"]
    yield "retrieval: with character 3-4-grams, which no pipeline has, recall@100", float(with_grams.mean()), ""
    for name, one, other, must in (
        ("fine-tuned less untuned", tuned, untuned, "> 0"),
        ("BM25 + fine-tuned less BM25", both, found["bm25"], ""),
        ("BM25 + fine-tuned less BM25 + untuned", both, found["bm25 + minilm"], ""),
    ):
        apart = difference(one, other)
        yield f"retrieval: {name}, recall@100", apart.mean, ""
        yield f"retrieval: {name}: lower end of its paired 95 % interval over queries", apart.low, must
        yield f"retrieval: {name}: upper end", apart.high, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train an encoder, and print what it finds for the validation queries")
    one.add_argument("name")
    one.add_argument("--base", default="minilm")
    one.add_argument("--settings", type=json.loads, default={})
    commands.add_parser("figures", help="print the figures")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    if given.command == "figures":
        for name, value, must in figures(given.folder):
            print(json.dumps({"figure": name, "value": round(value, 6), "must": must}), flush=True)
        return 0
    if given.name != "minilm":
        train(given.name, given.base, {**IN_BATCH, **given.settings}, given.folder)
    found = compared("validation", [given.name], given.folder)
    print(json.dumps({name: round(float(of.mean()), 4) for name, of in found.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
