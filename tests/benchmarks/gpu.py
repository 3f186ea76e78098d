"""The model side alone, without Spark or Java, on whatever GPU there is: how much of it the engine uses.

    python tests/benchmarks/gpu.py --out gpu.json        (make gpu OUT=gpu.json)

Needs torch, transformers, sentence-transformers, pandas, pyarrow, pydantic and regex; nothing from elsewhere. Encoders of the
sizes of MiniLM-L6 and BERT-base with random, seeded weights, which do for speed; a WordPiece tokenizer trained on the mix's
own texts. Share of peak: matrix products of real tokens (linear layers and attention; no embeddings, no padding) against
the dense peak that the vendor states for the type, where the device's name is known. Without a GPU, `--size tiny` runs the
same code on CPU: that is what the test does, and its figures mean nothing.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
# The tokenizer and torch take the machine's cores, as a GPU's task would be given several; read when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from figures import Figure, as_table, judged  # noqa: E402
from mix import MAX_TOKENS, QUERY_MAX_TOKENS, pairs  # noqa: E402
from tokenizers import BertWordPieceTokenizer  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast  # noqa: E402

from ecomspark.models import cross_encoder  # noqa: E402
from ecomspark.models.checkpoint import Card, Checkpoint, DataType, open_checkpoint, seal, workroom  # noqa: E402
from ecomspark.models.costs import Costs  # noqa: E402
from ecomspark.models.engine import stream  # noqa: E402
from ecomspark.models.tokens import Texts  # noqa: E402

SIZES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
# Dense peaks in 10^12 operations a second, as NVIDIA's data sheets state them: half precision, fp32 (without TF32).
PEAKS = {
    "H100 80GB HBM3": {"half": 989.0, "fp32": 67.0},
    "H200": {"half": 989.0, "fp32": 67.0},
    "A100": {"half": 312.0, "fp32": 19.5},
}
VOCABULARY = 30_522


def make_checkpoint(models: Path, size: str, rows: pd.DataFrame) -> Checkpoint:
    made = workroom(models)
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator([*rows["query_text"], *rows["passage_text"]], vocab_size=VOCABULARY, min_frequency=1)
    specials = [("[CLS]", words.token_to_id("[CLS]")), ("[SEP]", words.token_to_id("[SEP]"))]
    words._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=512, model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )  # fmt: skip
    tokenizer.save_pretrained(made)
    torch.manual_seed(11)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, num_labels=1, initializer_range=0.1, **SIZES[size])
    )
    model.save_pretrained(made, safe_serialization=True)
    card = Card(kind="cross_encoder", base="random", max_tokens=MAX_TOKENS, query_max_tokens=QUERY_MAX_TOKENS,
                calibration=[(-1.0, 0.2), (1.0, 0.8)])  # fmt: skip
    return seal(made, models, size, card)


def operations(size: str, lengths: np.ndarray) -> float:
    """Of the matrix products over real tokens: linear layers, scores and sums of attention; a multiply-add is two."""
    width, layers = SIZES[size]["hidden_size"], SIZES[size]["num_hidden_layers"]
    linear = 2 * (4 * width**2 + 2 * width * SIZES[size]["intermediate_size"])
    return float(layers * (linear * lengths.sum() + 4 * width * (lengths.astype(float) ** 2).sum()))


def synchronised(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def windows(rows: pd.DataFrame, size: int) -> Iterator[pd.DataFrame]:
    for start in range(0, len(rows), size):
        yield rows.iloc[start : start + size]


def measure(
    size: str, data_type: DataType, folder: Path, rows: pd.DataFrame, turns: int
) -> tuple[list[Figure], np.ndarray]:
    made = open_checkpoint(folder, size, "cross_encoder", data_type=data_type)
    scorer = cross_encoder.load(made.folder, made.scorer_digest, data_type=data_type)
    encoder, device = scorer.engine._encoder, scorer.engine._encoder.device
    window = min(4_096, max(64, scorer.engine.token_budget * 8 // 106))  # as the gate cuts them

    def prepare(some: pd.DataFrame) -> Any:
        return scorer.prepare(Texts.of(list(some["query_text"])), Texts.of(list(some["passage_text"])))

    def streamed(costs: Costs) -> tuple[float, np.ndarray]:
        scorer.engine.costs = costs
        start, logits = time.perf_counter(), []
        for _, answer in stream(windows(rows, window), prepare, scorer.start, costs, scorer.engine.is_asynchronous):
            if isinstance(answer, Exception):
                raise answer
            logits.append(answer.logits)
        return time.perf_counter() - start, np.concatenate(logits)

    staged = [prepare(some) for some in windows(rows, window)]
    lengths = np.concatenate([cut.sequences.token_counts for cut in staged])

    def on_device() -> float:
        """A loop over tensors that are on the device already: nothing to read, nothing to tokenise."""
        synchronised(device)
        start = time.perf_counter()
        with torch.inference_mode():
            for cut in staged:
                for _, batch in cut.batches:
                    scorer.engine._finish(encoder(batch))
        synchronised(device)
        return time.perf_counter() - start

    def padded() -> float:
        encoder.is_packed = False
        encoder._implement(False)
        try:
            return streamed(Costs())[0]
        finally:
            encoder.is_packed = was_packed
            encoder._implement(was_packed)

    was_packed = encoder.is_packed
    predict = sentence_transformers_predict(made.folder, data_type, rows, device)
    taken: dict[str, list[float]] = {"ours": [], "on device": [], "padded": [], "predict": []}
    waiting: list[float] = []
    logits, peak_memory = np.empty(0), 0
    for turn in range(turns + 1):
        costs = Costs()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds, logits = streamed(costs)
        peak_memory = scorer.engine.peak_memory()
        found = {"ours": seconds, "on device": on_device(), "padded": padded(), "predict": predict()}
        if turn:
            waiting.append(costs.waiting / seconds)
            for name, value in found.items():
                taken[name].append(value)
    kind = "half" if data_type in ("fp16", "bf16") else "fp32"
    name = device_name()
    peak = next((peaks[kind] for known, peaks in PEAKS.items() if known in name), None)
    place = f"{name}, {size}, {data_type}"
    figures = [
        judged(f"{place}: mean tokens of a pair", [float(lengths.mean())]),
        judged(f"{place}: tokens per second", [lengths.sum() / seconds for seconds in taken["ours"]]),
        judged(f"{place}: packed" if was_packed else f"{place}: padded", [1.0]),
        judged(f"{place}: against padded and sorted", ratios(taken, "padded")),
        judged(f"{place}: against CrossEncoder.predict at its best", ratios(taken, "predict")),
        judged(f"{place}: of a loop over tensors on the device", ratios(taken, "on device"), "aim >= 0.85"),
        judged(f"{place}: share of the time waiting for the tokenizer", waiting),
        judged(f"{place}: memory at most, GiB", [peak_memory / 2**30]),
        judged(f"{place}: token budget found", [float(scorer.engine.token_budget)]),
    ]
    if peak is not None:
        shares = [operations(size, lengths) / seconds / (peak * 1e12) for seconds in taken["ours"]]
        aim = "aim >= 0.35" if (size, kind) == ("BERT-base", "half") else ""
        figures.append(judged(f"{place}: share of a peak of {peak:g} x 10^12", shares, aim))
    return figures, logits


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def ratios(taken: dict[str, list[float]], peer: str) -> list[float]:
    return [theirs / mine for theirs, mine in zip(taken[peer], taken["ours"], strict=True)]


def sentence_transformers_predict(
    folder: Path, data_type: DataType, rows: pd.DataFrame, device: torch.device
) -> Callable[[], float]:
    """Its seconds over the same rows, at the best of three batch sizes, in the same type."""
    from sentence_transformers import CrossEncoder

    torch_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[data_type]
    model = CrossEncoder(str(folder), max_length=MAX_TOKENS, device=str(device), model_kwargs={"dtype": torch_type})
    given = list(zip(rows["query_text"], rows["passage_text"], strict=True))

    def predict(batch_size: int, some: list[tuple[str, str]]) -> float:
        start = time.perf_counter()
        model.predict(some, batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - start

    sizes = (64, 256, 1024) if device.type == "cuda" else (8, 16, 32)
    few = given[: max(64, len(given) // 8)]
    for size in sizes:
        predict(size, few)
    best = min(sizes, key=lambda size: predict(size, few))
    return lambda: predict(best, given)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--size", nargs="*", choices=list(SIZES), default=["MiniLM-L6", "BERT-base"])
    parser.add_argument("--type", nargs="*", choices=["fp32", "fp16", "bf16"], default=["fp32", "fp16", "bf16"])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available() and asked.size != ["tiny"]:
        print("no GPU here: --size tiny runs the same code on CPU, for a test of it only", file=sys.stderr)
        return 2
    rows = pairs(asked.rows)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in asked.size:
            make_checkpoint(Path(folder), size, rows)
            logits: dict[str, np.ndarray] = {}
            for data_type in asked.type:
                figures, logits[data_type] = measure(size, data_type, Path(folder), rows, asked.turns)
                found += figures
                if data_type != "fp32" and "fp32" in logits:
                    ranks = pd.Series(logits[data_type]).corr(pd.Series(logits["fp32"]), method="spearman")
                    found.append(
                        judged(
                            f"{device_name()}, {size}, {data_type}: Spearman with fp32", [float(ranks)], "aim >= 0.999"
                        )
                    )
                asked.out.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    print(as_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
