# The two commands of the README are `make serve` and `make test`; `make` lists them all.
PYTHON ?= python3
RUNTIME ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
$(if $(filter cpu gpu,$(RUNTIME)),,$(error RUNTIME is '$(RUNTIME)'; give cpu or gpu))
# One runtime for serving and for development: the wheels of the two own the same package folder.
DEV = .venv/.dev-$(RUNTIME)
PIP = .venv/bin/python -m pip --disable-pip-version-check install -c constraints.txt
GPU_PYTHON = $(if $(filter 0,$(INSTALL)),$(PYTHON),.venv/bin/python)
URL = http://localhost:$${EENET_PORT:-8000}

.PHONY: help install serve test test-slow system lint bars control control-http conformance conformance-peers openapi soak bench bench-peers bench-smoke simulation gpu audit

## List the targets.
help:
	@awk -F: '/^## / {text = substr($$0, 4)} /^[a-z-]+:/ {printf "make %-17s %s\n", $$1, text; text = ""}' Makefile

## Create .venv and install everything that training and development need.
install: $(DEV)

## Install the runtime and serve the shipped networks on port 8000.
serve: .venv/.serve-$(RUNTIME)
	@echo "loading; once it is ready, try: curl -F file=@docs/images/ship.jpg $(URL)/predict"
	.venv/bin/eenet serve

# Without ARGS in several processes; a few tests end sooner in one, without the start of others.
# The marker is no default of pytest: it would deselect slow tests that ARGS name.
PARALLEL = --numprocesses auto --maxprocesses 8 --dist worksteal
## Run all but the slow tests; ARGS go to pytest, as in ARGS="tests/server/engine -k cancel".
test: $(DEV)
	.venv/bin/python -m pytest $(or $(ARGS),-m 'not slow' $(PARALLEL))

## Run the tests that are marked slow.
test-slow: $(DEV)
	.venv/bin/python -m pytest -m slow $(PARALLEL)

DEBIAN = nginx curl openssl
## Install the Debian packages that some slow tests use, where that is possible.
system:
	@for name in $(DEBIAN); do command -v $$name /usr/sbin/$$name > /dev/null && continue; \
	apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$name \
	|| echo "$$name cannot be installed: the tests that use it are skipped"; done

## Check that the exit policies reach their minimum accuracies (bars).
bars: $(DEV)
	mkdir -p build
	for seed in 0 1 2; do .venv/bin/python -m benchmarks.predictions digits --seed $$seed --out build/digits$$seed.npz; done
	.venv/bin/python -m benchmarks.policy_bars models/zoo/cifar10-resnet56 digits:1,2,3.3,5 build/digits0.npz build/digits1.npz build/digits2.npz

## Check in simulation that latency budgets are held.
control: $(DEV)
	for inputs in image text; do .venv/bin/python -m benchmarks.control.simulated $$inputs --policies stopping --laws frozen --seeds 2; done
	.venv/bin/python -m benchmarks.control.report build/control/image-stopping.npz build/control/text-stopping.npz --goals

## Measure how the real server holds budgets.
control-http: $(DEV)
	.venv/bin/python -m benchmarks.control.over_http
	.venv/bin/python -m benchmarks.control.report build/control/real.npz
	.venv/bin/python -m benchmarks.control.after_overload

## Attack servers of both process modes, as CI does; TARGET=http://... attacks that one instead.
conformance: $(DEV)
	EENET_CONFORMANCE_URL=$(or $(TARGET),own) .venv/bin/python -m pytest tests/conformance --ignore tests/conformance/test_openapi.py -q -rA --tb=line

## Send thousands of requests drawn from the OpenAPI document to servers of both process modes.
openapi: $(DEV)
	EENET_CONFORMANCE_URL=own .venv/bin/python -m pytest tests/conformance/test_openapi.py -q -rA --tb=short

## Attack LitServe and mosec as well, and compare.
conformance-peers: $(DEV)
	.venv/bin/python -m tests.conformance.peers

## Load the server for ten minutes with faults and look for leaks; SECONDS=120 as CI does.
soak: $(DEV)
	.venv/bin/python -m benchmarks.soak.run --seconds $(or $(SECONDS),600)

## Measure policies, quality, growth and the engine.
bench: $(DEV)
	.venv/bin/python -m benchmarks.policies
	.venv/bin/python -m benchmarks.quality.run
	.venv/bin/python -m benchmarks.growth
	.venv/bin/python -m benchmarks.engine

## Measure this server against other inference servers.
bench-peers: $(DEV)
	.venv/bin/python -m benchmarks.peers.run

## On a machine with a CUDA device: the GPU tests and benchmark; INSTALL=0 uses what is there.
gpu: $(if $(filter 0,$(INSTALL)),,.venv/.dev-gpu)
	$(GPU_PYTHON) -m pytest -m gpu
	$(GPU_PYTHON) -m benchmarks.gpu

## Run every benchmark on tiny sizes, to see that it works.
bench-smoke: $(DEV)
	.venv/bin/python -m benchmarks.smoke

## Measure the gain of refilling batches, and validate the simulator.
simulation: $(DEV)
	.venv/bin/python -m benchmarks.refill
	.venv/bin/python -m benchmarks.validate_simulation

## Run every linter; .pre-commit-config.yaml calls the same.
lint: $(DEV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile

## Check the dependencies for known vulnerabilities, where their index can be reached.
audit:
	deploy/audit.sh

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.serve-%: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing the $* runtime into .venv: about a minute the first time"
	$(PIP) -e '.[$*]'
	touch $@

.venv/.dev-%: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing everything for training and development into .venv: some minutes the first time"
	$(PIP) -e '.[$*,train,dev,otel]'
	touch $@
