# Everything runs in .venv, which each target makes by itself. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait by spinning slow everything down tenfold where anything else runs.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test quick integrations mutants lint format models-table clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## Controlled sentiment on this machine, ending in one HTML report
	$(BIN)/palate demo $(ARGS)

# A file's tests stay together, so that what they share is made once; a thread for each process.
test: lint ## Lint, types, import direction and every test, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

quick: $(VENV)/.dev ## The tests that need no real model
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

integrations: $(VENV)/.integrations ## Trackers, Ray, lm-eval and vLLM themselves, where they are installed
	$(BIN)/python -m pytest tests/integrations $(ARGS)

mutants: $(VENV)/.mutants ## Break losses and kernels in a thousand ways: do the tests notice?
	nice -n 10 $(BIN)/python tools/mutants.py $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models-table: $(VENV)/.dev ## Measure the table of model families in docs/models.md anew
	PYTHONPATH=tests $(BIN)/python -m models_table --write

clean: ## Remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis mutants

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Palate needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps depend on pyproject.toml alone, so an unchanged one installs nothing twice.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.integrations: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[integrations]'
	touch $@

$(VENV)/.mutants: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	touch $@
