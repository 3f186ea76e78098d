"""Model code: torch and transformers, no Spark, so that it is tested, profiled and run where there is no Java."""

import os

# Nothing here may ask a model hub for anything, and forked workers must not share the tokenizer's threads.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Their bars and load reports would stand between our own progress lines.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
