# Every target first makes .venv (once, and again when pyproject.toml changes).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
BENCH_STAMP := .venv/.installed-bench
DEMO := .demo/flights
# All tests run in so many processes side by side, as most of their time is waiting; each has a Ray cluster of its own.
# Some tests, named by ARGS, run in one.
TEST_PROCESSES ?= 4
SIDE_BY_SIDE := -n $(TEST_PROCESSES) --dist worksteal
# Directories that later changes add are checked as soon as they are there.
CODE := $(wildcard aiodata tests benchmarks examples)
TYPED := $(wildcard aiodata tests benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo test check lint format types layers bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Stream a real data set (336,776 flights) with live progress
	@$(BIN)/python examples/flights.py --out $(DEMO)
	@$(BIN)/aiodata scan $(DEMO)

test: check ## Run the checks, then all tests
	@$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(SIDE_BY_SIDE))

check: lint types layers ## Lint, format check, types, layers

lint: $(STAMP)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(STAMP)
	@$(BIN)/mypy $(TYPED)

layers: $(STAMP)
	@$(BIN)/lint-imports

format: $(STAMP) ## Format the code and apply the safe lint fixes
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: $(BENCH_STAMP) ## Run the benchmarks, e.g. make bench ARGS="scan --runs 3"
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove .venv, the demo's data and all caches
	rm -rf .venv .demo build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "aiodata needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing aiodata and its development tools into .venv (once) ..."
	@$(PIP) -e ".[dev]"
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(PIP) -e ".[dev,bench]"
	@touch $@
