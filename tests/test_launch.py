"""A job's command line: every end has its status, the last line on stdout is the summary, and no value gets out."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from shop import ITEMS as SHOP_ITEMS
from shop import Shop

from ecomspark import cli, launch, tables
from ecomspark.errors import ConfigError, ContractError, NewerPublished
from ecomspark.pipelines import import_items, import_queries, rank_candidates
from ecomspark.schemas import ITEMS, QUARANTINE, RUNS

CANARY = "canary-3141"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`launch` sends the project's log to stderr; other tests want it as it was."""
    log = logging.getLogger("ecomspark")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]


def settings_file(shop: Shop, job: str, **changes: Any) -> Path:
    section = json.loads(json.dumps({**shop.section(job), **changes}, default=str))
    shared = {"warehouse": shop.warehouse.location, "models_folder": str(shop.models), "buckets": 2,
              "spark_properties": str(ROOT / "conf/spark-local.conf")}  # fmt: skip
    path = shop.folder / f"{job}.yaml"
    path.write_text(yaml.safe_dump({**shared, job: section}))
    return path


def last_line(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def test_a_run_its_replay_and_its_summary(empty_shop: Callable[[], Shop], capsys: Any) -> None:
    shop = empty_shop()
    asked = ["--conf", str(settings_file(shop, "import_items")), "--run-id", "night-1", "--as-of", "2011-11-01"]
    assert launch.main(import_items, asked) == 0
    printed = capsys.readouterr()
    summary = last_line(printed.out)
    assert printed.out.count("\n") == 1, "stdout is for the summary alone"
    assert (summary["job"], summary["run_id"], summary["status"]) == ("import_items", "night-1", "published")
    assert summary["rows"]["inserted"] == 12
    assert summary["tables"] == {"items": {"before": 0, "after": 1}}
    assert set(summary["seconds"]) == {"import"}
    assert summary["as_of"] == "2011-11-01"
    assert "import_items: import: 12 read" in printed.err

    assert launch.main(import_items, [*asked, "--log-format", "json"]) == 0
    printed = capsys.readouterr()
    assert last_line(printed.out)["status"] == "replayed"
    assert all(set(json.loads(line)) == {"at", "level", "message"} for line in printed.err.splitlines())
    row = shop.rows(RUNS).collect()[0]
    assert (row["status"], str(row["as_of"])) == ("published", "2011-11-01")
    assert row["ended_at"] >= row["started_at"]


def test_faulty_settings_end_with_2_before_spark_is_asked(
    empty_shop: Callable[[], Shop], capsys: Any, monkeypatch: Any
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("Spark was started")

    monkeypatch.setattr(launch, "spark_session", refuse)
    path = settings_file(empty_shop(), "import_items", min_row=3)
    assert launch.main(import_items, ["--conf", str(path), "--run-id", "1"]) == 2
    printed = capsys.readouterr()
    assert "import_items.min_row: unknown; did you mean min_rows?" in printed.err
    assert last_line(printed.out) == {
        "job": "import_items", "run_id": "1", "status": "failed", "exit_status": 2, "error": "ConfigError",
    }  # fmt: skip
    fine = settings_file(empty_shop(), "import_items")
    assert launch.main(import_items, ["--conf", str(fine), "--run-id", "../etc"]) == 2
    with pytest.raises(SystemExit) as usage:
        launch.main(import_items, ["--conf", str(fine)])
    assert usage.value.code == 2
    with pytest.raises(SystemExit) as usage:
        launch.main(import_items, ["--conf", str(fine), "--run-id", "1", "--as-of", "tomorrow"])
    assert usage.value.code == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2), (ContractError("x"), 3), (NewerPublished("x"), 5),
        (RuntimeError(CANARY), 1), (SystemExit(143), 143),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_every_end_has_its_status_and_only_our_own_messages_are_shown(
    spark: Any, empty_shop: Callable[[], Shop], capsys: Any, monkeypatch: Any, error: BaseException, status: int
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(import_items, "run", fail)
    path = settings_file(empty_shop(), "import_items")
    assert launch.main(import_items, ["--conf", str(path), "--run-id", "1"]) == status
    printed = capsys.readouterr()
    assert last_line(printed.out)["exit_status"] == status
    assert CANARY not in printed.out + printed.err
    if status == 1:
        assert "unexpected RuntimeError, by way of" in printed.err
        assert "fail" in printed.err, "the place is named"


def test_bad_values_get_into_quarantine_and_nowhere_else(
    spark: Any, empty_shop: Callable[[], Shop], capfd: Any, caplog: Any
) -> None:  # S8
    shop = empty_shop()
    shop.write_items([*SHOP_ITEMS, (CANARY, CANARY, CANARY, CANARY, CANARY), (f"{CANARY}-2", "mug", "-1", "1e400", "")])
    path = settings_file(shop, "import_items", max_quarantined_share=0.5)
    assert launch.main(import_items, ["--conf", str(path), "--run-id", "1"]) == 0
    path = settings_file(shop, "import_items")
    assert launch.main(import_items, ["--conf", str(path), "--run-id", "2"]) == 3
    shop.write("queries", "id,query,traffic", [("q1", CANARY, CANARY)])
    path = settings_file(shop, "import_queries")
    assert launch.main(import_queries, ["--conf", str(path), "--run-id", "3"]) == 3
    printed = capfd.readouterr()
    assert CANARY not in printed.out + printed.err + caplog.text
    assert shop.rows(QUARANTINE).where(f"row LIKE '%{CANARY}%'").count() > 0
    logs = [log for log in (shop.folder / "warehouse").rglob("_delta_log/*.json")
            if log.parent.parent.name not in ("quarantine", "items")]  # fmt: skip
    assert logs
    assert not [log for log in logs if CANARY in log.read_text()]
    commits = [line for log in (shop.folder / "warehouse").rglob("_delta_log/*.json")
               for line in log.read_text().splitlines() if "commitInfo" in line]  # fmt: skip
    assert not [line for line in commits if CANARY in line]


def test_an_error_in_a_udf_leaves_the_worker_without_the_text(spark: Any, rows: Callable[..., Any]) -> None:  # S8
    from ecomspark.features import texts

    def fails(row: Any) -> Any:
        raise ValueError(f"cannot read {row['title']}")

    sources = texts.item_sources(rows(ITEMS, {"item_id": "1", "title": CANARY}))
    with pytest.raises(Exception, match="ValueError, by way of") as error:
        texts._made(sources, "passage", b"recipe", fails).collect()
    assert CANARY not in str(error.value)


def test_an_older_day_and_other_settings_are_refused_by_status(copied: Shop, capsys: Any) -> None:
    path = str(settings_file(copied, "rank_candidates"))
    assert launch.main(rank_candidates, ["--conf", path, "--run-id", "old", "--as-of", "2011-10-01"]) == 5
    assert "2011-11-01 is published already; nothing was done" in capsys.readouterr().err
    changed = ["--conf", path, "--run-id", "first", "--set", "rank_candidates.min_scored_share=0.5"]
    assert launch.main(rank_candidates, changed) == 2
    assert copied.rows(RUNS).where("run_id = 'old'").isEmpty(), "a refused run leaves no row"


def test_the_command_knows_every_job(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    printed = capsys.readouterr().out
    assert all(job in printed for job in launch.jobs())
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py")) == launch.jobs()


def test_a_properties_file_that_is_missing_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    from ecomspark.config import Settings

    monkeypatch.setattr(launch.SparkSession, "getActiveSession", lambda: None)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    settings = Settings(warehouse="w", spark_properties=tmp_path / "none.conf")
    with (
        pytest.raises(ConfigError, match="expected Spark's properties file, found"),
        launch.spark_session("x", settings),
    ):
        pass


def test_what_a_properties_file_says_stands_against_what_a_command_adds(tmp_path: Path) -> None:
    file = tmp_path / "own.conf"
    file.write_text("# spark.a none\nspark.b   1\nspark.c=2\n\n")
    said = launch._submit_arguments(file, ["spark.a=x", "spark.b=x", "spark.c=x"])
    assert said == f"--conf spark.a=x --properties-file {file} pyspark-shell"


def test_sigterm_ends_a_run_within_30_seconds_and_leaves_no_half(empty_shop: Callable[[], Shop]) -> None:  # R18
    shop = empty_shop()
    shop.write_items([(f"i{n}", f"Red Mug {n}", "2.50", "1", "2011-10-20") for n in range(20_000)])
    path = settings_file(shop, "import_items")
    command = [sys.executable, "-m", "ecomspark.cli", "run", "import_items", "--conf", str(path), "--run-id", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=shop.folder,
                             env={**os.environ, "PYSPARK_SUBMIT_ARGS": ""})  # fmt: skip
    assert child.stderr
    for line in child.stderr:
        if "started in" in line:
            break
    deadline = time.monotonic() + 60
    opened = shop.folder / "warehouse" / "runs" / "_delta_log" / f"{1:020}.json"
    while not opened.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert opened.exists(), "the run was opened"
    sent = time.monotonic()
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert child.returncode == 143, err
    assert last_line(out)["exit_status"] == 143
    versions = tables.snapshot(shop.warehouse, ITEMS)
    assert versions is None or shop.rows(ITEMS).count() in (0, 20_000)
    assert launch.main(import_items, ["--conf", str(path), "--run-id", "1"]) == 0, "the same run goes on afterwards"
    assert shop.rows(ITEMS).count() == 20_000
