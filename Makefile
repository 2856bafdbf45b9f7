# make demo, make test: everything from a fresh clone, with only Python 3.11+ and make on the machine.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

# LLaMA-Factory's launcher calls torchrun by name.
export PATH := $(BIN):$(PATH)

.PHONY: help install test lint fuzz demo clean

help:
	@echo "make install   virtual environment in $(VENV), with the plugin (editable) and the test tools"
	@echo "make demo      train the bundled model: base, RL only, SFT, SFT then RL; prints a table"
	@echo "make test      linter, type checker and test suite"
	@echo "make lint      linter and type checker"
	@echo "make fuzz      look for texts that trip the answer verifier, for SECONDS=60"
	@echo "make clean     remove caches and builds (the environment and saves/ stay)"

install: $(STAMP)

$(STAMP): pyproject.toml lcot_plugin.pth
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/rewards/fuzz_verifier.py -max_total_time=$(or $(SECONDS),60) -timeout=5 -max_len=3000 \
		-artifact_prefix=fuzz_

demo: $(STAMP)
	$(BIN)/python -m lcot_plugin.demo.arms

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
