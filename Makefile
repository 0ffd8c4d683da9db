# `make help` lists the targets. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
PYTHON_ARVIZ1 ?= /usr/bin/python3.13
WORKERS ?= auto
PART ?= 1/1
DEVICE ?= cpu

BIN := .venv/bin
BIN_ARVIZ1 := .venv-arviz1/bin
BIN_BENCH := .venv-bench/bin
PROJECT := pyproject.toml pyro_ext/_version.py
XDIST := -n $(WORKERS) --dist worksteal
TESTS_ARVIZ1 := $(wildcard tests/diagnostics/test_arviz*.py tests/diagnostics/test_*plots.py) tests/diagnostics/test_function_space.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-fast test-arviz1 test-slow pages test-all test-devices durations lint format typecheck bench posteriordb docs release-check clean

help: ## show this list
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 16

demo: .venv/.demo ## install what the demo needs and run it
	$(BIN)/pyro-ext demo

test: lint typecheck test-fast test-arviz1 ## style, types, the fast tests, both lines of ArviZ: some ten minutes on two cores

test-fast: .venv/.test ## the tests of at most about a second, and a short run of one page of each room
	$(BIN)/python -m pytest $(XDIST) -m "not slow and not page"

test-slow: .venv/.test ## the slow tests; PART=2/5 runs the second of five parts
	$(BIN)/python -m pytest $(XDIST) -m "slow and not page" --part $(PART)

pages: .venv/.test ## run the pages in full, and the tests that read their reports; PART=2/5 as above
	$(BIN)/python -m tests.pages --part $(PART)
	$(BIN)/python -m pytest -m page tests/tutorials

test-all: test test-slow pages ## everything, which takes more than an hour

durations: .venv/.test ## record what slow tests and pages take, by which CI divides them into parts
	$(BIN)/python -m tests.pages --record-durations
	$(BIN)/python -m pytest $(XDIST) -m "slow and not page" --record-durations

# ArviZ 1 needs a newer Python than ArviZ 0.x has at its lower end, so it gets an environment of its own.
test-arviz1: ## the tests of conversion and plots under ArviZ 1, where PYTHON_ARVIZ1 exists
	@if $(PYTHON_ARVIZ1) -c 'import ensurepip, venv' 2>/dev/null; then \
		$(MAKE) --no-print-directory .venv-arviz1/.test \
		&& $(BIN_ARVIZ1)/python -m pytest $(XDIST) $(TESTS_ARVIZ1); \
	else \
		echo "No tests under ArviZ 1: $(PYTHON_ARVIZ1) or its venv module is missing."; \
		echo "On Debian: apt-get install python3.13-venv. Elsewhere: make test-arviz1 PYTHON_ARVIZ1=<a Python of 3.12 or later>."; \
		test -z "$${CI:-}"; \
	fi

lint: .venv/.test ## check style
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: .venv/.test ## put files in the house style
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

typecheck: .venv/.test ## check types
	$(BIN)/python -m mypy

test-devices: .venv/.test ## the tests that run on a GPU where there is one, and on a simulated device
	$(BIN)/python -m pytest --devices

# bnpy, of 2019, may not build everywhere; its rows then say that it is missing.
bench: .venv-bench/.bench ## measure us beside every peer, and write docs/speed.md and a table of the README; DEVICE=cuda on a GPU
	-$(MAKE) --no-print-directory .venv-bnpy/.bench
	$(BIN_BENCH)/python benchmarks/table.py --device $(DEVICE)

posteriordb: .venv-bench/.bench ## NUTS beside its peers on 49 posteriors, some hours; writes docs/posteriordb.md
	$(BIN_BENCH)/python benchmarks/posteriordb.py --jobs 2

docs: .venv/.docs ## build the site in docs/_build/html, with the runs in docs/runs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

release-check: .venv/.test ## build wheel and sdist, check them, and use them in empty environments of both Pythons
	tools/check_release.sh $(BIN)/python $(PYTHON) $(PYTHON_ARVIZ1)

clean: ## delete environments, builds, caches and the demo's results
	rm -rf .venv .venv-arviz1 .venv-bench .venv-bnpy build dist demo reports docs/_build docs/gallery *.egg-info .test_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find pyro_ext inference models tutorials tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "pyro_ext needs Python 3.11 or later, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)."; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.13"; \
		exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# Python compiles what it imports; to compile all that is installed takes half of the time.
.venv/.demo: $(PROJECT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[demo]'
	@touch $@

.venv/.test: $(PROJECT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@

.venv/.docs: $(PROJECT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

$(BIN_ARVIZ1)/python:
	$(PYTHON_ARVIZ1) -m venv .venv-arviz1 || { rm -rf .venv-arviz1; exit 1; }

.venv-arviz1/.test: $(PROJECT) | $(BIN_ARVIZ1)/python
	$(BIN_ARVIZ1)/python -m pip install --quiet --editable '.[test]'
	@$(BIN_ARVIZ1)/python -c 'import sys; from importlib.metadata import version as v; sys.exit(v("arviz").startswith("0.") and "ArviZ 1 expected, found " + v("arviz"))'
	@touch $@

$(BIN_BENCH)/python:
	$(PYTHON) -m venv .venv-bench || { rm -rf .venv-bench; exit 1; }

.venv-bnpy/.bench: benchmarks/bnpy-requirements.txt # in an environment of its own
	$(PYTHON) -m venv .venv-bnpy
	.venv-bnpy/bin/python -m pip install --quiet -r $<
	.venv-bnpy/bin/python -m pip install --quiet --no-deps --no-build-isolation bnpy==0.1.7
	@touch $@

.venv-bench/.bench: $(PROJECT) | $(BIN_BENCH)/python
	$(BIN_BENCH)/python -m pip install --quiet --editable '.[bench]'
	@touch $@
