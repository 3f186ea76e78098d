"""What layers compute in while they learn, where that is left open."""

import pytest
import torch

from ecomspark.models.precision import learning_precision


@pytest.mark.parametrize(("has_instructions", "found"), [(True, "bf16"), (False, "fp32")])
def test_left_open_it_is_bf16_where_the_cpu_computes_in_it(
    has_instructions: bool, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions, raising=False)
    assert learning_precision() == found
    assert learning_precision("auto") == found
    assert learning_precision("fp32") == "fp32", "what is asked for stands"
    assert learning_precision("bf16") == "bf16"


def test_a_torch_that_cannot_say_learns_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert learning_precision() == "fp32"


def test_a_gpu_is_asked_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert learning_precision() == "fp32"
