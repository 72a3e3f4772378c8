# make demo: install what is missing and send one photograph through a GNU Radio flowgraph.
# make test: the same set-up, then every test.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
READY := $(VENV)/.ready
OUT ?= out/demo

.PHONY: demo test lint setup clean

demo: $(READY)
	@$(VENV)/bin/python run_flowgraph.py --out $(OUT)

test: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/python -m pytest

lint: $(READY)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

setup: $(READY)

$(READY): setup.sh requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) ./setup.sh $(VENV)

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache
