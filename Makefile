# Two commands do everything: `make demo` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two test processes: the suite is sized for two cores, and more of them only get in each other's way.
JOBS ?= 2
# GStreamer's Python bindings are built from source: only where the headers are.
GST := $(shell pkg-config --exists gobject-introspection-1.0 cairo 2>/dev/null && echo ,gst)

.PHONY: demo test test-all check format bench clean help

help:
	@echo "make demo      convert, verify, evaluate and run the demo's detector (demo_output/)"
	@echo "make test      the tests, in under 8 minutes"
	@echo "make test-all  the slow ones too"
	@echo "make check     lint, types, import rules"
	@echo "make format    put the code into shape"
	@echo "make bench     the benchmarks, results in benchmarks/results/"

demo: $(VENV)/.demo
	$(BIN)/python samples/demo/demo.py --out demo_output

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -q --timeout 1800

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/runtime.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[convert,video]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev$(GST)]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist demo_output samples/demo/data .mypy_cache .ruff_cache .pytest_cache .hypothesis
