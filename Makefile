# make run     a trained, evaluated and registered model on a fresh machine; then only what is stale
# make test    the tests              make lint    ruff and mypy
# make bench   the benchmarks         make clean   remove what runs have made, keep the environment
# make docs    the documentation, in site/

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
# The stages call `python`: the environment must come first, activated or not.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install run pipeline test lint format bench docs portraits landmarks browser clean

help:
	@sed -n 's/^# //p' Makefile | head -n 4

# The stamp is written last, so that an installation that broke off is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; name a newer one: make run PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: $(VENV)/installed

run: install
	@mien run

# The same, walked by the scheduled flow with retries.
pipeline: install
	@python -m flows pipeline

test: install
	@python -m pytest

lint: install
	@ruff check .
	@ruff format --check .
	@mypy

format: install
	@ruff check --fix .
	@ruff format .

bench: install
	@mkdir -p .benchmarks
	@for name in render landmarks scan_distance; do \
	  echo "== $$name"; \
	  python -m benchmarks.$$name --json .benchmarks/$$name.json || exit 1; done

docs: install
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "site/index.html"

# Real photographs with a real face model, in a workspace of their own:
#   make portraits DATA=folder/with/photos/and/landmarks.csv FACE_MODEL=model.npz
WORKSPACE ?= workspaces/portraits
portraits: install
	@test -n "$(DATA)" && test -n "$(FACE_MODEL)" \
	  || { echo "error: make portraits DATA=folder FACE_MODEL=model.npz" >&2; exit 1; }
	@test -f $(WORKSPACE)/params.yaml || mien workspace $(WORKSPACE) --preset portraits \
	  --set ingest.sources.portraits.path="$(DATA)" --set face_model.path="$(FACE_MODEL)"
	@mien run --workspace $(WORKSPACE)

# Our own landmark detector for real photographs, from annotated photos and renders of two face models, in about an hour:
#   make landmarks DATA=folder/with/photos/and/landmarks.csv FACE_MODEL=model.npz HEAD_MODEL=ict_with_eyes_and_teeth.npz
LANDMARKS_WORKSPACE ?= workspaces/landmarks
landmarks: install
	@test -n "$(DATA)" && test -n "$(FACE_MODEL)" && test -n "$(HEAD_MODEL)" \
	  || { echo "error: make landmarks DATA=folder FACE_MODEL=model.npz HEAD_MODEL=head.npz" >&2; exit 1; }
	@test -f $(LANDMARKS_WORKSPACE)/params.yaml || mien workspace $(LANDMARKS_WORKSPACE) --preset portraits --preset landmarks \
	  --set ingest.sources.portraits.path="$(DATA)" --set face_model.path="$(FACE_MODEL)" \
	  --set ingest.sources.heads.face_model.path="$(HEAD_MODEL)"
	@mien run train_detector --workspace $(LANDMARKS_WORKSPACE)

# What the tests of animated faces in a browser need beside Chromium and node; without it they are skipped.
browser:
	@mkdir -p .node
	@cp tests/browser/package.json .node/
	@npm install --prefix .node --no-audit --no-fund --silent

clean:
	rm -rf artifacts mlruns reconstructions .mien .dvc/cache .dvc/tmp dvc.lock
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build site
