# `make demo` and `make test` need Python 3.11 and nothing else: each makes .venv first and installs into it what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= 2
PIP_INSTALL = $(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: help demo test test-fast lint docs check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## quantize a trained network and judge it on real photos; writes demo-out/report.html
	$(PY) examples/efficientnet_lite0.py --out demo-out

test: $(VENV)/.dev  ## all tests
	$(PY) -m pytest -q -n $(JOBS) $(ARGS)

test-fast: $(VENV)/.dev  ## without the slow ones
	$(PY) -m pytest -q -n $(JOBS) -m "not slow" $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy --strict
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.dev  ## write the pages that are made from the code
	$(PY) docs/generate.py

check:  ## what CI runs
	.ci/run

clean:  ## remove .venv and what was made
	rm -rf $(VENV) demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qcompiler needs Python 3.11 or newer: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(PY)
	$(PIP_INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(PY)
	$(PIP_INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.demo
