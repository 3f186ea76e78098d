"""Start a job: parse, read settings, start Spark, run, print the run's summary; every end has its exit status.

The last line on stdout is the summary, one JSON object. All else goes to stderr: short sentences, or with
`--log-format json` one object a line. What Spark itself says goes to a file that a line names. Under spark-submit,
Spark hands both streams of a Python program on as its own stdout: the summary is its last line all the same.
"""

import argparse
import json
import logging
import os
import pkgutil
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

import ecomspark
from ecomspark import config, plans, preflight
from ecomspark.config import Settings
from ecomspark.errors import PUBLISHED, TERMINATED, UNEXPECTED, ConfigError, EcomsparkError, way
from ecomspark.runs import Summary, keep_plan
from ecomspark.tables import Warehouse

log = logging.getLogger("ecomspark")

_INTERRUPTED = 130
# For one session with several jobs. Idle Python workers end after a minute; the next ones then find torch imported, and
# are ready in a second instead of five. A lone job would only wait for what it may not need.
FORKS = "spark.python.daemon.module=ecomspark.daemon"


class Pipeline(Protocol):
    """A module of `pipelines`."""

    JOB: str
    Config: type[Settings]
    run: Callable[..., Summary]


def jobs() -> list[str]:
    """The names of all jobs: the modules of `pipelines`."""
    paths = [f"{path}/pipelines" for path in ecomspark.__path__]
    return sorted(module.name for module in pkgutil.iter_modules(paths))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of a job, the same for `ecomspark run` and for spark-submit."""
    parser.add_argument("--run-id", metavar="ID", help="names the run; given again, it is done once")
    parser.add_argument(
        "--plan",
        nargs="?",
        const=True,
        metavar="FILE",
        help="alone: say what the run would do, and do nothing; with a saved plan: read the versions that it saw",
    )
    add_plan_arguments(parser)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that running a job and planning it share."""
    parser.add_argument("--conf", type=Path, required=True, metavar="FILE", help="settings, such as conf/local.yaml")
    parser.add_argument("--full", action="store_true", help="look at everything, not only at what changed")
    add_as_of(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="lay over a setting, as section.key",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of what goes to stderr")


def add_as_of(parser: argparse.ArgumentParser) -> None:
    """The day that a run takes for today."""
    parser.add_argument("--as-of", type=_day, metavar="DATE", help="the day to take for today; default: the inputs'")


def main(pipeline: Any, arguments: Sequence[str] | None = None) -> int:
    """The whole of a job's entry point: `sys.exit(main(score_candidates))`."""
    parser = argparse.ArgumentParser(prog=pipeline.JOB, description=(pipeline.__doc__ or "").splitlines()[0])
    add_arguments(parser)
    asked = parser.parse_args(arguments)
    check_arguments(parser, asked)
    return launch(pipeline, asked)


def check_arguments(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """End with a sentence on usage when a run has no name: only a plan needs none."""
    if asked.plan is not True and not asked.run_id:
        parser.error("the following arguments are required: --run-id")


def launch(pipeline: Any, asked: argparse.Namespace) -> int:
    """Run a job as asked, or say what it would do; the exit status."""
    if asked.plan is True:
        return show_plan(pipeline, asked)
    log_to_stderr(asked.log_format)
    with ending_well() as ended:
        overrides = [*_overrides(pipeline, asked), *([f"plan={json.dumps(str(asked.plan))}"] if asked.plan else [])]
        settings = load_settings(pipeline, asked.conf, overrides)
        if asked.plan and not hasattr(pipeline, "plan"):
            raise ConfigError(f"--plan: {pipeline.JOB} is not planned")
        if not asked.run_id or not config.is_name(asked.run_id):
            raise ConfigError("--run-id: expected letters, digits and _ . = - only, 128 at most")
        with spark_session(pipeline.JOB, settings) as spark:
            summary = pipeline.run(spark, settings, asked.run_id, asked.as_of)
        print(json.dumps(summary.as_json()), flush=True)
    if ended.status != PUBLISHED:
        failed = {"job": pipeline.JOB, "run_id": asked.run_id, "status": "failed", "exit_status": ended.status}
        print(json.dumps({**failed, "error": ended.error}), flush=True)
    return ended.status


def show_plan(pipeline: Any, asked: argparse.Namespace, save: Path | None = None, as_json: bool = False) -> int:
    """Print what a run of the job would do now; the exit status. `save`: write it to a file for `run --plan`."""
    log_to_stderr(asked.log_format)
    with ending_well() as ended:
        settings = load_settings(pipeline, asked.conf, _overrides(pipeline, asked))
        if not hasattr(pipeline, "plan"):
            raise ConfigError(f"{pipeline.JOB}: has no plan; it says what it does when it runs")
        with spark_session(pipeline.JOB, settings) as spark:
            plan = pipeline.plan(spark, settings, asked.as_of)
            if save is not None:
                plans.save(plan, save)
                keep_plan(Warehouse(spark, settings.warehouse, settings.buckets), plan)
        print(json.dumps(plan.as_json()) if as_json else "\n".join(plans.as_lines(plan)), flush=True)
    return ended.status


def _overrides(pipeline: Any, asked: argparse.Namespace) -> list[str]:
    if asked.full and "full" not in pipeline.Config.model_fields:
        raise ConfigError(f"--full: {pipeline.JOB} always looks at everything")
    return [*asked.overrides, *([f"{pipeline.JOB}.full=true"] if asked.full else [])]


def load_settings(pipeline: Any, path: Path, overrides: Sequence[str] = ()) -> Settings:
    """A job's settings, validated. Raises ConfigError with every fault."""
    settings: Settings = config.load(path, pipeline.JOB, pipeline.Config, jobs(), overrides)
    return settings


class Ending:
    """How a run ended: exit status, and the error's class."""

    status = PUBLISHED
    error = ""


@contextmanager
def ending_well() -> Iterator[Ending]:
    """Turn whatever ends the block into an exit status and a sentence on stderr. SIGTERM ends it with 143."""
    ending = Ending()

    def terminate(number: int, frame: FrameType | None) -> None:
        ending.status = TERMINATED
        raise SystemExit(TERMINATED)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield ending
    except BaseException as error:
        # A signal cuts an answer of the JVM's short: what was cleaned up on the way may have met errors of its own.
        is_signal = ending.status == TERMINATED or isinstance(error, KeyboardInterrupt)
        ending.error = "SystemExit" if is_signal else type(error).__name__
        ending.status = _status(error) if ending.status == PUBLISHED else ending.status
        log.error("%s", "ended by a signal; nothing half-made was published" if is_signal else _sentence(error))
    finally:
        signal.signal(signal.SIGTERM, previous)


def _status(error: BaseException) -> int:
    if isinstance(error, EcomsparkError):
        return error.status
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else UNEXPECTED


def _sentence(error: BaseException) -> str:
    if isinstance(error, EcomsparkError):
        return f"{type(error).__name__}: {error}"
    # A message of Spark's or of a library's may hold a row's text: its class and the way to it must do.
    condition = error.getCondition() if isinstance(error, PySparkException) else None
    said = f" ({condition})" if condition else ""
    return f"unexpected {type(error).__name__}{said}, by way of {way(error)}"


@contextmanager
def spark_session(name: str, settings: Settings, *extra: str) -> Iterator[SparkSession]:
    """The session that spark-submit or the caller made, else one of our own, with the properties file of the settings.

    `extra`: KEY=VALUE, which that file may set otherwise. Raises ConfigError when Java or the properties file is
    missing, or when the session lacks what the tables need.
    """
    if SparkSession.getActiveSession() is not None or "PYSPARK_GATEWAY_PORT" in os.environ:
        spark = SparkSession.builder.appName(name).getOrCreate()
        _check(spark)
        yield spark
        return
    if fault := preflight.java_fault():
        raise ConfigError(fault)
    properties = settings.spark_properties
    if properties is None or not properties.is_file():
        raise ConfigError(f"spark_properties: expected Spark's properties file, found {properties or 'none named'}")
    # Executors would start the python3 of PATH, not this one.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["PYSPARK_SUBMIT_ARGS"] = _submit_arguments(properties, extra)
    start = time.monotonic()
    with _spark_says_to_file() as said:
        spark = SparkSession.builder.appName(name).getOrCreate()
    log.info(
        "%s: Spark %s started in %.1f s; what it says is in %s", name, spark.version, time.monotonic() - start, said
    )
    try:
        _check(spark)
        yield spark
    finally:
        # After a signal the way to the JVM may be broken; it ends by itself when this process does.
        with suppress(Exception):
            spark.stop()


def _submit_arguments(properties: Path, extra: Sequence[str]) -> str:
    """What PySpark starts its JVM with: Spark itself would let an argument win over the file."""
    said = {re.split(r"[\s=:]", line.strip(), maxsplit=1)[0] for line in properties.read_text("utf-8").splitlines()}
    more = "".join(f"--conf {setting} " for setting in extra if setting.partition("=")[0] not in said)
    return f"{more}--properties-file {properties.resolve()} pyspark-shell"


def log_to_stderr(form: str) -> None:
    """Send our log to stderr, as sentences or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if form == "json" else _Sentences())
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    # PySpark prints the message of every error of Spark's that it meets, values included, before we can catch it.
    for name in ("DataFrameQueryContextLogger", "SQLQueryContextLogger"):
        logging.getLogger(name).disabled = True


class _Sentences(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {prefix}{record.getMessage()}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return json.dumps({"at": at, "level": record.levelname.lower(), "message": record.getMessage()})


@contextmanager
def _spark_says_to_file() -> Iterator[str]:
    """While the JVM starts, file descriptors 1 and 2 are a file: the JVM keeps it, and our own streams stay ours.
    (VACUUM says on stdout what it did, where the summary alone belongs.)"""
    file = tempfile.NamedTemporaryFile(prefix="ecomspark-spark-", suffix=".log", delete=False)  # noqa: SIM115
    sys.stdout.flush()
    sys.stderr.flush()
    ours = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in ours:
            os.dup2(file.fileno(), descriptor)
        yield file.name
    finally:
        for descriptor, kept in ours.items():
            os.dup2(kept, descriptor)
            os.close(kept)
        file.close()


def _check(spark: SparkSession) -> None:
    wanted = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.ansi.enabled": "true",
    }
    found = {key: _setting_of(spark, key) for key in wanted}
    faults = [
        f"{key}: expected {value}, found {found[key]}" for key, value in wanted.items() if value not in found[key]
    ]
    if faults:
        raise ConfigError("\n".join(["Spark: set in the properties file, as conf/spark-local.conf does", *faults]))


def _setting_of(spark: SparkSession, key: str) -> str:
    try:
        return str(spark.conf.get(key))
    except PySparkException:
        return "nothing"


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date as 2026-11-22, found {text}") from None
