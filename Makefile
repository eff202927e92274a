# Two commands matter: `make demo` and `make test`. Both begin with `make setup`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup
TOOLS := $(VENV)/.tools
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--no-annotate

.PHONY: setup tools demo test fuzz chaos simulate mutants check docs pages sbom audit bench bench-gpu pictures lock clean \
	system
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' Makefile

## make setup      a virtual environment from a hash-pinned lock, and Kafka's jars: what a node and the demo need
setup: system $(SETUP)

system:
	@bash scripts/system

$(SETUP): locks/demo.txt pyproject.toml compose/kafka/jars.sha256
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r locks/demo.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	$(BIN)/python -m pipeline.kafka_jars
	@touch $@

## make tools      what checks and tests need beside it
tools: setup $(TOOLS)
	@bash scripts/system tests

$(TOOLS): $(SETUP) locks/dev.txt
	$(INSTALL) --require-hashes -r locks/dev.txt
	@touch $@

## make demo       real records through Kafka, hot, Valkey, DuckDB and Parquet, asked for and checked
demo: setup
	$(BIN)/isotherm demo

## make test       the checks and the whole test suite, on real servers
test: tools check
	$(BIN)/python -m pytest

## make fuzz       schemathesis against a live gateway, FUZZ_S seconds (900 if not given), another seed each time
fuzz: tools
	ISOTHERM_FUZZ_S=$${FUZZ_S:-900} $(BIN)/python -m pytest -s tests/pipeline/test_fuzz.py

## make chaos      kill the real system KILLS times (1000 if not given): nothing acknowledged may ever be missing
chaos: tools
	$(BIN)/python -m tests.chaos --kills $${KILLS:-1000} --seed $${SEED:-1}

## make simulate   seeds of the simulation (SEEDS=0:20000 if not given), until one breaks a rule
simulate: tools
	$(BIN)/python -m tests.simulation $${SEEDS:-0:20000}

## make mutants    break the source in each known way, and see that a test notices
mutants: tools
	$(BIN)/python -m tests.mutants

## make check      format, lint, types, import rules; the bill of materials, and what is known of it
check: tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.sbom --check
	$(BIN)/python -m scripts.audit --noted

## make docs       the site of docs/ into site/: strict, no other host
docs: tools
	$(BIN)/python -m scripts.site

## make pages      write the reference pages anew from the code
pages: tools
	$(BIN)/python -m scripts.pages

## make pictures   photograph the dashboard for docs/images
pictures: tools
	$(BIN)/python -m tests.pipeline.screenshots

## make sbom       list what a node installs, from locks/core.txt
sbom: tools
	$(BIN)/python -m scripts.sbom

## make audit      ask a vulnerability service about locks/core.txt, and note the answer (3: it did not answer about all)
audit: tools
	$(BIN)/python -m scripts.audit

## make bench      searches, ingest, moves and the gateway against what is promised: five minutes
bench: tools
	$(BIN)/python -m benchmarks.search --quick
	$(BIN)/python -m benchmarks.ingest --quick
	$(BIN)/python -m benchmarks.moves --quick
	$(BIN)/python -m benchmarks.gateway --quick

## make bench-gpu  hot on a GPU, against the device's own speeds and others: eight minutes; needs CuPy and nothing of setup
bench-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --minutes $${GPU_MINUTES:-8} --out $${GPU_OUT:-benchmarks/results/gpu.json}

## make lock       pin everything anew: Python packages and Kafka's jars
lock: system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(LOCK) pyproject.toml -o locks/core.txt
	$(LOCK) --extra text --extra local --extra dev pyproject.toml -o locks/dev.txt
	$(LOCK) --extra text --extra local --extra build -c locks/dev.txt pyproject.toml -o locks/demo.txt
	$(LOCK) --extra text --extra local --extra dev --extra bench pyproject.toml -o locks/bench.txt
	printf 'hatchling\n' | $(LOCK) -c locks/dev.txt - -o locks/build.txt
	$(LOCK) --extra gpu-cuda12 -c locks/core.txt pyproject.toml -o locks/gpu.txt
	$(BIN)/python -m pipeline.kafka_jars pin
	$(BIN)/python -m scripts.sbom

## make clean      remove what setup made
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site
