# What README.md and .ci/run call.  Needs make and Python 3.11, 3.12 or 3.13 with venv and pip; the rest is fetched into .venv.
# Plain POSIX shell, and nothing newer than GNU make 3.81: that is what macOS ships.

ROUNDS ?= 200
VENV := .venv
BIN := $(VENV)/bin
# The last thing a set-up writes: a set-up that failed leaves none, and the next `make` begins again.
STAMP := $(VENV)/.set-up
# The first of these that runs and can make a venv.  `make setup PYTHON=/opt/python/bin/python3` asks for another.
PYTHON ?= python3.13 python3.12 python3.11 python3

MINUTES ?= 10

.PHONY: help setup demo test verify corpus docs site reports lint bench soak wheel lock clean
.DEFAULT_GOAL := help

help:
	@echo "racevisor: a laboratory for cross-CPU races in a hypervisor"
	@echo
	@echo "  make demo     lose an INIT, explain it, and run it live on Ray (ROUNDS=$(ROUNDS))"
	@echo "  make test     run the tests                     (ARGS='-k replay' goes to pytest)"
	@echo "  make verify   search every claim of every scenario: minutes"
	@echo "  make corpus   shrink and explain every variant that goes wrong: minutes"
	@echo "  make docs     write docs/verdicts.md, the page of all claims"
	@echo "  make site     build the documentation's site into site/"
	@echo "  make reports  the five patches before and after, as pages in reports/"
	@echo "  make lint     ruff, ruff format --check, mypy --strict"
	@echo "  make bench    cost of a step, and what the strategies and live runs reach"
	@echo "  make soak     play live for minutes: does anything grow?  (MINUTES=$(MINUTES))"
	@echo "  make setup    only make $(VENV); the others do it when it is missing or out of date"
	@echo "  make wheel    build dist/racevisor-*.whl, which ray_config.yaml takes to a cluster"
	@echo "  make lock     pin the newest dependencies that pyproject.toml allows (needs uv)"
	@echo "  make clean    remove $(VENV) and everything that was built"

setup: $(STAMP)
	@echo "racevisor: $(VENV) is ready.  Next: make demo, make test, or $(BIN)/racevisor --help"

demo: $(STAMP)
	$(BIN)/racevisor explore init_sipi --variant before --setup plain
	$(BIN)/racevisor run init_sipi --variant before --rounds $(ROUNDS)
	@trace=`ls -t runs/init_sipi/before-plain-tso-live-*.trace 2>/dev/null | grep -v shrunk | head -n 1`; \
	  if [ -n "$$trace" ]; then echo "$(BIN)/racevisor replay $$trace"; $(BIN)/racevisor replay "$$trace" | head -n 3; fi
	$(BIN)/racevisor run init_sipi --variant latch --rounds $(ROUNDS)

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

verify: $(STAMP)
	$(BIN)/racevisor verify $(ARGS)

corpus: $(STAMP)
	$(BIN)/python -m pytest --whole-corpus tests/test_shrink.py tests/test_explain.py $(ARGS)

# In two steps: a page that could not be made leaves the old one in place.
docs: $(STAMP)
	$(BIN)/racevisor verify --markdown > docs/verdicts.md.new
	mv docs/verdicts.md.new docs/verdicts.md

# The theme says at every build that it will be followed by another program; that is not a warning about our pages.
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "racevisor: the documentation is in site/index.html"

reports: $(STAMP)
	$(BIN)/python docs/hooks.py reports

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP)
	$(BIN)/python -m benchmarks soak --minutes $(MINUTES) $(ARGS)

# A pyenv shim may exist and fail, and a Debian Python may lack ensurepip: so each candidate has to prove itself.
$(STAMP): requirements.lock pyproject.toml
	@rm -f $@; \
	works='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; \
	if ! $(BIN)/python -c "$$works" 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for python in $(PYTHON); do \
	    if $$python -c "$$works" >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "racevisor: no usable Python among: $(PYTHON)" >&2; \
	    echo "  needed is Python 3.11, 3.12 or 3.13 with venv and pip (on Debian and Ubuntu: apt install python3-venv)" >&2; \
	    echo "  another one:  make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  version=`$$found -c 'import platform; print(platform.python_version())'`; \
	  echo "racevisor: creating $(VENV) with Python $$version ..."; \
	  rm -rf $(VENV) && $$found -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@echo "racevisor: installing `grep -c '^[a-z].*==' requirements.lock` pinned packages from requirements.lock" \
	  "(about 150 MB the first time: one to five minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@echo "racevisor: installing racevisor itself, editable ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# setuptools builds in the tree and would take along what an older build left there.
wheel: $(STAMP)
	rm -rf build dist *.egg-info
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build *.egg-info
	@ls dist/*

# uv is a maintainer's tool and not in the lock.  The lock is universal: one file for every Python and platform we support.
lock:
	@command -v uv >/dev/null || { echo "racevisor: make lock needs uv (pip install uv)" >&2; exit 1; }
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --universal --generate-hashes --python-version 3.11 --extra dev \
	  --upgrade --no-emit-index-url --no-emit-find-links --quiet --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist site reports *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
