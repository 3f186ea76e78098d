"""Spark's Python daemon with torch and the models' code imported before it forks: workers share that memory.

    spark.python.daemon.module  ecomspark.daemon

For CPU executors, on request; the demo's one session has it. A forked worker starts in a second instead of several, and
what it imported is one copy for all workers of an executor. Nothing here makes a thread or touches CUDA, which a forked
process could not use: on a GPU executor do not set it. The package must be installed on the executors, or be on their
PYTHONPATH: what --py-files brings is found by workers only.
"""

import gc
import importlib
import os

# numpy's OpenBLAS and Arrow's jemalloc would each start a thread when they are imported.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
# Without that thread jemalloc would keep what Arrow frees; the C library's gives it back when a task is over.
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

from pyspark import daemon

# What every worker would import itself: Spark's side, ours, and what loading a model of the usual kinds draws in.
_SHARED = (
    "pandas",
    "pyarrow.compute",
    "pyspark.worker",
    "ecomspark.scoring",
    "ecomspark.models.cross_encoder",
    "ecomspark.models.embedder",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.processing_utils",
)


def main() -> None:
    for module in _SHARED:
        importlib.import_module(module)
    # Objects that every worker would touch in its first collection stay shared pages.
    gc.collect()
    gc.freeze()
    daemon.manager()


if __name__ == "__main__":
    main()
