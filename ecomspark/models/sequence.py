"""What comes next after a sequence of items: a causal transformer (SASRec, Kang & McAuley 2018) and a recurrent network
(GRU4Rec, Hidasi et al. 2016) behind one class.

Both read unit vectors of items and are asked for a direction among them: a score is a scaled cosine and the item's
bias (NISER, Gupta et al. 2019: long vectors of often seen items no longer win by their length). A state is what the
body says plus a weighted mean of the very items read (after CORE, Hou et al. 2022), so what was looked at lies near.
Places count back from the newest item, so it makes no difference how long the history was before it was cut.

Beside them stand two that are made in closed form, read no order but by age, and know no texts: a state is the sum of
the vectors of what was read, newer items counting more. For baskets `linear`, a ridge autoencoder (as Steck 2019, of
the rank of its width, and tied, so an item speaks for itself, too); for sessions `spectral`, where near lies what stood
near (eigenvectors of normalised counts, as Shi & Malik 2000), and a state's length says nothing.

An item's vector is one learnt for its id plus, where the model was trained with texts, a projection of its text's
embedding. An item that training never saw has the projection alone. A model without texts reads such an item as
[unknown], and never proposes it.
"""

import json
import math
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import nn
from torch.nn import functional

from ecomspark.errors import CheckpointError
from ecomspark.models.checkpoint import ITEMS, WEIGHTS, Card, Confidence, open_checkpoint
from ecomspark.models.costs import Costs
from ecomspark.models.loading import device_of

Architecture = Literal["transformer", "gru", "both", "linear", "spectral"]
Body = Literal["transformer", "gru", "linear", "spectral"]

CLOSED = ("linear", "spectral")

_ITEMS_A_BATCH = 8_192  # read in one pass, padding included
_FIRST_SAY, _FIRST_DECAY = 0.1, 0.7
_FIRST_SCALE = 14.0  # of a cosine before it is learnt: 1 / 0.07, CORE's temperature


class Sizes(BaseModel):
    """What the weights are shaped by: `config.json` of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    item_count: int
    width: int
    layers: int
    heads: int
    max_items: int
    text_width: int = 0  # of the encoder's vectors; 0: no texts
    half_life_items: float = 100.0  # of those in closed form: an item so many back counts half
    own_weight: float = 0.0  # of log(1 + how often an item was read), beside its score

    @property
    def bodies(self) -> tuple[Body, ...]:
        return ("transformer", "gru") if self.architecture == "both" else (self.architecture,)


class Linear(nn.Module):
    """Vectors of items whose products say how much one item speaks for another: `linear` or `spectral`."""

    text = None

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.item_count, sizes.width)
        self.bias = nn.Parameter(torch.zeros(sizes.item_count))
        self.unknown = nn.Parameter(torch.zeros(sizes.width))  # it says nothing
        self.new_bias = nn.Parameter(torch.zeros(()))
        self._half_life, self._is_unit = sizes.half_life_items, sizes.architecture == "spectral"

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def last(self, table: torch.Tensor, ids: torch.Tensor, lengths: NDArray[np.int64]) -> torch.Tensor:
        """States behind histories of these lengths, given by rows of the table; behind none it is zero."""
        counted = weighed(ids.cpu().numpy(), lengths, len(table), self._half_life)
        states = torch.from_numpy(counted.astype(np.float32) @ table.cpu().numpy()).to(table.device)
        return _FIRST_SCALE * functional.normalize(states, dim=1) if self._is_unit else states


def weighed(ids: NDArray[np.int64], lengths: NDArray[np.int64], item_count: int, half_life: float) -> Any:
    """How much of each item a history holds, sparse, (histories, item_count): log of 1 and its places, each halved by
    every `half_life` items that came since."""
    is_read = np.arange(ids.shape[1])[None, :] < lengths[:, None]
    rows, places = np.nonzero(is_read)
    counted = sparse.csr_matrix(
        (0.5 ** ((lengths[rows] - 1 - places) / half_life), (rows, ids[is_read])), (len(ids), item_count)
    )
    counted.data = np.log1p(counted.data)
    return counted


class Network(nn.Module):
    """One body with its items. Items are numbered 0 to item_count - 1; -1 is one that training never saw."""

    def __init__(self, sizes: Sizes, body: Body, dropout: float = 0.0, input_dropout: float = 0.0) -> None:
        super().__init__()
        width = sizes.width
        self.embedding = nn.Embedding(sizes.item_count, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.bias = nn.Parameter(torch.zeros(sizes.item_count))
        self.unknown = nn.Parameter(torch.randn(width) * width**-0.5)
        self.start = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.tensor(_FIRST_SCALE))
        self.new_bias = nn.Parameter(torch.zeros(()))
        self.text = nn.Linear(sizes.text_width, width, bias=False) if sizes.text_width else None
        made = [_Layer(sizes, dropout) for _ in range(sizes.layers)]
        self.body = nn.ModuleList(made) if body == "transformer" else _Recurrent(sizes, dropout)
        self.readout = _Attention(sizes, heads=1, has_values=False)
        self.dropout, self.input_dropout = nn.Dropout(dropout), nn.Dropout(input_dropout)
        self.norm = nn.LayerNorm(width)
        # At first a state is little but a mean of what was read, the newest counting most.
        nn.init.constant_(self.norm.weight, _FIRST_SAY)
        with torch.no_grad():
            self.readout.distance.copy_(torch.arange(sizes.max_items) * math.log(_FIRST_DECAY))
            self.readout.ask.weight.mul_(_FIRST_SAY)

    def last(self, table: torch.Tensor, ids: torch.Tensor, lengths: NDArray[np.int64]) -> torch.Tensor:
        """States behind histories of these lengths, given by rows of the table."""
        ends = torch.from_numpy(np.maximum(lengths - 1, 0)).to(table.device)
        states = self(table[ids])[torch.arange(len(ids), device=table.device), ends]
        return torch.where(torch.from_numpy(lengths == 0).to(table.device)[:, None], self.start, states)

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """Unit vectors of items as they are read and proposed, from rows before they are cut to length."""
        return functional.normalize(rows, dim=-1)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """States behind each item, (n, length, width), from unit vectors of that shape; nothing later decides one.

        A state's product with an item's unit vector is its score, but for the bias.
        """
        kept = self.input_dropout(read)
        if isinstance(self.body, nn.ModuleList):
            hidden = kept
            for layer in self.body:
                hidden = layer(hidden)
        else:
            hidden = self.body(kept)
        hidden = self.norm(hidden)
        made = self.readout(hidden, kept) + self.dropout(hidden) * hidden.shape[-1] ** -0.5
        return self.scale * functional.normalize(made, dim=-1)


class _Attention(nn.Module):
    """Causal attention whose places are distances: how far back an item lies (after Raffel et al. 2020)."""

    def __init__(self, sizes: Sizes, heads: int, has_values: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(sizes.width, 2 * sizes.width)
        self.values = nn.Linear(sizes.width, sizes.width) if has_values else None
        self.out = nn.Linear(sizes.width, sizes.width) if has_values else None
        self.distance = nn.Parameter(torch.zeros(heads, sizes.max_items))

    def forward(self, hidden: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        """A weighted mean of `of`, shape (n, length, width), for each place from those up to it."""
        rows, length, width = hidden.shape
        places = torch.arange(length, device=hidden.device)
        back = places[:, None] - places[None, :]
        bias = self.distance[:, back.clamp(min=0)].masked_fill(back < 0, float("-inf"))
        values = of if self.values is None else self.values(of)
        asked, keys, values = (
            part.view(rows, length, self.heads, -1).transpose(1, 2) for part in (*self.ask(hidden).chunk(2, -1), values)
        )
        mixed = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=bias[None].to(asked.dtype))
        mixed = mixed.transpose(1, 2).reshape(rows, length, width)
        return mixed if self.out is None else self.out(mixed)


class _Layer(nn.Module):
    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        width = sizes.width
        self.attention = _Attention(sizes, sizes.heads, has_values=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](hidden)
        hidden = hidden + self.dropout(self.attention(normed, normed))
        made: torch.Tensor = hidden + self.dropout(self.inner(self.norms[1](hidden)))
        return made


class _Recurrent(nn.Module):
    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        between = dropout if sizes.layers > 1 else 0.0
        self.gru = nn.GRU(sizes.width, sizes.width, sizes.layers, batch_first=True, dropout=between)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.gru(hidden)[0]
        return made


@dataclass
class Host:
    """What `scoring` asks of where a model runs."""

    device: torch.device
    costs: Costs = field(default_factory=Costs)
    token_budget: int = _ITEMS_A_BATCH
    is_asynchronous: bool = False

    def peak_memory(self) -> int:
        """Bytes: the most that this process had, of its GPU where the model is on one."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class SequenceModel:
    """A model on a device, with the ids that it knows. Make one with `load`.

    The score of an item after a history is [state, 1] @ its row of `items`, and what `own` has of it.
    """

    def __init__(
        self, networks: Sequence[Network | Linear], sizes: Sizes, item_ids: list[str], card: Card, host: Host
    ) -> None:
        self.engine = host
        self.item_ids = item_ids
        self.max_items = sizes.max_items
        self.width = sizes.width * len(networks)
        self._networks, self._sizes, self._confidence = networks, sizes, card.confidence
        self._places = {item_id: place for place, item_id in enumerate(item_ids)}

    def states(
        self, histories: Sequence[Sequence[str]], vectors: Mapping[str, NDArray[Any]] | None = None
    ) -> NDArray[np.float32]:
        """The state after each history (item ids, oldest first), shape (histories, width), in the order given.

        The newest `max_items` are read. `vectors`: text embeddings by item id, of those that training never saw; such
        an item without one is read as [unknown]. The state after no item is one of its own. Equal to rounding whatever
        histories are asked for together. Raises ValueError when a vector is not of the encoder's length.
        """
        read = [list(history)[-self._sizes.max_items :] for history in histories]
        made = np.empty((len(read), self.width), dtype=np.float32)
        numbers, rows = self._numbered(sorted({item_id for history in read for item_id in history}), vectors)
        lengths = np.array([len(history) for history in read], dtype=np.int64)
        with torch.inference_mode():
            table = [self._rows(network, rows) for network in self._networks]
            for some in _batches(lengths):
                ids = np.zeros((len(some), max(1, lengths[some[-1]])), dtype=np.int64)
                for place, row in enumerate(some):
                    ids[place, : lengths[row]] = [numbers[item_id] for item_id in read[row]]
                made[some] = self._read(table, torch.from_numpy(ids), lengths[some])
        self.engine.costs.tokens += int(lengths.sum())
        return made

    def items(self, ids: Sequence[str], vectors: Mapping[str, NDArray[Any]] | None = None) -> NDArray[np.float32]:
        """What a state is multiplied with, shape (ids, width + 1); the last column is the bias.

        An item that training never saw and that has no vector has a bias of -inf: it is never proposed. Raises
        ValueError when a vector is not of the encoder's length.
        """
        numbers, rows = self._numbered(list(dict.fromkeys(ids)), vectors)
        places = np.array([numbers[item_id] for item_id in ids], dtype=np.int64)
        with torch.inference_mode():
            tables = [self._rows(network, rows).cpu().numpy() for network in self._networks]
            biases = [self._biases(network, rows) for network in self._networks]
        bias = np.mean(biases, axis=0, dtype=np.float32).reshape(-1, 1)
        made = np.concatenate([*tables, bias], axis=1).astype(np.float32)
        return np.ascontiguousarray(made[places]) if len(ids) else np.empty((0, self.width + 1), dtype=np.float32)

    def own(self, histories: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """What items of each history add to their own scores, because they were read, by item id; nothing where the
        model has no `own_weight`. The newest `max_items` are read."""
        weight = self._sizes.own_weight
        if not weight:
            return [{} for _ in histories]
        counts = [Counter(history[-self._sizes.max_items :]) for history in histories]
        return [{item_id: weight * math.log1p(count) for item_id, count in of.items()} for of in counts]

    def confidence(self, scores: NDArray[Any], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of scores of all items that can be proposed, shape (n, m): the chance of each of the k best to be the next
        one, best first (of equal ones the first), shape (n, min(k, m)), and the chance that it is any of them, (n,)."""
        return confidences(scores, k, self._confidence)

    def _read(self, tables: Sequence[torch.Tensor], ids: torch.Tensor, lengths: NDArray[np.int64]) -> NDArray[Any]:
        """The states of one batch, those of several bodies beside one another, each weighing the same."""
        read = zip(self._networks, tables, strict=True)
        made = [network.last(table, ids.to(self.engine.device), lengths) / len(tables) for network, table in read]
        return torch.cat(made, dim=1).float().cpu().numpy()

    def _numbered(
        self, ids: Sequence[str], vectors: Mapping[str, NDArray[Any]] | None
    ) -> tuple[dict[str, int], list[int | NDArray[Any] | None]]:
        """Ids by their place in a table of their own, and what stands there: the model's number of an item, the vector
        of its text, or None."""
        rows: list[int | NDArray[Any] | None] = []
        for item_id in ids:
            known = self._places.get(item_id)
            vector = None if vectors is None or not self._sizes.text_width else vectors.get(item_id)
            if known is None and vector is not None:
                vector = np.asarray(vector, dtype=np.float32)
                if vector.shape != (self._sizes.text_width,):
                    raise ValueError(f"text vectors: expected {self._sizes.text_width} numbers, found {vector.shape}")
            rows.append(vector if known is None else known)
        return {item_id: place for place, item_id in enumerate(ids)}, rows

    def _rows(self, network: Network | Linear, rows: Sequence[int | NDArray[Any] | None]) -> torch.Tensor:
        """Unit vectors of what `_numbered` says, (rows, width); of an empty table one row, which nobody reads."""
        made = network.unknown.repeat(max(1, len(rows)), 1)
        known = [place for place, row in enumerate(rows) if isinstance(row, int)]
        told = [place for place, row in enumerate(rows) if isinstance(row, np.ndarray)]
        device = self.engine.device
        if known:
            numbers = torch.tensor([rows[place] for place in known], device=device)
            made[known] = network.embedding(numbers)
        if told and isinstance(network, Network) and network.text is not None:
            made[told] = network.text(torch.from_numpy(np.stack([rows[place] for place in told])).to(device))  # type: ignore[misc]
        return network.vectors(made)

    def _biases(self, network: Network | Linear, rows: Sequence[int | NDArray[Any] | None]) -> NDArray[np.float32]:
        bias, new = network.bias.cpu().numpy(), float(network.new_bias)
        return np.array(
            [bias[row] if isinstance(row, int) else -np.inf if row is None else new for row in rows], dtype=np.float32
        )


def confidences(scores: NDArray[Any], k: int, of: Confidence) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `SequenceModel.confidence`. The list's chance is the mass that a softmax at the fitted temperature gives it,
    through the isotonic map of the nearest k that was fitted; its items share it as the softmax has it."""
    if k < 1:
        raise ValueError(f"k: expected 1 or more, found {k}")
    given = np.asarray(scores, dtype=np.float64)
    if given.shape[1] == 0:
        return np.empty((len(given), 0)), np.zeros(len(given))
    weights = given / of.temperature
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    best = _best(given, k)
    chances = np.take_along_axis(weights, best, axis=1) / weights.sum(axis=1, keepdims=True)
    mass = chances.sum(axis=1)
    nearest = min(of.maps, key=lambda size: (abs(np.log(size / k)), size))
    points = np.array(of.maps[nearest])
    of_list = np.interp(mass, points[:, 0], points[:, 1])
    return chances * (of_list / mass)[:, None], of_list


def _best(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Places of the k greatest of each row, the greatest first, of equal ones the first; without sorting all."""
    count = scores.shape[1]
    k = min(k, count)
    least = np.partition(scores, count - k, axis=1)[:, count - k]
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, of in enumerate(scores):
        places = np.flatnonzero(of >= least[row])
        best[row] = places[np.argsort(-of[places], kind="stable")][:k]
    return best


def load(folder: Path, scorer_digest: bytes, gpu: str | None = None) -> SequenceModel:
    """Verify a sequence model against its card and the digest asked for, and load it. Raises CheckpointError."""
    checkpoint = open_checkpoint(folder.parent, folder.name, "sequence", scorer_digest)
    sizes = Sizes.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    device = device_of(gpu)
    networks = nn.ModuleDict({body: empty(sizes, body) for body in sizes.bodies})
    try:
        networks.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError:  # its message lists every name
        raise CheckpointError(f"{folder.name}: {WEIGHTS}: not the weights that config.json describes") from None
    item_ids = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
    made = [networks[body].to(device).eval() for body in sizes.bodies]
    return SequenceModel(made, sizes, item_ids, checkpoint.card, Host(device))  # type: ignore[arg-type]


def empty(sizes: Sizes, body: Body) -> Network | Linear:
    """One that waits for its weights."""
    return Linear(sizes) if body in CLOSED else Network(sizes, body)


def save(folder: Path, networks: Mapping[str, Network | Linear], sizes: Sizes, item_ids: Sequence[str]) -> None:
    """Write weights, sizes and ids into a folder that `checkpoint.seal` then takes."""
    state = nn.ModuleDict(dict(networks)).state_dict()
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    (folder / "config.json").write_text(sizes.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / ITEMS).write_text(json.dumps(list(item_ids), ensure_ascii=False) + "\n", encoding="utf-8")


def _batches(lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of like length together, the longest of a batch last."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * max(1, lengths[order[end]]) > _ITEMS_A_BATCH:
            yield order[start:end]
            start = end
