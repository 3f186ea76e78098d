"""A finding of the doctor's, and those that follow from Spark's settings: no session is asked, so each is easily tried.

Settings are a mapping, as the session has them; what is not in it has Spark's default. Of executors on other hosts only
this is known.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ecomspark import preflight
from ecomspark.errors import ConfigError

Values = Mapping[str, str]

_GIB, _MIB = preflight.GIB, 1024**2
# A process that scored with MiniLM-L6 (weights of 87 MiB) in batches of 2,048 tokens had at most 703 MiB of its own,
# most of it torch and its like; under `ecomspark.daemon`, which shares them, 0.45 times as much a worker (NOTES.md).
_BESIDE_WEIGHTS = 600 * _MIB
_TIMES_WEIGHTS = 2  # in memory, and once more while they are loaded or multiplied in another layout
_SHARED_SHARE = 0.45
_ADDRESSES = 4.5 * _GIB  # of memory that this worker mapped, used or not: what spark.executor.pyspark.memory limits
_SECONDS_TO_ANSWER = 120  # a worker may say nothing for so long: torch, the model, a budget that is tried out
_ARROW_ROWS, _ARROW_BYTES = 10_000, 256 * _MIB
_APART = ("hdfs", "gs", "abfs", "abfss", "wasb", "wasbs", "adl")  # a file can be made there if it is not there yet


@dataclass(frozen=True)
class Finding:
    """What a check found. **fault**: a run would be refused, or be wrong; **advice**: it would run, but badly.

    `status`: the exit status of a run that a fault would end.
    """

    what: str
    level: Literal["ok", "advice", "fault"]
    found: str
    remedy: str = ""
    status: int = ConfigError.status

    def as_json(self) -> dict[str, str]:
        return {"what": self.what, "level": self.level, "found": self.found, "remedy": self.remedy}


def gpus(here: Mapping[str, Any] | None, has_driver: bool, values: Values) -> Finding:
    """What torch sees on this host, against what tasks ask for. `here`: what `models.gpus` says; None: torch failed."""
    asks, amount = asks_for_gpu(values), values.get("spark.executor.resource.gpu.amount", "1")
    if here is None:
        return Finding("GPUs", "fault", "torch does not load here", "install requirements.lock (`make clean env`)")
    if amount != "1":
        found = f"spark.executor.resource.gpu.amount: expected 1, found {amount}: a GPU would come to hold two models"
        return Finding("GPUs", "fault", found, "start more executors, each with one")
    if asks and values.get("spark.python.daemon.module") == "ecomspark.daemon":
        found = "tasks ask for a GPU, and spark.python.daemon.module is ecomspark.daemon, which is for CPU executors"
        return Finding("GPUs", "advice", found, "leave spark.python.daemon.module out")
    if here["gpus"] and not asks:
        why = "local mode gives tasks none" if is_local(values) else "no task asks for one"
        found = f"{', '.join(here['gpus'])}: {why}, so scoring uses the CPU"
        return Finding("GPUs", "advice", found, "start executors that ask for one, as conf/spark-cluster.conf shows")
    if has_driver and not here["gpus"]:
        found = f"a driver is there, but torch sees no GPU (its CUDA: {here['cuda'] or 'left out'})"
        return Finding("GPUs", "advice", found, "see whether `nvidia-smi` lists one and knows a CUDA as new as torch's")
    seen = ", ".join(here["gpus"]) or "none on this host"
    return Finding("GPUs", "ok", f"{seen}; {'tasks ask for one each' if asks else 'models run on the CPU'}")


def asks_for_gpu(values: Values) -> bool:
    """Whether a task that scores gets a GPU."""
    return float(values.get("spark.task.resource.gpu.amount", "0")) > 0 and not is_local(values)


def worker_reuse(values: Values) -> Finding:
    if values.get("spark.python.worker.reuse", "true") == "true":
        return Finding("worker reuse", "ok", "a Python worker keeps its model for the next task")
    found = "spark.python.worker.reuse is false: every task starts a Python and loads the model anew"
    return Finding("worker reuse", "advice", found, "set it to true")


def idle_workers(values: Values) -> Finding:
    """Spark ends idle workers a minute after the last task of any; until then each holds its model."""
    key, count = "spark.python.factory.idleWorkerMaxPoolSize", slots(values)
    most = 1 if asks_for_gpu(values) else count
    remedy = f"set it to {most or 'the cores of an executor'}"
    if (given := values.get(key)) is None:
        found = f"{key} is not set: any number of idle Python workers may hold a model"
        return Finding("idle workers", "advice", found, remedy)
    if most is not None and int(given) > most:
        found = f"{key} is {given}: more than {most} idle ones are never of use, and each holds a model"
        return Finding("idle workers", "advice", found, remedy)
    return Finding("idle workers", "ok", f"{given} at most are kept; {count or 'not known how many'} run at a time")


def silent_workers(values: Values) -> Finding:
    """Of a worker that says nothing while Spark waits for it. This is no limit on idle ones, whatever its name."""
    seconds = int(re.sub(r"\D", "", values.get("spark.python.worker.idleTimeoutSeconds", "0")) or 0)
    kills = values.get("spark.python.worker.killOnIdleTimeout", "false") == "true"
    remedy = "set spark.python.worker.idleTimeoutSeconds to 600 and spark.python.worker.killOnIdleTimeout to true"
    if not seconds or not kills:
        return Finding("silent workers", "advice", "a Python worker that hangs is waited for without end", remedy)
    if seconds < _SECONDS_TO_ANSWER:
        found = f"ended after {seconds} s; loading a model and trying out its batches can take {_SECONDS_TO_ANSWER}"
        return Finding("silent workers", "advice", found, remedy)
    return Finding("silent workers", "ok", f"ended after {seconds} s, and their task is run again")


def arrow_limits(values: Values) -> Finding:
    """A batch ends where the first of the two limits is met."""
    rows = int(values["spark.sql.execution.arrow.maxRecordsPerBatch"])
    size = size_of(values["spark.sql.execution.arrow.maxBytesPerBatch"], 1)
    found = f"a batch has {f'{rows:,} rows' if rows > 0 else 'any number of rows'} and {size // _MIB:,} MiB at most"
    if size > _ARROW_BYTES and not 0 < rows <= _ARROW_ROWS:
        remedy = f"set spark.sql.execution.arrow.maxRecordsPerBatch to {_ARROW_ROWS} or less"
        return Finding("Arrow limits", "advice", f"{found}, once in the JVM and once in a Python worker", remedy)
    return Finding("Arrow limits", "ok", found)


def memory(values: Values, weights: int, free: int | None) -> Finding:
    """Of Python workers, which live beside the JVM's heap. `free`: bytes of this host before Spark was started."""
    count, shares = slots(values), values.get("spark.python.daemon.module") == "ecomspark.daemon"
    worker = int(_BESIDE_WEIGHTS * (_SHARED_SHARE if shares else 1)) + _TIMES_WEIGHTS * weights
    estimate = f"{gib(worker)} ({gib(worker - _TIMES_WEIGHTS * weights)} and twice the weights, an estimate)"
    fewer = "run fewer tasks at a time, or have spark.python.daemon.module ecomspark.daemon share what workers import"
    if count is None:
        found = f"a worker takes {estimate}; how many an executor runs is not known"
        return Finding("memory", "advice", found, "set spark.executor.cores")
    if is_local(values):
        heap = size_of(values.get("spark.driver.memory", "1g"), _MIB)
        found = f"a heap of {gib(heap)} and {count} workers of {estimate}"
        if free is not None and heap + count * worker > free:
            return Finding("memory", "advice", f"{found}; only {gib(free)} are free", fewer)
        return Finding("memory", "ok", f"{found}; {gib(free) if free is not None else 'not known how much'} free")
    limit = size_of(values.get("spark.executor.pyspark.memory", "0"), _MIB)
    if limit and limit // count < _ADDRESSES + _TIMES_WEIGHTS * weights:
        found = f"spark.executor.pyspark.memory leaves a worker {gib(limit // count)} of addresses; torch maps more"
        return Finding("memory", "advice", found, "leave it out, and set spark.executor.memoryOverhead")
    heap = size_of(values.get("spark.executor.memory", "1g"), _MIB)
    factor = float(values.get("spark.executor.memoryOverheadFactor", "0.1"))
    given = values.get("spark.executor.memoryOverhead")
    beside = size_of(given, _MIB) if given else max(int(heap * factor), 384 * _MIB)
    found = f"{gib(beside + limit)} beside an executor's heap, {count} workers of {estimate}"
    if beside + limit < count * worker:
        remedy = f"set spark.executor.memoryOverhead to {-(-count * worker // _GIB)}g, or {fewer}"
        return Finding("memory", "advice", found, remedy)
    return Finding("memory", "ok", found)


def writers(storage: str, values: Values) -> Finding:
    """Whether two writers of one table are kept apart: a commit is a file that must not be made where there is one.

    `storage`: where the tables lie; empty where a catalog does not say.
    """
    scheme = re.match(r"(\w+):", storage or "unknown:")
    kind = scheme[1] if scheme else "file"
    store = values.get(f"spark.delta.logStore.{kind}.impl") or values.get("spark.delta.logStore.class") or ""
    if store.endswith("S3DynamoDBLogStore"):
        return Finding("writers", "ok", f"{kind}: a table in DynamoDB keeps those of several Spark drivers apart")
    if kind == "file" and not store:
        found = (
            "file: Delta looks for a commit before it makes it; only two processes in the same moment could miss that"
        )
        return Finding("writers", "ok", found)
    if kind in _APART and not store:
        return Finding("writers", "ok", f"{kind}: of two that make the same commit the second is refused")
    remedy = "let one Spark driver at a time write a table"
    if kind in ("s3", "s3a", "s3n"):
        found = f"{kind}: Delta keeps writers of one Spark driver apart, not of two: one's commit would be lost unseen"
        remedy += f"; for several: io.delta.storage.S3DynamoDBLogStore as spark.delta.logStore.{kind}.impl, and its jar"
    else:
        found = f"{store or kind}: whether it keeps two Spark drivers apart is not known here"
    return Finding("writers", "advice", found, remedy)


def of_stage(values: Values, asked: Any) -> Values:
    """The settings as `score_candidates.resources` changes them for the stage that scores, but in local mode."""
    if asked is None or is_local(values):
        return values
    changes = {
        "spark.task.cpus": asked.task_cpus,
        "spark.executor.cores": asked.executor_cores,
        "spark.executor.memory": asked.executor_memory,
        "spark.executor.memoryOverhead": asked.executor_memory_overhead,
        "spark.task.resource.gpu.amount": asked.task_gpus,
    }
    return {**values, **{key: str(value) for key, value in changes.items() if value is not None}}


def is_local(values: Values) -> bool:
    """Whether driver and executor are one process."""
    return values.get("spark.master", "local").split("[")[0] == "local"


def slots(values: Values) -> int | None:
    """Tasks that an executor runs at a time, each with its Python worker; None where Spark will only know later."""
    cores = values.get("spark.executor.cores")
    if is_local(values):
        given = re.match(r"local\[(\*|\d+)", values.get("spark.master", "local"))
        cores = "1" if given is None else str(os.cpu_count()) if given[1] == "*" else given[1]
    elif cluster := re.match(r"local-cluster\[\s*\d+\s*,\s*(\d+)", values["spark.master"]):
        cores = cores or cluster[1]
    return None if cores is None else max(1, int(cores) // int(values.get("spark.task.cpus", "1")))


def size_of(text: str, unit: int) -> int:
    """Bytes of a size as Spark writes it: 2g, 512m, 67108864b; a bare number counts in `unit`.

    >>> size_of("2g", 1), size_of("512", 1024 * 1024) == size_of("512m", 1)
    (2147483648, True)
    """
    found = re.fullmatch(r"(-?\d+)\s*([bkmgtp]?)b?", text.strip().lower())
    if found is None:
        raise ConfigError(f"expected a size such as 2g, found {text}; mend Spark's properties file")
    return int(found[1]) * (1024 ** "bkmgtp".index(found[2]) if found[2] else unit)


def gib(count: float) -> str:
    return f"{count / _GIB:.1f} GiB"
