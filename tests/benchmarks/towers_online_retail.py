"""An encoder of the sample shop's items, trained on what was bought together before October 2011: for profiles.

    python tests/benchmarks/towers_online_retail.py [FOLDER]

As the job `finetune_embedder` does with the source bought_together, without Spark: of each item the others nearest to it
by the invoices that held both, counted without customers. Nothing of October 2011 or later is read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import training

from ecomspark.demo_data import make_sample

NAME, UNTIL = "embedder-retail-3", pd.Timestamp("2011-10-01")
# HELD: every so many-th pair is for validation. Chosen with UNTIL at the beginning of August 2011, on the baskets of
# August and September (NOTES, Towers).
MIN_COUNT, PER_ITEM, MAX_BASKET, HELD = 5, 6, 100, 20
SETTINGS: dict[str, Any] = {
    "epochs": 4, "batch_size": 64, "learning_rate": 1e-4, "threads": 1, "hard_negatives": {"per_pair": 0},
    "recall_at": 20, "seed": 1, "precision": "fp32",
}  # fmt: skip


def lines() -> pd.DataFrame:
    """invoice, item_id, title: sales of products before UNTIL, each item on an invoice once."""
    of = pd.read_parquet(make_sample.HERE / "online_retail_lines.parquet")
    of["item_id"] = of["StockCode"].str.strip().str.upper()
    is_sale = (of["Quantity"] > 0) & (of["UnitPrice"] > 0) & (of["InvoiceDate"] < UNTIL)
    return of[is_sale & of["item_id"].str.fullmatch(r"\d{5}[A-Z]{0,2}") & of["Description"].notna()]


def titles(of: pd.DataFrame) -> "pd.Series[str]":
    """By item the title most often printed, the first of equals, as a model reads it."""
    from ecomspark import text

    counts = of.groupby(["item_id", "Description"]).size().reset_index(name="count")
    first = counts.sort_values(["item_id", "count", "Description"], ascending=[True, False, True])
    chosen = first.drop_duplicates("item_id").set_index("item_id")["Description"]
    recipe = text.TextRecipe.model_validate(training.RECIPE)
    return chosen.map(lambda title: text.passage({"title": title}, recipe)[0])


def pairs(of: pd.DataFrame) -> pd.DataFrame:
    """item_id, other_id, baskets: see `ecomspark.features.related.bought_together`."""
    once = of[["InvoiceNo", "item_id"]].drop_duplicates()
    bought = once.groupby("item_id").size()
    sizes = once.groupby("InvoiceNo")["item_id"].transform("size")
    once = once[(sizes > 1) & (sizes <= MAX_BASKET)]
    both = once.merge(once.rename(columns={"item_id": "other_id"}), on="InvoiceNo")
    counts = (
        both[both["item_id"] != both["other_id"]].groupby(["item_id", "other_id"]).size().reset_index(name="baskets")
    )
    counts = counts[counts["baskets"] >= MIN_COUNT]
    counts["nearest"] = counts["baskets"] / counts["other_id"].map(bought) ** 0.5
    ordered = counts.sort_values(["item_id", "nearest", "other_id"], ascending=[True, False, True])
    return ordered.groupby("item_id").head(PER_ITEM).reset_index(drop=True)


def train(folder: Path) -> None:
    from ecomspark.models import finetune_embedder
    from ecomspark.models.checkpoint import CARD, Card
    from ecomspark.models.embedder_options import EmbedderTraining
    from ecomspark.text import digest

    if (folder / NAME / CARD).exists():
        return
    sold = lines()
    of_item, found = titles(sold), pairs(sold)
    found["anchor_text"], found["passage_text"] = found["item_id"].map(of_item), found["other_id"].map(of_item)
    found = found[found["anchor_text"] != found["passage_text"]]
    drawn = [
        int.from_bytes(digest(*sorted(pair))[:6], "big") % HELD == 0
        for pair in found[["anchor_text", "passage_text"]].itertuples(index=False)
    ]
    sides = ["validation" if is_held else "train" for is_held in drawn]
    examples = found.assign(role="passage", is_relevant=True, side=sides)
    catalogue = pd.DataFrame({"passage_text": sorted(set(of_item)), "side": "catalogue"})
    card = Card(kind="encoder", base="minilm", recipe=training.RECIPE, max_tokens=training.TOKENS, settings=SETTINGS)
    plan = finetune_embedder.Plan(
        models_folder=folder, base=training.base(folder), name=NAME, card=card,
        training=EmbedderTraining.model_validate(SETTINGS),
    )  # fmt: skip
    print(json.dumps({"pairs": len(found), "items": len(of_item)}), flush=True)
    finetune_embedder.fine_tune(
        plan, pd.concat([examples, catalogue], ignore_index=True), lambda said: print(json.dumps(said), flush=True)
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("/tmp/ecomspark-figures"))
