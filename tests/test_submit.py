"""The jobs under spark-submit, as a scheduler starts them: local[2], and real executors on local-cluster, with the package
as the zip that `make wheel` makes. These Sparks have the project's own properties, plan compilation and all.

The installed package is hidden from them, on the driver and on executors, so only the zip can have been imported.
"""

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from pyspark.sql import functions as F
from shop import ITEMS as SHOP_ITEMS
from shop import Shop

from ecomspark.schemas import INTERACTIONS, ITEMS, RANKINGS, SCORES

HIDE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ecomspark-X.zip, made from a copy of the tree by the commands of `make wheel`."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "ecomspark", tree / "ecomspark", ignore=shutil.ignore_patterns("__pycache__"))
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "build", "--quiet", "--offline", "--wheel", "--no-build-isolation", "--python", sys.executable,
                    "-o", tree / "dist", tree], check=True, timeout=120)  # fmt: skip
    wheel = next((tree / "dist").glob("*.whl"))
    return wheel.rename(wheel.with_name(f"ecomspark-{wheel.name.split('-')[1]}.zip"))


def submit(
    shop: Shop, package: Path, job: str, run_id: str, master: str, properties: Sequence[str] = (), **changes: Any
) -> tuple[Any, str]:
    """The summary that a job printed under spark-submit, and what it said before: Spark hands both streams of a Python
    program on as its stdout. `properties`: more of Spark's, KEY=VALUE."""
    hidden = shop.folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "sitecustomize.py").write_text(HIDE)
    section = json.loads(json.dumps({**shop.section(job), **changes}, default=str))
    shared = {"warehouse": shop.warehouse.location, "models_folder": str(shop.models), "buckets": 2}
    conf = shop.folder / f"{job}.yaml"
    conf.write_text(yaml.safe_dump({**shared, job: section}))
    command = [
        Path(sys.executable).parent / "spark-submit", "--properties-file", ROOT / "conf/spark-local.conf",
        *(flag for each in properties for flag in ("--conf", each)), "--master", master, "--py-files", package, ROOT / "jobs" / f"{job}.py",
        "--conf", conf, "--run-id", run_id, "--as-of", "2011-11-01",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(hidden), "PYSPARK_PYTHON": sys.executable,
                   "SPARK_WORKER_DIR": str(shop.folder / "executors")}  # fmt: skip
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=shop.folder, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *said, summary = done.stdout.strip().splitlines()
    return json.loads(summary), "\n".join(said)


def test_a_job_runs_on_local_2_and_reports_to_its_scheduler(empty_shop: Any, package: Path) -> None:
    """With Spark's event log on, as clusters have it, which says plans, properties and errors of tasks (S7, S8)."""
    shop, events = empty_shop(), "spark.eventLog"
    (shop.folder / "events").mkdir()
    shop.write_items([
        *SHOP_ITEMS, ("canary-1", "canary-title", "1.00", "1", "2010-01-01"), ("canary-2", "canary-title", "canary-3", "1", ""),
    ])  # fmt: skip
    properties = (f"{events}.enabled=true", f"{events}.dir={(shop.folder / 'events').as_uri()}", f"{events}.compress=false",
                  "spark.hadoop.fs.s3a.secret.key=canary-secret")  # fmt: skip
    summary, said = submit(shop, package, "import_items", "night-1", "local[2]", properties, max_quarantined_share=0.5)
    assert (summary["status"], summary["rows"]["inserted"]) == ("published", 13)
    assert summary["tables"]["items"]["before"] < summary["tables"]["items"]["after"]
    assert "import_items: import: 14 read" in said
    assert shop.rows(ITEMS).where("title = 'canary-title'").count() == 1
    logs = [file.read_text() for file in (shop.folder / "events").rglob("events_*")]
    assert any("SQLExecutionStart" in log for log in logs)
    assert any("spark.hadoop.fs.s3a.secret.key" in log for log in logs)
    assert not [place for place in (said, str(summary), *logs) if "canary" in place]


@pytest.mark.nightly
def test_an_id_and_the_key_of_its_pseudonym_are_in_no_event_log(empty_shop: Any, package: Path) -> None:
    """S8 and S9 on executors of their own, which read the key from its file and have the package from the zip."""
    shop, events, key = empty_shop(), "spark.eventLog", b"canary-key-1618-canary-key-1618-"
    (shop.folder / "events").mkdir()
    (shop.folder / "key").write_bytes(key)
    lines = [f"{n},canary-shopper,i01,{what},2011-10-01" for n, what in enumerate(("click", "stare", "click,and,more"))]
    (shop.folder / "log.csv").write_text("\n".join(["id,user,sku,what,ts", *lines]))
    properties = (
        f"{events}.enabled=true",
        f"{events}.dir={(shop.folder / 'events').as_uri()}",
        f"{events}.compress=false",
    )
    summary, said = submit(
        shop, package, "import_interactions", "night-1", "local-cluster[2,1,1024]", properties, max_quarantined_share=1.0,
        source={"format": "csv", "path": str(shop.folder / "log.csv")},
        shoppers={"key_file": str(shop.folder / "key"), "key_id": "k1"},
        columns={"interaction_id": "id", "shopper_id": "user", "item_id": "sku", "kind": "what", "occurred_at": "ts"},
    )  # fmt: skip
    assert (summary["rows"]["appended"], summary["rows"]["quarantined"]) == (1, 2)
    pseudonym = hmac.new(key, b"canary-shopper", hashlib.sha256).hexdigest()[:32]
    assert [row["shopper_id"] for row in shop.rows(INTERACTIONS).collect()] == [f"k1-{pseudonym}"]
    logs = [file.read_text() for file in (shop.folder / "events").rglob("events_*")]
    logs += [file.read_text() for file in (shop.folder / "executors").rglob("std*")]
    assert any("pseudonyms(" in log for log in logs)
    assert not [place for place in (said, str(summary), *logs) if "canary" in place or key.hex() in place]


def without_scores(shop: Shop) -> Shop:
    """The shop as if nothing had been scored or ranked."""
    for table in (SCORES, RANKINGS):
        shutil.rmtree(shop.folder / "warehouse" / table.name)
    return shop


def test_executors_of_their_own_give_the_same_scores_and_ranks(copied: Shop, ranked_shop: Shop, package: Path) -> None:
    """R17 on local-cluster[2,1,1024]: two executors, the package from the zip, 8 tasks where the shop had one."""
    shop, master = without_scores(copied), "local-cluster[2,1,1024]"
    pairs = ranked_shop.rows(SCORES).count()
    scored, _ = submit(shop, package, "score_candidates", "cluster", master, pairs_per_task=-(-pairs // 8))
    assert scored["rows"]["scored"] == scored["rows"]["to_score"] == pairs
    key = ["query_digest", "passage_digest", "scorer_digest", "attempt"]
    both = shop.rows(SCORES).select(*key, F.col("logit").alias("mine")).join(
        ranked_shop.rows(SCORES).select(*key, "logit"), on=key, how="full_outer"
    )  # fmt: skip
    assert both.where("mine IS NULL OR logit IS NULL").isEmpty()
    assert both.agg(F.max(F.abs(F.col("mine") - F.col("logit")))).collect()[0][0] <= 1e-5
    stored = shop.spark.read.format("delta").load(shop.warehouse.path(SCORES)).count()
    assert stored == pairs, "no row twice, not even folded by the reader"

    shop.run("rank_candidates", "cluster")
    ranks = [sorted((row["variant"], bytes(row["query_id"]), row["rank"], row["item_id"]) for row in of.collect())
             for of in (shop.rows(RANKINGS), ranked_shop.rows(RANKINGS))]  # fmt: skip
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(("partitions", "token_budget"), [(1, 16), (2, 64), (8, 2048)])
def test_ranks_do_not_depend_on_partitions_or_batches(
    copied: Shop, ranked_shop: Shop, partitions: int, token_budget: int
) -> None:
    """R17 in local[2,4], through the jobs."""
    shop, pairs = without_scores(copied), ranked_shop.rows(SCORES).count()
    shop.run("score_candidates", "again", pairs_per_task=-(-pairs // partitions), token_budget=token_budget)
    shop.run("rank_candidates", "again")
    found, expected = (
        sorted(
            (row["variant"], bytes(row["query_id"]), row["rank"], row["item_id"]) for row in of.rows(RANKINGS).collect()
        )
        for of in (shop, ranked_shop)
    )
    assert found == expected
