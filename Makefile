# make demo:  set up what a user needs and send one photograph through a GNU Radio flowgraph.
# make check: set up what the tests need, then lint, types and the fast unit tests (under 2 minutes).
# make test:  the same set-up, then lint, types and every test.
# make docs:  build the documentation into build/docs; a broken link is an error.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
READY := $(VENV)/.ready
READY_TESTS := $(VENV)/.ready-tests
READY_DOCS := $(VENV)/.ready-docs
OUT ?= out/demo
# Whole files go to a worker, the long ones first: those of tests/gnuradio and tests/integration.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo setup setup-tests lint check test docs clean

demo: $(READY)
	@$(VENV)/bin/python run_flowgraph.py --out $(OUT)

setup: $(READY)

setup-tests: $(READY_TESTS)

lint: $(READY_TESTS)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

check: lint
	@$(VENV)/bin/python -m pytest $(PARALLEL) tests/unit -m "not slow"

test: lint
	@$(VENV)/bin/python -m pytest $(PARALLEL)

docs: $(READY_DOCS)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

$(READY): setup.sh requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) ./setup.sh $(VENV)

$(READY_TESTS): $(READY)
	@./setup.sh --tests $(VENV)

$(READY_DOCS): $(READY)
	@./setup.sh --docs $(VENV)

clean:
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .pytest_cache
