# Two commands matter: `make demo` and `make test`. Both begin with `make setup`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.PHONY: setup demo test fuzz check bench bench-gpu lock clean system
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' Makefile

## make setup   a virtual environment from the hash-pinned lock, and Kafka's jars
setup: system $(SETUP)

system:
	@bash scripts/system

$(SETUP): locks/dev.txt pyproject.toml compose/kafka/jars.sha256
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r locks/dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pipeline.kafka_jars
	@touch $@

## make demo    real records through Kafka, hot, Valkey, DuckDB and Parquet, asked for and checked
demo: setup
	$(BIN)/isotherm demo

## make test    the checks and the whole test suite, on real servers
test: setup check
	$(BIN)/python -m pytest

## make fuzz    schemathesis against a live gateway, FUZZ_S seconds (900 if not given), another seed each time
fuzz: setup
	ISOTHERM_FUZZ_S=$${FUZZ_S:-900} $(BIN)/python -m pytest -s tests/pipeline/test_fuzz.py

## make check   format, lint, types, import rules
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## make bench   searches and reads measured against what is promised: a slice of two minutes
bench: setup
	$(BIN)/python -m benchmarks.search --quick

## make bench-gpu   hot on a GPU, against the device's own speeds and others: eight minutes; needs CuPy and nothing of setup
bench-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --minutes $${GPU_MINUTES:-8} --out $${GPU_OUT:-benchmarks/results/gpu.json}

## make lock    pin everything anew: Python packages and Kafka's jars
lock: system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml -o locks/core.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra text --extra local --extra dev pyproject.toml -o locks/dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --extra text --extra local --extra dev --extra bench pyproject.toml -o locks/bench.txt
	$(BIN)/python -m pipeline.kafka_jars pin

## make clean   remove what setup made
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
