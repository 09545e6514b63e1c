# `make quickstart` fine-tunes a real model; `make test` checks the project. Both set up $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help quickstart test lint format types check clean
help:
	@echo "make quickstart  install, then fine-tune SmolLM2-135M with IFT on a CPU (ARGS='...' adds options)"
	@echo "make test        install, then lint, type-check and test (ARGS='...' goes to pytest)"
	@echo "make format      format the code"
	@echo "make clean       remove the environment and caches; checkpoints stay"

# A stamp per set of extras, renewed when the requirements change.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/lit-ift fit --config configs/quickstart.yaml $(ARGS)

test: lint types check

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
