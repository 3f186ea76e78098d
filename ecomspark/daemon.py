"""Spark's Python daemon with torch and the models' code imported before it forks: workers share that memory.

    spark.python.daemon.module  ecomspark.daemon

For CPU executors, on request. A forked worker starts in a second instead of several, and what it imported is one copy
for all workers of an executor. Nothing here makes a thread or touches CUDA, which a forked process could not use: on a
GPU executor do not set it. The package must be installed on the executors, or be on their PYTHONPATH: what --py-files
brings is found by workers only.
"""

import gc
import os

# numpy's OpenBLAS would start its threads when it is imported, and pyarrow its own: it is left to the workers.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from pyspark import daemon

import ecomspark.models.cross_encoder
import ecomspark.models.embedder  # noqa: F401


def main() -> None:
    # Objects that every worker would touch in its first collection stay shared pages.
    gc.collect()
    gc.freeze()
    daemon.manager()


if __name__ == "__main__":
    main()
