"""What a stage that scores asks of the cluster, and what a task of it was given: GPUs and cores."""

import os
from typing import Literal

from pydantic import model_validator
from pyspark import TaskContext
from pyspark.resource import (
    ExecutorResourceRequests,
    ResourceProfile,
    ResourceProfileBuilder,
    TaskResourceRequests,
)
from pyspark.sql import SparkSession

from ecomspark.config import Section, setting
from ecomspark.errors import ConfigError


class StageResources(Section):
    """What the scoring stage asks of the cluster for itself. A GPU is one task's, and a model's one process: with one
    GPU an executor no GPU ever holds two models."""

    task_cpus: int = setting(1, "cores of a task; its tokenizer and torch use as many threads", decides=False, ge=1)
    task_gpus: Literal[0, 1] = setting(1, "GPUs of a task", decides=False)
    executor_cores: int | None = setting(
        None, "cores of an executor made for this stage; null: the executors that are there", decides=False, ge=1
    )
    executor_memory: str | None = setting(None, "heap of such an executor, such as 4g", decides=False)
    executor_memory_overhead: str | None = setting(
        None, "memory beside its heap, where models live, such as 8g", decides=False
    )
    discovery_script: str = setting("", "prints an executor's GPUs, on every host", decides=False)

    @model_validator(mode="after")
    def _of_its_own(self) -> "StageResources":
        if self.executor_cores is None and (self.task_gpus or self.executor_memory or self.executor_memory_overhead):
            raise ValueError(
                "executor_cores: missing; a stage on GPUs or with memory of its own gets executors of its own: on "
                "shared ones the workers of other stages push the one with the model out"
            )
        return self


def profile_of(spark: SparkSession, asked: StageResources | None) -> ResourceProfile | None:
    """The resource profile that is asked for; None where none is, and in local mode, which has no other executors.

    Raises ConfigError when executors have several GPUs: idle workers would rotate over them, each with a model. Make
    one and use it for all stages: Spark takes each for a request for executors of its own.
    """
    given = spark.conf.get("spark.executor.resource.gpu.amount", "1")
    if given != "1":
        raise ConfigError(
            f"spark.executor.resource.gpu.amount: expected 1, found {given}: a Python worker that waits for its next "
            "task keeps its model, so with one GPU an executor no GPU holds two; start more executors instead"
        )
    if asked is None or str(spark.sparkContext.master).split("[")[0] == "local":
        return None
    builder = ResourceProfileBuilder()
    tasks = TaskResourceRequests().cpus(asked.task_cpus)
    if asked.task_gpus:
        tasks = tasks.resource("gpu", 1)
    if asked.executor_cores:
        executors = ExecutorResourceRequests().cores(asked.executor_cores)
        if asked.executor_memory:
            executors = executors.memory(asked.executor_memory)
        if asked.executor_memory_overhead:
            executors = executors.memoryOverhead(asked.executor_memory_overhead)
        if asked.task_gpus:
            executors = executors.resource("gpu", 1, asked.discovery_script)
        builder = builder.require(executors)
    return builder.require(tasks).build


def gpu_of_task() -> str | None:
    """The address of the GPU that Spark gave this task; None where it gave none."""
    context = TaskContext.get()
    given = context.resources().get("gpu") if context else None
    return str(given.addresses[0]) if given else None


def use_cores_of_task() -> None:
    """As many threads for torch and the tokenizer as the task has cores. Spark itself says only what its configuration
    has, not what a resource profile gives; torch reads this when it is imported."""
    context = TaskContext.get()
    if context is not None and context.cpus() > 1:
        cores = str(context.cpus())
        os.environ.update(OMP_NUM_THREADS=cores, RAYON_NUM_THREADS=cores, TOKENIZERS_PARALLELISM="true")
