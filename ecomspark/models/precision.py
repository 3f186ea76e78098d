"""What layers compute in while they learn, where the settings leave it open."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


def learning_precision(asked: Precision | Literal["auto"] = "auto") -> Precision:
    """What was asked for; `auto`: bf16 where the device computes in it, else fp32. Weights stay fp32 either way.

    A CPU without AVX-512's bf16 instructions has torch convert each value there and back, which is slower than fp32.
    """
    if asked != "auto":
        return asked
    has_bf16 = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else _has_instructions()
    return "bf16" if has_bf16 else "fp32"


def _has_instructions() -> bool:
    # torch has no public word for it in all versions that we allow; a build for another architecture may lack this one.
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(found and found())
