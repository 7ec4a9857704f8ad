# `make` alone lists what there is. Every target that needs packages installs them first, into .venv, from the
# lock files: about 150 MB and a minute or two the first time, nothing after that.

PYTHON ?= python3
CONF ?= configs/config.yaml
ARGS ?=

# For test-exl2, and in no lock file: any build will do there, and the one for processors, about 200 MB, lies where
# pip's configuration or TORCH_INDEX says. Otherwise pip takes the one for CUDA, of several GB.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

# Of tests that somebody chooses, none may be of a kind: pytest's exit status 5.
NONE_IS_FINE = $(if $(ARGS),|| [ $$? -eq 5 ])

# Ahead of the standard library, which has a module `cmd` too.
RUN := PYTHONPATH=. .venv/bin/python
RUN_EXL2 := PYTHONPATH=. .venv-exl2/bin/python
# Bytecode is kept, whatever the environment says: tests start dozens of processes. `make clean` removes it.
TEST := PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest
PIP_INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-input
LOCK := .venv/.uv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command 'make lock'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
.PHONY: help serve serve-redis loadtest test test-exl2 screenshots lint format check-config bench lock clean FORCE

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: .venv/requirements.lock ## Start the server; CONF=file chooses the configuration, Ctrl-C stops it
	@exec env $(RUN) -m cmd.server -conf '$(CONF)'

# The dev lock has a Redis for a machine that has none.
serve-redis: CONF = configs/redis.yaml
serve-redis: .venv/requirements-dev.lock ## Start a server, a worker and, where none answers, a Redis; Ctrl-C stops all
	@exec env $(RUN) -m cmd.stack -conf '$(CONF)'

test: .venv/requirements-dev.lock ## Run the tests, two files at a time; ARGS='-k name' goes to pytest
	@$(TEST) -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone' $(ARGS) $(NONE_IS_FINE)
	@$(TEST) -m alone $(or $(ARGS),test/chaos) $(NONE_IS_FINE)

test-exl2: .venv-exl2/requirements-exl2.lock ## Run the tests of exllamav2, on the CPU; the first time takes minutes
	@$(RUN_EXL2) -m pytest test/exl2 $(ARGS) $(NONE_IS_FINE)

screenshots: .venv/requirements-dev.lock ## Draw the page anew, into test/web/screenshots; needs Chromium
	@$(TEST) test/web/screenshots.py $(ARGS)

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
	@$(LOCK) pyproject.toml $(ARGS) --extra bundled --output-file configs/requirements.lock
	@$(LOCK) pyproject.toml $(ARGS) --extra bundled --extra dev --constraint configs/requirements.lock \
		--output-file configs/requirements-dev.lock
	@$(LOCK) $(ARGS) --group pyproject.toml:exl2 --constraint configs/requirements-dev.lock \
		--output-file configs/requirements-exl2.lock

clean: ## Remove .venv, .venv-exl2 and every cache; data/ stays
	@rm -rf .venv .venv-exl2 .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find cmd configs internal test -name __pycache__ -prune -exec rm -rf {} +

# ENVIRONMENT/NAME.lock is a copy of the configs/NAME.lock that is installed, written last: after a change of the
# lock file, or an installation that was interrupted, pip runs again. --no-deps: see [tool.uv] in pyproject.toml.
LOCKS := requirements.lock requirements-dev.lock
LOCKS_EXL2 := $(LOCKS) requirements-exl2.lock
.venv/requirements-dev.lock: .venv/requirements.lock
.venv-exl2/requirements-dev.lock: .venv-exl2/requirements.lock
.venv-exl2/requirements-exl2.lock: .venv-exl2/requirements-dev.lock
$(LOCKS:%=.venv/%): .venv/.made
$(LOCKS_EXL2:%=.venv-exl2/%): .venv-exl2/torch
$(LOCKS:%=.venv/%) $(LOCKS_EXL2:%=.venv-exl2/%): FORCE
	@cmp -s configs/$(@F) $@ && exit; set -e; \
	echo 'Installing what configs/$(@F) names into $(@D) ...'; \
	rm -f $@; \
	$(PIP_INSTALL) --require-hashes --no-deps -r configs/$(@F); \
	error=$$($(@D)/bin/python -c 'import xllamacpp' 2>&1) || { \
		echo "$$error" | tail -n 1; \
		echo 'The engine xllamacpp cannot be loaded. If libgomp is missing, run as root: apt-get install libgomp1'; \
		exit 1; \
	} >&2; \
	cp configs/$(@F) $@

# Says what of torch is installed. It comes first: pip chooses the few small packages that it needs, and those that
# Sluice has too get the locked versions afterwards. Compiling is the first test's.
.venv-exl2/torch: .venv-exl2/.made FORCE
	@[ '$(TORCH)' = "$$(cat $@ 2>/dev/null)" ] && exit; set -e; \
	[ "$$(uname -sm)" = 'Linux x86_64' ] || { \
		echo "The code for processors in exllamav2 is for Linux on x86-64; this is $$(uname -sm)."; \
		exit 1; \
	} >&2; \
	headers=$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	{ command -v "$${CXX:-c++}" >/dev/null && [ -e "$$headers/Python.h" ]; } || { \
		echo "A part of exllamav2 has to be compiled, with a C++ compiler and $$headers/Python.h."; \
		echo 'Run as root: apt-get install g++ $(notdir $(PYTHON))-dev'; \
		exit 1; \
	} >&2; \
	echo 'Installing $(TORCH) into $(@D) ...'; \
	rm -f $@; \
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') '$(TORCH)'; \
	echo '$(TORCH)' >$@

# Made anew where it is missing, unfinished, or its Python is gone.
.venv/.made .venv-exl2/.made: FORCE
	@test -e $@ && $(@D)/bin/python -c '' 2>/dev/null && exit; set -e; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Sluice needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
		echo 'If you have a newer one, name it: make PYTHON=python3.12'; \
		exit 1; \
	} >&2; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) has no venv module. Run as root: apt-get install $(notdir $(PYTHON))-venv'; \
		exit 1; \
	} >&2; \
	echo "Making $(@D) with $$($(PYTHON) --version) ..."; \
	$(PYTHON) -m venv --clear $(@D); \
	touch $@

.venv/.uv/bin/uv: .venv/.made
	@echo 'Installing uv into .venv/.uv ...'
	@.venv/bin/python -m venv --clear .venv/.uv
	@.venv/.uv/bin/python -m pip install --quiet --disable-pip-version-check --no-input uv
