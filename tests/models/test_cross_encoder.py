"""Scores do not depend on their neighbours; what was cut is told; equal to transformers' own padded forward."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AttentionInterface, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from ecomspark.errors import CheckpointError
from ecomspark.models import attention, cross_encoder
from ecomspark.models.checkpoint import open_checkpoint
from ecomspark.models.encoder import Head

QUERIES = ["red mug", "teapot", "large wooden candle holder with a star for the garden wall", "x", "gift " * 30]
PASSAGES = ["red ceramic mug", "set of small glass plates", "clock", "white hanging heart " * 20, "cake [PAD] stand"]
PAIRS = ([query for query in QUERIES for _ in PASSAGES], PASSAGES * len(QUERIES))
PADDED = {"mpnet", "deberta-v2"}  # they do not declare the attention interface


def plain(folder: Path, style: str, query: str, passage: str) -> tuple[float, int]:
    """The logit by transformers' own forward of one pair, after the caps of `tiny.checkpoint`, and its token count."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), tiny.tokenizer(style)
    offsets = tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    capped = query[: offsets[:12][-1][1]]
    inputs = tokenizer(capped, passage, truncation="only_second", max_length=48, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0, 0].item(), inputs["input_ids"].shape[1]


@pytest.mark.parametrize("style", tiny.ARCHITECTURES)
def test_logits_equal_the_plain_forward_one_pair_at_a_time(tmp_path: Path, style: str) -> None:
    made = tiny.checkpoint(tmp_path, style=style)
    expected = [plain(made.folder, style, query, passage) for query, passage in zip(*PAIRS, strict=True)]
    for budget in (1, 60, 10_000):
        scorer = cross_encoder.load(made.folder, made.scorer_digest, token_budget=budget)
        scores = scorer.score(*PAIRS)
        assert np.ptp(scores.logits) > 0.01, "the pairs differ, so mixing them up would be seen"
        assert scores.logits == pytest.approx([logit for logit, _ in expected], abs=1e-5)
        assert scores.token_counts.tolist() == [count for _, count in expected]
        costs = scorer.engine.costs
        assert costs.tokens == sum(count for _, count in expected), "every token once"
        assert (costs.padding == 0) == (style not in PADDED or budget == 1), "padding only where it must be"
        assert (costs.batches == len(expected)) == (budget == 1)
    assert scores.cut_query_tokens[-1] == 30 - 12
    assert scores.cut_passage_tokens[3] > 0
    assert np.all(scores.activations == pytest.approx(1 / (1 + np.exp(-scores.logits.astype(float)))))


@pytest.mark.parametrize(("data_type", "apart"), [("bf16", 0.05), ("fp16", 0.01), ("int8", 0.05)])
@pytest.mark.parametrize("style", ["bert", "modernbert"])
def test_other_types_are_other_scorers_and_stay_near_fp32(
    tmp_path: Path, data_type: Any, apart: float, style: str
) -> None:
    made = tiny.checkpoint(tmp_path, style=style)
    single = cross_encoder.load(made.folder, made.scorer_digest, token_budget=500).score(*PAIRS).logits
    digest = open_checkpoint(tmp_path, made.name, data_type=data_type).scorer_digest
    assert digest != made.scorer_digest
    scorer = cross_encoder.load(made.folder, digest, token_budget=500, data_type=data_type)
    found = scorer.score(*PAIRS)
    assert found.logits.dtype == np.float32
    assert len(np.unique(found.logits)) > 20, "logits keep the resolution of fp32"
    scale = float(np.abs(single).max())
    assert 0 < np.abs(found.logits - single).max() <= apart * scale
    assert scorer.engine.costs.padding == 0
    # A score does not depend on its neighbours: of int8 least of all, where a scale a batch would make it so.
    alone = [scorer.score([query], [passage]).logits[0] for query, passage in zip(*PAIRS, strict=True)]
    assert alone == pytest.approx(found.logits, abs=(1e-5 if data_type == "int8" else apart / 5) * scale)
    with pytest.raises(CheckpointError, match="another scorer than the driver's"):
        cross_encoder.load(made.folder, made.scorer_digest, token_budget=500, data_type=data_type)


@pytest.mark.parametrize("data_type", ["bf16", "int8"])
def test_the_head_stays_in_fp32(tmp_path: Path, data_type: Any) -> None:
    made = tiny.checkpoint(tmp_path)
    digest = open_checkpoint(tmp_path, made.name, data_type=data_type).scorer_digest
    scorer = cross_encoder.load(made.folder, digest, token_budget=500, data_type=data_type)
    head = inspect.getclosurevars(scorer.engine._finish).nonlocals["head"]
    assert isinstance(head._given.pooler.dense, torch.nn.Linear)
    assert {parameter.dtype for parameter in head._given.pooler.parameters()} == {torch.float32}
    encoder = scorer.engine._encoder._model
    kinds = {type(module).__name__ for module in encoder.modules()}
    assert ("Int8Linear" in kinds) == (data_type == "int8")
    assert (next(encoder.parameters()).dtype == torch.bfloat16) == (data_type == "bf16")


def test_a_head_that_reads_another_token_is_refused() -> None:
    class Last(torch.nn.Module):
        """A classifier of the last token's vector, as decoders have it."""

        base_model_prefix = "bert"

        def __init__(self) -> None:
            super().__init__()
            whole = tiny.model("cross_encoder")
            self.bert, self.classifier, self.config = whole.bert, whole.classifier, whole.config

        @property
        def base_model(self) -> Any:
            return self.bert

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            last = hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
            return SequenceClassifierOutput(logits=self.classifier(last))

    with pytest.raises(ValueError, match="neither the first token nor the mean"):
        Head(Last())


def test_packed_is_given_up_where_it_would_not_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.checkpoint(tmp_path)
    expected = cross_encoder.load(made.folder, made.scorer_digest, token_budget=500).score(*PAIRS).logits

    def without_kernel(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for this device")

    def heedless(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
        """Attention across all sequences, as if they were one."""
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    for fault in (without_kernel, heedless):
        monkeypatch.setitem(AttentionInterface._global_mapping, attention.PACKED, fault)
        scorer = cross_encoder.load(made.folder, made.scorer_digest, token_budget=500)
        assert not scorer.engine._encoder.is_packed
        assert scorer.score(*PAIRS).logits == pytest.approx(expected, abs=1e-5)
        assert scorer.engine.costs.padding > 0


def test_distinct_strong_matches_stay_apart() -> None:
    scores = cross_encoder.Scores(np.array([20.0, 20.001], dtype=np.float32), *[np.zeros(2, dtype=np.int32)] * 3)
    assert scores.activations[0] < scores.activations[1] < 1


def test_no_pairs_no_scores(tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path)
    scorer = cross_encoder.load(made.folder, made.scorer_digest, token_budget=100)
    assert len(scorer.score([], []).logits) == 0
    with pytest.raises(ValueError, match="1 queries for 2 passages"):
        scorer.score(["a"], ["b", "c"])
