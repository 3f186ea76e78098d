"""One night in a process of its own: score and rank a world that lies in a folder, and die at a named point if told.

python tests/faults/night.py FOLDER RUN_ID [--point NAME] [--once WHAT] [--master MASTER] [--conf KEY=VALUE …]

Prints one JSON object when it comes to its end: what was evaluated, and the statuses of the runs.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

# Where a night can die: the function whose call is the point, which of its calls, and whether before or after it.
IN_A_WORKER = "a part was being scored"  # see `worlds.Deadly`
POINTS: dict[str, tuple[str, str, int, str] | None] = {
    "a lease was taken": ("ecomspark.tables", "take", 1, "after"),
    "the run was opened": ("ecomspark.runs", "_write", 1, "after"),
    "the pairs were found": ("ecomspark.pipelines.score_candidates", "_score", 1, "before"),
    IN_A_WORKER: None,
    "a part of the scores had landed": ("ecomspark.tables", "append_memory", 1, "after"),
    "all scores had landed": ("ecomspark.runs", "_write", 2, "before"),
    "ranking was opened": ("ecomspark.runs", "_write", 3, "after"),
    "rankings were compared": ("ecomspark.tables", "compare", 1, "after"),
    "a part of the rankings had landed": ("ecomspark.tables", "publish", 1, "after"),
    "all rankings had landed": ("ecomspark.runs", "_write", 4, "before"),
}


def die(java: int) -> None:
    """The end of a driver that is killed: both of its processes at once, and nothing after it."""
    os.kill(java, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def dying(at: tuple[str, str, int, str], java: int) -> None:
    """Put a death at a point into the function that it names."""
    module_name, name, call, when = at
    module = importlib.import_module(module_name)
    whole: Callable[..., Any] = getattr(module, name)
    calls = 0

    def called(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            die(java)
        result = whole(*args, **more)
        if calls == call:
            die(java)
        return result

    setattr(module, name, called)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("run_id")
    parser.add_argument("--point", choices=POINTS)
    parser.add_argument("--once", default="", help="what a worker does the first time that it meets a text")
    parser.add_argument("--master", default="local[2,4]")
    parser.add_argument("--conf", nargs="*", default=[])
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from quick import QUICK

    small = {**QUICK, "spark.master": asked.master, "spark.executor.memory": "1g"}
    # Executors that are killed all the time may take the shuffle of one stage with them more often than users' clusters bear.
    small |= {"spark.task.maxFailures": "50", "spark.stage.maxConsecutiveAttempts": "50"}
    flags = " ".join(
        f"--conf {setting}" for setting in [*(f"{key}={value}" for key, value in small.items()), *asked.conf]
    )
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {ROOT / 'conf/spark-local.conf'} {flags} pyspark-shell"
    import worlds
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("night").getOrCreate()
    world = worlds.second_night(spark, asked.folder)
    driver = [os.getpid(), spark.sparkContext._gateway.proc.pid]
    if asked.point == IN_A_WORKER:
        scorer: Any = worlds.Deadly(str(asked.folder), trigger="killer", drivers=tuple(driver))
    else:
        scorer = replace(world.scorer, trigger="killer clock", once=asked.once)
        if at := POINTS.get(asked.point):
            dying(at, driver[1])
    scored = world.score(asked.run_id, scorer, date(2026, 11, 2), pairs_per_commit=4, pairs_per_task=2)
    ranked = world.rank(asked.run_id, date(2026, 11, 2), candidates_per_commit=4)
    print(json.dumps({"scored": scored.as_json(), "ranked": ranked.as_json()}))
    spark.stop()


if __name__ == "__main__":
    main()
