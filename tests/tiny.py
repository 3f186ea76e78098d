"""Tiny seeded models, made in a second, that behave like the large ones, of every architecture the engine is tried on."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from ecomspark.models.checkpoint import Card, Checkpoint, seal, workroom

WORDS = """
    red blue green mug cup plate teapot candle holder glass ceramic wooden metal set of with for garden kitchen
    heart star tree box tin bag small large pink white hanging gift paper light lamp clock wall door sign cake stand
""".split()  # noqa: SIM905
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIALS, *WORDS, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
                                                  *"abcdefghijklmnopqrstuvwxyz0123456789"])}  # fmt: skip


def tokenizer(style: str = "bert") -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = ("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])
    if style not in WITHOUT_TYPES:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
        )
    else:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[cls, sep]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=512,
        model_input_names=["input_ids", "attention_mask"] + ([] if style in WITHOUT_TYPES else ["token_type_ids"]),
    )  # fmt: skip


_SIZES = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 514, "initializer_range": 0.2, "num_labels": 1,
}  # fmt: skip

# Every kind of encoder that the engine is tried on, with what its configuration needs beside the common sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    # Positions from 2, as the real ones have them: their padding id is 1.
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "albert": {"embedding_size": 16, "classifier_dropout_prob": 0.0},
    # Local attention over eight tokens to each side in every second layer, so that the texts of tests are longer.
    "modernbert": {"pad_token_id": 0, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2,
                   "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "initializer_cutoff_factor": 2.0},
    "modernbert-mean": {"classifier_pooling": "mean"},
    "mpnet": {"pad_token_id": 0},
    "deberta-v2": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]},
}  # fmt: skip
ARCHITECTURES["modernbert-mean"] |= ARCHITECTURES["modernbert"]
WITHOUT_TYPES = {"roberta", "xlm-roberta", "distilbert", "modernbert", "modernbert-mean", "mpnet"}


def model(kind: str, style: str = "bert", seed: int = 7) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(style.removesuffix("-mean"), **_SIZES | ARCHITECTURES[style])
    made = AutoModelForSequenceClassification if kind == "cross_encoder" else AutoModel
    return made.from_config(config).eval()


def checkpoint(
    models_folder: Path,
    name: str = "tiny",
    kind: str = "cross_encoder",
    style: str = "bert",
    seed: int = 7,
    **card: Any,
) -> Checkpoint:
    """A sealed checkpoint of a tiny model."""
    made = workroom(models_folder)
    model(kind, style, seed).save_pretrained(made, safe_serialization=True)
    tokenizer(style).save_pretrained(made)
    if kind == "cross_encoder":
        card = {"calibration": [(-1.0, 0.2), (1.0, 0.8)], **card}
    card = {"kind": kind, "base": "tiny", "max_tokens": 48, "query_max_tokens": 12, **card}
    try:
        return seal(made, models_folder, name, Card(**card))
    finally:
        shutil.rmtree(made, ignore_errors=True)
