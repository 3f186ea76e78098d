"""An encoder that nothing is known to yet: a WordPiece vocabulary learnt from texts, and a BERT of a given size.

For languages that no installed weights can read. Chinese characters, which are written without blanks, stand alone.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

POSITIONS = 512  # that it can tell apart; those behind the longest text that it was trained on stay as they were drawn

_PAD, _UNKNOWN, _FIRST, _LAST, _MASK = _SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET_SHARE = 0.75  # of the vocabulary at most, so that words have room beside the characters of Chinese
_SEEN_AT_LEAST = 2


class Size(BaseModel):
    """How large a new encoder is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(gt=0)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    inner_width: int = Field(gt=0)
    vocabulary: int = Field(gt=100)


def new_tokenizer(texts: Sequence[str], vocabulary: int, is_lowercase: bool) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of at most about `vocabulary` tokens, learnt from the texts. The same texts give
    the same tokenizer, ids included."""
    made = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    made.normalizer = normalizers.BertNormalizer(lowercase=is_lowercase, handle_chinese_chars=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet, inside = _alphabet(made.normalizer, texts, int(_ALPHABET_SHARE * vocabulary))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        # The characters inside words are given ids here, too: the trainer would number them in the order of a hash
        # table, which is another one each time, and settles ties between pieces by their numbers.
        special_tokens=[*_SPECIALS, *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        min_frequency=_SEEN_AT_LEAST,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    ids = made.get_vocab()

    whole = Tokenizer(models.WordPiece(ids, unk_token=_UNKNOWN))  # what was trained takes `inside` for special
    whole.normalizer, whole.pre_tokenizer = made.normalizer, made.pre_tokenizer
    whole.post_processor = processors.TemplateProcessing(
        single=f"{_FIRST} $A {_LAST}",
        pair=f"{_FIRST} $A {_LAST} $B:1 {_LAST}:1",
        special_tokens=[(name, ids[name]) for name in (_FIRST, _LAST)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=whole,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        cls_token=_FIRST,
        sep_token=_LAST,
        mask_token=_MASK,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    )


def new_model(size: Size, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A BERT with an MLM head, its weights drawn from torch's generator as it stands."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.inner_width,
            max_position_embeddings=POSITIONS,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _alphabet(normalizer: Any, texts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and, as pieces, those of them that are also seen inside words."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for text in texts:
        for word in normalizer.normalize_str(text).split():
            counts.update(word)
            inside.update(word[1:])
    kept = [character for character, count in counts.items() if count >= _SEEN_AT_LEAST]
    alphabet = sorted(kept, key=lambda character: (-counts[character], character))[:most]
    # The pre-tokenizer takes punctuation out of words.
    return alphabet, [f"##{c}" for c in alphabet if c in inside and not unicodedata.category(c).startswith("P")]
