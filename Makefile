# `make demo` and `make test` set up what they need and run. Everything else is for people who work on the project.
PYTHON ?= python3.11
HARDWARE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
# Test files at once; each of them may start a JVM of 1.5 GB.
WORKERS ?= 2
STAMP := $(VENV)/.installed-$(HARDWARE)

.PHONY: setup demo test check lint types fast format lock clean

setup: $(STAMP)

$(STAMP): requirements/$(HARDWARE).txt pyproject.toml scripts/setup
	@PYTHON=$(PYTHON) HARDWARE=$(HARDWARE) bash scripts/setup
	@touch $@

demo: setup
	$(BIN)/onerec demo --out $(OUT)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: setup lint types fast

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types:
	$(BIN)/mypy

fast:
	$(BIN)/python -m pytest -m "not slow" -q -n $(WORKERS)

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:
	for hardware in cpu gpu; do \
	  $(BIN)/uv pip compile pyproject.toml --python-version 3.11 --extra spark --extra beam --extra train --extra airflow \
	    --extra dev --extra $$hardware --no-emit-index-url --no-header --no-annotate -q -o requirements/$$hardware.txt; done

clean:
	rm -rf $(VENV) out build dist *.egg-info
