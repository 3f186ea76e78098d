"""What people would otherwise run, each at its best, over the same rows: for Spark stages and without Spark.

`predict_batch_udf` as Spark's documentation writes it; sentence-transformers' `CrossEncoder.predict` and
`SentenceTransformer.encode` inside `mapInPandas` or `mapInArrow`; and loops without Spark, tuned by hand, which are the
limit: padded and sorted under a token budget, and packed.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from mix import MAX_TOKENS
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

_kept: dict[tuple[str, str], Any] = {}  # a worker keeps its model between tasks, as ours does


def once(name: str, folder: str, make: Callable[[], Any]) -> Any:
    """What a careful user does: the model made once a worker."""
    if (name, folder) not in _kept:
        import torch

        torch.set_num_threads(1)
        _kept[name, folder] = make()
    return _kept[name, folder]


def predict_batch_udf(pairs: DataFrame, folder: str, batch_size: int) -> DataFrame:
    """Fixed batches, padded to their longest, in table order: as the Spark documentation has it."""
    from pyspark.ml.functions import predict_batch_udf as spark_udf
    from pyspark.sql.types import FloatType

    def make() -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        model = once("plain", folder, lambda: AutoModelForSequenceClassification.from_pretrained(folder).eval())
        tokenizer = once("tokenizer", folder, lambda: AutoTokenizer.from_pretrained(folder))

        def predict(queries: Any, passages: Any) -> Any:
            inputs = tokenizer(
                list(queries), list(passages), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            with torch.inference_mode():
                return model(**inputs).logits[:, 0].numpy()

        return predict

    udf = spark_udf(make, return_type=FloatType(), batch_size=batch_size)
    return pairs.select("id", udf(F.col("query_text"), F.col("passage_text")).alias("logit"))


def cross_encoder_predict(pairs: DataFrame, folder: str, batch_size: int) -> DataFrame:
    def scored(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from sentence_transformers import CrossEncoder

        model = once("predict", folder, lambda: CrossEncoder(folder, max_length=MAX_TOKENS, device="cpu"))
        for frame in frames:
            rows = list(zip(frame["query_text"], frame["passage_text"], strict=True))
            logits = model.predict(rows, batch_size=batch_size, show_progress_bar=False)
            yield pd.DataFrame({"id": frame["id"], "logit": logits.astype("float32")})

    return pairs.mapInPandas(scored, "id long, logit float")


def sentence_transformer_encode(texts: DataFrame, folder: str, batch_size: int) -> DataFrame:
    def embedded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        model = once("encode", folder, lambda: sentence_transformer(folder))
        for batch in batches:
            passages = batch.column("text").to_pylist()
            vectors = model.encode(passages, batch_size=batch_size, show_progress_bar=False)
            offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))
            yield pa.RecordBatch.from_arrays([batch.column("id"), lists], names=["id", "vector"])

    return texts.mapInArrow(embedded, "id long, vector array<float>")


def sentence_transformer(folder: str, device: str = "cpu") -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer

    words = Transformer(folder, max_seq_length=MAX_TOKENS)
    width = words.get_embedding_dimension()
    return SentenceTransformer(modules=[words, Pooling(width, "mean"), Normalize()], device=device)


def loops(
    folder: str, rows: pd.DataFrame, token_budget: int, is_onednn: bool
) -> dict[str, Callable[[], tuple[float, np.ndarray]]]:
    """Two loops without Spark: seconds and logits. Tokenising is inside: a stage has to do it, too."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend
    from transformers import AttentionInterface, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.masking_utils import AttentionMaskInterface

    def apart(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **more: Any) -> Any:
        parts = [tensor.split(more["lengths"], dim=2) for tensor in (query, key, value)]
        joined = [attend(q, k, v, scale=scaling).transpose(1, 2) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(joined, dim=1), None

    AttentionInterface.register("loop", apart)
    AttentionMaskInterface.register("loop", lambda *_, **__: None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    flat = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="loop").eval()
    queries, passages = list(rows["query_text"]), list(rows["passage_text"])

    class OneDnn(torch.nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, inputs: Any) -> Any:
            tokens = inputs.reshape(-1, inputs.shape[-1])
            made = torch.ops.mkldnn._linear_pointwise(tokens, self.linear.weight, self.linear.bias, "none", [], "")
            return made.view(*inputs.shape[:-1], -1)

    # The same matrix products for the loops: what is compared is all that stands around them.
    for model in (plain, flat) if is_onednn else ():
        for name, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.Linear):
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], OneDnn(layer))

    def tokenised() -> Any:
        return tokenizer(queries, passages, truncation="only_second", max_length=MAX_TOKENS)

    def padded_loop() -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        made = tokenised()
        lengths = np.array([len(ids) for ids in made["input_ids"]])
        order, logits, at = np.argsort(-lengths, kind="stable"), np.empty(len(rows), dtype=np.float32), 0
        with torch.inference_mode():
            while at < len(order):
                chosen = order[at : at + max(1, token_budget // lengths[order[at]])]
                inputs = tokenizer.pad(
                    {name: [of[i] for i in chosen] for name, of in made.items()}, return_tensors="pt"
                )
                logits[chosen] = plain(**inputs).logits[:, 0].numpy()
                at += len(chosen)
        return time.perf_counter() - start, logits

    def packed_loop() -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        made = tokenised()
        lengths, logits, at = [len(ids) for ids in made["input_ids"]], np.empty(len(rows), dtype=np.float32), 0
        with torch.inference_mode():
            while at < len(lengths):
                end, total = at, 0
                while end < len(lengths) and (end == at or total + lengths[end] <= token_budget):
                    total, end = total + lengths[end], end + 1
                ids = torch.tensor([t for one in made["input_ids"][at:end] for t in one])[None]
                types = torch.tensor([t for one in made["token_type_ids"][at:end] for t in one])[None]
                places = torch.cat([torch.arange(length) for length in lengths[at:end]])[None]
                hidden = flat.bert(ids, token_type_ids=types, position_ids=places, lengths=lengths[at:end])[0][0]
                firsts = hidden[np.cumsum([0, *lengths[at : end - 1]])]
                logits[at:end] = flat.classifier(flat.bert.pooler(firsts[:, None]))[:, 0].numpy()
                at = end
        return time.perf_counter() - start, logits

    return {"padded": padded_loop, "packed": packed_loop}
