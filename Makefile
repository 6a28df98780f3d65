# Needs Python >= 3.11 with pip and venv; everything else is installed into .venv.

PYTHON ?= python3
# Two workers. The tests of one file stay in one worker, which sets up their fixtures once.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
SEEDS ?= 0

METHODS := uniform default learned_loss
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := $(STAMP)-docs
NOTEBOOKS := $(STAMP)-notebooks
AHEAD := build/ahead
AHEAD_H100 := jax-cuda12-plugin jax-cuda12-pjrt $(addprefix nvidia-, \
  $(addsuffix -cu12, cuda-nvcc cuda-cupti cuda-nvrtc cuda-runtime nvjitlink))
NBCONVERT := $(BIN)/python -m nbconvert --log-level=WARN --to notebook

.DEFAULT_GOAL := help
.PHONY: help ahead ahead-check install install-all demo examples test test-all lint types format docs notebooks \
  notebooks-update clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP)  ## Create .venv with the package and all it needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("isjax needs Python >= 3.11, but $(PYTHON) is %d.%d: run make PYTHON=<a newer python>" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[run,dev]'
	@touch $@

$(STAMP)-%: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	@touch $@

install-all: $(DOCS) $(NOTEBOOKS)  ## Install what docs, notebooks and examples need, too

demo: $(STAMP)  ## Train each method on MNIST-1D and compare them (SEEDS="0 1 2" for more)
	rm -rf runs/demo
	@set -e; for method in $(METHODS); do for seed in $(SEEDS); do \
	  echo "== $$method, seed $$seed"; \
	  $(BIN)/python -m isjax.main --config=configs/mnist1d.py \
	    --config.method=$$method --config.seed=$$seed --workdir=runs/demo/$$method-$$seed; \
	done; done
	$(BIN)/python -m isjax.report runs/demo

examples: $(NOTEBOOKS)  ## Run the programs in examples/, those that take --steps for a few
	@set -e; for example in examples/*.py; do \
	  options=$$(sed -n '/"--steps"/s/.*/--steps 100/p' $$example); \
	  echo "== $$example $$options"; $(BIN)/python $$example $$options; \
	done

test: $(STAMP)  ## Run the tests that are quick and need no data
	$(BIN)/python -m pytest -m "not slow and not data" $(PYTEST_ARGS)

test-all: $(STAMP)  ## Run every test, or with PART=K/N part K of N of the slow ones; ISJAX_DATA_DIR names the data
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(addprefix --part=,$(PART))

ahead: $(AHEAD)/.v5e $(AHEAD)/.h100  ## Estimate steps on a TPU and an H100 that are not there (1.2 GB)
	PYTHONPATH=$(AHEAD) $(BIN)/python benchmarks/compile_ahead.py --target v5e:2x2
	PYTHONPATH=$(AHEAD) $(BIN)/python benchmarks/compile_ahead.py --target v5e:2x2 --devices 0 --sizes 1e6
	PYTHONPATH=$(AHEAD) $(BIN)/python benchmarks/compile_ahead.py --target h100 --sizes 6e4 --networks mlp wrn

ahead-check: $(AHEAD)/.v5e  ## Compile steps for a TPU; fails where one passes its bound (0.2 GB)
	PYTHONPATH=$(AHEAD) $(BIN)/python benchmarks/compile_ahead.py --check

# Apart from .venv, where JAX would look for a TPU in every process.
$(AHEAD)/.v5e: AHEAD_NEEDS := libtpu
$(AHEAD)/.h100: AHEAD_NEEDS := $(AHEAD_H100)
$(AHEAD)/.%: $(STAMP)
	$(BIN)/python -m pip install -q --no-deps --target $(AHEAD) -c constraints.txt $(AHEAD_NEEDS)
	@touch $@

lint: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Check the types of isjax/
	$(BIN)/ty check

format: $(STAMP)  ## Fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## Build the site into build/docs; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs build/docs
	@echo "site: build/docs/index.html"

notebooks: $(NOTEBOOKS)  ## Run the notebooks; fails where a cell does, changes no file
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	  $(NBCONVERT) --execute --output-dir "$$scratch" notebooks/*.ipynb

notebooks-update: $(NOTEBOOKS)  ## Run the notebooks, and write their outputs anew
	$(NBCONVERT) --inplace --execute notebooks/*.ipynb
	$(NBCONVERT) --inplace --coalesce-streams --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec notebooks/*.ipynb

clean:  ## Remove .venv, caches and builds; keep runs/
	rm -rf .venv build dist docs/notebooks *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
