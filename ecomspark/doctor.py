"""`ecomspark doctor`: what would stop or slow a run on this machine with these settings, each finding with its remedy.

It changes nothing: tables are only compared, and a probe that is written into the warehouse is deleted again. It reads
no row. One check that fails does not keep the others from being made. Not looked at: sources, what is in the tables,
and hosts other than this one (but the one on which Spark happens to start a Python worker).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
from packaging.requirements import Requirement
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from ecomspark import config, launch, preflight, tables
from ecomspark.chances import FILE as CHANCES
from ecomspark.chances import open_chances
from ecomspark.config import Settings
from ecomspark.errors import PUBLISHED, CheckpointError, ConfigError, ContractError, EcomsparkError, way
from ecomspark.findings import (
    Finding,
    Values,
    arrow_limits,
    gib,
    gpus,
    idle_workers,
    memory,
    of_stage,
    silent_workers,
    worker_reuse,
    writers,
)
from ecomspark.models.checkpoint import WEIGHTS, open_checkpoint
from ecomspark.pseudonyms import Shoppers, read_key, readable_by_all
from ecomspark.schemas import TABLES, Table
from ecomspark.tables import Warehouse

Kind = Literal["cross_encoder", "encoder", "sequence", "chances"]

# The checks that need a session, in the order in which they are told.
ON_SPARK = (
    "Spark", "Delta jars", "workers' packages", "GPUs", "worker reuse", "idle workers", "silent workers",
    "Arrow limits", "memory", "warehouse", "writers", "tables", "Spark's disk",
)  # fmt: skip

_DISK = 1 * preflight.GIB  # what `make demo` asks for; Spark's shuffles and a checkpoint that is trained take the most
# What a key names, by its place or, where it is the same in every job, by itself.
_KINDS: dict[str, Kind] = {
    "score_next_items.checkpoint": "sequence", "checkpoint": "cross_encoder", "teacher": "cross_encoder",
    "encoder": "encoder", "embedding.encoder": "encoder", "base": "encoder", "chances": "chances",
}  # fmt: skip
# What must be the same in each of these jobs.
_ALIKE = {
    "purpose": ("build_sessions", "finetune_sequence", "train_chances", "score_next_items", "build_profiles",
                "personalise_rankings", "withdraw_consents"),
    "time_zone": ("build_sessions", "train_chances", "score_next_items", "build_profiles", "personalise_rankings"),
    "gap_minutes": ("build_sessions", "train_chances", "score_next_items", "build_profiles", "personalise_rankings"),
    "kinds": ("finetune_sequence", "score_next_items"),
    "price_bands": ("build_profiles", "personalise_rankings"),
    "encoder": ("embed_texts", "build_profiles", "personalise_rankings"),
}  # fmt: skip
_TOLD = ("pyspark", "delta-spark", "pandas", "pyarrow", "torch", "transformers")


@dataclass(frozen=True)
class Named:
    """A checkpoint, or a set of chances, that a setting names. `made_by`: the job of the file that makes it, if any."""

    place: str
    name: str
    kind: Kind
    made_by: str = ""


def show(path: Path, overrides: Sequence[str], as_json: bool, pipelines: Mapping[str, Any]) -> int:
    """Look at everything and print what was found; the exit status: 0 when no run would be refused."""
    launch.log_to_stderr("text")
    with launch.ending_well() as ended:
        findings = examine(path, overrides, pipelines)
        status = exit_status(findings)
        told = {"exit_status": status, "findings": [finding.as_json() for finding in findings]}
        print(json.dumps(told) if as_json else as_text(findings), flush=True)
        ended.status = status
    return ended.status


def exit_status(findings: Sequence[Finding]) -> int:
    """0 without a fault; 3 when all of them are a table's or a checkpoint's; else 2."""
    return min((finding.status for finding in findings if finding.level == "fault"), default=PUBLISHED)


def as_text(findings: Sequence[Finding]) -> str:
    """A line a finding, its remedy under it, and a closing sentence."""
    wide = max(len(finding.what) for finding in findings)
    indent = " " * (wide + 10)
    lines = []
    for finding in findings:
        found = finding.found.replace("\n", f"\n{indent}")
        lines.append(f"{finding.level:6}  {finding.what:{wide}}  {found}")
        lines += [f"{indent}→ {finding.remedy}"] if finding.remedy else []
    faults, advice = (sum(finding.level == level for finding in findings) for level in ("fault", "advice"))
    verdict = "a run would be refused" if faults else "a run would not be refused"
    return "\n".join([*lines, "", f"{verdict} (faults: {faults}, advice: {advice})"])


def examine(path: Path, overrides: Sequence[str], pipelines: Mapping[str, Any]) -> list[Finding]:
    """Every finding. `pipelines`: the module of each job."""
    free = preflight.free_memory()  # before Spark's JVM takes its part
    # Under spark-submit a JVM is running, whatever PATH says.
    machine = [
        java(None if "PYSPARK_GATEWAY_PORT" in os.environ else preflight.java_fault()),
        *_tried("packages", lambda: [packages(requirements())]),
    ]
    shared, settings, faults = read_settings(path, overrides, pipelines)
    findings = [*machine, *faults]
    if shared is None:
        return [*findings, *not_tried("the settings have faults")]
    findings += in_step_with_each_other(settings)
    named, folder = named_checkpoints(settings), shared.models_folder
    if machine[0].level == "ok":
        findings += _on_spark(shared, settings, free, _weights(folder, named))
    else:
        findings += not_tried("there is no Java that will do")
    findings += _tried("checkpoints", lambda: checkpoints(folder, named))
    findings += _tried("keys", lambda: keys(settings))
    findings += _tried("models' disk", lambda: [disk("models' disk", folder)])
    if "://" not in shared.warehouse and not shared.warehouse.startswith("catalog:"):
        findings += _tried("warehouse's disk", lambda: [disk("warehouse's disk", Path(shared.warehouse))])
    return findings


def not_tried(reason: str) -> list[Finding]:
    """The findings of the checks that need Spark, where there is none."""
    return [Finding(what, "advice", f"not tried, because {reason}", "mend that first") for what in ON_SPARK]


def java(fault: str | None) -> Finding:
    """Of what `preflight` says of Java."""
    found, _, remedy = (fault or "version 17 or newer is there").removeprefix("Java: ").partition("; ")
    return Finding("Java", "fault" if fault else "ok", found, remedy)


def packages(requirements: Sequence[str], what: str = "packages") -> Finding:
    """What is installed for the Python that runs this, against what the package asks for; extras are left out."""
    faults, found = [fault for fault in [preflight.python_fault()] if fault], {}
    for asked in map(Requirement, requirements):
        if asked.marker is None or asked.marker.evaluate({"extra": ""}):
            try:
                found[asked.name] = metadata.version(asked.name)
            except metadata.PackageNotFoundError:
                found[asked.name] = "none"
            if found[asked.name] == "none" or not asked.specifier.contains(found[asked.name], prereleases=True):
                faults.append(f"{asked.name}: expected {asked.specifier or 'any'}, found {found[asked.name]}")
    if faults:
        return Finding(what, "fault", "\n".join(faults), "install requirements.lock (here: `make clean env`)")
    return Finding(what, "ok", ", ".join(f"{name} {found[name]}" for name in _TOLD if name in found))


def requirements() -> list[str]:
    """What the installed package says it needs. Raises ConfigError where only its files are there."""
    try:
        return metadata.requires("ecomspark") or []
    except metadata.PackageNotFoundError:
        raise ConfigError("ecomspark: not installed as a package here, so its pins are not known; install it") from None


def read_settings(
    path: Path, overrides: Sequence[str], pipelines: Mapping[str, Any]
) -> tuple[Settings | None, dict[str, Settings], list[Finding]]:
    """The shared settings, None where they have a fault; those of each job whose section has none; what was found."""
    settings: dict[str, Settings] = {}
    faults: dict[str, str] = {}  # by place: a shared key's fault is met again with every job

    def read(job: str, kind: type[Settings]) -> Settings | None:
        try:
            return config.load(path, job, kind, list(pipelines), overrides)
        except ConfigError as error:
            for line in str(error).splitlines():
                faults.setdefault(line.partition(";")[0], line)
        return None

    try:
        sections = config.sections(path, list(pipelines), overrides)
    except ConfigError as error:
        return None, {}, [Finding("settings", "fault", str(error), "conf/local.yaml is one to start from")]
    for job in sections:
        if (mine := read(job, pipelines[job].Config)) is not None:
            settings[job] = mine
    shared = read("", Settings)
    remedy = "`ecomspark config JOB` explains every key of a job"
    if faults:
        return shared, settings, [Finding("settings", "fault", line, remedy) for line in faults.values()]
    if not sections:
        return shared, settings, [Finding("settings", "advice", f"{path}: no job has a section", remedy)]
    return shared, settings, [Finding("settings", "ok", f"{path}: {len(sections)} jobs, no fault")]


def in_step_with_each_other(settings: Mapping[str, Settings]) -> list[Finding]:
    """Keys that jobs on shoppers share and that their sections give several values; no finding where all agree."""
    findings = []
    for key, jobs in _ALIKE.items():
        of_jobs = {job: getattr(settings[job], key) for job in jobs if job in settings}
        if len({str(value) for value in of_jobs.values()}) > 1:
            found = f"{key}: " + ", ".join(f"{job} has {value}" for job, value in of_jobs.items())
            findings.append(
                Finding("settings", "advice", found, "give all of them the same: one reads what another made")
            )
    return findings


def named_checkpoints(settings: Mapping[str, Settings]) -> list[Named]:
    """Every checkpoint that the sections name as one to read."""
    made = {str(mine.name): job for job, mine in settings.items() if hasattr(mine, "name")}
    named_by = dict.fromkeys(key.removeprefix("score_next_items.") for key in _KINDS)
    return [
        Named(f"{job}.{key}", name, _KINDS.get(f"{job}.{key}") or _KINDS[key], made.get(name, ""))
        for job, mine in settings.items()
        for key in named_by
        if (name := reduce(lambda part, of: getattr(part, of, None), key.split("."), cast(Any, mine))) is not None
    ]


def checkpoints(folder: Path, named: Sequence[Named]) -> list[Finding]:
    """Every checkpoint in the models folder verified, and those that settings name and that are not there."""
    there = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    findings, good = [], []
    for name in there:
        users = [asked for asked in named if asked.name == name]
        if name.startswith("making-"):  # what `models.checkpoint.workroom` calls its folders
            found = f"{folder / name}: left by a run that died, unless one is making a checkpoint now"
            findings.append(Finding("checkpoints", "advice", found, "delete it when no run is at work"))
            continue
        try:
            kinds: list[Kind | None] = [asked.kind for asked in users] or [None]
            for kind in kinds:
                if kind == "chances" or (kind is None and (folder / name / CHANCES).exists()):
                    open_chances(folder, name)
                else:
                    open_checkpoint(folder, name, kind)
            good.append(name)
        except CheckpointError as error:
            level: Literal["advice", "fault"] = "fault" if users else "advice"
            remedy = "make it anew, or " + (
                f"name another in {users[0].place}" if users else "delete it: none names it"
            )
            findings.append(Finding("checkpoints", level, str(error), remedy, ContractError.status))
    for asked in named:
        if asked.name in there:
            continue
        found = f"{asked.place}: {asked.name} is not in {folder} (there: {', '.join(good) or 'none'})"
        if asked.made_by:
            findings.append(Finding("checkpoints", "advice", found, f"run {asked.made_by} first, which makes it"))
        else:
            remedy = "name one that is there, or train or import it"
            findings.append(Finding("checkpoints", "fault", found, remedy, ContractError.status))
    whole = f"{len(good)} verified in {folder}: {', '.join(good)}" if good else f"none in {folder}, and none is needed"
    return findings or [Finding("checkpoints", "ok", whole)]


def keys(settings: Mapping[str, Settings]) -> list[Finding]:
    """The keys that make pseudonyms, of the jobs that import shoppers; no finding where none does. Raises ConfigError
    when one cannot be read."""
    shoppers = [getattr(mine, "shoppers", None) for mine in settings.values()]
    named = [of for of in shoppers if isinstance(of, Shoppers)]
    if not named:
        return []
    for of in named:
        read_key(of.key_file)
    files = {of.key_file: of.key_id for of in named}
    if is_open := [path for path in files if readable_by_all(path)]:
        found = f"{', '.join(map(str, is_open))}: every user of this host may read it"
        return [Finding("keys", "advice", found, "`chmod 600` it")]
    return [Finding("keys", "ok", ", ".join(f"{key_id} in {path}" for path, key_id in files.items()))]


def disk(what: str, folder: Path, floor: int = _DISK) -> Finding:
    """The free space where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    found = f"{gib(shutil.disk_usage(there).free)} free in {folder}"
    if shutil.disk_usage(there).free >= floor:
        return Finding(what, "ok", found)
    return Finding(what, "fault", f"{found}, {gib(floor)} are the least", "make room, or name a folder elsewhere")


def _on_spark(shared: Settings, settings: Mapping[str, Settings], free: int | None, weights: int) -> list[Finding]:
    """The checks that need a session."""
    try:
        with launch.spark_session("doctor", shared) as spark:
            values, place = _values(spark), partial(Warehouse, spark, shared.warehouse, shared.buckets)
            stage = of_stage(values, getattr(settings.get("score_candidates"), "resources", None))
            checks: dict[str, Callable[[], list[Finding]]] = {
                "Spark": lambda: [same_version("Spark", spark.version, "pyspark")],
                "Delta jars": lambda: [same_version("Delta jars", tables.jar_version(spark), "delta-spark")],
                "workers' packages": lambda: [packages_of_worker(spark)],
                "GPUs": lambda: [gpus(_gpus_here(), shutil.which("nvidia-smi") is not None, stage)],
                "worker reuse": lambda: [worker_reuse(values)],
                "idle workers": lambda: [idle_workers(stage)],
                "silent workers": lambda: [silent_workers(values)],
                "Arrow limits": lambda: [arrow_limits(values)],
                "memory": lambda: [memory(stage, weights, free)],
                "warehouse": lambda: [reachable(place())],
                "writers": lambda: [writers(_storage(place()), values)],
                "tables": lambda: in_step(place()),
                "Spark's disk": lambda: [disk("Spark's disk", _local_dir(values))],
            }
            return [finding for what in ON_SPARK for finding in _tried(what, checks[what])]
    except ConfigError as error:
        refused = Finding("Spark", "fault", str(error), "conf/spark-local.conf is a properties file to start from")
    except Exception as error:
        said = Path(tempfile.gettempdir()) / "ecomspark-spark-*.log"
        remedy = f"read the newest {said}; jars that cannot be fetched: name them in spark.jars"
        refused = Finding("Spark", "fault", f"does not start: {type(error).__name__}", remedy)
    return [refused, *(finding for finding in not_tried("Spark was refused") if finding.what != "Spark")]


def _tried(what: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; where it ends in an error, that. An error that is not ours is told without its message."""
    try:
        return check()
    except EcomsparkError as error:
        found, _, remedy = str(error).rpartition("; ")
        return [Finding(what, "fault", found or remedy, remedy if found else "", error.status)]
    except Exception as error:
        status = ContractError.status if what in ("tables", "checkpoints") else ConfigError.status
        found = f"could not be looked at: {type(error).__name__}, by way of {way(error)}"
        return [Finding(what, "fault", found, "see to what these lines do: a run does the same", status)]


def _values(spark: SparkSession) -> dict[str, str]:
    limits = ("spark.sql.execution.arrow.maxRecordsPerBatch", "spark.sql.execution.arrow.maxBytesPerBatch")
    return dict(spark.sparkContext.getConf().getAll()) | {key: str(spark.conf.get(key)) for key in limits}


def _local_dir(values: Values) -> Path:
    """The first of the folders of this host that Spark puts shuffles into."""
    named = os.environ.get("SPARK_LOCAL_DIRS") or values.get("spark.local.dir") or tempfile.gettempdir()
    return Path(named.split(",")[0].strip())


def same_version(what: str, loaded: str | None, package: str) -> Finding:
    """What the JVM runs, against the Python package. A jar that settings name and that is missing is only warned of."""
    expected = metadata.version(package)
    if loaded == expected:
        return Finding(what, "ok", f"{loaded}, as the package {package}")
    found = f"expected {expected}, as the package {package}, found {loaded or 'none'}"
    return Finding(what, "fault", found, "bring both to the same: conf/spark-local.conf names the right jars")


def packages_of_worker(spark: SparkSession) -> Finding:
    """What `packages` finds in a Python worker, wherever Spark starts it."""
    asked = requirements()

    def look(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        found = packages(asked, "workers' packages")
        yield pa.RecordBatch.from_pylist([{"level": found.level, "found": found.found, "remedy": found.remedy}])

    row = spark.range(1, numPartitions=1).mapInArrow(look, "level string, found string, remedy string").collect()[0]
    return Finding("workers' packages", row["level"], row["found"], row["remedy"])


def _gpus_here() -> dict[str, Any] | None:
    """Asked in a process of its own: this one may fork. None when torch does not load."""
    child = [sys.executable, "-m", "ecomspark.models.gpus"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with suppress(subprocess.SubprocessError, ValueError, IndexError):
        said = subprocess.run(child, capture_output=True, text=True, env=environment, check=True, timeout=120).stdout
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found
    return None


def _weights(folder: Path, named: Sequence[Named]) -> int:
    """Bytes of the largest weights that settings name; 0 while none are there."""
    files = [folder / asked.name / WEIGHTS for asked in named]
    return max((file.stat().st_size for file in files if file.is_file()), default=0)


def reachable(warehouse: Warehouse) -> Finding:
    """Whether a file can be made, read back and deleted in the warehouse; in a catalog, whether its schema is there."""
    spark, location = warehouse.spark, warehouse.location
    if location.startswith("catalog:"):
        schema = location.removeprefix("catalog:")
        if spark.catalog.databaseExists(schema):
            return Finding("warehouse", "ok", f"{schema} is there; whether it can be written to was not tried")
        return Finding("warehouse", "fault", f"{schema}: no such schema", f"CREATE SCHEMA {schema}, or name another")
    folder = _folder(warehouse)
    try:
        files = folder.getFileSystem(spark._jsc.hadoopConfiguration())
        parents = [folder]
        while not files.exists(parents[-1]) and parents[-1].getParent() is not None:
            parents.append(parents[-1].getParent())
        probe = folder.suffix(f"/_ecomspark_doctor_{uuid.uuid4().hex}")
        try:
            stream = files.create(probe, False)
            stream.writeUTF("ecomspark")
            stream.close()
            stream = files.open(probe)
            is_whole = stream.readUTF() == "ecomspark"
            stream.close()
        finally:
            for made in [probe, *parents[:-1]]:
                with suppress(Py4JJavaError):  # a folder that somebody has put something in meanwhile
                    files.delete(made, False)
    except Py4JJavaError as error:
        reason = error.java_exception
        while reason.getCause() is not None:
            reason = reason.getCause()
        found = f"{location}: cannot be written to ({reason.getClass().getSimpleName()})"
        return Finding("warehouse", "fault", found, "see to the folder's rights, the store's jars and its credentials")
    if not is_whole:
        return Finding("warehouse", "fault", f"{location}: gives back something else", "name another warehouse")
    return Finding("warehouse", "ok", f"{location}: a file was made, read back and deleted")


def _folder(warehouse: Warehouse) -> Any:
    """The warehouse as Hadoop names it: without a scheme it is on Spark's default file system, as it is for Delta."""
    path: Any = warehouse.spark._jvm.org.apache.hadoop.fs.Path  # type: ignore[union-attr]
    return path(warehouse.location if "://" in warehouse.location else str(Path(warehouse.location).absolute()))


def _storage(warehouse: Warehouse) -> str:
    """An address in the store where the tables lie; empty where a catalog does not say."""
    if "://" in warehouse.location:
        return warehouse.location
    if not warehouse.location.startswith("catalog:"):
        return str(_folder(warehouse).getFileSystem(warehouse.spark._jsc.hadoopConfiguration()).getUri())
    schema, known = warehouse.location.removeprefix("catalog:"), warehouse.spark.catalog
    return known.getDatabase(schema).locationUri if known.databaseExists(schema) else ""


def in_step(warehouse: Warehouse) -> list[Finding]:
    """Whether every table that has been made is what `schemas.py` declares."""
    made = [table for table in TABLES.values() if tables.exists(warehouse, table)]
    findings = [finding for table in made for finding in _tried("tables", partial(_compared, warehouse, table))]
    bad = [finding for finding in findings if finding.level == "fault"]
    return bad or [Finding("tables", "ok", f"{len(made)} of {len(TABLES)} are made, all as declared"), *findings]


def _compared(warehouse: Warehouse, table: Table) -> list[Finding]:
    faults, lacking = tables.differences(warehouse, table)
    if faults:
        found = "\n".join(f"{table.name}: {fault}" for fault in faults)
        return [Finding("tables", "fault", found, "migrate it, or name another warehouse", ContractError.status)]
    return [Finding("tables", "ok", f"{table.name}: the next run adds columns ({len(lacking)})")] if lacking else []
