# `make demo` and `make test` do all the set-up they need; `make help` lists the targets.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
ENCODER := vit-b-16-int8
# a module's tests share what they made: loadfile keeps them together
SIDE_BY_SIDE := -n 2 --dist loadfile
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup demo test journeys soak lint bench docs lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(VENV)/.installed  ## make .venv from requirements.lock

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "causal-tune needs Python 3.10 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

demo: setup  ## real photographs to an exported detector, in a few minutes
	$(BIN)/causal-tune fetch $(ENCODER)
	$(BIN)/causal-tune demo

test: setup  ## every test but the longest, on two processors
	$(BIN)/causal-tune fetch $(ENCODER)
	$(BIN)/python -m pytest -m "not gpu and not soak and not journey" $(SIDE_BY_SIDE)

journeys: setup  ## the tests that take tens of seconds each
	$(BIN)/causal-tune fetch $(ENCODER)
	$(BIN)/python -m pytest -m journey $(SIDE_BY_SIDE)

soak: setup  ## kill -9 at random moments, for many minutes
	$(BIN)/python -m pytest -m soak

lint: setup  ## format, rules, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## every question of benchmarks/, JSON out
	$(BIN)/causal-tune fetch $(ENCODER)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

docs: setup  ## run every example of the documentation
	$(BIN)/python -m pytest tests/test_docs.py

lock: setup  ## resolve requirements.lock anew
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --extra serve --universal --python-version 3.10 \
		--no-header --no-emit-index-url --no-annotate --generate-hashes --upgrade --quiet -o requirements.lock

clean:  ## remove .venv and caches; workspaces stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
