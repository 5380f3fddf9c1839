PYTHON ?= python3
BIN := .venv/bin
# Without an NVIDIA driver the default torch would bring gigabytes of CUDA libraries that nothing here could use.
TORCH_FROM := $(if $(shell command -v nvidia-smi),,--retries 1 --extra-index-url https://download.pytorch.org/whl/cpu)
RUNS ?= $(patsubst %/manifest.json,%,$(wildcard results/*/manifest.json))
CORPUS ?= $(SPECBENCH_DATA)/corpus/core.jsonl.xz

.PHONY: install demo test check report bench wheel train

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_FROM) --no-deps --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/specbench run --limit 2 --max-new-tokens 64

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

report: install
	for run in $(RUNS); do $(BIN)/specbench report $$run --out reports/$$(basename $$run) || exit 1; done

bench: install
	$(BIN)/python -m specbench.bench

wheel: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The shipped target and its drafters, from the corpus up; resumes where it was interrupted.
train: install
	$(BIN)/specbench train target --preset micro --corpus $(CORPUS) --out training/target
	for kind in medusa eagle s4c; do $(BIN)/specbench train $$kind --target training/target --corpus $(CORPUS) || exit 1; done
	$(BIN)/specbench card training/target --corpus $(CORPUS)
	cp -r training/target/*.json training/target/*.jinja training/target/*.safetensors training/target/*.md training/target/drafters specbench/targets/tiny/
