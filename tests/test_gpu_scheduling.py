"""One model a GPU, by Spark's own scheduling: on executors that believe they have one each (a discovery script names it).

What was scored here was scored by a fake on the CPU: this says where models are loaded and how often, not how fast.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.parametrize("way", ["tasks", pytest.param("executors", marks=pytest.mark.nightly)])
def test_a_model_is_loaded_once_a_gpu_however_many_partitions_there_are(tmp_path: Path, way: str) -> None:
    """64 partitions scored twice, a filter behind the score, another Python stage in between."""
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_WORKER_DIR": str(tmp_path / "executors")}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    command = [sys.executable, ROOT / "tests" / "gpu_stage.py", tmp_path, "local-cluster[2,2,1024]", way]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=280)
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(answers[0].removeprefix("ANSWER "))
    assert found["rows"] == 2 * 640, "each row evaluated once an action"
    assert found["loads"] == found["loads_after_another_stage"] == found["processes"] == 2
    assert found["gpus"] == ["7", "7"], "each on the GPU that Spark gave its task"
