# Everything sets itself up: the first target that needs it makes .venv from requirements-dev.txt.
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
READY  := $(VENV)/.ready
# Test processes at a time: pytest -n
TESTERS ?= 2
# The same for crash tests, which wait for leases and clocks most of their time
WAITERS ?= 4

# What `make enqueue` stores; give your own with JOB='…'.
JOB    ?= {"type": "math", "payload": {"operation": "fibonacci", "value": 10}}

.DEFAULT_GOAL := help
.PHONY: help test test-unit test-integration test-full build lint format coverage bench demo dashboards enqueue ci clean

help:  ## List all targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements-dev.txt scripts/setup.sh
	@sh scripts/setup.sh $(VENV)
	@touch $@

test: $(READY) lint test-unit test-integration  ## Lint, types, import rules and all tests at their quick size
	@echo "make test: all passed"

test-unit: $(READY)  ## Pure functions, contract conformance, simulator: no processes of their own
	$(PYTEST) -n $(TESTERS) tests/unit tests/conformance tests/simulation tests/app tests/worker

test-integration: $(READY)  ## Each backend, server, command line, demo and crash tests: real files, servers, processes
	$(PYTEST) -n $(TESTERS) tests/kit tests/sqlite tests/postgres tests/redis tests/server tests/http tests/tracing tests/cli tests/docs
	$(PYTEST) -n $(WAITERS) tests/demo tests/crash
	$(PYTEST) -n $(TESTERS) --dist loadfile tests/deploy

test-full: $(READY)  ## Everything at its full size: 1,000 seeds, minute-long kill storms
	PACKHORSE_FULL=1 PACKHORSE_SIM_SEEDS=1000 $(PYTEST) --timeout 900 tests

build: $(READY)  ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build --no-isolation

lint: $(READY)  ## ruff, mypy --strict, import rules
	$(BIN)/ruff check src tests bench examples scripts deploy
	$(BIN)/ruff format --check src tests bench examples scripts deploy
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)  ## Format the code
	$(BIN)/ruff format src tests bench examples scripts deploy
	$(BIN)/ruff check --fix src tests bench examples scripts deploy

coverage: $(READY)  ## Run the tests with branch coverage and print the report
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

bench: $(READY)  ## Measure this machine: packhorse bench on memory and SQLite
	$(BIN)/packhorse bench

demo: $(READY)  ## Run the main job: index real text files with real workers, some of them killed
	$(BIN)/packhorse demo

dashboards: $(READY)  ## Write deploy/grafana/*.json from the code beside them
	$(BIN)/python -m deploy.grafana.build

enqueue: $(READY)  ## Store one job: make enqueue JOB='{"type": "email", "payload": {"to": "a@example.com"}}'
	$(BIN)/packhorse enqueue '$(JOB)'

ci:  ## What the continuous integration runs
	CI=true bash .ci/run

clean:  ## Remove everything the other targets made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov demo-data
