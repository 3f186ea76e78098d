"""Scores in a Spark of its own whose executors believe that they have a GPU each; prints what happened as JSON.

    python gpu_stage.py FOLDER MASTER WAY

WAY: `tasks` (every task of the application asks for a GPU), `profile` (only the scoring stage does, which we refuse: run by
hand it shows why), `executors` (the stage gets executors of its own, by dynamic allocation). There is no GPU: a discovery script names one, and the scorer is
a fake that notes which address its task was given.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTITIONS, ROWS = 64, 640

SCRIPT = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["7"]}'
"""


def main(folder: Path, master: str, way: str) -> None:
    from fakes import Traced
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    from ecomspark.resources import StageResources, profile_of
    from ecomspark.scoring import costs_of, score_pairs

    script = folder / "gpus.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    settings = {
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(script),
        "spark.python.factory.idleWorkerMaxPoolSize": "1",
        "spark.ui.enabled": "false",
    }
    asked = None
    if way != "executors":
        settings |= {"spark.executor.resource.gpu.amount": "1",
                     "spark.executor.resource.gpu.discoveryScript": str(script)}  # fmt: skip
    if way == "tasks":
        settings["spark.task.resource.gpu.amount"] = "1"
    if way == "executors":
        settings |= {"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.maxExecutors": "2",
                     "spark.dynamicAllocation.initialExecutors": "1", "spark.executor.cores": "1",
                     "spark.dynamicAllocation.shuffleTracking.enabled": "true", "spark.executor.memory": "512m"}  # fmt: skip
        asked = StageResources(executor_cores=1, executor_memory="512m", discovery_script=str(script))
    builder = SparkSession.builder.master(master).appName("gpu-stage")
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    rows = spark.range(ROWS).select(
        "id",
        F.lit("red").alias("query_text"),
        F.concat(F.lit("cup "), F.col("id").cast("string")).alias("passage_text"),
    )
    costs = costs_of(spark)
    scorer = Traced(str(folder))
    profile = profile_of(spark, asked)
    if way == "profile":  # what StageResources refuses: the stage on executors that others use, too
        profile = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", 1)).build

    def score() -> None:
        scored = score_pairs(rows.repartition(PARTITIONS), scorer, costs, profile)
        assert scored.where("logit > -100").count() == ROWS

    score()
    # Another Python stage in between: of two workers an executor where tasks share executors (`profile`).
    rows.repartition(8).mapInArrow(lambda batches: batches, rows.schema).count()
    between = costs.value.loads
    score()
    answer = {
        "loads": between,
        "loads_after_another_stage": costs.value.loads,
        "rows": costs.value.rows,
        "gpus": scorer.gpus(),
        "processes": len(set(scorer.loads())),
    }
    print("ANSWER " + json.dumps(answer), flush=True)
    spark.stop()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
