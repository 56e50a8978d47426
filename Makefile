# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ENGINE ?= sim
MODEL ?=
ARGS ?=
# With MODEL: an interpreter that has SGLang installed. Ours stays free of it.
ENGINE_PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
# One environment, installed in two steps, so that `make demo` does not wait for the test tools.
RUNTIME := $(VENV)/.installed-router
DEVELOPMENT := $(VENV)/.installed-test
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-fast lint type check format bench engine clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo
	@echo "variables:  ENGINE=sim|sglang  MODEL=path ENGINE_PYTHON=python3 (for ENGINE=sglang on a machine with GPUs)"
	@echo "            ARGS='flags of the command'  PYTHON=python3 (makes .venv)"

demo: $(RUNTIME) ## run the main job end to end: two workers, the router, three rollout steps
ifeq ($(ENGINE),sim)
	@$(BIN)/espalier demo --engine sim $(ARGS)
else ifneq ($(ENGINE),sglang)
	@echo "ENGINE=$(ENGINE): expected sim or sglang" >&2; exit 2
else ifneq ($(MODEL),)
	@$(ENGINE_PYTHON) -c 'import sglang' 2> /dev/null || { \
	  echo "$(ENGINE_PYTHON) has no sglang: name one that has: make demo ENGINE=sglang MODEL=… ENGINE_PYTHON=path" >&2; exit 1; }
	@$(BIN)/espalier demo --engine sglang --model-path '$(MODEL)' --engine-command "$(ENGINE_PYTHON) -m \
	  sglang.launch_server --model-path '$(MODEL)' --host 127.0.0.1 --port {port} --base-gpu-id {index}" $(ARGS)
else
	@command="$$($(BIN)/python tests/engine/environment.py command)"; \
	$(BIN)/espalier demo --engine sglang --engine-command "$$command" $(ARGS)
endif

test: lint type ## check style and types, and run every test, those against real SGLang servers included
	@$(BIN)/python -m pytest $(ARGS)

test-fast: $(DEVELOPMENT) ## run the tests that do not need SGLang
	@$(BIN)/python -m pytest -m "not engine" $(ARGS)

check: lint type test-fast ## what to run before a commit: style, types, fast tests

lint: $(DEVELOPMENT) ## check format, lint rules and the imports between packages
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports --no-logo

type: $(DEVELOPMENT) ## check the types
	@$(BIN)/mypy

format: $(DEVELOPMENT) ## format the code and apply the safe fixes
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: $(DEVELOPMENT) ## measure the router beside others, 20 minutes; ARGS=--quick: 2 (needs wrk and nginx)
	@$(BIN)/python -m benchmarks.comparison $(ARGS)

engine: $(DEVELOPMENT) ## make the SGLang environment of the engine tests, once, in .engine
	@$(BIN)/python tests/engine/environment.py prepare > /dev/null

setup: $(DEVELOPMENT) ## make .venv with everything that development needs

clean: ## remove what the targets made: .venv, .engine, caches, runs
	rm -rf $(VENV) .engine .bench runs build dist *.egg-info .coverage coverage.xml \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@command -v '$(PYTHON)' > /dev/null || { \
	  echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Espalier needs Python 3.11 or newer, and $(PYTHON) is $$('$(PYTHON)' -V): name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (on Debian: apt install python3-venv)" >&2; exit 1; }
	@'$(PYTHON)' -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up $(VENV) for the router (once, about 20 s)…"
	@$(PIP_INSTALL) --editable '.[router]'
	@touch $@

# After the first step, never beside it: two pips must not write one environment.
$(DEVELOPMENT): pyproject.toml constraints.txt $(RUNTIME)
	@echo "setting up $(VENV) for development (once, about 60 s)…"
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $@
