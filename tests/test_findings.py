"""What follows from Spark's settings is found without a session: each setting once as it should be, once not."""

from types import SimpleNamespace
from typing import Any

import pytest

from ecomspark.errors import ConfigError
from ecomspark.findings import (
    arrow_limits,
    gpus,
    idle_workers,
    memory,
    of_stage,
    silent_workers,
    size_of,
    slots,
    worker_reuse,
    writers,
)

GIB, MIB = 1024**3, 1024**2
LOCAL = {"spark.master": "local[2,4]"}
YARN = {"spark.master": "yarn", "spark.executor.cores": "4"}
REUSE = "spark.python.worker.reuse"
POOL = "spark.python.factory.idleWorkerMaxPoolSize"
TIMEOUT, KILLS = "spark.python.worker.idleTimeoutSeconds", "spark.python.worker.killOnIdleTimeout"
ROWS, BYTES = "spark.sql.execution.arrow.maxRecordsPerBatch", "spark.sql.execution.arrow.maxBytesPerBatch"
DAEMON = {"spark.python.daemon.module": "ecomspark.daemon"}
ASKS = {"spark.task.resource.gpu.amount": "1"}
NO_GPU = {"gpus": [], "cuda": "13.0"}
H100 = {"gpus": ["H100"], "cuda": "13.0"}


def test_a_worker_that_is_not_reused_is_told() -> None:
    assert worker_reuse({}).level == worker_reuse({REUSE: "true"}).level == "ok"
    assert worker_reuse({REUSE: "false"}).level == "advice"


@pytest.mark.parametrize(
    ("values", "level", "says"),
    [
        ({**LOCAL, POOL: "2"}, "ok", "2 at most are kept; 2 run at a time"),
        (LOCAL, "advice", "is not set"),
        ({**LOCAL, POOL: "3"}, "advice", "more than 2 idle ones"),
        ({**YARN, POOL: "4"}, "ok", "4 run at a time"),
        ({**YARN, "spark.task.cpus": "4", POOL: "4"}, "advice", "more than 1 idle ones"),
        ({**YARN, **ASKS, POOL: "2"}, "advice", "more than 1 idle ones"),
        ({**YARN, **ASKS, POOL: "1"}, "ok", "1 at most"),
        ({"spark.master": "spark://host:7077", POOL: "9"}, "ok", "not known how many"),
    ],
)
def test_idle_workers_are_bounded_by_what_can_run_at_a_time(values: dict[str, str], level: str, says: str) -> None:
    found = idle_workers(values)
    assert (found.level, bool(found.remedy)) == (level, level != "ok")
    assert says in found.found


def test_a_worker_that_hangs_must_be_ended_but_not_one_that_loads_a_model() -> None:
    assert "without end" in silent_workers({}).found
    assert "without end" in silent_workers({TIMEOUT: "600"}).found, "Spark only writes a log line then"
    assert "loading a model" in silent_workers({TIMEOUT: "30", KILLS: "true"}).found
    assert silent_workers({TIMEOUT: "30", KILLS: "true"}).level == "advice"
    assert silent_workers({TIMEOUT: "600s", KILLS: "true"}).level == "ok"


@pytest.mark.parametrize(
    ("rows", "size", "level"),
    [
        ("2000", "67108864b", "ok"),
        ("0", "64m", "ok"),
        ("2000", "1g", "ok"),
        ("0", "1g", "advice"),
        ("50000", "1g", "advice"),
    ],
)
def test_one_of_the_two_limits_of_an_arrow_batch_must_hold(rows: str, size: str, level: str) -> None:
    assert arrow_limits({ROWS: rows, BYTES: size}).level == level


def test_memory_of_local_workers_is_compared_with_what_is_free() -> None:
    # 2 workers of 600 MiB and twice 100 MiB, and a heap of 2 GiB: 3.56 GiB
    values = {**LOCAL, "spark.driver.memory": "2g"}
    assert memory(values, 100 * MIB, 4 * GIB).level == "ok"
    assert memory(values, 100 * MIB, None).level == "ok"
    short = memory(values, 100 * MIB, 3 * GIB)
    assert (short.level, "only 3.0 GiB are free" in short.found) == ("advice", True)
    assert memory({**values, **DAEMON}, 100 * MIB, 3 * GIB).level == "ok", "270 MiB a worker beside the weights"


def test_memory_of_executors_is_compared_with_what_is_beside_the_heap() -> None:
    heap = {**YARN, "spark.executor.memory": "8g"}
    assert memory({**heap, "spark.executor.memoryOverhead": "8g"}, 100 * MIB, 0).level == "ok"
    short = memory(heap, 100 * MIB, 0)  # a tenth of the heap for 4 workers of 800 MiB
    assert (short.level, "memoryOverhead to 4g" in short.remedy) == ("advice", True)
    assert memory({**heap, "spark.executor.memoryOverheadFactor": "0.5"}, 100 * MIB, 0).level == "ok"
    assert "of addresses" in memory({**heap, "spark.executor.pyspark.memory": "8g"}, 100 * MIB, 0).found
    assert memory({**heap, "spark.executor.pyspark.memory": "32g"}, 100 * MIB, 0).level == "ok"
    assert memory({"spark.master": "spark://host:7077"}, 0, 0).remedy == "set spark.executor.cores"


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"spark.master": "local"}, 1), (LOCAL, 2), ({**LOCAL, "spark.task.cpus": "2"}, 1), (YARN, 4),
        ({"spark.master": "local-cluster[2,3,1024]"}, 3), ({"spark.master": "yarn"}, None),
    ],
)  # fmt: skip
def test_slots_are_told_from_the_master(values: dict[str, str], count: int | None) -> None:
    assert slots(values) == count


def test_a_stage_with_resources_of_its_own_is_judged_by_them() -> None:
    asked = SimpleNamespace(
        task_cpus=4, executor_cores=4, executor_memory=None, executor_memory_overhead="2g", task_gpus=1
    )
    stage = of_stage({"spark.master": "yarn", "spark.executor.memory": "8g"}, asked)
    assert (slots(stage), memory(stage, 100 * MIB, 0).level, stage["spark.executor.memory"]) == (1, "ok", "8g")
    assert gpus(NO_GPU, False, stage).found == "none on this host; tasks ask for one each"
    assert of_stage(LOCAL, asked) is LOCAL, "local mode has no executors of a stage's own"
    assert of_stage(YARN, None) is YARN


@pytest.mark.parametrize(
    ("here", "has_driver", "values", "level", "says"),
    [
        (NO_GPU, False, LOCAL, "ok", "models run on the CPU"),
        (H100, True, {**YARN, **ASKS}, "ok", "H100; tasks ask for one each"),
        (None, False, LOCAL, "fault", "torch does not load"),
        ({**NO_GPU, "cuda": None}, True, LOCAL, "advice", "sees no GPU (its CUDA: left out)"),
        (H100, True, {**LOCAL, **ASKS}, "advice", "local mode gives tasks none"),
        (H100, True, YARN, "advice", "no task asks for one"),
        (H100, True, {**YARN, **ASKS, **DAEMON}, "advice", "which is for CPU executors"),
        (H100, True, {**YARN, **ASKS, "spark.executor.resource.gpu.amount": "2"}, "fault", "expected 1, found 2"),
    ],
)
def test_gpus_are_there_and_asked_for(
    here: Any, has_driver: bool, values: dict[str, str], level: str, says: str
) -> None:
    found = gpus(here, has_driver, values)
    assert (found.level, bool(found.remedy)) == (level, level != "ok")
    assert says in found.found


@pytest.mark.parametrize(
    ("storage", "values", "level"),
    [
        ("warehouse", {}, "ok"), ("/data/warehouse", {}, "ok"), ("file:/data/warehouse", {}, "ok"),
        ("hdfs://host/w", {}, "ok"), ("gs://bucket/w", {}, "ok"), ("abfss://c@a.dfs.core.windows.net/w", {}, "ok"),
        ("s3a://bucket/w", {}, "advice"), ("s3://bucket/w", {}, "advice"), ("oss://bucket/w", {}, "advice"), ("", {}, "advice"),
        ("s3a://bucket/w", {"spark.delta.logStore.s3a.impl": "io.delta.storage.S3DynamoDBLogStore"}, "ok"),
        ("s3a://bucket/w", {"spark.delta.logStore.s3.impl": "io.delta.storage.S3DynamoDBLogStore"}, "advice"),
        ("s3a://bucket/w", {"spark.delta.logStore.s3a.impl": "io.delta.storage.S3SingleDriverLogStore"}, "advice"),
        ("gs://bucket/w", {"spark.delta.logStore.gs.impl": "org.example.Store"}, "advice"),
    ],
)  # fmt: skip
def test_on_s3_one_driver_writes_unless_dynamodb_keeps_them_apart(
    storage: str, values: dict[str, str], level: str
) -> None:
    assert writers(storage, values).level == level


def test_sizes_are_read_as_spark_writes_them() -> None:
    sizes = {text: size_of(text, MIB) for text in ("2g", "2GB", "512", "512m", "67108864b")}
    assert sizes == {"2g": 2 * GIB, "2GB": 2 * GIB, "512": 512 * MIB, "512m": 512 * MIB, "67108864b": 64 * MIB}
    with pytest.raises(ConfigError, match="such as 2g, found much"):
        size_of("much", 1)
