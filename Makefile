# `make` alone lists what there is. Every target that needs packages installs them first, into .venv, from the
# lock files: about 150 MB and a minute or two the first time, nothing after that.

PYTHON ?= python3
CONF ?= configs/config.yaml
ARGS ?=

# Of tests that somebody chooses, none may be of a kind: pytest's exit status 5.
NONE_IS_FINE = $(if $(ARGS),|| [ $$? -eq 5 ])

# Ahead of the standard library, which has a module `cmd` too.
RUN := PYTHONPATH=. .venv/bin/python
# Bytecode is kept, whatever the environment says: tests start dozens of processes. `make clean` removes it.
TEST := PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest
PIP_INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input
LOCK := .venv/.uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help serve serve-redis loadtest test lint format check-config bench lock clean FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/requirements.lock ## Start the server; CONF=file chooses the configuration, Ctrl-C stops it
	@exec env $(RUN) -m cmd.server -conf '$(CONF)'

# The dev lock has a Redis for a machine that has none.
serve-redis: CONF = configs/redis.yaml
serve-redis: .venv/requirements-dev.lock ## Start a server, a worker and, where none answers, a Redis; Ctrl-C stops all
	@exec env $(RUN) -m cmd.stack -conf '$(CONF)'

test: .venv/requirements-dev.lock ## Run the tests, two files at a time; ARGS='-k name' goes to pytest
	@$(TEST) -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone' $(ARGS) $(NONE_IS_FINE)
	@$(TEST) -m alone $(or $(ARGS),test/chaos) $(NONE_IS_FINE)

lint: .venv/requirements-dev.lock ## Check style, formatting and types
	@$(RUN) -m ruff check cmd internal test
	@$(RUN) -m ruff format --check cmd internal test
	@$(RUN) -m mypy

format: .venv/requirements-dev.lock ## Format the code and mend what ruff can mend
	@$(RUN) -m ruff check --fix --exit-zero --quiet cmd internal test
	@$(RUN) -m ruff format cmd internal test

check-config: .venv/requirements.lock ## Check the configuration without starting; CONF=file
	@$(RUN) -m cmd.server -check -conf '$(CONF)'

loadtest: .venv/requirements.lock ## Load-test a running server; ARGS='-connections 1000 -rounds 5 ...'
	@$(RUN) -m cmd.loadtest $(if $(findstring -url,$(ARGS)),,-url ws://127.0.0.1:8080/ws) $(ARGS)

bench: .venv/requirements-dev.lock ## Run the benchmarks; ARGS goes to them
	@$(RUN) test/bench/run.py $(ARGS)

lock: .venv/.uv/bin/uv ## Write the lock files from pyproject.toml; ARGS=--upgrade takes newer versions
	@$(LOCK) $(ARGS) --output-file configs/requirements.lock
	@$(LOCK) $(ARGS) --extra dev --constraint configs/requirements.lock \
		--output-file configs/requirements-dev.lock

clean: ## Remove .venv and every cache; data/ stays
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find cmd configs internal test -name __pycache__ -prune -exec rm -rf {} +

# .venv/NAME.lock is a copy of the configs/NAME.lock that is installed, written last: after a change of the lock
# file, or an installation that was interrupted, pip runs again. --no-deps: see [tool.uv] in pyproject.toml.
.venv/requirements-dev.lock: .venv/requirements.lock
.venv/requirements.lock .venv/requirements-dev.lock: .venv/%: .venv/.made FORCE
	@cmp -s configs/$* $@ && exit; set -e; \
	echo 'Installing what configs/$* names into .venv ...'; \
	rm -f $@; \
	$(PIP_INSTALL) --require-hashes --no-deps -r configs/$*; \
	error=$$(.venv/bin/python -c 'import xllamacpp' 2>&1) || { \
		echo "$$error" | tail -n 1; \
		echo 'The engine xllamacpp cannot be loaded. If libgomp is missing, run as root: apt-get install libgomp1'; \
		exit 1; \
	} >&2; \
	cp configs/$* $@

# Made anew where it is missing, unfinished, or its Python is gone.
.venv/.made: FORCE
	@test -e $@ && .venv/bin/python -c '' 2>/dev/null && exit; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Sluice needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
		echo 'If you have a newer one, name it: make PYTHON=python3.12'; \
		exit 1; \
	} >&2; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) has no venv module. Run as root: apt-get install $(notdir $(PYTHON))-venv'; \
		exit 1; \
	} >&2; \
	echo "Making .venv with $$($(PYTHON) --version) ..."; \
	$(PYTHON) -m venv --clear .venv; \
	touch $@

.venv/.uv/bin/uv: .venv/.made
	@echo 'Installing uv into .venv/.uv ...'
	@.venv/bin/python -m venv --clear .venv/.uv
	@$(subst .venv/,.venv/.uv/,$(PIP_INSTALL)) uv
