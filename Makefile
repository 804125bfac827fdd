# Everything from a fresh clone with Python >= 3.11, git and make. Each goal makes its own environment in .venv the first
# time and is quick the second.
#
#   make demo     set up and run the main job; ends with the path of a report
#   make test     set up and run the tests
#   make check    formatting, lint and types
#   make bench    ratios to diffusers and others, in an environment of their own
#   make clean    remove the environments and what the goals wrote
#
# Another torch, another index:   make demo TORCH=torch==2.9.1 TORCH_INDEX=https://download.pytorch.org/whl/cu128
# Another Python:                 make demo PYTHON=/path/to/python3.12

TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTHON ?=
VENV ?= .venv
BENCH_VENV ?= .venv-bench

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := $(VENV)/bin
BENCH_BIN := $(BENCH_VENV)/bin
# A stamp carries the choice of torch in its name: another choice is another set-up.
CHOICE := $(shell printf '%s' '$(TORCH) $(TORCH_INDEX)' | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.hwaga-$(CHOICE)
TEST_STAMP := $(VENV)/.hwaga-test-$(CHOICE)
BENCH_STAMP := $(BENCH_VENV)/.hwaga-bench-$(CHOICE)
PIP_FLAGS := --disable-pip-version-check --quiet

# The first Python that runs, is 3.11 or newer, and can make an environment; a name on the path may be an empty shim.
define FIND_PYTHON
found=""; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3 python3.14 python); do \
  if "$$candidate" -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
    found="$$candidate"; break; \
  fi; \
done; \
if [ -z "$$found" ]; then \
  echo "hwaga needs Python 3.11 or newer with its venv module, and found none$(if $(PYTHON), at $(PYTHON),); install one (on Debian: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
  exit 1; \
fi
endef

# torch first, so that a chosen build is not replaced; the constraints hold for everything else. Another torch than the
# tested one may ask for another sympy (some versions name one exactly), so then that line does not hold.
define SET_UP
$(FIND_PYTHON); \
echo "setting up $(1) with $$("$$found" --version) and $(TORCH) (once; some minutes)"; \
"$$found" -m venv --clear $(1); \
$(1)/bin/python -m pip install $(PIP_FLAGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),) '$(TORCH)'; \
grep -v $(if $(filter torch==2.13.0,$(TORCH)),'^$$','^sympy==') constraints.txt > $(1)/constraints.txt; \
$(1)/bin/python -m pip install $(PIP_FLAGS) --constraint $(1)/constraints.txt --editable '.$(2)'
endef

.PHONY: help demo test check format bench clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(call SET_UP,$(VENV),)
	@touch $@

$(TEST_STAMP): $(STAMP)
	@echo "adding what the tests need"
	@$(BIN)/python -m pip install $(PIP_FLAGS) --constraint $(VENV)/constraints.txt --editable '.[test]'
	@touch $@

$(BENCH_STAMP): pyproject.toml constraints.txt benchmarks/requirements.txt
	@$(call SET_UP,$(BENCH_VENV),)
	@$(BENCH_BIN)/python -m pip install $(PIP_FLAGS) --constraint $(BENCH_VENV)/constraints.txt --requirement benchmarks/requirements.txt
	@touch $@

demo: $(STAMP)
	@$(BIN)/hwaga demo $(DEMO)

test: $(TEST_STAMP)
	@$(BIN)/python -m pytest $(TESTS)

check: $(TEST_STAMP)
	@$(BIN)/ruff format --check src tests
	@$(BIN)/ruff check src tests
	@$(BIN)/mypy

format: $(TEST_STAMP)
	@$(BIN)/ruff format src tests
	@$(BIN)/ruff check --fix src tests

bench: $(BENCH_STAMP)
	@$(BENCH_BIN)/python benchmarks/run.py $(BENCH)

clean:
	rm -rf $(VENV) $(BENCH_VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache src/hwaga.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
