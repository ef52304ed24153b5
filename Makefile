# Each target creates what it needs; nothing but Python 3.11 has to be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Tests and checks start hundreds of interpreters, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test e2e e2e-full soak bench check rooms man lock clean

PIP    := $(BIN)/pip --disable-pip-version-check --quiet

# Exactly the releases that were tested, by their hashes; the build back end is one of them.
$(VENV)/.dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes --requirement constraints.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Brings constraints.txt up to date with pyproject.toml and the newest releases; the floors in pyproject.toml follow by hand.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip --disable-pip-version-check --quiet install pip-tools
	build/lock/bin/pip-compile --quiet --upgrade --all-extras --all-build-deps --allow-unsafe --strip-extras --generate-hashes \
		--no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file constraints.txt pyproject.toml

run: $(VENV)/.dev
	$(BIN)/registry-mirror serve

# Many tests wait for processes, and for upstreams that are silent on purpose.
TESTS_AT_ONCE ?= $(shell expr 3 \* $$(nproc))

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/soak -m 'not full' -n $(TESTS_AT_ONCE) --dist worksteal

e2e: $(VENV)/.dev
	tests/e2e/install.sh
	$(BIN)/python -m pytest tests/e2e -m 'not full' -n 2 --dist loadfile --no-loadscope-reorder

# What takes too long for every change: the long tests as well, and other examples of the properties each time.
e2e-full: $(VENV)/.dev
	tests/e2e/install.sh full
	$(BIN)/python -m pytest tests/e2e
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest tests --ignore=tests/e2e --ignore=tests/soak -n $(TESTS_AT_ONCE)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest tests/soak

bench: $(VENV)/.dev
	tests/e2e/install.sh
	$(BIN)/python -m bench

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.support.rooms --check
	$(BIN)/python -m tests.support.man --check

# Brings the picture in ARCHITECTURE.md up to date with the imports.
rooms: $(VENV)/.dev
	$(BIN)/python -m tests.support.rooms

# Brings the manual page up to date with the commands and their options.
man: $(VENV)/.dev
	$(BIN)/python -m tests.support.man

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
