# Every target works as the first command of a fresh clone: .venv is made when it is missing or out of date.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= rhumb-demo
PYTEST_FLAGS ?= -n 2 --dist worksteal
PIP_FLAGS ?= --disable-pip-version-check --quiet
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help demo test pytest lint format types imports report pack wheel clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# torch goes first and alone, so that nothing later can choose another build of it.
$(VENV)/.run: pyproject.toml constraints.txt
	@echo "making $(VENV) (once; a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.run  ## from images to a published pack, and one page that shows it (OUT=rhumb-demo)
	$(BIN)/rhumb demo --out $(OUT)

report: $(VENV)/.run  ## draw the report of the demo's catalog again
	$(BIN)/rhumb report $(OUT)/catalog

test: lint types imports pytest  ## everything that must pass: lint, types, import contracts, tests

pytest: $(VENV)/.dev  ## the tests alone (PYTEST_FLAGS="-k name" and the like)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev  ## flows -> catalog, pipeline; never back
	$(BIN)/lint-imports

pack: $(VENV)/.run  ## mine the pack builtin/faces64 anew, into build/pack/hub (half an hour)
	$(BIN)/rhumb mine data/builtin/faces64-pack.yaml --out build/pack/catalog
	$(BIN)/rhumb concepts build/pack/catalog --build -k 1
	$(BIN)/rhumb publish build/pack/catalog build/pack/whole/rhumb/faces64 --version 1.0.0
	$(BIN)/rhumb pull build/pack/whole/rhumb/faces64 --prototypes --kind local --kind individual --out build/pack/part
	$(BIN)/rhumb publish build/pack/part build/pack/hub/builtin/faces64 --version 1.0.0

wheel: $(VENV)/.run  ## build the wheel into dist/
	$(BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

clean:  ## remove what was built, .venv included
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
