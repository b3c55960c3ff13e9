# Everything runs in .venv, which the first target makes: no activation, nothing else installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_VENV ?= .bench/venv
OFFLINE = --no-index --no-deps --no-build-isolation
GPU_OPTIONS = $(if $(PART),--parts $(PART)) $(if $(DEVICE),--device $(DEVICE)) $(if $(SMALL),--small) \
	$(if $(OUT),--results $(OUT)/results) $(if $(WORDS),--words $(WORDS)) \
	$(if $(FONTS),--fonts $(FONTS)) $(foreach root,$(TEST_DATA),--test-data $(root))

.PHONY: demo test quick bench gpu wheels lint format clean

demo: $(INSTALLED)  ## From rendered words to an evaluated student, in about five minutes.
	@$(BIN)/python benchmarks/demo.py .demo

test: $(INSTALLED)  ## All tests.
	@$(BIN)/python -m pytest -n auto --dist worksteal

quick: $(INSTALLED)  ## All tests but those that take more than 10 s each.
	@$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

bench: $(BENCH_VENV)/.installed  ## All benchmarks, into benchmarks/RESULTS.md; ONLY="loader step".
	@$(BENCH_VENV)/bin/python benchmarks/bench.py .bench $(ONLY) $(if $(DATA),--data $(DATA))

gpu: $(INSTALLED)  ## What only a GPU can show, into benchmarks/GPU.md; PART=1,2,3 DEVICE=cpu SMALL=1.
	@PYTHONPATH=benchmarks $(BIN)/python -m gpu.run $(GPU_OPTIONS)

wheels: $(INSTALLED)  ## For `make gpu WHEELS=.gpu/wheels` on a machine that has PyTorch and no network.
	@$(BIN)/python benchmarks/gpu/wheels.py .gpu/wheels

lint: $(INSTALLED)  ## What CI checks besides the tests.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## Remove what the demo and the benchmarks made; the environment of the first stays.
	rm -rf .demo .bench .gpu build clipocr_str.egg-info

# Editable, so that a change of the code needs no new installation; a change of the project file does.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(if $(WHEELS),--system-site-packages) $(VENV)
	@echo "Installing clipocr and what it needs into $(VENV) (PyTorch is large: a few minutes) ..."
	@$(if $(WHEELS),$(BIN)/python -m pip install --quiet --no-deps $(WHEELS)/*.whl)
	@$(BIN)/python -m pip install --quiet $(if $(WHEELS),$(OFFLINE) --editable .,--editable '.[dev]')
	@touch $@

# Of their own: other people's stores want other versions of what clipocr uses.
$(BENCH_VENV)/.installed: pyproject.toml
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@echo "Installing clipocr and other stores into $(BENCH_VENV) ..."
	@$(BENCH_VENV)/bin/python -m pip install --quiet --editable '.[bench]'
	@touch $@
