# make train: set up and train the quick-start; make test: set up and run the tests.
# make bench BENCH="--only layers,score": measure this machine; see benchmarks/README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test test-slow check bench setup

train: $(READY)
	$(BIN)/widen train quickstart

# A worker for each core, which then has one thread; a file's tests share a worker and its fixtures.
# Then, with the cores to themselves, those that a busy computer would rightly stop.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not realtime" -n auto --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and realtime"

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/typed build/lib build/bdist.* && $(BIN)/python -m pip install -q --no-deps --target build/typed .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(BENCH)

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: widen needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
