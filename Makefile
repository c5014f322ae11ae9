# `make demo` and `make test` each work alone on a fresh machine: the environment is made on the way.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CLIENTS := tests/clients/node_modules/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint types clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,onnx,openvino,sherpa-onnx,ctranslate2]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sotto demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Offline, or without npm, the tests that need it are skipped and say so.
$(CLIENTS): tests/clients/package-lock.json
	@cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.installed \
	|| echo 'npm could not install transformers.js: exports are not tried in it; Node 20.9 or later brings npm'

# Files in the order of their names: benchmarks have the fewest and slowest tests, and would come last by their number.
test: lint types $(CLIENTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist src/*.egg-info tests/clients/node_modules
