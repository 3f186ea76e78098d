"""`ecomspark demo`: every job on the sample shop in one session, then what came out. The one place that shows texts."""

import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from ecomspark import launch, tables
from ecomspark.config import Settings
from ecomspark.evaluation import Figure, as_table, not_shown
from ecomspark.schemas import ITEMS, QUERIES, RANKINGS, RUN_METRICS, SPLITS, Table
from ecomspark.tables import Warehouse

JOBS = (
    "import_online_retail", "import_queries", "import_judgments", "import_checkpoint", "build_texts",
    "finetune_cross_encoder", "build_candidates", "score_candidates", "rank_candidates", "evaluate_rankings",
)  # fmt: skip
AS_OF = date(2011, 11, 1)  # the log ends on 31 October 2011

_SHOWN_QUERIES = 3
_SHOWN_ITEMS = 5
_TERMS = ("availability", "band", "relevance_term", "price_term", "sold_term", "rating_term", "freshness_term")


def show(path: Path, run_id: str, overrides: Sequence[str], pipelines: Mapping[str, Any]) -> int:
    """Run the demo; the exit status."""
    launch.log_to_stderr("text")
    start = time.monotonic()
    with launch.ending_well() as ended:
        settings = {job: launch.load_settings(pipeline, path, overrides) for job, pipeline in pipelines.items()}
        shared = settings[JOBS[-1]]
        with launch.spark_session("demo", shared) as spark:
            is_done_already = True
            for number, (job, pipeline) in enumerate(pipelines.items(), start=1):
                before = time.monotonic()
                summary = pipeline.run(spark, settings[job], run_id, AS_OF)
                is_done_already &= summary.status == "replayed"
                said = {"replayed": "done already", "nothing_to_do": "nothing to do", "published": "published"}
                counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in summary.rows.items() if n)
                took = time.monotonic() - before
                print(f"[{number:2} of {len(JOBS)}] {job}: {said[summary.status]}, {took:.1f} s; {counts}", flush=True)
            warehouse = Warehouse(spark, shared.warehouse, shared.buckets)
            _show_rankings(warehouse, settings["evaluate_rankings"])
            _show_figures(warehouse, run_id)
        if is_done_already:
            print(
                f"\nAll of this was done before: nothing was computed again. --run-id other than {run_id} runs it anew."
            )
        _show_ways_on(shared, time.monotonic() - start)
    return ended.status


def _newest(warehouse: Warehouse, table: Table) -> DataFrame:
    return tables.read(warehouse, table, tables.snapshot(warehouse, table))


def _show_rankings(warehouse: Warehouse, settings: Any) -> None:
    """The best items of the test queries that are asked most, with every term of their score."""
    of_test = _newest(warehouse, SPLITS).where((F.col("split") == settings.split) & (F.col("side") == "test"))
    ranked = _newest(warehouse, RANKINGS).where(F.col("variant") == settings.published_variant)
    queries = _newest(warehouse, QUERIES).join(of_test.select("query_id"), on="query_id", how="left_semi")
    queries = queries.join(ranked.select("query_id").distinct(), on="query_id", how="left_semi")
    asked = queries.orderBy(F.desc("traffic"), "query_text").limit(_SHOWN_QUERIES).collect()
    print(f"\nThe first {_SHOWN_ITEMS} items of the {len(asked)} test queries that are asked most")
    print("final score = availability + band + weighted terms; the model decides the band, the terms the place in it")
    items = _newest(warehouse, ITEMS).select("item_id", "title", "price", "sold_count")
    for query in asked:
        best = ranked.where((F.col("query_id") == F.lit(query["query_id"])) & (F.col("rank") <= _SHOWN_ITEMS))
        rows = best.join(items, on="item_id", how="inner").orderBy("rank").collect()
        _print_ranking(query, rows)


def _print_ranking(query: Row, rows: Sequence[Row]) -> None:
    print(f"\n  {query['query_text']}   (asked {query['traffic']:,} times; invented)")
    heads = ("avail.", "band", "relev.", "price", "sold", "rating", "fresh")
    print(
        f"   rank {'final':>8} = " + "  ".join(f"{head:>7}" for head in heads) + f"   {'logit':>7}  title, price, sold"
    )
    for row in rows:
        terms = "  ".join(f"{row[term]:7.4f}" if term != "band" else f"{row[term]:7d}" for term in _TERMS)
        sold = f"{row['title'].strip()}, £{row['price']:.2f}, {row['sold_count']:,}"
        print(f"   {row['rank']:4d} {row['final_score']:8.4f} = {terms}   {row['logit']:7.3f}  {sold}")


def _show_figures(warehouse: Warehouse, run_id: str) -> None:
    """The before/after table, and plainly what it does not show."""
    mine = (F.col("job") == "evaluate_rankings") & (F.col("run_id") == run_id)
    names = [f.name for f in Figure.__dataclass_fields__.values()]
    rows = _newest(warehouse, RUN_METRICS).where(mine).select(*names).collect()
    order = ["final", "model", "bm25", "cosine", "chance", "published"]
    figures = sorted(
        (Figure(**row.asDict()) for row in rows),
        key=lambda f: (not f.metric.startswith("ndcg"), f.metric, order.index(f.ranker)),
    )
    print("\nBefore and after, on test queries that the model never saw; grades are this project's own judgments")
    print("before: bm25 and the untuned encoder's cosine; after: model, and final with price, sales and the like")
    print("published: the whole ranking that search would show, where an unjudged item is worth nothing\n")
    for line in as_table(figures):
        print(f"  {line}")
    for line in not_shown(figures):
        print(f"  {line}")


def _show_ways_on(settings: Settings, seconds: float) -> None:
    properties = settings.spark_properties
    print(f"""
Done in {seconds:.0f} s.

The tables lie in {settings.warehouse}/, one folder each; schemas.py says what every column means. To look into them:
  .venv/bin/spark-sql --properties-file {properties} -e 'SELECT * FROM delta.`{settings.warehouse}/rankings` LIMIT 5'

What to try next:
  .venv/bin/ecomspark config rank_candidates          every setting of a job, explained
  make demo ARGS="--run-id cheap-first --set rank_candidates.variants.main.weights.price=0.8"
                                                      rank anew by price: no model runs
  README.md, Your own data                            the same jobs on your shop""")  # noqa: S608 - shown, not run
