# Needs python3 (3.11 or newer) and make, nothing else. `make help` lists the targets.

PYTHON ?= python3
DATA ?= ../shared/data
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
UV := $(BIN)/uv
# Stamps: a target that has run leaves one and runs again only when what it was made from has changed.
HAS_UV := $(VENV)/.uv-$(UV_VERSION)
IS_SET_UP := $(VENV)/.set-up

# Threads that spin while they wait ruin each other on a busy machine: a step took 25 s instead of 0.8 s beside one more job.
export OMP_WAIT_POLICY ?= PASSIVE
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.DEFAULT_GOAL := help
.PHONY: help setup test gallery bench demo real weights format requirements clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | while read -r name text; do printf '  make %-14s%s\n' "$$name" "$$text"; done

setup: $(IS_SET_UP)  ## make .venv with everything in it; the other targets do this themselves

$(HAS_UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Larmor needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@touch $@

# uv and not pip: pip may take torch and torchvision from different places, and then they do not fit each other.
$(IS_SET_UP): requirements.txt pyproject.toml $(HAS_UV)
	$(UV) pip install --requirement requirements.txt
	$(UV) pip install --no-deps --no-build-isolation --editable .
	@touch $@

test: setup  ## everything that must hold before a change is kept: lint, format, types, import directions, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

gallery: setup  ## what the synthetic cohort looks like: docs/gallery.png
	$(BIN)/python -m foundation.cohort.gallery docs/gallery.png

bench: setup  ## measured ratios, printed as a table
	$(BIN)/python -m benchmarks

demo: setup  ## the whole main job on embedded synthetic patients, in minutes on two cores
	$(BIN)/python -m examples.demo

real: setup  ## the main job on real MRI: make real DATA=FOLDER (examples/real.py says what it holds)
	$(BIN)/python -m examples.real $(DATA)

weights: setup  ## the models that come with Larmor, made anew: make weights DATA=FOLDER (examples/embedded.py says what it holds)
	$(BIN)/python -m examples.embedded $(DATA)

format: setup  ## rewrite the code the way `make test` wants it
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format

requirements: $(HAS_UV)  ## pin again after pyproject.toml changed; pins that still fit stay (delete requirements.txt to renew all)
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev --no-emit-index-url \
	  --custom-compile-command 'make requirements' --output-file requirements.txt pyproject.toml

clean:  ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
