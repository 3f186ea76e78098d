"""Train a sequence model from sequences of items, in a process of its own: torch stays out of Spark's driver.

    python -m ecomspark.models.finetune_sequence FOLDER

reads FOLDER/plan.json, FOLDER/sequences.parquet and, where the plan asks for texts, FOLDER/vectors.parquet, writes the
checkpoint, and prints its progress as JSON lines.

Every place of a sequence is learnt from: what stands there, told from other items by a softmax (over all of them, or
over some drawn anew at each step, each with log of the items that it stands for: Bengio & Senécal 2008).
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import sparse
from scipy.linalg import eigh
from sklearn.utils.extmath import randomized_svd

from ecomspark.errors import way
from ecomspark.models.calibration import calibrate
from ecomspark.models.checkpoint import Card, Checkpoint, Confidence, seal, workroom
from ecomspark.models.loading import device_of
from ecomspark.models.sequence import CLOSED, Body, Linear, Network, Sizes, save, weighed
from ecomspark.models.sequence_options import SequenceTraining

Report = Callable[[Mapping[str, Any]], None]

LIST_SIZES = (1, 5, 10, 20, 50, 100)
_AT = 20
_VALIDATION = 5_000  # sequences that an epoch is judged by; confidence is fitted on all of them
_STEPS, _SMOOTHING, _DRAWN = 10, 2.0, 1e-5
_LINEAR_ITEMS = 20_000
_JUDGED_AT_ONCE = 512
_TEMPERATURES = np.geomspace(0.01, 4, 31)
_UNKNOWN_SHARE = 0.01  # of what is read, as [unknown]
_BATCHES_SORTED = 50  # are put together by length
_GRADIENT_NORM = 5.0
_START_WEIGHT = 0.05  # of the state after no item, in the loss


class Plan(BaseModel):
    """What to train, and how. Written by the job, read by the process that trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models_folder: Path
    name: str
    card: Card
    training: SequenceTraining


class Items:
    """The items of the training sequences, numbered, with the vectors of their texts where there are."""

    def __init__(self, ids: list[str], vectors: Mapping[str, NDArray[Any]]) -> None:
        self.ids = ids
        self.numbers = {item_id: number for number, item_id in enumerate(ids)}
        self.text_width = len(next(iter(vectors.values()))) if vectors else 0
        self.texts = torch.zeros(len(ids), self.text_width)
        for item_id, vector in vectors.items():
            if item_id in self.numbers:
                self.texts[self.numbers[item_id]] = torch.from_numpy(np.asarray(vector, dtype=np.float32))

    def numbered(self, sequence: Any) -> NDArray[np.int64]:
        return np.array([self.numbers.get(item_id, -1) for item_id in sequence], dtype=np.int64)


def fine_tune(plan: Plan, sequences: pd.DataFrame, vectors: pd.DataFrame | None, report: Report) -> Checkpoint:
    """Train, keep the epoch that is best on the validation sequences, fit the confidence, seal the checkpoint.

    `sequences`: sequence_id, item_ids (oldest first) and side, train or validation, in order of time; of a validation
    sequence the last item is predicted from the rest. What is made in closed form has no epoch to choose: once its
    confidence is fitted it is made again from both sides, of two sequences of one id from the later. `vectors`: item_id
    and vector, where the items have texts. Raises ValueError when a side has no sequence with two items.
    """
    settings = plan.training
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    is_long = sequences["item_ids"].map(len) > 1
    sides = {side: sequences[is_long & (sequences["side"] == side)] for side in ("train", "validation")}
    if sides["train"].empty or sides["validation"].empty:
        counts = [len(of) for of in sides.values()]
        raise ValueError(f"{counts[0]} sequences of two items or more to train on, {counts[1]} to validate on")
    is_closed = settings.architecture in CLOSED
    of_items: dict[str, NDArray[Any]] = {}
    if vectors is not None and not is_closed:
        of_items = dict(zip(vectors["item_id"], vectors["vector"], strict=True))
    learnt = sides["train"]["item_ids"] if not is_closed else sequences["item_ids"][is_long]
    items = Items(sorted({item_id for of in learnt for item_id in of}), of_items)
    train = [items.numbered(of) for of in sides["train"]["item_ids"]]
    judged = [items.numbered(of) for of in sides["validation"]["item_ids"]]
    sizes = Sizes(
        item_count=len(items.ids),
        text_width=items.text_width,
        **settings.model_dump(include=set(Sizes.model_fields) - {"item_count", "text_width"}),
    )
    metrics: dict[str, dict[str, float]] = {"before": popularity(train, judged, len(items.ids))}
    report({"step": "before", **metrics["before"], "of": "popularity, validation sequences"})
    networks: dict[str, Network | Linear] = {}
    if is_closed:
        networks[sizes.architecture] = closed(train, sizes, settings)
    else:
        first = beginnings(train, len(items.ids), settings, sizes.width)
        for body in sizes.bodies:
            learner = Learner(sizes, body, items, settings).begin(first)
            networks[body], metrics[body] = learner.fit(train, judged, report)
    confidence, metrics["after"] = fitted(list(networks.values()), judged, sizes)
    if is_closed:
        report({"step": "epoch", "body": sizes.architecture, "at": 1, "of": 1, **metrics["after"], "best": 0.0})
        every = sequences[is_long].drop_duplicates("sequence_id", keep="last")["item_ids"]
        networks[sizes.architecture] = closed([items.numbered(of) for of in every], sizes, settings)
    metrics["sequences"] = {
        "train": float(len(train)),
        "validation": float(len(judged)),
        "items": float(len(items.ids)),
    }
    architecture = {"architecture": sizes.architecture, "max_items": sizes.max_items}
    card = plan.card.model_copy(update={**architecture, "metrics": metrics, "confidence": confidence})
    made = workroom(plan.models_folder)
    try:
        save(made, networks, sizes, items.ids)
        return seal(made, plan.models_folder, plan.name, card)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def closed(train: list[NDArray[np.int64]], sizes: Sizes, settings: SequenceTraining) -> Linear:
    """The linear or the spectral model."""
    is_linear = sizes.architecture == "linear"
    vectors = linear(train, sizes, settings.shrinkage) if is_linear else spectral(train, sizes, settings)
    model = Linear(sizes)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.from_numpy(vectors))
        if not is_linear:
            counts = np.bincount(np.concatenate(train), minlength=sizes.item_count)
            model.bias.copy_(torch.from_numpy(settings.popularity * np.log1p(counts)))
    return model.eval()


def spectral(train: list[NDArray[np.int64]], sizes: Sizes, settings: SequenceTraining) -> NDArray[np.float64]:
    """Vectors of the spectral model. A fifth of each is drawn: nearly at right angles to those of other items (Johnson
    & Lindenstrauss 1984), it says what `again` says of an item that was read already."""
    drawn = sizes.width // 5 if settings.again else 0
    near = beginnings(train, sizes.item_count, settings, sizes.width - drawn)
    own = np.random.default_rng(settings.seed).normal(size=(sizes.item_count, drawn))
    own *= math.sqrt(settings.again) / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    made: NDArray[np.float64] = np.hstack([near, own])
    return made


def linear(train: list[NDArray[np.int64]], sizes: Sizes, shrinkage: float) -> NDArray[np.float64]:
    """Vectors of the linear model: eigenvectors of how often items stand together, each as much as the ridge leaves of
    it.

    Raises ValueError where there are more items than `_LINEAR_ITEMS`: all pairs of them are in memory.
    """
    if sizes.item_count > _LINEAR_ITEMS:
        raise ValueError(f"a linear model: expected {_LINEAR_ITEMS} items at most, found {sizes.item_count}")
    cut = [sequence[-sizes.max_items :] for sequence in train]
    lengths = np.array([len(sequence) for sequence in cut])
    ids = np.zeros((len(cut), lengths.max()), dtype=np.int64)
    ids[np.arange(lengths.max())[None, :] < lengths[:, None]] = np.concatenate(cut)
    held = weighed(ids, lengths, sizes.item_count, sizes.half_life_items)
    together = (held.T @ held).toarray()
    seen = np.diag(together)[np.diag(together) > 0]  # others stand in validation sequences only
    ridge = shrinkage * float(np.median(seen))
    known = min(sizes.width, sizes.item_count)
    values, vectors = eigh(together, subset_by_index=[sizes.item_count - known, sizes.item_count - 1])
    values = np.maximum(values[::-1], 0.0)
    made = np.zeros((sizes.item_count, sizes.width))
    made[:, :known] = vectors[:, ::-1] * np.sqrt(values / (values + ridge))
    return made


class Learner:
    """One network in training. A step sees the items that its sequences hold, and those that they are told from."""

    def __init__(self, sizes: Sizes, body: Body, items: Items, settings: SequenceTraining) -> None:
        torch.manual_seed(settings.seed)
        self._random = np.random.default_rng(settings.seed)
        self._sizes, self._body, self._settings = sizes, body, settings
        self.network = Network(sizes, body, settings.dropout, settings.input_dropout).to(device_of(None))
        self._device = self.network.bias.device
        self._texts = items.texts.to(self._device)

    def begin(self, vectors: NDArray[np.float32]) -> "Learner":
        """Start from these vectors of the items."""
        with torch.no_grad():
            self.network.embedding.weight.copy_(torch.from_numpy(vectors))
        return self

    def fit(
        self, train: list[NDArray[np.int64]], judged: list[NDArray[np.int64]], report: Report
    ) -> tuple[Network, dict[str, float]]:
        """The network in its best epoch's state, with each item's text in its vector, and what it reached."""
        settings = self._settings
        windows, weights = _windows(train, settings)
        steps = settings.epochs * sum(1 for _ in _batches(windows, settings.batch_size, self._random))
        optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        warm = max(1, round(settings.warmup_share * steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
        )
        sample = judged if len(judged) <= _VALIDATION else [judged[place] for place in _spread(len(judged))]
        best: dict[str, float] = {}
        state: dict[str, torch.Tensor] = {}
        for epoch in range(1, settings.epochs + 1):
            self.network.train()
            losses = []
            for batch in _batches(windows, settings.batch_size, self._random):
                loss = self._loss([windows[place] for place in batch], weights[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
            found = _quality(scores_of([self._fused()], sample, self._sizes), sample)
            if not best or found["mrr@20"] > best["mrr@20"]:
                best = {**found, "epoch": float(epoch)}
                state = {name: tensor.clone() for name, tensor in self._fused().state_dict().items()}
            at = {"at": epoch, "of": settings.epochs, "body": self._body, "loss": float(np.mean(losses))}
            report({"step": "epoch", **at, **found, "best": best["mrr@20"]})
            if epoch - best["epoch"] >= settings.patience:
                break
        made = Network(self._sizes, self._body)
        made.load_state_dict(state)
        return made.to(self._device).eval(), best

    def _fused(self) -> Network:
        """A copy to be asked: an item's vector is its id's and its text's together."""
        made = Network(self._sizes, self._body).to(self._device)
        made.load_state_dict(self.network.state_dict())
        if made.text is not None:
            with torch.no_grad():
                made.embedding.weight += made.text(self._texts)
        return made.eval()

    def _loss(self, windows: list[NDArray[np.int64]], weights: NDArray[np.float32]) -> torch.Tensor:
        network, settings, count = self.network, self._settings, self._sizes.item_count
        lengths = np.array([len(window) for window in windows])
        is_read = np.arange(lengths.max() - 1)[None, :] < (lengths - 1)[:, None]
        read, wanted = np.zeros(is_read.shape, dtype=np.int64), np.zeros(is_read.shape, dtype=np.int64)
        read[is_read] = np.concatenate([window[:-1] for window in windows])
        wanted[is_read] = np.concatenate([window[1:] for window in windows])
        own = self._there(wanted[is_read])
        is_all = settings.negatives >= count
        drawn = np.arange(count) if is_all else np.sort(self._random.choice(count, settings.negatives, replace=False))
        negatives = self._there(drawn)
        firsts = self._there(np.array([window[0] for window in windows]))
        numbers, places = torch.unique(
            torch.cat([self._there(read.ravel()), own, negatives, firsts]), return_inverse=True
        )
        vectors, bias = self._vectors(numbers)
        of_read, of_own, of_negatives, of_firsts = places.split([read.size, len(own), len(drawn), len(firsts)])
        # So that [unknown] is learnt, too: with texts it stands for items that have none.
        of_read = of_read.masked_fill(torch.rand(of_read.shape, device=self._device) < _UNKNOWN_SHARE, len(numbers))
        states = network(vectors[of_read].view(*read.shape, -1))[self._there(is_read)]
        # Each of those drawn stands for so many.
        others, stands_for = vectors[of_negatives], math.log((count - 1) / max(1, len(drawn) - is_all))
        of_others = bias[of_negatives] + stands_for
        said = states @ others.T + of_others
        mine = (states * vectors[of_own]).sum(1) + bias[of_own]
        at = torch.searchsorted(negatives, own).clamp(max=len(drawn) - 1)
        is_drawn = negatives[at] == own
        said[is_drawn.nonzero()[:, 0], at[is_drawn]] = float("-inf")
        losses = torch.logaddexp(said.logsumexp(1), mine) - mine
        of_place = self._there(np.repeat(weights, lengths - 1))
        first = vectors[of_firsts] @ network.start + bias[of_firsts]
        every = (others @ network.start + of_others).logsumexp(0)
        loss: torch.Tensor = (losses * of_place).sum() / of_place.sum() + _START_WEIGHT * (every - first).mean()
        return loss

    def _there(self, values: NDArray[Any]) -> torch.Tensor:
        """On the network's device."""
        return torch.from_numpy(values).to(self._device)

    def _vectors(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors of items, [unknown] behind them, and biases; some with their text alone, as new items are."""
        network = self.network
        rows, bias = network.embedding(numbers), network.bias[numbers]
        if network.text is not None:
            keeps = (torch.rand(len(numbers), device=self._device) >= self._settings.id_dropout).float()
            rows = rows * keeps[:, None] + network.text(self._texts[numbers])
            bias = bias * keeps + network.new_bias * (1 - keeps)
        return network.vectors(torch.cat([rows, network.unknown[None]])), bias


def beginnings(
    train: list[NDArray[np.int64]], item_count: int, settings: SequenceTraining, width: int
) -> NDArray[np.float32]:
    """Unit vectors of items to start from, such that what stands in one sequence lies near: the first singular vectors
    of the normalised counts (Shi & Malik 2000) of what stood up to `_STEPS` places apart, 1 / places each.

    It takes the place of several epochs. Where there are fewer items than the vectors are long, the rest is drawn.
    """
    lengths = np.array([len(sequence) for sequence in train])
    flat, sequence_of = np.concatenate(train), np.repeat(np.arange(len(train)), lengths)
    counts = sparse.csr_matrix((item_count, item_count), dtype=np.float32)
    for step in range(1, _STEPS + 1):
        is_one = sequence_of[:-step] == sequence_of[step:]
        pairs = flat[:-step][is_one], flat[step:][is_one]
        counts = counts + sparse.csr_matrix((np.full(len(pairs[0]), 1 / step, np.float32), pairs), counts.shape)
    counts = counts + counts.T
    counts.setdiag(0)
    seen = np.asarray(counts.sum(1)).ravel()
    scale = sparse.diags((seen + _SMOOTHING) ** -0.5)
    near = scale @ (counts + sparse.diags(seen / 2)) @ scale
    random = np.random.default_rng(settings.seed)
    made = random.normal(size=(item_count, width)) * _DRAWN
    known = min(width, item_count - 1)
    if known > 0:
        left, values, _ = randomized_svd(near, known, n_iter=2, random_state=settings.seed)
        made[:, :known] += left * np.sqrt(values)
    lengths_of = np.linalg.norm(made, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (made / np.maximum(lengths_of, 1e-12)).astype(np.float32)
    return unit


def scores_of(
    networks: Sequence[Network | Linear], sequences: list[NDArray[np.int64]], sizes: Sizes
) -> Iterator[torch.Tensor]:
    """Scores of all items behind all of each sequence but its last item, a block of sequences at a time."""
    with torch.inference_mode():
        # [unknown] stands behind the items.
        tables = [
            torch.cat([network.vectors(network.embedding.weight), network.vectors(network.unknown[None])])
            for network in networks
        ]
        bias = torch.stack([network.bias for network in networks]).mean(0)
        for start in range(0, len(sequences), _JUDGED_AT_ONCE):
            some = [of[-sizes.max_items - 1 : -1] for of in sequences[start : start + _JUDGED_AT_ONCE]]
            lengths = np.array([len(of) for of in some])
            ids = torch.zeros(len(some), int(lengths.max()), dtype=torch.long)
            for place, of in enumerate(some):
                ids[place, : len(of)] = torch.from_numpy(of)
            ids[ids < 0] = sizes.item_count
            ids = ids.to(bias.device)
            scores = bias.expand(len(some), -1).clone()
            for network, table in zip(networks, tables, strict=True):
                scores += network.last(table, ids, lengths) @ table[:-1].T / len(networks)
            if sizes.own_weight:
                counted = weighed(ids.cpu().numpy(), lengths, len(tables[0]), math.inf)[:, :-1]
                scores += torch.from_numpy(counted.astype(np.float32).toarray()).to(bias.device) * sizes.own_weight
            yield scores


def _quality(blocks: Iterator[torch.Tensor], sequences: list[NDArray[np.int64]]) -> dict[str, float]:
    return _of_ranks(np.concatenate(list(_ranks(blocks, sequences))))


def _ranks(blocks: Iterator[torch.Tensor], sequences: list[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """The place of each sequence's last item among all, behind those with the same score; 0: it cannot be proposed."""
    start = 0
    for scores in blocks:
        wanted = torch.tensor([int(of[-1]) for of in sequences[start : start + len(scores)]], device=scores.device)
        own = scores.gather(1, wanted.clamp(min=0)[:, None])
        yield ((scores >= own).sum(1) * (wanted >= 0)).cpu().numpy()
        start += len(scores)


def _of_ranks(ranks: NDArray[np.int64]) -> dict[str, float]:
    is_hit = (ranks > 0) & (ranks <= _AT)
    return {"hr@20": float(is_hit.mean()), "mrr@20": float((is_hit / np.maximum(ranks, 1)).mean())}


def popularity(train: list[NDArray[np.int64]], judged: list[NDArray[np.int64]], item_count: int) -> dict[str, float]:
    """What the items seen most often would reach."""
    counts = torch.from_numpy(np.bincount(np.concatenate(train), minlength=item_count).astype(np.float32))
    blocks = (counts.expand(len(part), -1) for part in np.array_split(np.arange(len(judged)), len(judged) // 500 + 1))
    return _quality(blocks, judged)


def fitted(
    networks: Sequence[Network | Linear], judged: list[NDArray[np.int64]], sizes: Sizes
) -> tuple[Confidence, dict[str, float]]:
    """How sure the lists may be, and what is reached on all validation sequences.

    The temperature has the least log loss of the next item (Guo et al. 2017) among `_TEMPERATURES`; the maps are
    isotonic in a list's mass. A next item that is not among the model's is one that no list held.
    """
    wanted = np.array([int(of[-1]) for of in judged])
    losses = np.zeros(len(_TEMPERATURES))
    start = 0
    for scores in scores_of(networks, judged, sizes):
        known = wanted[start : start + len(scores)] >= 0
        own = torch.from_numpy(wanted[start : start + len(scores)][known]).to(scores.device)[:, None]
        for place, temperature in enumerate(_TEMPERATURES):
            said = scores[torch.from_numpy(known).to(scores.device)] / temperature
            losses[place] += float((said.logsumexp(1) - said.gather(1, own)[:, 0]).sum())
        start += len(scores)
    temperature = float(_TEMPERATURES[int(losses.argmin())])
    list_sizes = [size for size in LIST_SIZES if size < sizes.item_count] or [1]
    masses: dict[int, list[NDArray[Any]]] = {size: [] for size in list_sizes}
    ranks = []
    start = 0
    for scores in scores_of(networks, judged, sizes):
        best = torch.softmax(scores.double() / temperature, 1).topk(min(max(list_sizes), sizes.item_count), 1).values
        for size in list_sizes:
            masses[size].append(best[:, :size].sum(1).cpu().numpy())
        ranks += list(_ranks(iter([scores]), judged[start : start + len(scores)]))
        start += len(scores)
    places = np.concatenate(ranks)
    maps = {size: _rising(np.concatenate(of), (places > 0) & (places <= size)) for size, of in masses.items()}
    return Confidence(temperature=temperature, maps=maps), _of_ranks(places)


def _rising(masses: NDArray[Any], hits: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Points of mass to share of hits; the mass itself where all lists have the same."""
    if len(np.unique(masses.round(6))) < 2:
        return [(0.0, 0.0), (1.0, 1.0)]
    return calibrate(masses.tolist(), hits.astype(float).tolist())


def _windows(
    sequences: list[NDArray[np.int64]], settings: SequenceTraining
) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
    """Parts of sequences that fit the model, such that each place but a sequence's first is predicted once, and the
    weight of each."""
    windows, weights = [], []
    for place, sequence in enumerate(sequences):
        age = (len(sequences) - 1 - place) / len(sequences)
        weight = 1.0 if settings.half_life is None else 0.5 ** (age / settings.half_life)
        for end in range(len(sequence), 1, -settings.max_items):
            windows.append(sequence[max(0, end - settings.max_items - 1) : end])
            weights.append(weight)
    return windows, np.array(weights, dtype=np.float32)


def _batches(
    windows: list[NDArray[np.int64]], batch_size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Places of windows in another order each time, those of like length together."""
    lengths = np.array([len(window) - 1 for window in windows])
    mixed = random.permutation(len(windows))
    batches = []
    sorted_at_once = max(1, round(_BATCHES_SORTED * batch_size / max(1.0, float(lengths.mean()))))
    for start in range(0, len(mixed), sorted_at_once):
        part = mixed[start : start + sorted_at_once]
        part = part[np.argsort(lengths[part], kind="stable")]
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[part]) // batch_size)) + 1
        batches += np.split(part, cuts)
    return (batches[place] for place in random.permutation(len(batches)))


def _spread(count: int) -> NDArray[np.int64]:
    """Places of the sequences that an epoch is judged by, spread over all."""
    return np.linspace(0, count - 1, _VALIDATION).round().astype(np.int64)


def main(folder: Path) -> int:
    def report(progress: Mapping[str, Any]) -> None:
        print(json.dumps(progress), flush=True)

    plan = Plan.model_validate_json((folder / "plan.json").read_text(encoding="utf-8"))
    sequences = pd.read_parquet(folder / "sequences.parquet")
    has_vectors = (folder / "vectors.parquet").exists()
    try:
        made = fine_tune(plan, sequences, pd.read_parquet(folder / "vectors.parquet") if has_vectors else None, report)
    except Exception as error:  # only its class: an id may stand in its message
        report({"step": "failed", "error": type(error).__name__, "way": way(error)})
        return 1
    found = made.card.metrics
    report({"step": "done", "name": plan.name, "before": found["before"]["mrr@20"], **found["after"]})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
