# `make help` lists the targets. Everything is built in .venv from requirements.lock; nothing else is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEMORY_GIB ?= 6
DISK_GIB ?= 12
# Each has a Spark session of its own and takes up to 5 GiB.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
bench: OUT ?= bench.json
gpu: OUT ?= gpu.json
faults: OUT ?= faults.json
figures: OUT ?= figures.json
.PHONY: help env demo test nightly faults bench figures gpu recall check format lock wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

env: $(VENV)/ready ## build .venv from the lock and fetch Delta's jars

$(VENV)/python: requirements.lock
	@$(PYTHON) ecomspark/preflight.py --memory $(MEMORY_GIB) --disk $(DISK_GIB)
	@echo "building $(VENV): about 6 GB and two minutes with a fast network" >&2
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@# uv comes first, by its own pin in the lock: it installs the rest many times faster than pip.
	@sed -n '/^uv==/,/^    # via/p' requirements.lock | grep -v '# via' > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $@

$(VENV)/ready: $(VENV)/python pyproject.toml conf/spark-local.conf
	@$(PYTHON) ecomspark/preflight.py
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@PYSPARK_SUBMIT_ARGS="--properties-file conf/spark-local.conf pyspark-shell" $(BIN)/python -c \
	  "from pyspark.sql import SparkSession; SparkSession.builder.getOrCreate().stop()" >$(VENV)/jars.log 2>&1 \
	  || { tail -n 20 $(VENV)/jars.log >&2; echo "Delta's jars could not be fetched: is Maven Central in reach?" >&2; exit 1; }
	@touch $@

demo: $(VENV)/ready ## import, fine-tune, score, rank and judge the sample shop, get to know its shoppers, and show what came out
	@$(PYTHON) ecomspark/preflight.py --memory $(MEMORY_GIB) --disk 1
	@$(BIN)/ecomspark demo $(ARGS)

test: $(VENV)/ready ## the tests of every change (no network, no data but the project's own needed)
	@$(BIN)/python -m pytest -q --durations=30 -m "not nightly" -n $(TEST_PROCESSES) --dist loadfile

nightly: $(VENV)/ready ## the tests that take minutes each, beside what `make test` runs
	@$(BIN)/python -m pytest -q --durations=30 -m nightly -n $(TEST_PROCESSES) --dist loadfile

faults: $(VENV)/ready ## try every fault in full, hours in the background: make faults OUT=faults.json [ONLY="driver fifty"]
	@$(BIN)/python tests/faults/faults.py --out $(OUT) $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench: $(VENV)/ready ## measure the scoring engine beside its peers, 25 minutes: make bench OUT=bench.json
	@$(BIN)/python tests/benchmarks/engine.py --out $(OUT) $(ARGS)

figures: $(VENV)/ready ## measure fine-tuning, retrieval and what is said of shoppers on ../shared/data, hours in the background: make figures OUT=figures.json [ONLY="recipe full same chinese shoppers"]
	@$(BIN)/python tests/benchmarks/make_figures.py --out $(OUT) $(if $(ONLY),--only $(ONLY)) $(ARGS)

gpu: $(VENV)/ready ## measure the model side alone on this machine's GPU: make gpu OUT=gpu.json
	@$(BIN)/python tests/benchmarks/gpu.py --out $(OUT) $(ARGS)

recall: $(VENV)/ready ## measure what stems and the bound on proposing terms do to recall (uses ../shared/data)
	@$(BIN)/python tests/benchmarks/bm25_recall.py

check: $(VENV)/ready ## ruff, mypy, the layers, and the lock against pyproject.toml
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py tests/test_lock.py

format: $(VENV)/ready ## let ruff put the code in order
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

lock: $(VENV)/ready ## resolve pyproject.toml anew into requirements.lock
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --upgrade --quiet -o requirements.lock

wheel: $(VENV)/ready ## dist/ecomspark-*.whl, and the same as .zip for spark-submit --py-files
	@rm -rf dist build && $(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python -o dist .
	@rm -rf build ecomspark.egg-info; for wheel in dist/*.whl; do cp $$wheel $$(echo $$wheel | sed 's/-py3.*/.zip/'); done; ls dist

clean: ## remove what the targets made: the environment, the demo's warehouse, caches
	@rm -rf $(VENV) dist build demo-warehouse spark-warehouse metastore_db derby.log .pytest_cache .mypy_cache .ruff_cache
