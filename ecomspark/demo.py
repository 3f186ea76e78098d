"""`ecomspark demo`: every job on the sample shop in one session, then what came out. The one place that shows texts,
and what is known of shoppers: those of a public log, where customers are numbers."""

import json
import secrets
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, Row, Window
from pyspark.sql import functions as F

from ecomspark import launch, tables
from ecomspark.benchmark import figure_lines, told
from ecomspark.config import Settings
from ecomspark.explain import as_lines as explained
from ecomspark.explain import explain
from ecomspark.features.profiles import newest_profiles
from ecomspark.ledger import OVER
from ecomspark.plans import as_lines
from ecomspark.pseudonyms import Shoppers, pseudonym_of
from ecomspark.schemas import (
    ITEMS,
    NEXT_ITEMS,
    OUTLOOKS,
    PERSONAL_RANKINGS,
    PROFILES,
    QUERIES,
    RANKINGS,
    RUNS,
    SPLITS,
    Table,
)
from ecomspark.tables import Snapshot, Warehouse

JOBS = (
    "import_online_retail", "import_queries", "import_judgments", "import_checkpoint", "build_texts",
    "finetune_cross_encoder", "build_candidates", "score_candidates", "rank_candidates", "evaluate_rankings",
    "import_consents", "embed_texts", "build_sessions", "finetune_sequence", "score_next_items", "build_profiles",
    "personalise_rankings",
)  # fmt: skip
ALL_JOBS = (*JOBS, "import_items")  # the second day's catalogue comes as one
AS_OF = date(2011, 11, 1)  # the log ends on 31 October 2011
_EDITED = 3

# Customers of the log with some baskets each, as it numbers them; the last one's no is in demo_data/consents.csv.
_SHOPPERS = ("17512", "12901", "12877")
_KEY_BYTES = 32

_SHOWN_QUERIES = 3
_SHOWN_ITEMS = 5
_TERMS = ("availability", "band", "relevance_term", "price_term", "sold_term", "rating_term", "freshness_term")


def show(path: Path, run_id: str, overrides: Sequence[str], pipelines: Mapping[str, Any]) -> int:
    """Run the demo; the exit status."""
    launch.log_to_stderr("text")
    start = time.monotonic()
    with launch.ending_well() as ended:
        named = _pseudonyms(launch.load_settings(pipelines[JOBS[0]], path, overrides))
        overrides = [*overrides, f"personalise_rankings.shoppers={json.dumps(named)}"]
        settings = {job: launch.load_settings(pipelines[job], path, overrides) for job in JOBS}
        shared = settings["evaluate_rankings"]
        with launch.spark_session("demo", shared, launch.FORKS) as spark:
            is_done_already = True
            for number, job in enumerate(JOBS, start=1):
                summary = told(f"[{number:2} of {len(JOBS)}]", pipelines[job], spark, settings[job], run_id, AS_OF)
                is_done_already &= summary.status == "replayed"
            warehouse = Warehouse(spark, shared.warehouse, shared.buckets)
            _show_rankings(warehouse, settings["evaluate_rankings"])
            _show_figures(warehouse, run_id)
            _show_shoppers(warehouse, settings["personalise_rankings"], named)
            _second_day(warehouse, pipelines, settings, f"{run_id}-day-2")
        if is_done_already:
            print(
                f"\nAll of this was done before: nothing was computed again. --run-id other than {run_id} runs it anew."
            )
        _show_ways_on(shared, time.monotonic() - start)
    return ended.status


def _pseudonyms(importing: Any) -> list[str]:
    """The pseudonyms of the customers that are shown; the key is made the first time."""
    shoppers: Shoppers = importing.shoppers
    if not shoppers.key_file.exists():
        shoppers.key_file.parent.mkdir(parents=True, exist_ok=True)
        shoppers.key_file.touch(mode=0o600)
        shoppers.key_file.write_bytes(secrets.token_bytes(_KEY_BYTES))
    return [pseudonym_of(customer, shoppers) for customer in _SHOPPERS]


def _second_day(
    warehouse: Warehouse, pipelines: Mapping[str, Any], settings: Mapping[str, Settings], run_id: str
) -> None:
    """A few titles and a third of the prices change: what that costs, before and after."""
    spark, shared = warehouse.spark, settings["score_candidates"]
    print(
        f"\nThe next day: {_EDITED} titles and every third price change (made up); what must be done is found, not all"
    )
    catalogue = f"{warehouse.location}/second-day-{run_id}"
    places = F.row_number().over(Window.orderBy(F.desc("sold_count"), "item_id"))
    items = tables.read(warehouse, ITEMS, _first_day(warehouse)).withColumn("_place", places)
    title = F.when(F.col("_place") <= _EDITED, F.concat(F.col("title"), F.lit(" (new)"))).otherwise(F.col("title"))
    price = F.when(F.col("_place") % 3 == 0, F.col("price") * 1.1).otherwise(F.col("price")).cast("decimal(18,4)")
    columns = [c.name for c in ITEMS.columns if c.name not in ("source_digest", "changed_by")]
    edited = items.withColumns({"title": title, "price": price}).select(*columns)
    if not Path(catalogue).exists():  # a run that was cut off is pinned to the file that it read
        edited.coalesce(1).write.parquet(catalogue)
    keys = {name: getattr(shared, name) for name in Settings.model_fields}
    importing = pipelines["import_items"].Config(
        **keys, source={"format": "parquet", "path": catalogue}, columns={name: name for name in columns}
    )
    told("[import ]", pipelines["import_items"], spark, importing, run_id, AS_OF)
    told("[texts  ]", pipelines["build_texts"], spark, settings["build_texts"], run_id, AS_OF)
    scoring = pipelines["score_candidates"]
    if not _is_over(warehouse, scoring.JOB, run_id):
        print("\n".join(as_lines(scoring.plan(spark, shared, AS_OF))), flush=True)
    for job in ("score_candidates", "rank_candidates"):
        told("[run    ]", pipelines[job], spark, settings[job], run_id, AS_OF)
    print("\nWhy one of the changed items stands where it does")
    best = _newest(warehouse, RANKINGS).where(F.col("changed_by") == run_id).orderBy("rank", "query_id", "item_id")
    shown = best.join(_newest(warehouse, QUERIES), on="query_id", how="inner").limit(1).collect()
    if shown:
        pair = {"query_text": shown[0]["query_text"], "item_id": shown[0]["item_id"]}
        found = explain(warehouse, settings["score_candidates"], settings["rank_candidates"], **pair)
        print("\n".join(f"  {line}" for line in explained(found)))


def _first_day(warehouse: Warehouse) -> Snapshot | None:
    """The catalogue as the first day's import left it, also when the second day was played already."""
    now = tables.snapshot(warehouse, ITEMS)
    return now and Snapshot(now.table_id, 1)


def _is_over(warehouse: Warehouse, job: str, run_id: str) -> bool:
    mine = (F.col("job") == job) & (F.col("run_id") == run_id) & F.col("status").isin(list(OVER))
    return not _newest(warehouse, RUNS).where(mine).isEmpty()


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


def _show_shoppers(warehouse: Warehouse, settings: Any, named: Sequence[str]) -> None:
    """Two shoppers' profiles in words and what they may want next, and one query ranked for each beside a third shopper
    who said no."""
    titles = {row["item_id"]: row["title"].strip() for row in _newest(warehouse, ITEMS).collect()}
    profiles = {row["shopper_id"]: row for row in newest_profiles(_newest(warehouse, PROFILES), AS_OF).collect()}
    outlooks = {row["shopper_id"]: row for row in _newest(warehouse, OUTLOOKS).orderBy("as_of_date").collect()}
    print("\nTwo customers of the log, under pseudonyms, and a third who said no to being known (invented)")
    for name in named:
        print(f"\n  {_short(name)}")
        if name not in profiles:
            print("   no consent: no profile, no next items, and the ranking that everybody gets")
            continue
        _print_folded(_in_words(profiles[name], outlooks.get(name)))
        of_shopper = _newest(warehouse, NEXT_ITEMS).where(F.col("shopper_id") == name)
        best = of_shopper.orderBy(F.desc("as_of_date"), "rank").limit(_SHOWN_ITEMS).collect()
        items = (f"{titles.get(row['item_id'], '?')} ({row['confidence']:.1%})" for row in best)
        _print_folded(f"may want next: {'; '.join(items)}")
    query, (variant, *_) = settings.queries[0], settings.variants
    asked = _newest(warehouse, QUERIES).where(F.col("query_text") == query.text).select("query_id")
    is_shown = (F.col("variant") == variant) & (F.col("rank") <= _SHOWN_ITEMS)
    general = _newest(warehouse, RANKINGS).where(is_shown).join(asked, on="query_id", how="inner").collect()
    own = _newest(warehouse, PERSONAL_RANKINGS).where(is_shown).join(asked, on="query_id", how="inner").collect()
    everybody = {row["rank"]: (row["item_id"], row["rank"]) for row in general}
    places = {(row["audience"], row["rank"]): (row["item_id"], row["general_rank"]) for row in own}
    print(f"\n  {query.text}, ranked for each; in brackets the place at which everybody sees the item")
    print("   " + "".join(f"{_short(name):<40}" for name in named))
    for rank in sorted(everybody):
        shown = (places.get((name, rank), everybody[rank]) for name in named)
        cells = (f"{titles.get(item, '?')[:32]} ({place})" for item, place in shown)
        print("   " + "".join(f"{cell:<40}" for cell in cells))


def _print_folded(text: str) -> None:
    print(textwrap.fill(text, 116, initial_indent="   ", subsequent_indent="   "))


def _short(pseudonym: str) -> str:
    return f"shopper {pseudonym[:13]}…"


def _in_words(profile: Row, outlook: Row | None) -> str:
    """What a profile says, in a few sentences."""
    bands = sorted(profile["price_band_weights"].items(), key=lambda band: (-band[1], band[0]))
    said = (
        f"{profile['basket_count']:,} baskets with {profile['basket_items'] or 0:.0f} items each, "
        f"{profile['repeat_share'] or 0:.0%} of the lines bought before; last seen {profile['last_at']:%d %B}; "
        f"mostly at £{bands[0][0] if bands else '?'}; interested in {', '.join(profile['interests']) or 'nothing yet'}"
    )
    if outlook is not None and outlook["drift"] is not None:
        said += (
            f"; the last baskets lie {outlook['drift']:.2f} from those before "
            f"(0 the same, {outlook['drift_low']:.2f} to {outlook['drift_high']:.2f})"
        )
    return said + "."


def _show_figures(warehouse: Warehouse, run_id: str) -> None:
    """The before/after table, and plainly what it does not show."""
    print("\nBefore and after, on test queries that the model never saw; grades are this project's own judgments")
    print("before: bm25 and the untuned encoder's cosine; after: model, and final with price, sales and the like")
    print("published: the whole ranking that search would show, where an unjudged item is worth nothing\n")
    for line in figure_lines(warehouse, run_id):
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
