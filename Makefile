# `make demo` and `make test` need nothing but make and Python 3.11-3.13: they set up their own environment.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Threads that spin while they wait make small nets ten times slower on a machine that does anything else.
export OMP_WAIT_POLICY := PASSIVE
BUF_VERSION := 1.75.0
BUF := .tools/node_modules/.bin/buf
PROTOS := $(wildcard protos/pruning_api/v1/*.proto)

.PHONY: help install demo test fuzz lint types protos report-schema drift buf check package-check image-check bench-transfer bench-idle bench-sandbox bench-crash bench-overload bench-shrink bench-risk bench-drop bench-dynamic bench-gate bench-continue bench-conditions bench-accuracy zoo chaos clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# torch comes first, from constraints.txt: a plain `torch` would pull several gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (set PYTHON=...)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## Set up .venv with everything

demo: $(VENV)/.installed ## Prune a real model through a real server, and leave the results in demo/
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(VENV)/.installed ## Lint, format check, import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/.installed ## Type check
	$(BIN)/mypy

protos: $(VENV)/.installed ## Regenerate protos/pruning_api/v1/*_pb2*
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos --grpc_python_out=protos $(PROTOS)

report-schema: $(VENV)/.installed ## Write docs/report.schema.json from the report's values
	$(BIN)/python -m pruning_server.spec.report_schema > docs/report.schema.json.new
	mv docs/report.schema.json.new docs/report.schema.json

drift: protos report-schema ## Fail if committed generated files are not what their sources give
	git diff --exit-code -- protos docs/report.schema.json

$(BUF):
	npm install --silent --no-save --no-audit --no-fund --prefix .tools @bufbuild/buf@$(BUF_VERSION)

bench-shrink: $(VENV)/.installed ## Time, memory, latency of shrinking ResNet-20, -50 and -56
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/shrink.py

bench-risk: $(VENV)/.installed ## How often a certificate is wrong, over 200 caller's sets
	PYTHONPATH=tests $(BIN)/python benchmarks/risk.py

bench-drop: $(VENV)/.installed ## max_accuracy_drop 0.02 over 20 caller's sets: true drop, size, how often it declines
	PYTHONPATH=tests $(BIN)/python benchmarks/drop.py

bench-dynamic: $(VENV)/.installed ## Dynamic schedules beside one-shot pruning at equal MACs, epochs and data, 3 seeds
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/dynamic.py

bench-gate: $(VENV)/.installed ## What an inference gate skips on a wide MLP, its latency ratio at batch 1, and its accuracy
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/gate.py

bench-continue: $(VENV)/.installed ## Continuing from an earlier job on shifted data, beside pruning afresh
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/continuing.py

bench-conditions: $(VENV)/.installed ## What conditions remove of ResNet-20, and its accuracy before and after closed-form recovery
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/conditions.py

bench-overload: $(VENV)/.installed ## Ten times the load, 500 stuck watchers, cancels, and cancel against finish
	PYTHONPATH=tests $(BIN)/python benchmarks/overload.py

bench-coverage: $(VENV)/.installed ## How often 95 % intervals hold the truth: the tables of docs/statistics.md
	$(BIN)/python benchmarks/interval_coverage.py

fuzz: $(VENV)/.installed ## 5,000 mutated archives, 2,000 datasets, 2,000 requests: no death, no hang, every answer typed
	PYTHONPATH=tests $(BIN)/python benchmarks/fuzz.py $(OPTIONS)

bench-crash: $(VENV)/.installed ## kill -9 of the server amid 20 real jobs
	PYTHONPATH=tests $(BIN)/python benchmarks/crash.py

# A kill took 1.45 s on a busy machine, so 500 take about 12 minutes there; HOURS=n goes on for so long, BUG=lost-job is the control, which must fail.
chaos: $(VENV)/.installed ## kill -9 of the server amid 8 clients, 500 times, or for HOURS=n; what was promised must be there after
	PYTHONPATH=tests $(BIN)/python -m helpers.chaos --seed $(or $(SEED),0) $(if $(HOURS),--hours $(HOURS)) $(if $(BUG),--bug $(BUG) --kills 20)

# What the wire API must not break: the last release; before the first one, what is committed.
BUF_AGAINST ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo HEAD)

buf: $(BUF) ## Lint the protos, and check them for changes that break clients
	$(BUF) lint
	$(BUF) format --diff --exit-code
	$(BUF) breaking --against '.git#ref=$(BUF_AGAINST)'

package-check: $(VENV)/.installed ## Install the wheel into separate environments and run a job across them
	tests/packaging/package_check.sh $(BIN)/python

bench-transfer: $(VENV)/.installed ## A 2 GiB artifact up and down, cut 5 times each way
	PYTHONPATH=tests $(BIN)/python benchmarks/transfer.py

bench-sandbox: $(VENV)/.installed ## CPU and wall time of the same job inside and outside the sandbox, in turns
	PYTHONPATH=tests $(BIN)/python benchmarks/sandbox.py

bench-idle: $(VENV)/.installed ## Time to ready and memory of the idle server
	PYTHONPATH=tests $(BIN)/python benchmarks/idle.py

# The architectures' packages are big, and nothing else needs them.
$(VENV)/.installed-zoo: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	@touch $@

zoo: $(VENV)/.installed-zoo ## Shrink every archive of the zoo (about 15 minutes) and write docs/zoo.md
	PYTHONPATH=benchmarks:tests $(BIN)/python -m zoo.run --write docs/zoo.md

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	@touch $@

# What is measured stays in .bench/accuracy.json, so that an interrupted run goes on; `make clean` forgets it.
bench-accuracy: $(VENV)/.installed-bench ## Accuracy of pruned models beside Torch-Pruning (hours; OPTIONS="--quick --json x"), writes docs/accuracy.md
	mkdir -p .bench
	PYTHONPATH=benchmarks:tests $(BIN)/python -m accuracy.run $(or $(OPTIONS),--json .bench/accuracy.json --write docs/accuracy.md)

image-check: $(VENV)/.installed ## Build the image and run the server in it (needs root, buildah, debootstrap)
	$(BIN)/python deploy/image_check.py

check: lint types drift buf ## Everything that CI checks besides the tests

clean: ## Remove what these commands made
	rm -rf $(VENV) .tools .bench build dist demo
