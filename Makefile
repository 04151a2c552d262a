# Each target sets itself up: a virtual environment in .venv, with the versions of constraints.txt.
#
#   make serve        start the service on 127.0.0.1:8000        PORT=  MODEL=  DATABASE=
#   make test         run the whole test suite                   ARGS="tests/app -k predict"
#   make check        lint, formatting, types
#   make demo         watch the service learn, forget and survive
#   make constraints  resolve every version anew
#   make clean        remove what was installed and built; databases stay
#
# PYTHON=python3.12 chooses the interpreter; it must be 3.11 or newer.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help serve test check demo constraints clean

recent = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for candidate in python3 python3.11 python3.12 python3.13 python3.14; do \
	if $$candidate -c '$(recent)' 2>/dev/null; then echo $$candidate; break; fi; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
LOCKED := pyproject.toml constraints.txt

help:
	@sed -n 's/^#   //p' Makefile

# Threads that spin while they wait would take the core from whatever else runs: passive is several times faster then.
serve: .venv/.serve
	@OMP_WAIT_POLICY=passive exec $(BIN)/errata serve $(if $(PORT),--port '$(PORT)') $(if $(MODEL),--model '$(MODEL)') \
		$(if $(DATABASE),--database '$(DATABASE)')

# One thread a process: torch with two threads slows down tenfold when anything else uses a core. Three processes share the
# files of tests: many of these wait for what they started.
test: .venv/.test
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if [ -x $(BIN)/hadolint ]; then echo '$(BIN)/hadolint Dockerfile'; $(BIN)/hadolint Dockerfile; \
	else echo 'hadolint is not installed here: the Dockerfile was not checked.'; fi

demo: .venv/.serve
	@OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.demo

.venv/.serve: .venv/.made $(LOCKED)
	@echo 'Installing Errata into .venv. The first time downloads a few hundred megabytes.'
	@$(PIP) -e .
	@touch $@

.venv/.test: .venv/.made $(LOCKED)
	@echo 'Installing Errata and its tests into .venv. The first time downloads a few hundred megabytes.'
	@$(PIP) -e '.[test]'
	@touch $@ .venv/.serve

.venv/.check: .venv/.made $(LOCKED)
	@echo 'Installing Errata and its checks into .venv. The first time downloads a few hundred megabytes.'
	@$(PIP) -e '.[test,dev]'
	@touch $@ .venv/.test .venv/.serve

.venv/.made:
	@if ! '$(PYTHON)' -c '$(recent)' 2>/dev/null; then \
		echo 'Errata needs Python 3.11 or newer; $(or $(PYTHON),python3) is older, or not there.' \
			'Name one with PYTHON=, for example: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; exit 1; fi
	@'$(PYTHON)' -m venv .venv || { rm -rf .venv; \
		echo 'No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# Resolved in an environment of its own, so that nothing installed by hand gets in; torch without its local suffix.
constraints:
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	'$(PYTHON)' -m venv "$$fresh"; \
	"$$fresh/bin/pip" install --disable-pip-version-check '.[test,dev,bench]'; \
	{ echo '# Every version that the tests run with, on Python 3.11 or newer. Made by `make constraints`.'; \
	"$$fresh/bin/pip" freeze --all --exclude errata --exclude pip | sed 's/+[a-z0-9.]*$$//'; } > constraints.new; \
	mv constraints.new constraints.txt

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis constraints.new
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
