# Every target does its own set-up: a virtual environment in .venv, made with plain pip.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),2)

.PHONY: demo test check lint types layers test-all bench bench-planted bench-tasks train clean

demo: $(VENV)/.installed
	$(BIN)/tubelens demo --out tubelens-demo

test: check

check: lint types layers
	$(PYTEST) -m "not slow"

test-all: lint types layers
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy --strict src

layers: $(STAMP)
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

bench-planted: $(STAMP)
	$(BIN)/python benchmarks/planted_methods.py --write docs/planted.md

bench-tasks: $(STAMP)
	$(BIN)/python benchmarks/planted_bench.py --write docs/planted_tasks.md

train: $(STAMP)
	$(BIN)/python -m tubelens.evaluate.train --out src/tubelens/zoo/planted.safetensors
	for name in order transient infrared xor honest shortcut labels; do \
	  $(BIN)/python -m tubelens.evaluate.train --task $$name \
	    --out src/tubelens/zoo/planted_$$name.safetensors || exit 1; \
	done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(STAMP): pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) tubelens-demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
