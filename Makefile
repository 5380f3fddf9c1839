PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA driver the default torch would bring gigabytes of CUDA libraries that nothing here could use.
TORCH_FROM := $(if $(shell command -v nvidia-smi),,--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)
RUNS ?= $(patsubst %/manifest.json,%,$(wildcard results/*/manifest.json))
CORPUS ?= $(SPECBENCH_DATA)/corpus/core.jsonl.xz
MIN ?= .venv-min
TESTS_AT_ONCE := -n 2 --dist worksteal  # more would share the cores that tests of workers and of compiled code count on

.PHONY: install demo test test-min check docs report bench wheel train gpu gpu-train on-gpu

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_FROM) --no-deps --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/specbench run --limit 2 --max-new-tokens 64

test: install
	$(BIN)/python -m pytest $(TESTS_AT_ONCE)

# With the oldest transformers that pyproject.toml allows and without `datasets`: what a GPU machine may have, tried where time is free.
test-min: $(MIN)/installed
	$(MIN)/bin/python -m pytest $(TESTS_AT_ONCE)

$(MIN)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(MIN)
	grep -vE '^(transformers|huggingface_hub|datasets)==' constraints.txt > $(MIN)/constraints.txt
	echo transformers==5.17.0 >> $(MIN)/constraints.txt
	$(MIN)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_FROM) --no-deps --constraint $(MIN)/constraints.txt torch
	$(MIN)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(MIN)/constraints.txt --editable . pytest pytest-xdist html5lib pyyaml
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs --check-untyped-defs tests

# The site, in build/site: cli.md, metrics.md, files.md and modules.md are written from the code first, then everything is built.
docs: install
	$(BIN)/python -m tools.docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

report: install
	for run in $(RUNS); do $(BIN)/specbench report $$run --out reports/$$(basename $$run) || exit 1; done

bench: install
	$(BIN)/specbench bench

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The shipped target and its drafters, from the corpus up; resumes where it was interrupted.
train: install
	$(BIN)/specbench train target --preset micro --data $(CORPUS) --out training/target
	for kind in medusa eagle s4c; do $(BIN)/specbench train $$kind --target training/target --data $(CORPUS) || exit 1; done
	$(BIN)/specbench card training/target --data $(CORPUS)
	cp -r training/target/*.json training/target/*.jinja training/target/*.safetensors training/target/*.md training/target/drafters specbench/targets/tiny/

# A GPU machine often has its own torch and no access to a registry: its Python is used if it has all that this project imports.
COMPLETE = import torch, transformers, tokenizers, safetensors, numpy, pandas, pyarrow, pydantic, matplotlib, typer, rich, jinja2; assert torch.cuda.is_available()
ON_GPU = $(eval ON_GPU := $(or $(shell $(PYTHON) -c '$(COMPLETE)' 2>/dev/null && echo $(PYTHON)),$(BIN)/python))$(ON_GPU)
GPU_DRAFTER_TOKENS ?= 3000000
TRAINED := training/gpu

# All measurements on a GPU. A call takes at most eight and a half minutes and does the steps that are not done, the run and its report first.
# make's exit code is 2 for any failure; outcome.txt in the output folder tells wrong results from steps left to do.
# TUNING=FILE: prompts to tune on.
gpu: on-gpu
	$(ON_GPU) -m tools.gpu_visit $(if $(TUNING),--tuning $(TUNING)) $(if $(GPU_OUT),--out $(GPU_OUT))

# The larger preset and its drafters, trained on CUDA and put where `train` puts its own; resumes if interrupted.
gpu-train: on-gpu
	$(ON_GPU) -m specbench.train.ship fits tiny
	$(ON_GPU) -m specbench train target --preset tiny --data $(CORPUS) --out $(TRAINED) --device cuda
	$(ON_GPU) -m specbench.train.ship shard $(TRAINED)
	for kind in medusa eagle s4c; do $(ON_GPU) -m specbench train $$kind --target $(TRAINED) --data $(CORPUS) \
		--tokens $(GPU_DRAFTER_TOKENS) --work $(TRAINED)/work --device cuda || exit 1; done
	$(ON_GPU) -m specbench card $(TRAINED) --data $(CORPUS)
	$(ON_GPU) -m specbench.train.ship install $(TRAINED)

on-gpu:
	@test $(ON_GPU) = $(PYTHON) || $(MAKE) install
