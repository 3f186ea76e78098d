"""Ids computed once a distinct text and assembled are the tokenizer's own after the same caps."""

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ecomspark.models.checkpoint import CHARACTERS_A_TOKEN
from ecomspark.models.encoder import in_order, padded, sorted_by_length
from ecomspark.models.tokens import SequenceTokenizer, Texts

REAL = ["red ceramic mug", "WHITE HANGING HEART T-LIGHT HOLDER", "cake stand", "gift " * 40, "a", "set/6 egg cups"]
AWKWARD = ["", " ", "\x00", "\ufeffred", "e\u0301clair", "👩\u200d👩\u200d👧", "\u202ered", "白いカップ", "แก้วน้ำ", "ｒｅｄ",
           "x" * 3_000, "<b>red</b>", "=1+1", "{{red}}", "'; DROP", "../red", "[SEP] mug [CLS]", "[PAD]"]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(REAL + AWKWARD),
    st.text(max_size=80),
    st.lists(st.sampled_from(tiny.WORDS), max_size=60).map(" ".join),
)
STYLES = ["bert", "roberta"]


@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
@example(pairs=[(query, passage) for query in AWKWARD for passage in AWKWARD])
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("style", STYLES)
def test_ids_equal_the_tokenizers_own_after_the_same_caps(style: str, pairs: list[tuple[str, str]]) -> None:
    tokenizer = tiny.tokenizer(style)
    queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
    made = SequenceTokenizer(tokenizer, max_tokens=32, query_max_tokens=9).pairs(Texts.of(queries), Texts.of(passages))
    for row, (query, passage) in enumerate(pairs):
        # The same caps in the tokenizer's own words: the query alone to its length, then only the passage.
        whole_query = tokenizer(query[: 9 * CHARACTERS_A_TOKEN], add_special_tokens=False)["input_ids"]
        whole_passage = tokenizer(passage[: 32 * CHARACTERS_A_TOKEN], add_special_tokens=False)["input_ids"]
        specials = tokenizer.num_special_tokens_to_add(pair=True)
        room = 32 - specials - min(9, len(whole_query))
        own = frame(style, whole_query[:9], whole_passage[:room])
        start, end = made.ids.starts[row : row + 2]
        assert made.ids.flat[start:end].tolist() == own["input_ids"]
        if style == "bert":
            assert made.type_ids is not None
            assert made.type_ids[start:end].tolist() == own["token_type_ids"]
        else:
            assert made.type_ids is None
        assert made.cut_query_tokens[row] == max(0, len(whole_query) - 9)
        assert made.cut_passage_tokens[row] == max(0, len(whole_passage) - room)
        assert made.token_counts[row] == end - start <= 32


def frame(style: str, query: list[int], passage: list[int]) -> dict[str, list[int]]:
    cls, sep = tiny.VOCABULARY["[CLS]"], tiny.VOCABULARY["[SEP]"]
    if style == "bert":
        ids = [cls, *query, sep, *passage, sep]
        return {"input_ids": ids, "token_type_ids": [0] * (len(query) + 2) + [1] * (len(passage) + 1)}
    return {"input_ids": [cls, *query, sep, sep, *passage, sep]}


@given(query=TEXT, passage=TEXT)
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("style", STYLES)
def test_ids_that_need_no_cut_equal_the_tokenizers_own_call(style: str, query: str, passage: str) -> None:
    tokenizer = tiny.tokenizer(style)
    made = SequenceTokenizer(tokenizer, 9_000, 4_000).pairs(Texts.of([query]), Texts.of([passage]))
    own = tokenizer([query], [passage], return_token_type_ids=True)
    assert made.ids.flat.tolist() == own["input_ids"][0]
    if made.type_ids is not None:
        assert made.type_ids.tolist() == own["token_type_ids"][0]
    alone = SequenceTokenizer(tokenizer, 9_000).texts(Texts.of([passage, query]), prefix="gift ")
    for row, text in enumerate([passage, query]):
        start, end = alone.ids.starts[row : row + 2]
        assert alone.ids.flat[start:end].tolist() == tokenizer("gift " + text)["input_ids"]


def test_each_distinct_text_is_tokenised_once() -> None:
    tokenizer = SequenceTokenizer(tiny.tokenizer(), 48, 12)
    seen: list[str] = []
    backend = tokenizer._backend

    class Counting:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> object:
            seen.extend(texts)
            return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    tokenizer._backend = Counting()
    tokenizer.pairs(Texts.of(["red", "mug", "red", "red"]), Texts.of(["cup", "cup", "plate", "cup"]))
    assert sorted(seen) == ["cup", "mug", "plate", "red"]


def test_a_text_of_ten_million_characters_costs_its_cap() -> None:
    tokenizer = SequenceTokenizer(tiny.tokenizer(), 48, 12)
    read: list[int] = []
    backend = tokenizer._backend

    class Measuring:
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> object:
            read.extend(map(len, texts))
            return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    tokenizer._backend = Measuring()
    made = tokenizer.pairs(Texts.of(["gift " * 2_000_000]), Texts.of(["mug " * 2_500_000]))
    assert read == [12 * CHARACTERS_A_TOKEN, 48 * CHARACTERS_A_TOKEN]
    assert made.token_counts.tolist() == [48]
    assert made.cut_query_tokens[0] > 0
    assert made.cut_passage_tokens[0] > 0


def test_another_callers_truncation_changes_nothing() -> None:
    shared = tiny.tokenizer()
    shared(["a"], truncation=True, max_length=4, padding="max_length")
    made = SequenceTokenizer(shared, 48).texts(Texts.of(["red mug cup plate", "red"]))
    assert made.token_counts.tolist() == [6, 3]


def test_rows_of_one_text_share_it() -> None:
    texts = Texts.of(["a", "b", "a", "c", "b"])
    assert (texts.distinct, texts.rows.tolist()) == (["a", "b", "c"], [0, 1, 0, 2, 1])


def test_caps_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves no room for a passage behind 10"):
        SequenceTokenizer(tiny.tokenizer(), max_tokens=12, query_max_tokens=10)
    with pytest.raises(ValueError, match="leaves no room for a text"):
        SequenceTokenizer(tiny.tokenizer(), max_tokens=2)


COUNTS = st.lists(st.integers(1, 300), max_size=60)


@given(counts=COUNTS, budget=st.integers(1, 1000))
@settings(deadline=None)
def test_batches_hold_each_row_once_within_the_budget(counts: list[int], budget: int) -> None:
    of = np.array(counts, dtype=np.int32)
    for batches, size in ((in_order, of.sum), (sorted_by_length, None)):
        found = list(batches(of, budget))
        assert sorted(row for batch in found for row in batch) == list(range(len(counts)))
        for batch in found:
            used = of[batch].sum() if size else of[batch].max() * len(batch)
            assert len(batch) == 1 or used <= budget
    flat = [row for batch in in_order(of, budget) for row in batch]
    assert flat == list(range(len(counts))), "packed rows keep their order"


def test_packed_batches_are_of_about_equal_size() -> None:
    # 10 rows of 100 tokens under a budget of 400: three batches of 3 or 4, never 4, 4, 2.
    found = [len(batch) for batch in in_order(np.full(10, 100, dtype=np.int32), 400)]
    assert found == [3, 3, 4]


def test_padding_goes_to_the_right_of_the_longest() -> None:
    tokenizer = SequenceTokenizer(tiny.tokenizer(), 48, 12)
    made = tokenizer.pairs(Texts.of(["red", "red"]), Texts.of(["mug", "mug cup plate"]))
    inputs = padded(made, np.array([1, 0]), tokenizer.padding_id)
    assert inputs["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert inputs["input_ids"][1, 5:].tolist() == [0, 0]
    assert inputs["token_type_ids"].tolist() == [[0] * 3 + [1] * 4, [0] * 3 + [1] * 2 + [0] * 2]
