"""The pre-forked daemon: workers find torch there, made of one process without threads, and score as ever."""

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny
from conftest import ROOT

from ecomspark.models import cross_encoder

SCRIPT = """
import json, sys
from pyspark.sql import SparkSession, functions as F
from ecomspark.scoring import CrossEncoderAt, costs_of, score_pairs

spark = SparkSession.builder.master("local[2]").config("spark.python.daemon.module", "ecomspark.daemon") \\
    .config("spark.ui.enabled", "false").getOrCreate()

def look(batches):
    import os
    import pyarrow as pa
    for batch in batches:
        parent = f"/proc/{os.getppid()}"
        import sys
        found = {"has_torch": "ecomspark.models.cross_encoder" in sys.modules,
                 "daemon": open(parent + "/cmdline").read(), "threads": len(os.listdir(parent + "/task"))}
        found["has_cuda"] = sys.modules["torch"].cuda.is_initialized() if found["has_torch"] else None
        import json
        yield pa.RecordBatch.from_pydict({"said": [json.dumps(found)]})

said = json.loads(spark.range(1).mapInArrow(look, "said string").collect()[0]["said"])
rows = spark.range(8).select("id", F.lit("red").alias("query_text"),
                             F.concat(F.lit("cup "), F.col("id").cast("string")).alias("passage_text"))
costs = costs_of(spark)
scored = score_pairs(rows.repartition(4), CrossEncoderAt(sys.argv[1], bytes.fromhex(sys.argv[2]), 500), costs)
said["logits"] = [row["logit"] for row in sorted(scored.collect(), key=lambda row: row["id"])]
said["loads"] = costs.value.loads
print("ANSWER " + json.dumps(said))
spark.stop()
"""


def test_workers_share_what_the_daemon_imported(tmp_path: Path) -> None:
    made = tiny.checkpoint(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    command = [sys.executable, script, made.folder, made.scorer_digest.hex()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200)
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(answers[0].removeprefix("ANSWER "))
    assert "ecomspark.daemon" in said["daemon"]
    assert (said["has_torch"], said["has_cuda"], said["threads"]) == (True, False, 1)
    assert 1 <= said["loads"] <= 2
    alone = cross_encoder.load(made.folder, made.scorer_digest, token_budget=500)
    assert max(abs(alone.score(["red"] * 8, [f"cup {n}" for n in range(8)]).logits - said["logits"])) <= 1e-5
