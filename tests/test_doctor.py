"""The doctor finds what is broken, names the remedy, changes nothing, and goes on when one check fails."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from conftest import ROOT

from ecomspark import cli, doctor, launch, preflight, tables
from ecomspark.chances import Chances, Linear, seal_chances
from ecomspark.doctor import Named
from ecomspark.errors import ConfigError
from ecomspark.findings import Finding
from ecomspark.schemas import ITEMS, QUERIES, RUN_METRICS, TABLES, Table
from ecomspark.tables import Warehouse

CANARY = "canary-3141"
PIPELINES = {job: cli.pipeline(job) for job in launch.jobs()}
OK, FAULT, ADVICE = (
    Finding("a", "ok", "x"),
    Finding("b", "fault", "y\nz", "mend it"),
    Finding("c", "advice", "x", "try"),
)
LINEAR = Linear(terms={"events": (1.0, 2.0, 0.5)}, bias=-1.0, points=[(-1.0, 0.1), (1.0, 0.6)], metrics={"auc": 0.7})
OF_A_TABLE = Finding("tables", "fault", "x", "migrate it", 3)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`show` sends the project's log to stderr; other tests want it as it was."""
    log = logging.getLogger("ecomspark")
    before = (list(log.handlers), log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before[0], before[1], before[2]


def settings_file(folder: Path, **sections: Any) -> Path:
    path = folder / "shop.yaml"
    shared = {"warehouse": str(folder / "warehouse"), "models_folder": str(folder / "models")}
    path.write_text(yaml.safe_dump({**shared, "spark_properties": str(ROOT / "conf/spark-local.conf"), **sections}))
    return path


def levels(findings: list[Finding], what: str) -> list[str]:
    return [finding.level for finding in findings if finding.what == what]


def test_the_status_tells_a_table_from_the_machine() -> None:
    assert doctor.exit_status([OK, ADVICE]) == 0
    assert doctor.exit_status([OK, OF_A_TABLE]) == 3
    assert doctor.exit_status([OF_A_TABLE, FAULT]) == 2


def test_a_remedy_stands_under_its_finding() -> None:
    assert doctor.as_text([OK, FAULT]).splitlines() == [
        "ok      a  x",
        "fault   b  y",
        "           z",
        "           → mend it",
        "",
        "a run would be refused (faults: 1, advice: 0)",
    ]
    assert doctor.as_text([ADVICE]).endswith("a run would not be refused (faults: 0, advice: 1)")


def test_java_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.java(None).level == "ok"
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found = doctor.java(preflight.java_fault())
    assert (found.level, found.found) == (
        "fault",
        f"Spark needs version 17 or 21, but JAVA_HOME is {tmp_path}, which has no bin/java",
    )
    assert found.remedy.startswith("install Java 17 or 21")


def test_packages_are_compared_with_the_pins_of_the_installed_package() -> None:
    assert doctor.packages(doctor.requirements()).level == "ok"
    assert f"pandas {metadata.version('pandas')}" in doctor.packages(["pandas<3,>=2.3"]).found
    wrong = doctor.packages(["pandas<2", "no-such-package>=1", 'also-not-there; extra == "dev"', "nor-this", "pyarrow"])
    assert wrong.level == "fault"
    assert wrong.found.splitlines() == [
        f"pandas: expected <2, found {metadata.version('pandas')}",
        "no-such-package: expected >=1, found none",
        "nor-this: expected any, found none",
    ]


def test_a_package_that_is_only_unpacked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", none)
    with pytest.raises(ConfigError, match="not installed as a package"):
        doctor.requirements()


def test_the_jvm_must_run_what_the_package_is_made_for() -> None:
    mine = metadata.version("delta-spark")
    assert doctor.same_version("Delta jars", mine, "delta-spark").level == "ok"
    for other in ("4.0.0", None):
        found = doctor.same_version("Delta jars", other, "delta-spark")
        assert (found.level, found.found.endswith(f"found {other or 'none'}")) == ("fault", True)


def test_sections_are_read_by_their_jobs_and_all_faults_told_once(tmp_path: Path) -> None:
    path = settings_file(tmp_path, score_candidates={"checkpoint": "relevance-1"}, build_texts={})
    shared, settings, found = doctor.read_settings(path, ["build_texts.max_quarantined_share=0.5"], PIPELINES)
    assert shared is not None
    assert set(settings) == {"score_candidates", "build_texts"}
    assert [finding.level for finding in found] == ["ok"]

    path = settings_file(tmp_path, buckets=0, score_candidates={"chekpoint": "x"}, rank_candidates={}, build_text={})
    shared, settings, found = doctor.read_settings(path, [], PIPELINES)
    assert (shared, settings, {finding.level for finding in found}) == (None, {}, {"fault"})
    places = sorted(finding.found.removeprefix(f"{path}: ").split(":")[0] for finding in found)
    assert places == [
        "buckets",
        "build_text",
        "rank_candidates.checkpoint",
        "score_candidates.checkpoint",
        "score_candidates.chekpoint",
    ]

    path.write_text("build_texts: {}\nbuild_candidates: {}\n")
    found = doctor.read_settings(path, [], PIPELINES)[2]
    assert [finding.found.split(";")[0] for finding in found] == [f"{path}: warehouse: missing"]
    assert [f.level for f in doctor.read_settings(settings_file(tmp_path), [], PIPELINES)[2]] == ["advice"], (
        "no section"
    )
    assert doctor.read_settings(tmp_path / "none.yaml", [], PIPELINES)[2][0].level == "fault"


def test_jobs_on_shoppers_that_disagree_are_told(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "build_sessions": {"time_zone": "Europe/London"}, "build_profiles": {"time_zone": "UTC", "encoder": "base"},
        "embed_texts": {"encoder": "base"}, "score_next_items": {"checkpoint": "next", "time_zone": "Europe/London"},
    }  # fmt: skip
    _, settings, _ = doctor.read_settings(settings_file(tmp_path, **sections), [], PIPELINES)
    (found,) = doctor.in_step_with_each_other(settings)
    assert found.level == "advice"
    assert found.found == (
        "time_zone: build_sessions has Europe/London, score_next_items has Europe/London, build_profiles has UTC"
    )
    sections["build_profiles"]["time_zone"] = "Europe/London"
    _, settings, _ = doctor.read_settings(settings_file(tmp_path, **sections), [], PIPELINES)
    assert doctor.in_step_with_each_other(settings) == []


def test_every_key_that_must_agree_is_one_of_each_job() -> None:
    for key, jobs in doctor._ALIKE.items():
        assert all(key in PIPELINES[job].Config.model_fields for job in jobs), key


def test_named_checkpoints_are_found_in_the_sections(tmp_path: Path) -> None:
    sections = {
        "import_checkpoint": {"source": "x", "name": "base"},
        "finetune_cross_encoder": {"base": "base", "name": "relevance-1", "judgment_set": "ours"},
        "rank_candidates": {"checkpoint": "relevance-2"},
        "evaluate_rankings": {"judgment_set": "ours", "encoder": "base"},
        "score_next_items": {"checkpoint": "next-1", "chances": "chances-1"},
        "train_chances": {"name": "chances-1"},
        "build_candidates": {"sources": ["bm25", "embedding"], "embedding": {"encoder": "base"}},
    }
    _, settings, _ = doctor.read_settings(settings_file(tmp_path, **sections), [], PIPELINES)
    assert set(doctor.named_checkpoints(settings)) == {
        Named("finetune_cross_encoder.base", "base", "encoder", "import_checkpoint"),
        Named("rank_candidates.checkpoint", "relevance-2", "cross_encoder"),
        Named("evaluate_rankings.encoder", "base", "encoder", "import_checkpoint"),
        Named("score_next_items.checkpoint", "next-1", "sequence"),
        Named("score_next_items.chances", "chances-1", "chances", "train_chances"),
        Named("build_candidates.embedding.encoder", "base", "encoder", "import_checkpoint"),
    }


def test_checkpoints_are_verified_and_those_that_are_missing_named(tmp_path: Path) -> None:
    named = [Named("score_candidates.checkpoint", "relevance-1", "cross_encoder")]
    assert doctor.checkpoints(tmp_path / "models", [])[0].found.startswith("none in")
    missing = doctor.checkpoints(tmp_path / "models", named)[0]
    assert (missing.level, missing.status) == ("fault", 3)
    made_by = [Named("score_candidates.checkpoint", "relevance-1", "cross_encoder", "finetune_cross_encoder")]
    assert doctor.checkpoints(tmp_path / "models", made_by)[0].level == "advice"

    folder = tiny.checkpoint(tmp_path / "models", "relevance-1").folder
    assert doctor.checkpoints(tmp_path / "models", named) == [
        Finding("checkpoints", "ok", f"1 verified in {tmp_path / 'models'}: relevance-1")
    ]
    assert doctor._weights(tmp_path / "models", named) == (folder / "model.safetensors").stat().st_size
    as_encoder = doctor.checkpoints(folder.parent, [Named("evaluate_rankings.encoder", "relevance-1", "encoder")])[0]
    assert (as_encoder.level, "found a cross_encoder" in as_encoder.found) == ("fault", True)
    assert as_encoder.remedy.endswith("name another in evaluate_rankings.encoder")

    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    (tmp_path / "models" / "making-abc").mkdir()
    found = doctor.checkpoints(tmp_path / "models", named)
    assert [finding.level for finding in found] == ["advice", "fault"]
    assert "making-abc: left by a run that died" in found[0].found
    assert "sha256 differs" in found[1].found
    assert levels(doctor.checkpoints(tmp_path / "models", []), "checkpoints") == ["advice", "advice"], "nobody uses it"


def test_chances_are_verified_as_what_they_are(tmp_path: Path) -> None:
    seal_chances(tmp_path, "next", Chances(days=30, models={"session_purchase": LINEAR}))
    named = [Named("score_next_items.chances", "next", "chances", "")]
    for users in ([], named):
        assert [finding.level for finding in doctor.checkpoints(tmp_path, users)] == ["ok"]
    (found,) = doctor.checkpoints(tmp_path, [Named("score_next_items.checkpoint", "next", "sequence", "")])
    assert (found.level, "card.json" in found.found) == ("fault", True)
    path = tmp_path / "next" / "chances.json"
    path.write_text(path.read_text().replace('"days": 30', '"days": 31'))
    (found,) = doctor.checkpoints(tmp_path, named)
    assert (found.level, "its digest differs" in found.found) == ("fault", True)


def test_a_key_is_read_before_a_run_would_and_its_bytes_are_told_nowhere(tmp_path: Path) -> None:
    key = tmp_path / "shoppers.key"
    log = {"format": "parquet", "path": "x"}
    path = settings_file(
        tmp_path, import_online_retail={"source": log, "shoppers": {"key_file": str(key), "key_id": "k1"}}
    )
    _, settings, _ = doctor.read_settings(path, [], PIPELINES)
    (found,) = doctor._tried("keys", lambda: doctor.keys(settings))
    assert (found.level, found.status, "openssl rand" in found.remedy) == ("fault", 2, True)
    key.write_bytes(b"0123456789abcdef" * 2)
    key.chmod(0o600)
    (found,) = doctor.keys(settings)
    assert (found.level, found.found) == ("ok", f"k1 in {key}")
    key.chmod(0o644)
    (found,) = doctor.keys(settings)
    assert (found.level, "every user" in found.found, "0123" in found.found) == ("advice", True, False)
    assert doctor.keys({}) == []


def test_too_little_disk_is_told_where_a_folder_will_be(tmp_path: Path) -> None:
    assert doctor.disk("models' disk", tmp_path / "not" / "yet", 1).level == "ok"
    found = doctor.disk("models' disk", tmp_path / "not" / "yet", 10**18)
    assert (found.level, found.found.endswith("are the least")) == ("fault", True)


def test_spark_writes_where_the_host_says_before_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    assert doctor._local_dir({"spark.local.dir": "/a, /b"}) == Path("/a")
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "/c")
    assert doctor._local_dir({"spark.local.dir": "/a"}) == Path("/c")


def test_gpus_are_asked_for_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._gpus_here()
    assert found is not None
    assert set(found) == {"gpus", "cuda"}
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    assert doctor._gpus_here() is None


def test_the_doctor_itself_imports_no_torch() -> None:
    """What forks later must not have it; in a process of its own, for this one has it from other tests."""
    script = "import sys, ecomspark.cli as c, ecomspark.launch as l; [c.pipeline(j) for j in l.jobs()]; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert ended.stdout.strip() == "False"


def test_an_error_of_a_check_is_told_without_its_message() -> None:
    def broken() -> list[Finding]:
        raise RuntimeError(CANARY)

    def refused() -> list[Finding]:
        raise ConfigError("here: expected this, found that; do so")

    found = doctor._tried("tables", broken)[0]
    assert (found.level, found.status, CANARY in str(found)) == ("fault", 3, False)
    assert "RuntimeError, by way of" in found.found
    assert doctor._tried("memory", broken)[0].status == 2
    assert doctor._tried("memory", refused) == [Finding("memory", "fault", "here: expected this, found that", "do so")]


@pytest.mark.parametrize(
    "error", [ConfigError("spark.sql.ansi.enabled: expected true, found false"), RuntimeError(CANARY)]
)
def test_without_spark_the_other_checks_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    @contextmanager
    def refuse(*_: Any) -> Iterator[Any]:
        raise error
        yield

    monkeypatch.setattr(launch, "spark_session", refuse)
    path = settings_file(tmp_path, score_candidates={"checkpoint": "relevance-1"})
    assert doctor.show(path, [], True, PIPELINES) == 2
    printed = capsys.readouterr()
    assert CANARY not in printed.out + printed.err
    said = json.loads(printed.out)
    assert said["exit_status"] == 2
    by_level: dict[str, set[str]] = {}
    for finding in said["findings"]:
        assert set(finding) == {"what", "level", "found", "remedy"}
        by_level.setdefault(finding["level"], set()).add(finding["what"])
    assert by_level["fault"] == {"Spark", "checkpoints"}
    assert by_level["advice"] == set(doctor.ON_SPARK) - {"Spark"}
    assert by_level["ok"] == {"Java", "packages", "settings", "models' disk", "warehouse's disk"}


def test_without_java_spark_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(launch, "spark_session", None)
    monkeypatch.setattr(
        preflight, "java_fault", lambda: "Java: Spark needs version 17 or 21, but none; install Java 17"
    )
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    assert cli.main(["doctor", "--conf", str(settings_file(tmp_path, build_texts={}))]) == 2
    out = capsys.readouterr().out
    assert out.count("not tried, because there is no Java that will do") == len(doctor.ON_SPARK)
    assert out.splitlines()[-1] == f"a run would be refused (faults: 1, advice: {len(doctor.ON_SPARK)})"
    assert cli.main(["doctor", "--conf", str(tmp_path / "none.yaml")]) == 2
    assert "not tried, because the settings have faults" in capsys.readouterr().out


def test_a_shop_on_spark_with_tables_altered_behind_our_back(
    spark: Any, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    tiny.checkpoint(tmp_path / "models", "relevance-1")
    path = settings_file(tmp_path, score_candidates={"checkpoint": "relevance-1"})
    for table in (ITEMS, QUERIES, RUN_METRICS):
        tables.create(warehouse, table)
    before = sorted((tmp_path / "warehouse").rglob("*"))
    assert cli.main(["doctor", "--conf", str(path), "--json"]) == 0
    found = {finding["what"]: finding for finding in json.loads(capfd.readouterr().out)["findings"]}
    assert set(found) >= set(doctor.ON_SPARK)
    told = (
        "tables",
        "warehouse",
        "Spark",
        "Delta jars",
        "workers' packages",
        "idle workers",
        "Arrow limits",
        "writers",
    )
    assert {found[what]["level"] for what in told} == {"ok"}
    assert found["tables"]["found"] == f"3 of {len(TABLES)} are made, all as declared"
    assert before == sorted((tmp_path / "warehouse").rglob("*")), "it changes nothing"

    spark.sql(f"ALTER TABLE {warehouse.name(ITEMS)} ADD COLUMNS (`{CANARY}` string)")
    spark.sql(f"ALTER TABLE {warehouse.name(QUERIES)} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    spark.sql(f"ALTER TABLE {warehouse.name(QUERIES)} DROP COLUMN traffic")
    compare = tables.differences

    def fails_on_one(warehouse: Warehouse, table: Table) -> Any:
        if table is RUN_METRICS:
            raise RuntimeError(f"{CANARY} in a message")
        return compare(warehouse, table)

    monkeypatch.setattr(tables, "differences", fails_on_one)
    assert cli.main(["doctor", "--conf", str(path)]) == 3
    out = capfd.readouterr().out
    assert f"items: {CANARY}: found, but not declared" in out
    assert "queries: traffic: expected bigint, found no such column" in out
    assert out.count("fault   tables") == 3, "the third could not be looked at"
    assert "in a message" not in out
    assert not (tmp_path / "warehouse" / "candidates").exists(), "no table was made"


def test_a_column_that_the_next_run_adds_is_no_fault(spark: Any, warehouse: Warehouse) -> None:
    tables.create(warehouse, ITEMS)
    spark.sql(f"ALTER TABLE {warehouse.name(ITEMS)} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    spark.sql(f"ALTER TABLE {warehouse.name(ITEMS)} DROP COLUMN rating")
    found = doctor.in_step(warehouse)
    assert [finding.level for finding in found] == ["ok", "ok"]
    assert found[1].found == "items: the next run adds columns (1)"
    assert "rating" not in spark.table(warehouse.name(ITEMS)).columns, "it only compares"


def test_a_warehouse_is_written_to_and_left_as_it_was(spark: Any, tmp_path: Path) -> None:
    assert doctor.reachable(Warehouse(spark, str(tmp_path / "not" / "yet"))).level == "ok"
    assert list(tmp_path.iterdir()) == [], "folders made for the probe are gone, too"
    (tmp_path / "there").mkdir()
    assert doctor.reachable(Warehouse(spark, f"file://{tmp_path}/there")).level == "ok"
    assert list((tmp_path / "there").iterdir()) == [], "no checksum file either"
    (tmp_path / "a file").write_text("")
    bad = doctor.reachable(Warehouse(spark, str(tmp_path / "a file" / "warehouse")))
    assert (bad.level, bad.status) == ("fault", 2)
    assert doctor._storage(Warehouse(spark, str(tmp_path))) == "file:///"
    assert doctor._storage(Warehouse(spark, "s3a://bucket/w")) == "s3a://bucket/w"
    assert doctor.reachable(Warehouse(spark, "nowhere://bucket/w")).found.endswith("(UnsupportedFileSystemException)")


def test_a_catalogs_schema_must_be_there(spark: Any) -> None:
    there = Warehouse(spark, "catalog:spark_catalog.default")
    assert doctor.reachable(there).level == "ok"
    assert doctor._storage(there).startswith("file:")
    for missing in ("catalog:spark_catalog.nothing", "catalog:nowhere.nothing"):
        assert doctor.reachable(Warehouse(spark, missing)).level == "fault"
        assert doctor._storage(Warehouse(spark, missing)) == ""
