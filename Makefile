# The two commands of the README are `make serve` and `make test`.
PYTHON ?= python3
RUNTIME ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
PIP = .venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: install serve test lint

install: .venv/.dev

serve: .venv/.serve-$(RUNTIME)
	.venv/bin/eenet serve

test: .venv/.dev
	.venv/bin/python -m pytest

lint: .venv/.dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.serve-%: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[$*]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[cpu,train,dev]'
	touch $@
