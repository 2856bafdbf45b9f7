# make demo, make test: everything from a fresh clone, with only Python 3.11+ and make on the machine.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

# vLLM has an environment of its own. VLLM_ENV stands before the command that makes it, for example
# make vllm-env VLLM_ENV="env PIP_INDEX_URL=..."; LCOT_VLLM_PYTHON names one that is there already.
VLLM_VENV ?= .venv-vllm
VLLM_ENV ?=
VLLM_FLAGS ?= $(shell nvidia-smi >/dev/null 2>&1 || echo --cpu)
LCOT_VLLM_PYTHON ?=

# The tests' DeepSpeed has a folder of its own: where it is installed, accelerate imports it into every process.
DEEPSPEED := $(abspath $(VENV))/deepspeed

# LLaMA-Factory's launcher calls torchrun by name.
export PATH := $(BIN):$(PATH)

.PHONY: help install test lint fuzz demo vllm-env test-vllm clean

help:
	@echo "make install   virtual environment in $(VENV), with the plugin (editable) and the test tools"
	@echo "make demo      train the bundled model: base, RL only, SFT, SFT then RL; prints a table"
	@echo "make test      linter, type checker and test suite"
	@echo "make lint      linter and type checker"
	@echo "make fuzz      look for texts that trip the answer verifier, for SECONDS=60"
	@echo "make vllm-env  virtual environment with vLLM in $(VLLM_VENV): for the GPU, or for the CPU where there is none"
	@echo "make test-vllm the tests that need a real vLLM"
	@echo "make clean     remove caches and builds (the environment and saves/ stay)"

install: $(STAMP)

$(STAMP): pyproject.toml lcot_plugin.pth
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(DEEPSPEED): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ \
		deepspeed==0.18.4 einops hjson msgpack ninja py-cpuinfo

test: lint $(DEEPSPEED)
	LCOT_DEEPSPEED=$(DEEPSPEED) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not vllm" -n $(WORKERS) --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tests/rewards/fuzz_verifier.py -max_total_time=$(or $(SECONDS),60) -timeout=5 -max_len=3000 \
		-artifact_prefix=fuzz_

vllm-env: $(STAMP)
	$(VLLM_ENV) $(BIN)/python -m lcot_plugin vllm install $(VLLM_VENV) $(VLLM_FLAGS)

test-vllm: $(STAMP) $(if $(LCOT_VLLM_PYTHON),,vllm-env)
	LCOT_VLLM_PYTHON=$(or $(LCOT_VLLM_PYTHON),$(abspath $(VLLM_VENV))/bin/python) OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -m vllm

demo: $(STAMP)
	$(BIN)/python -m lcot_plugin.demo.arms

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +
