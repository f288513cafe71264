# Two commands matter: `make demo` runs the main job, `make test` runs the tests. Both make .venv first.
# A machine needs Python 3.11 or later and make; nothing is installed outside .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard loader/decode/native/*)

MINUTES ?= 20
SEED ?= 11
FAULTS := runs/faults.jsonl

.PHONY: demo test test-cluster test-faults soak check format lint types imports lock clean

$(INSTALLED): constraints.txt $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tempera needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(INSTALLED)
	$(BIN)/tempera demo

test: $(INSTALLED)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not cluster and not faults'

test-cluster: $(INSTALLED)
	$(BIN)/pytest -m cluster

# Every row of the fault table, those of `make test` too; ends with the table of recovery times.
test-faults: $(INSTALLED)
	mkdir -p $(dir $(FAULTS)) && rm -f $(FAULTS)
	TEMPERA_FAULT_RECORDS=$(CURDIR)/$(FAULTS) $(BIN)/pytest tests/faults tests/simulation
	$(BIN)/python -m tests.faults.table $(FAULTS)

soak: $(INSTALLED)
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED) --out runs/soak-$$(date +%Y%m%d-%H%M%S)

check: $(INSTALLED) lint types imports test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(INSTALLED)
	$(BIN)/mypy

imports: $(INSTALLED)
	$(BIN)/lint-imports

# Names, versions and hashes only: no index address is written.
lock:
	uv pip compile --universal --python-version 3.11 --extra cpu --extra dev --generate-hashes --no-header \
		--no-annotate --upgrade pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
