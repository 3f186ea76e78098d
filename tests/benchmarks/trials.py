"""Trials of fine-tuning's options on Home Depot's validation queries: what each is worth beside the training it changes.

    PYTHONPATH=. python tests/benchmarks/trials.py --out trials.jsonl [--only NAME ...] [--processes N]

`trials.yaml` lists them. The test queries are not read. Each trial is a process of its own, so many at once on a machine
with a GPU. Needs what `models/` needs and scikit-learn; no Spark. Some 300 s for a trial of 8,000 pairs on one core. The split
is kept in /tmp/ecomspark-figures beside the models, as are teachers (`training.py model ours`): take it away when rules change.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not begin CUDA before a fork

import home_depot  # noqa: E402
import pandas as pd  # noqa: E402
import training  # noqa: E402
import yaml  # noqa: E402


def trial(name: str, pair_count: int | None, seed: int, settings: Mapping[str, Any], rows: pd.DataFrame) -> Any:
    """Train on `pair_count` pairs with these settings; figures and scores on the validation queries."""
    import torch

    # The library's collator wants to know a process that PyTorch's loader did not begin for its own.
    multiprocessing.current_process().name = "MainProcess"
    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for of in ("minilm", *settings.get("distillation", {}).get("teachers", [])):
            shutil.copytree(MODELS / of, Path(folder) / of)
        score, tokens = training.ours(rows, "made", seed, Path(folder), settings)
        of = rows[rows["side"] == "validation"]
        scores = score(of)
    found = {metric: round(value, 4) for metric, value in home_depot.metrics(of.assign(score=scores)).items()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "trial": name, "pairs": pair_count, "seed": seed, "settings": dict(settings), "tokens": tokens,
        "seconds": round(time.monotonic() - start), "device": device, **found,
        "scores": [round(float(one), 4) for one in scores],
    }  # fmt: skip


def _one(asked: tuple[Any, ...]) -> Any:
    try:
        return trial(*asked)
    except Exception as error:  # one that fails must not end the others
        return {"trial": asked[0], "seed": asked[2], "failed": f"{type(error).__name__}: {error}"[:300]}


MODELS = Path("/tmp/ecomspark-figures")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--list", type=Path, default=HERE / "trials.yaml")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    listed = yaml.safe_load(asked.list.read_text(encoding="utf-8"))
    MODELS.mkdir(parents=True, exist_ok=True)
    training.base(MODELS)
    kept = MODELS / "home-depot.parquet"
    if not kept.exists():
        home_depot.pairs().to_parquet(kept)
    pairs = pd.read_parquet(kept)
    pairs = pairs[pairs["side"] != "test"]
    rows: dict[int | None, pd.DataFrame] = {}
    wanted = []
    for name, of in listed["trials"].items():
        if asked.only and name not in asked.only:
            continue
        settings = {**listed["start"], **(of or {})}
        pair_count, seeds = settings.pop("pairs"), settings.pop("seeds", [1])
        if pair_count not in rows:
            rows[pair_count] = training.split(pair_count, pairs)
        wanted += [(name, pair_count, seed, settings, rows[pair_count]) for seed in seeds]
    if not wanted:
        print(f"nothing of {asked.list} is called {' or '.join(asked.only)}", file=sys.stderr)
        return 2
    import ecomspark.models.finetune
    import ecomspark.models.pretrain  # noqa: F401 (read once, before the processes part)

    failed = 0
    with multiprocessing.get_context("fork").Pool(asked.processes, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(_one, wanted, chunksize=1):
            with asked.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(found) + "\n")
            print(json.dumps({key: value for key, value in found.items() if key != "scores"}), flush=True)
            failed += "failed" in found
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
