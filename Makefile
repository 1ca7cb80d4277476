# make demo    install into .venv, then run the quickstart on whatever is there: CPU or GPU
# make test    install, check, fast tests, then the slow end-to-end tests
# make check   format, lint, types
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: install demo check test test-fast test-slow format clean

install: $(STAMP)

# torch first: everything else then finds it, and no second build of it is pulled in
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/posttrain run quickstart

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check test-fast test-slow

test-fast: $(STAMP)
	$(OFFLINE) $(BIN)/pytest -n auto --dist worksteal -m "not slow and not gpu" --durations=5

test-slow: $(STAMP)
	$(OFFLINE) $(BIN)/pytest -n auto --dist worksteal -m "slow and not gpu" --durations=10

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
