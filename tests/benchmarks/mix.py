"""The rows that the benchmark scores: real queries and titles of the sample, lengthened by the catalogue's own words.

Generated text, real vocabulary and lengths: 35 % of the passages are a title alone; the others carry a description drawn
from the words of all titles by their frequency. With all-MiniLM-L6-v2's tokenizer a pair has about 106 tokens under a cap
of 256. `short`: titles alone. Seeded: the same rows every time.
"""

from pathlib import Path

import numpy as np
import pandas as pd

import ecomspark.demo_data

SAMPLE = Path(ecomspark.demo_data.__file__).parent
MAX_TOKENS, QUERY_MAX_TOKENS = 256, 64
WITHOUT_DESCRIPTION = 0.35
_MEAN_WORDS = 125.0  # of a description, so that a pair has 106 tokens on average, the cap included


def pairs(count: int, kind: str = "mix", seed: int = 4) -> pd.DataFrame:
    """(id, query_text, passage_text): `count` rows; a title may come again, with other words behind it."""
    generator = np.random.default_rng(seed)
    lines = pd.read_parquet(SAMPLE / "online_retail_lines.parquet", columns=["Description"])
    titles = lines["Description"].dropna().str.strip().str.lower().drop_duplicates()
    titles = titles[titles.str.len() > 3].sort_values().to_numpy()
    queries = pd.read_csv(SAMPLE / "queries.csv")["query_text"].sort_values().to_numpy()
    words = np.concatenate([title.split() for title in titles])
    passages = titles[generator.integers(0, len(titles), count)].astype(object)
    if kind == "mix":
        lengths = generator.gamma(2.0, _MEAN_WORDS / 2.0, count).astype(int) + 5
        lengths[generator.random(count) < WITHOUT_DESCRIPTION] = 0
        for row, length in enumerate(lengths):
            if length:
                passages[row] = f"{passages[row]}. {' '.join(generator.choice(words, length))}"
    asked = queries[generator.integers(0, len(queries), count)]
    return pd.DataFrame({"id": np.arange(count), "query_text": asked, "passage_text": passages})
