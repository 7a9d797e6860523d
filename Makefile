# Every target makes its own environment in .venv: Python 3.11 or newer, pip and make are all that a machine needs.
#   make demo                  train, stream and report in about five minutes
#   make test ARGS="-k scan"   the tests, or some of them
#   make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_BENCH := $(VENV)/.ready-bench
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# One thread for each worker: two workers then fill two cores and never wait for each other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint bench bench-optim gpu gpu-bench docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## train a small Titans and a transformer, stream an unseen package, write report/index.html
	$(BIN)/nestling demo $(ARGS)

test: $(READY) ## the tests that are not marked slow
	$(TEST) $(ARGS)

slow: $(READY) ## the tests that are marked slow
	$(TEST) -m slow $(ARGS)

lint: $(READY) ## style, format, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(READY) ## tokens per second and peak memory of every path
	$(BIN)/nestling bench paths $(ARGS)

bench-optim: $(READY_BENCH) ## the optimizers: a toy, forgetting, a tuned comparison, going on; what is in the results is kept
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.optim $(ARGS)

gpu: $(READY) ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

gpu-bench: $(READY) ## on a GPU: parity of the kernels, then training speed beside flash-linear-attention and a transformer
	$(BIN)/python -m benchmarks.gpu $(ARGS)

docs: $(READY_DOCS) ## write the tables of equations, and build the documentation into site/
	$(BIN)/python -m tests.papers.equations
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean: ## remove what was built; runs/ and report/ stay
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The kernels' interpreter, where torch is a build without it. Tests of kernels say so and are skipped where there is none for a machine.
TRITON := triton==3.9.0; platform_system == "Linux" and platform_machine == "x86_64"

# torch comes first and pinned, so that a build for this machine which is already at hand is taken and no dependency brings another.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Nestling needs Python 3.11 or newer, '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1). Pass a newer one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@echo "Making $(VENV) (once; torch is a large download)"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "'$(PYTHON) -m venv' failed: install the venv module of this Python (on Debian and Ubuntu: apt install python3-venv) and try again." >&2; exit 2; }
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) --quiet '$(TRITON)' || echo "No triton for this machine: kernels stay untested here" >&2
	$(PIP) --quiet -e '.[dev,examples]'
	@touch $@

$(READY_BENCH): $(READY)
	$(PIP) --quiet -e '.[bench]'
	@touch $@

$(READY_DOCS): $(READY)
	$(PIP) --quiet -e '.[docs]'
	@touch $@
