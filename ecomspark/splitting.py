"""The named split of the judged queries: by query, near-duplicates on one side, and a report of those that are not."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ecomspark import tables
from ecomspark.embedding import embedded
from ecomspark.errors import ContractError
from ecomspark.features.splits import sides
from ecomspark.near_duplicates import followed, leaks, near_pairs
from ecomspark.runs import Run
from ecomspark.schemas import JUDGMENTS, QUERIES, SPLITS, TEXTS
from ecomspark.scoring import EmbedderAt
from ecomspark.tables import Snapshot
from ecomspark.text import Analyser

log = logging.getLogger("ecomspark")


@dataclass(frozen=True)
class Wanted:
    """Which split of which judgments, and what counts as nearly the same query (see `near_duplicates`).

    `is_dropping`: leave queries that leak out, instead of ending. `min_cosine` None: vectors are not looked at.
    """

    judgment_set: str
    split: str
    seed: int
    train: float
    validation: float
    is_dropping: bool
    max_edits: int
    min_cosine: float | None
    analysers: Mapping[str, Analyser]
    recipe_digest: bytes


@dataclass(frozen=True)
class Split:
    """The rows of the named split that may be used, and the version of `splits` that they are read at. `dropped`:
    (query_id) of the queries that may not be learnt from, because they nearly equal one of a stricter side."""

    rows: DataFrame
    read: dict[str, Snapshot | None]
    dropped: DataFrame


def split_queries(current: Run, wanted: Wanted, embedder: EmbedderAt) -> Split:
    """Every judged query on a side of the split; those that are new to it are added, beside their near-duplicates.

    A query keeps its side for ever, so one added later may stand between two sides: then one of them leaks. Raises
    ContractError, before anything is published, when judged queries leak and are not dropped.
    """
    queries = _queries(current, wanted)
    pairs = _near_pairs(current, wanted, embedder, queries)
    added = _added(current, wanted, queries, pairs)
    leaking = _leaking(current, wanted, queries, added, pairs)
    change = tables.compare(current.warehouse, SPLITS, added, current.author, deletes=False)
    current.count(split_queries=change.inserted)
    current.commit(tables.publish(current.warehouse, change, current.author))
    newest = tables.snapshot(current.warehouse, SPLITS)
    rows = tables.read(current.warehouse, SPLITS, newest).where(F.col("split") == wanted.split)
    dropped = current.warehouse.spark.createDataFrame([(query,) for query in leaking], "query_id binary")
    if leaking:
        rows = rows.join(F.broadcast(dropped), on="query_id", how="left_anti")
    return Split(rows, {SPLITS.name: newest}, dropped)


def _queries(current: Run, wanted: Wanted) -> pd.DataFrame:
    """The queries that are judged or in the split: query_id (bytes), source (of the text, bytes), query_text, locale,
    side ("" if new), is_judged. In the order of query_id. A query that is gone has no text."""
    of_set = current.read(JUDGMENTS).where(F.col("judgment_set") == wanted.judgment_set)
    judged = of_set.select("query_id").distinct().withColumn("is_judged", F.lit(True))
    there = current.read_if_there(SPLITS).where(F.col("split") == wanted.split).select("query_id", "side")
    known = current.read(QUERIES).select(
        "query_id", F.col("text_source_digest").alias("source"), "query_text", "locale"
    )
    found = judged.join(there, on="query_id", how="full").join(known, on="query_id", how="left")
    frame = found.withColumn("is_judged", F.coalesce("is_judged", F.lit(False))).toPandas()
    frame["query_id"] = [bytes(query_id) for query_id in frame["query_id"]]
    filled = frame.fillna({"query_text": "", "locale": "", "side": ""})
    in_order: pd.DataFrame = filled.sort_values("query_id", ignore_index=True)
    return in_order


def _near_pairs(current: Run, wanted: Wanted, embedder: EmbedderAt, queries: pd.DataFrame) -> pd.DataFrame:
    vectors = None if wanted.min_cosine is None else _vectors(current, wanted, embedder, queries)
    analysers = [wanted.analysers.get(locale, Analyser()) for locale in queries["locale"]]
    texts, min_cosine = list(queries["query_text"]), wanted.min_cosine or 1.0
    try:
        pairs = near_pairs(texts, vectors, analysers, wanted.max_edits, min_cosine)
    except ValueError as error:
        raise ContractError(f"splits: split {wanted.split}: {error}; raise min_cosine, or set it to null") from None
    current.count(near_duplicates=len(pairs))
    return pairs


def _vectors(current: Run, wanted: Wanted, embedder: EmbedderAt, queries: pd.DataFrame) -> NDArray[np.float32] | None:
    """What the encoder makes of the texts that models read, a row a query, zeros for one that is gone."""
    has_source = queries["source"].notna()
    sources = [(int(at), bytes(queries["source"].iloc[at])) for at in np.flatnonzero(has_source)]
    of_recipe = (F.col("recipe_digest") == F.lit(wanted.recipe_digest)) & (F.col("role") == "query")
    made = tables.read_memory(current.warehouse, TEXTS).where(of_recipe)
    asked = current.warehouse.spark.createDataFrame(sources, "at int, source_digest binary")
    texts = current.keep(asked.join(made, on="source_digest", how="inner").select("at", "text_digest", "text"))
    found = embedded(current, texts.select("text_digest", "text"), embedder, "query")
    frame = texts.join(found, on="text_digest", how="inner").select("at", "vector").toPandas()
    if (has_source & queries["is_judged"] & ~queries.index.isin(frame["at"])).any():
        raise ContractError("texts: a judged query has none under the settings' recipe; run build_texts first")
    if frame.empty:
        return None
    matrix = np.zeros((len(queries), len(frame["vector"].iloc[0])), dtype=np.float32)
    matrix[frame["at"]] = np.array(frame["vector"].tolist(), dtype=np.float32)
    return matrix


def _added(current: Run, wanted: Wanted, queries: pd.DataFrame, pairs: pd.DataFrame) -> DataFrame:
    """Rows for `splits` of the queries that are new to the split."""
    new = followed(list(queries["query_id"]), [side or None for side in queries["side"]], pairs)
    query_ids = queries["query_id"].iloc[new["at"]]
    rows = list(zip(query_ids, new["leader_id"], new["side"], strict=True))
    placed = current.warehouse.spark.createDataFrame(rows, "query_id binary, leader_id binary, side string")
    return sides(placed, wanted.split, wanted.seed, wanted.train, wanted.validation)


def _leaking(current: Run, wanted: Wanted, queries: pd.DataFrame, added: DataFrame, pairs: pd.DataFrame) -> list[bytes]:
    """The judged queries that nearly equal one of a stricter side, reported. Raises ContractError unless they drop."""
    drawn = {bytes(row["query_id"]): row["side"] for row in added.collect()}
    placed = [side or drawn[query_id] for query_id, side in zip(queries["query_id"], queries["side"], strict=True)]
    found = leaks(pairs, placed)
    found = found[queries["is_judged"].to_numpy()[found["at"]]]
    counts = found.value_counts(["side", "near_side", "rule"], sort=False).reset_index()
    parts = [f"{row.count_:,} of {row.side} near {row.near_side} by {row.rule}"
             for row in counts.rename(columns={"count": "count_"}).itertuples()]  # fmt: skip
    report = f"{len(found):,} leaks of {len(queries):,} queries looked at" + (f": {', '.join(parts)}" if parts else "")
    log.info("%s: split %s: %s", current.author.job, wanted.split, report)
    current.count(queries_looked_at=len(queries), leaks=len(found))
    if parts and not wanted.is_dropping:
        raise ContractError(
            f"splits: split {wanted.split}: expected near-duplicates on one side, found {report}; leave them out with "
            f"{current.author.job}.near_duplicates: drop, or name another {current.author.job}.split"
        )
    current.count(dropped_queries=len(found))
    return list(queries["query_id"].iloc[found["at"]])
