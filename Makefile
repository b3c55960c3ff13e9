# Everything runs in .venv, which the first target makes: no activation, nothing else installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format docs clean

demo: $(INSTALLED)  ## From rendered words to an evaluated student, in about five minutes.
	@$(BIN)/python benchmarks/demo.py .demo

test: $(INSTALLED)  ## All tests.
	@$(BIN)/python -m pytest

lint: $(INSTALLED)  ## What CI checks besides the tests.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(INSTALLED)  ## docs/options.md, from the commands themselves.
	@$(BIN)/python docs/make_options.py

clean:  ## Remove the demo's files; the environment stays.
	rm -rf .demo build clipocr.egg-info

# Editable, so that a change of the code needs no new installation; a change of the project file does.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing clipocr and what it needs into $(VENV) (PyTorch is large: a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
