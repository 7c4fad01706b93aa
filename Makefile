# The two commands of the README are `make serve` and `make test`.
PYTHON ?= python3
RUNTIME ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
PIP = .venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: install serve test lint bars control control-http soak bench bench-peers simulation

install: .venv/.dev

serve: .venv/.serve-$(RUNTIME)
	.venv/bin/eenet serve

test: .venv/.dev
	.venv/bin/python -m pytest

bars: .venv/.dev
	mkdir -p build
	for seed in 0 1 2; do .venv/bin/python -m benchmarks.predictions digits --seed $$seed --out build/digits$$seed.npz; done
	.venv/bin/python -m benchmarks.policy_bars models/zoo/cifar10-resnet56 digits:1,2,3.3,5 build/digits0.npz build/digits1.npz build/digits2.npz

control: .venv/.dev
	for inputs in image text; do .venv/bin/python -m benchmarks.control.simulated $$inputs --policies stopping --laws frozen --seeds 2; done
	.venv/bin/python -m benchmarks.control.report build/control/image-stopping.npz build/control/text-stopping.npz --goals

control-http: .venv/.dev
	.venv/bin/python -m benchmarks.control.over_http
	.venv/bin/python -m benchmarks.control.report build/control/real.npz

soak: .venv/.dev
	.venv/bin/python -m benchmarks.soak

bench: .venv/.dev
	.venv/bin/python -m benchmarks.policies
	.venv/bin/python -m benchmarks.quality.run
	.venv/bin/python -m benchmarks.growth
	.venv/bin/python -m benchmarks.engine

bench-peers: .venv/.dev
	.venv/bin/python -m benchmarks.peers.run

simulation: .venv/.dev
	.venv/bin/python -m benchmarks.refill
	.venv/bin/python -m benchmarks.validate_simulation

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
