# `make demo` and `make test` do everything on a fresh clone; they need Python >= 3.11 and the network for packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Prefect's database of the demo, so that `make ui` can show its runs again; `make deploy` heeds its user's own profile
demo ui test: export PREFECT_HOME ?= $(CURDIR)/.prefect

.PHONY: demo ui deploy test check clean

$(VENV)/installed: pyproject.toml deploy/constraints.txt deploy/hatch_build.py $(wildcard neurovol/volume/*.c)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurovol needs Python 3.11 or newer; this is %s.%s: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt --editable '.[dev]'
	touch $@

demo: SHAPE = --shape 48 224 224
demo: $(VENV)/installed    ## three phantom samples through every stage, with report and Prefect UI
	$(BIN)/neurovol phantom demo/raw/train-1.tif $(SHAPE) --seed 1 --truth demo/annotations/train-1.tif
	$(BIN)/neurovol phantom demo/raw/train-2.tif $(SHAPE) --seed 2 --truth demo/annotations/train-2.tif
	$(BIN)/neurovol phantom demo/raw/test.tif $(SHAPE) --seed 3 --contrast 0.8 --truth demo/annotations/test.tif
	cp deploy/examples/demo.toml demo/project.toml
	$(BIN)/python -m flows.local demo/project.toml

ui: $(VENV)/installed      ## the Prefect UI over the demo's runs, until Ctrl-C
	$(BIN)/python -m flows.local

# An environment that pip made (deploy/README.md), shared and perhaps another's, is used as it is
READY := $(if $(wildcard $(BIN)/neurovol),$(wildcard $(VENV)/installed),$(VENV)/installed)
deploy: SITE = deploy/sites/local.yaml
deploy: $(READY)           ## PROJECT=file.toml [SITE=file.yaml] [OPTIONS="--mail URL"]: to the server PREFECT_API_URL names
	@test -n "$(PROJECT)" || { echo "neurovol: make deploy PROJECT=project.toml [SITE=deploy/sites/slurm.yaml] [OPTIONS=...]"; exit 2; }
	$(BIN)/python -m flows.deploy "$(PROJECT)" --site "$(SITE)" $(OPTIONS)

test: $(VENV)/installed    ## the tests
	$(BIN)/python -m pytest -m "not slow and not hpc"

check: $(VENV)/installed   ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:                     ## remove what `make demo` made
	rm -rf demo .prefect
