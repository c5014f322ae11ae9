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

$(CLIENTS): tests/clients/package-lock.json
	@if command -v npm >/dev/null; then cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund && touch ../../$@; \
	else echo 'no npm here: exports are not tried in transformers.js; Node 20.9 or later brings it'; fi

test: lint types $(CLIENTS)
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist src/*.egg-info tests/clients/node_modules
