"""Model code: torch and transformers, no Spark, so that it is tested, profiled and run where there is no Java."""

import os

# Nothing here may ask a model hub for anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As many threads for the tokenizer as for torch: Spark says how many cores a task has, and one is the usual number.
_threads = os.environ.get("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if _threads == "1" else "true")
os.environ.setdefault("RAYON_NUM_THREADS", _threads)
# Their bars and load reports would stand between our own progress lines.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
