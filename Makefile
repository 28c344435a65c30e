PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check fix test gpu bench demo docs

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with pinned versions

# Nothing but python3 is assumed: uv comes from the package index into the environment itself.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --no-deps -e .
	touch $@

check: $(READY) ## ruff format and lint, mypy, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## ruff --fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) ## the default test run, what CI runs
	$(BIN)/pytest -n auto --cov --cov-report=term:skip-covered --cov-fail-under=90
	$(BIN)/pytest -m compile -p no:jaxtyping

gpu: $(READY) ## the tests that need a GPU
	$(BIN)/pytest -m gpu

bench: $(READY) ## benchmarks against a git ref (ref=main)
	$(BIN)/python -m benchmarks --ref $(or $(ref),main)

demo: $(READY) ## the main job, end to end
	$(BIN)/ddetr demo

docs: $(READY) ## the documentation site, served
	$(BIN)/python -m http.server --directory docs 8000
