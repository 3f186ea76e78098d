"""Scores do not depend on their neighbours; what was cut is told; equal to transformers' own forward."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from ecomspark.models import cross_encoder
from ecomspark.models.pairs import PairTokenizer, batches

QUERIES = ["red mug", "teapot", "large wooden candle holder with a star for the garden wall", "x", "gift " * 30]
PASSAGES = ["red ceramic mug", "set of small glass plates", "clock", "white hanging heart " * 20, "cake stand"]


@pytest.mark.parametrize("style", ["bert", "roberta"])
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_logits_equal_the_plain_forward_one_pair_at_a_time(tmp_path: Path, style: str, budget: int) -> None:
    made = tiny.checkpoint(tmp_path, style=style)
    scorer = cross_encoder.load(made.folder, made.scorer_digest, None, budget)
    queries = [query for query in QUERIES for _ in PASSAGES]
    passages = PASSAGES * len(QUERIES)
    scores = scorer.score(queries, passages)

    model = AutoModelForSequenceClassification.from_pretrained(made.folder).eval()
    tokenizer = tiny.tokenizer(style)  # type: ignore[arg-type]
    for i, (query, passage) in enumerate(zip(queries, passages, strict=True)):
        offsets = tokenizer(query, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        capped = query[: offsets[:12][-1][1]]
        inputs = tokenizer(capped, passage, truncation="only_second", max_length=48, return_tensors="pt")
        with torch.no_grad():
            plain = model(**inputs).logits[0, 0].item()
        assert scores.logits[i] == pytest.approx(plain, abs=1e-5)
        assert scores.token_counts[i] == inputs["input_ids"].shape[1]
    long_query, long_passage = scores.cut_query_tokens[-1], scores.cut_passage_tokens[3]
    assert long_query == 30 - 12
    assert long_passage > 0
    assert np.all(scores.activations == pytest.approx(1 / (1 + np.exp(-scores.logits.astype(float)))))


def test_distinct_strong_matches_stay_apart() -> None:
    scores = cross_encoder.Scores(np.array([20.0, 20.001], dtype=np.float32), *[np.zeros(2, dtype=np.int32)] * 3)
    assert scores.activations[0] < scores.activations[1] < 1


TEXTS = st.text(st.sampled_from([*"abcdefghij 0123456789.,'-<>&éß漢字\u200b\t"]), max_size=60)


@given(query=TEXTS, passage=TEXTS)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("style", ["bert", "roberta"])
def test_ids_equal_the_tokenizers_own_after_the_same_caps(style: str, query: str, passage: str) -> None:
    tokenizer = tiny.tokenizer(style)  # type: ignore[arg-type]
    pairs = PairTokenizer(tokenizer, query_max_tokens=1000, max_tokens=2000)([query], [passage])
    own = tokenizer([query], [passage], return_token_type_ids=True)
    assert pairs.ids[0].tolist() == own["input_ids"][0]
    if style == "bert":
        assert pairs.type_ids is not None
        assert pairs.type_ids[0].tolist() == own["token_type_ids"][0]
    else:
        assert pairs.type_ids is None

    cut = PairTokenizer(tokenizer, query_max_tokens=5, max_tokens=16)([query], [passage])
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    query_ids = tokenizer(query, add_special_tokens=False)["input_ids"]
    passage_ids = tokenizer(passage, add_special_tokens=False)["input_ids"]
    assert cut.cut_query_tokens[0] == max(0, len(query_ids) - 5)
    room = 16 - specials - min(5, len(query_ids))
    assert cut.cut_passage_tokens[0] == max(0, len(passage_ids) - room)
    assert cut.token_counts[0] == len(cut.ids[0]) <= 16


@given(counts=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(1, 1000))
@settings(deadline=None)
def test_batches_hold_each_row_once_within_the_budget(counts: list[int], budget: int) -> None:
    found = list(batches(np.array(counts, dtype=np.int32), budget))
    assert sorted(row for batch in found for row in batch) == list(range(len(counts)))
    for batch in found:
        longest = max(counts[row] for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_no_pairs_no_scores(tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path)
    scorer = cross_encoder.load(made.folder, made.scorer_digest, None, 100)
    assert len(scorer.score([], []).logits) == 0
    with pytest.raises(ValueError, match="1 queries for 2 passages"):
        scorer.score(["a"], ["b", "c"])


def test_caps_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        PairTokenizer(tiny.tokenizer(), query_max_tokens=10, max_tokens=12)
