PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 1
SECONDS_BOUND ?= 600
JOBS ?= 4
# pip would compile all that the packages hold, for a minute; a fifth of it is ever loaded, and compiled when it is.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help install check lint types collection test soak bench demo demo-federation docs clean
help: ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

install: $(VENV)/.installed ## make .venv and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

check: install ## lint, types, rooms and arrows, and that all tests can be loaded
	$(MAKE) --no-print-directory --jobs 2 types lint collection

types: install
	$(BIN)/mypy

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Each process of `make test` loads all tests; what this one compiles, with pytest's own assertions, is there for all of them.
collection: install
	@said=$$($(BIN)/python -m pytest --collect-only -qq 2>&1) || { echo "$$said"; exit 1; }

# Most of a test's time is spent waiting for servers, so there are more jobs than cores.
test: install ## pass the tests, in JOBS=4 processes
	$(BIN)/python -m pytest -m 'not soak' --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations=15

soak: install ## long, seeded, bounded runs: SEED=1 SECONDS_BOUND=600
	SOAK_SEED=$(SEED) SOAK_SECONDS=$(SECONDS_BOUND) $(BIN)/python -m pytest -m soak --timeout 3600

bench: install ## say what can be measured side by side, and how
	$(BIN)/python -m bench

demo: install ## train a real model on a real task, publish it, download it, and tell what happened
	$(BIN)/python -m examples.arithmetic.demo

demo-federation: install ## three sites train one adapter together; one of them and the service are killed on the way
	$(BIN)/python -m examples.federation.demo

docs: install ## write the generated pages of docs/
	$(BIN)/python -m cli.reference

clean: ## remove what make made, except the models
	rm -rf $(VENV) .demo/home .demo/adapter .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
