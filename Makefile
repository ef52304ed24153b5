# Each target creates what it needs; nothing but Python 3.11 has to be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: run test e2e bench check clean

$(VENV)/.run: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run

run: $(VENV)/.run
	$(BIN)/registry-mirror serve

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests --ignore=tests/e2e

e2e: $(VENV)/.dev
	tests/e2e/install.sh
	$(BIN)/python -m pytest tests/e2e

bench: $(VENV)/.dev
	tests/e2e/install.sh
	$(BIN)/python -m bench

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
