# Two commands matter: `make run` and `make test`. Both set up what they need, in .venv.
PYTHON ?= python3
DATASET ?= flights
# What `make run` lands by itself, and so what `make clean` may take away.
DEMOS := flights textures shuttle
VENV := .venv
BIN := $(VENV)/bin
# One process more than cores, because tests wait for the processes that they start.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores + 1 : 8)))
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Loading the definitions and the file that MLflow runs has effects, and neither has examples.
EXAMPLES := ae_pipeline --ignore ae_pipeline/definitions.py --ignore ae_pipeline/registry/pyfunc_model.py
PROSE := README.md ARCHITECTURE.md CONTRIBUTING.md CHANGELOG.md docs

export DAGSTER_HOME := $(CURDIR)/.dagster
# Threads that spin while they wait slow a busy machine down many times over.
export OMP_WAIT_POLICY := PASSIVE
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Each process of the tests would compile the package and the tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup run ui test test-fast coverage types lint doctest prose docs check bench audit sbom clean
.DEFAULT_GOAL := help

help:
	@echo "make run        set up, land the demo data and update $(DATASET); DATASET=name for another: $(DEMOS)"
	@echo "make test       set up and run all tests"
	@echo "make ui         serve Dagster with its daemon on 127.0.0.1:3000, MLflow on :5000, the reports on :3001"
	@echo "make docs       build the documentation into site/"
	@echo "make check      formatter, linter, types, import contracts, doctests, prose, documentation, all tests"
	@echo "make test-fast  the tests that are not marked slow      make coverage  all tests, with coverage and its floor"
	@echo "make lint       formatter, linter, import contracts     make types     the types"
	@echo "make doctest    the examples in docstrings              make prose     the text of the documentation"
	@echo "make bench      measure speed, planted faults and models against alternatives, into benchmarks/results"
	@echo "make audit      look for known vulnerabilities          make sbom      list all packages, in build/sbom.cdx.json"
	@echo "make setup      create the virtual environment          make clean     remove it and what runs have written"

# One stamp for each set of packages, so that `make run` does not install what only tests need.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=…")'
	@$(PYTHON) -m venv $(VENV)

# Without compilation: of the 24,000 modules that pip would compile, which takes a minute, few are ever imported.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), with what tests and benchmarks need; the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[demo,bench,dev]'
	@touch $@ $(VENV)/.run

setup: $(VENV)/.dev

run: $(VENV)/.run
	@$(BIN)/ae-pipeline run $(DATASET)

test: $(VENV)/.dev
	@$(PYTEST)

test-fast: $(VENV)/.dev
	@$(PYTEST) -m "not slow"

coverage: $(VENV)/.dev
	@$(PYTEST) --cov

# One process: the examples are quick, and importing the package takes longest.
doctest: $(VENV)/.dev
	@$(BIN)/python -m pytest --doctest-modules $(EXAMPLES)

ui: $(VENV)/.run
	@$(BIN)/ae-pipeline ui

check: $(VENV)/.dev
	@$(MAKE) --no-print-directory --jobs 2 types lint doctest prose docs
	@$(MAKE) --no-print-directory test

# The longest part of `check` but the tests; the others run beside it.
types: $(VENV)/.dev
	$(BIN)/mypy

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

# Form of the Markdown, choice of words, then sentences; the last is a part of `make test` too.
prose: $(VENV)/.dev
	$(BIN)/rumdl check --quiet $(PROSE)
	$(BIN)/proselint check --config .proselintrc.json $(PROSE)
	$(BIN)/python tests/contract/prose.py $(PROSE)

# Every page opens from the disk; its search needs a server: `.venv/bin/python -m http.server --directory site`.
docs: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # `--quiet` would hide the warnings from `--strict` too
	@echo "Open site/index.html in a browser."

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.speed --out benchmarks/results/speed.json
	$(BIN)/python -m benchmarks.planted_faults --out benchmarks/results/planted_faults.json
	$(BIN)/python -m benchmarks.models --out benchmarks/results/models.json

# Tools of their own, so that what they need is not in the list.
build/tools: constraints.txt
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/python -m pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

# Strict: a package that the source of advisories does not know is an error, and not a package without faults.
audit: build/tools
	@build/tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict --progress-spinner off \
		|| { echo "A package has a known vulnerability, or the advisories could not be read. See above."; exit 1; }

sbom: $(VENV)/.run build/tools
	@build/tools/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.cdx.json
	@echo "The bill of materials is build/sbom.cdx.json."

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf $(DEMOS:%=data/landing/%) $(DEMOS:%=data/contracts/%.yaml)
	find data mlruns .dagster -mindepth 1 ! -path 'data/landing*' ! -path 'data/contracts*' \
		! -name README.md ! -name dagster.yaml -delete
