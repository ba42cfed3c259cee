# Everything runs from .venv, which `make setup` makes. Nothing is installed outside this folder.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# The first for pip before 25.3, the second from there on, for the packages that build the wheel.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# An environment knows its own path: in a checkout that was copied or moved it is made again.
ifneq ($(wildcard $(VENV)/.made),)
ifneq ($(shell cat $(VENV)/.made),$(CURDIR))
$(shell rm -f $(VENV)/.made $(VENV)/.for-use $(VENV)/.for-development)
endif
endif

define ERASE
import sys, pathlib, sandbox.servers
for folder in sys.argv[1:]: sandbox.servers.down(pathlib.Path(folder), print, erase=True)
endef
export ERASE

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults lint format types imports migrations check bench fuzz oracle clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nPYTHON=python3.12 chooses another Python (3.11 or newer); ARGS=... is handed to demo, test, faults, bench, fuzz and oracle.\n'

setup: $(VENV)/.for-development ## Make .venv with everything for development (once, a minute or two)
	@:

demo: $(VENV)/.for-use ## The story: real servers, a day of events, margin, capacity, an alert
	@$(BIN)/metering demo $(ARGS)

test: setup ## The whole test suite on a real Postgres and a real Kafka
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

faults: setup ## Half an hour of random faults over several workers, each round held against an oracle
	@$(BIN)/python -m tests.faults $(ARGS)

lint: setup ## ruff: mistakes and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff: put the formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## import-linter: imports point down only
	$(BIN)/lint-imports --no-cache

migrations: setup ## alembic check: the migrations make the tables that the code declares
	$(BIN)/python -m sandbox.postgres sh -c '$(BIN)/alembic upgrade head && $(BIN)/alembic check'

check: lint types imports migrations ## All of lint, types, imports and migrations

bench: setup ## Measure ingest against raw COPY (a few minutes)
	@$(BIN)/python -m bench $(ARGS)

fuzz: setup ## Fuzz the decoder against an oracle, 10 minutes (ARGS="--minutes 60 --seed 7")
	@$(BIN)/python -m tests.fuzz $(ARGS)

oracle: setup ## The supply side against a slow second implementation, 1,000 random worlds (ARGS="--worlds 5000")
	@$(BIN)/python -m tests.oracle $(ARGS)

clean: ## Stop and erase the sandbox, remove .venv, builds and caches (var/cache and exports stay)
	@if [ -x $(BIN)/python ]; then $(BIN)/python -c "$$ERASE" "$${METERING_SANDBOX_DIR:-var/sandbox}" var/test-sandbox*; fi
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.11 or newer is needed: name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	@printf '%s\n' '$(CURDIR)' > $@

$(VENV)/.for-use: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing what the demo needs (once, about a minute)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[sandbox]'
	@touch $@

$(VENV)/.for-development: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing everything for development (once, about a minute)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[sandbox,dev]'
	@touch $(VENV)/.for-use $@
