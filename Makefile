# Everything happens in a virtual environment, made on the first call; see README.md.
#
#   make train    trains the example language model
#   make test     runs the tests
#   make check    formatter, linter and types
#   make docs     builds the documentation into out/docs
#   make clean    removes the environment and what was compiled
#
# ARGS="..." goes to the command that runs: make train ARGS="--steps 100", make test ARGS="-k causal".

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=

RUN := $(VENV)/bin/python
# Python files of an editable install act as they are; these are compiled, or say how.
BUILT_FROM := pyproject.toml $(shell find tools src/hyena/csrc -type f -not -name '*.pyc')

# What the extras of pyproject.toml include of each other.
HAS_test := train
HAS_dev := train test

# Tests run in a process for each core; threads that wait for work must not keep a core from the others.
export OMP_WAIT_POLICY ?= passive

.PHONY: help train test check docs clean

help:
	@sed -n '2,/^$$/s/^# \{0,1\}//p' Makefile

train: $(VENV)/.has-train
	$(RUN) examples/shakespeare/train.py $(ARGS)

test: $(VENV)/.has-test
	$(RUN) -m pytest -n auto $(ARGS)

check: $(VENV)/.has-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(VENV)/.has-docs
	$(RUN) -m sphinx -W --keep-going -n -q -d out/doctrees docs out/docs $(ARGS)
	@echo "out/docs/index.html"

clean:
	rm -rf $(VENV) build

$(VENV)/.has-torch:
	@echo "== Setting up, step 1 of 2: $(TORCH) in the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "hyena needs Python 3.10 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=... names another"; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install "$(TORCH)"
	@touch $@

$(VENV)/.has-%: $(VENV)/.has-torch $(BUILT_FROM)
	@echo "== Setting up, step 2 of 2: hyena with what '$*' needs; its kernels are compiled, which takes minutes the first time"
	$(RUN) -m pip install --editable ".[$*]"
	@touch $@ $(patsubst %,$(VENV)/.has-%,$(filter $(HAS_$*),train test))

.SECONDARY:
