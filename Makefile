PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Compiled once here: where Python may not write, every start would compile thousands of modules anew, for seconds.
UV := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode

.DEFAULT_GOAL := help
.PHONY: help setup check fix test full gpu bench demo docs site

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with pinned versions

# Nothing but python3 is assumed: uv comes from the package index into the environment itself.
$(READY): requirements.lock pyproject.toml setup.py $(wildcard src/deformable_detr/ops/csrc/* src/deformable_detr/ops/compile_flags.py)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another with PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --require-hashes -r requirements.lock
	$(UV) --no-deps -e .
	@touch $@

check: $(READY) ## ruff format and lint, mypy, who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(READY) ## ruff --fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The hook that checks shapes breaks graph capture, so what compiles and exports is tested in a second run without it,
# of only those files that have something for it.
# All of a file on one worker: what its tests share is made once.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder
COMPILE := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -o addopts="--strict-markers --strict-config --import-mode=importlib -ra"
COMPILED = $(shell grep -rl --include='*.py' 'mark\.compile' tests)

test: $(READY) ## the default test run, for while you work
	$(PYTEST)
	$(COMPILE) -m "compile and not slow" $(COMPILED)

full: $(READY) ## the slow tests, too, and coverage: what CI runs
	$(PYTEST) -m "not gpu and not network and not compile" --cov --cov-report=term:skip-covered --cov-fail-under=95
	$(COMPILE) -m compile $(COMPILED)

gpu: $(READY) ## the tests that need a GPU
	$(BIN)/pytest -m gpu

bench: $(READY) ## benchmarks against a git ref (ref=main)
	@$(BIN)/python -m benchmarks --ref $(or $(ref),main)

demo: $(READY) ## the main job, end to end
	$(BIN)/ddetr demo

# ruff, on the path, breaks the reference's long signatures into lines.
docs: $(READY) ## the documentation site, built and served
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/zensical serve

site: $(READY) ## the documentation site, only built, in build/site
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/zensical build --strict
