# `make quickstart` fine-tunes a real model; `make test` checks the project. All set up $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: help quickstart check fast test test-all rest lint types format clean
help:
	@echo "make quickstart  install, then fine-tune SmolLM2-135M with IFT on a CPU (ARGS='...' adds options)"
	@echo "make check       install, then lint, type-check and run the fast tests: a minute or two"
	@echo "make test        the same with all tests of mathematics, runs and README: about half an hour (ARGS='...' goes to pytest)"
	@echo "make test-all    besides these what needs a browser, other Pythons, or runs examples"
	@echo "make format      format the code"
	@echo "make clean       remove the environment and caches; checkpoints stay"

# A stamp per set of extras, renewed when the requirements change.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

quickstart: $(VENV)/.installed-quickstart
	$(BIN)/lit-ift fit --config configs/quickstart.yaml $(ARGS)

# Two processes of one thread each; tests of a file run in the same one (tests/conftest.py), slow folders come first.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
REST = browser or docs or pythons or examples
check fast test test-all: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)

# All three side by side: types take one core, for as long as the tests take two.
check: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory --jobs 3 --output-sync lint types fast

fast: $(VENV)/.installed-dev
	$(PYTEST) tests/unit tests/parity -m "not slow and not model" $(ARGS)

test: lint types
	$(PYTEST) -m "not ($(REST))" $(ARGS)

test-all: test rest

# Pytest ends with 5 if there is no such test, which is told before it says last that it ran none.
rest: $(VENV)/.installed-dev
	if $(BIN)/python -m pytest --collect-only -q -m "$(REST)" $(ARGS) >/dev/null; then \
		$(PYTEST) -m "$(REST)" $(ARGS); \
	else \
		test $$? = 5 && echo "No test is marked $(REST)."; \
	fi

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
