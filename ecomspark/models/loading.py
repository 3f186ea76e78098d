"""A verified checkpoint's weights into memory, in the type that its scorer names, on the device it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ecomspark.errors import CheckpointError
from ecomspark.models.budget import Budget, found
from ecomspark.models.checkpoint import Checkpoint
from ecomspark.models.encoder import Encoder
from ecomspark.models.engine import Engine

_SAFELY = {"trust_remote_code": False, "local_files_only": True}


def device_of(gpu: str | None) -> torch.device:
    """The GPU of that address, or the CPU by the name `cpu`; without a name the first GPU there is, else the CPU."""
    if gpu == "cpu":
        return torch.device("cpu")
    if gpu is not None:
        return torch.device(f"cuda:{gpu}")
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def load_weights(architecture: Any, checkpoint: Checkpoint, device: torch.device, may_lack: str = "") -> Any:
    """The model in fp32, in evaluation mode. `may_lack`: prefix of weights that nothing here reads.

    Raises CheckpointError when weights are missing, or when the type does not run on the device.
    """
    data_type = checkpoint.card.data_type
    if data_type == "int8" and device.type != "cpu":
        raise CheckpointError(f"{checkpoint.name}: int8 runs on CPU only, found {device}; take fp16 or bf16 on a GPU")
    model, loading = architecture.from_pretrained(
        str(checkpoint.folder),
        use_safetensors=True,
        output_loading_info=True,
        dtype=torch.float32,
        **_SAFELY,
    )
    missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if made_up := [key for key in missing if not may_lack or not key.startswith(may_lack)]:
        raise CheckpointError(f"{checkpoint.name}: newly initialised instead of loaded: {', '.join(made_up[:5])}")
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), **_SAFELY)
    return tokenizer


def engine_for(
    checkpoint: Checkpoint,
    encoder: Encoder,
    finish: Callable[[torch.Tensor], torch.Tensor],
    token_budget: int | None,
) -> Engine:
    """The engine, with the budget given, or the one that this host remembers for the scorer, or one tried out now."""
    engine = Engine(encoder, finish, Budget(token_budget or 1))
    if token_budget is None:
        try_out = engine.try_out(checkpoint.card.max_tokens)
        engine.budget = found(checkpoint.scorer_digest, encoder.device, try_out)
        if engine.is_asynchronous:
            torch.cuda.reset_peak_memory_stats(encoder.device)  # trying went up to where memory ended, on purpose
    return engine
