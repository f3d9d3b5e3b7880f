# `make help` lists what there is. Everything happens in .venv; nothing is installed outside this folder.
SHELL := /bin/sh
.DEFAULT_GOAL := help
# The first Python that really starts (a version manager's shim may not).
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help run test soak sim check fix clients bench bench-peers wheel lock browser clean

help: ## list these
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

run: .venv/.run ## install what is needed, and start every role on this machine
	@exec $(BIN)/covey up $(ARGS)

test: .venv/.dev ## every test, the slow ones too (a browser test needs Debian's chromium)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

soak: .venv/.dev ## the faults of real machines again and again (SOAK_ROUNDS=20); needs root, iproute2 and nftables
	SOAK_ROUNDS=$${SOAK_ROUNDS:-20} KILL_ROUNDS=$${KILL_ROUNDS:-500} \
	  $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/cluster tests/contract/test_kill.py $(ARGS)

sim: .venv/.dev ## whole clusters in memory under random faults (SEEDS=100, or SEED=17 to repeat one)
	SEEDS=$${SEEDS:-100} $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/sim $(ARGS)

check: .venv/.dev ## format, lint, types, architecture, tests with coverage, the wheel in a clean environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report= $(ARGS)
	$(BIN)/python tools/coverage_gate.py

fix: .venv/.dev ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clients: .venv/.dev ## every client that people have, against a real model; docs/clients.md is written anew
	COVEY_CLIENTS_TABLE=docs/clients.md $(BIN)/python -m pytest -q tests/e2e/test_clients.py $(ARGS)

bench: .venv/.dev ## every figure beside its baseline
	$(BIN)/python -m bench $(ARGS)

# LiteLLM never comes near .venv: it has an environment of its own, with the same Python. Without it the rest is measured.
bench-peers: .venv/.dev ## the same load at Covey and at LiteLLM's proxy, side by side (docs/peers.md)
	@test build/peers/.installed -nt requirements/peers.lock || { mkdir -p build && rm -rf build/peers && \
	  echo "Installing litellm[proxy] into build/peers (a minute or two, 800 MB) ..." && \
	  { $(BIN)/python -m venv build/peers && \
	    build/peers/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes \
	      -r requirements/peers.lock && touch build/peers/.installed; } >build/peers.log 2>&1 || \
	  rm -rf build/peers; }
	$(BIN)/python -m bench.peers $(ARGS)

wheel: .venv/.dev ## build dist/*.whl
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

lock: ## resolve the dependencies anew into requirements/*.lock (needs uv)
	uv pip compile -q --universal --no-strip-extras --generate-hashes --python-version 3.11 --group install pyproject.toml -o requirements/run.lock
	uv pip compile -q --universal --no-strip-extras --generate-hashes --python-version 3.11 --group dev pyproject.toml -o requirements/dev.lock
	uv pip compile -q --universal --no-strip-extras --generate-hashes --python-version 3.11 requirements/peers.in -o requirements/peers.lock

clean: ## remove the environment and what was built
	rm -rf .venv dist build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@sh tools/preflight.sh "$(PYTHON)"
	$(PYTHON) -m venv .venv

# The locks name every package with its hash. The project itself is installed as it lies here.
.venv/.run: .venv/bin/python requirements/run.lock pyproject.toml
	@echo "Installing Covey's libraries into .venv (half a minute) ..."
	@test -f .venv/.dev || $(PIP) install --quiet --require-hashes -r requirements/run.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/bin/python requirements/dev.lock pyproject.toml
	$(PIP) install --quiet --require-hashes -r requirements/dev.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	# trio-typing (libp2p brings it) ships stubs that are older than the types trio has of its own.
	rm -rf .venv/lib/python3.*/site-packages/trio-stubs
	@touch $@ .venv/.run
