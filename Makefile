# The targets CI and people share. `make demo` and `make test` need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
TOOLS  := $(VENV)/.tools
SCALE  ?= 1.0
SEED   ?= 0
TIME   ?= 1800
ROWS   ?=
ANSWERS ?= 36000
NODES  ?= 1
GATEWAY ?=
AGAINST ?= origin/main

.PHONY: help setup demo test test-store test-minio lint protos up down bench bench-gpu bench-store fleet-sim placement chaos fleet soak fuzz clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("lorapool needs Python >= 3.11, this is " + sys.version.split()[0] + ": set PYTHON=") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[node,embedded,gateway,otel]'
	@touch $@

# What tests, checks and benchmarks take beside it is nearly as large again: who tries the product does without.
$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[node,embedded,gateway,otel,dev]'
	@touch $@

setup: $(STAMP) ## make .venv and the default base model
	@$(BIN)/python -m inference_node.model.default_base > /dev/null

demo: setup ## the whole product on a real 4-bit model, in one terminal
	@$(BIN)/python examples/demo.py

test: setup $(TOOLS) ## every test
	$(BIN)/python -m pytest -q

test-store: setup $(TOOLS) ## contract, conformance and races on the store that LORAPOOL_TEST_S3_ENDPOINT, _S3_KEY, _S3_SECRET name
	$(BIN)/python -m tests.store_suites -q

test-minio: setup $(TOOLS) ## the same on MinIO: MINIO_BIN, or minio on PATH, or the compose service
	$(BIN)/python -m tests.minio -q

lint: $(TOOLS) ## ruff, mypy, import contracts, generated code, protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python protos/generate.py --check

.PHONY: breaking
breaking: $(TOOLS) ## the protos beside those of AGAINST=origin/main: callers of these may not break
	$(BIN)/buf breaking --against '.git#ref=$(AGAINST)'

.PHONY: audit
audit: ## known vulnerabilities of every pinned package; needs the advisories of pypi.org (Error 1: found, 3: not reached)
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -q pip-audit==2.10.1; }
	@$(PYTHON) .ci/audit.py .venv-audit/bin/pip-audit constraints.txt

protos: $(TOOLS) ## regenerate inference_node/pb
	$(BIN)/python protos/generate.py

up: setup ## start SeaweedFS, Valkey and a node on loopback; NODES=3 GATEWAY=1 puts Envoy before three
	@$(BIN)/inference-node up --nodes $(NODES) $(if $(GATEWAY),--gateway)

down: $(STAMP) ## stop what `make up` started
	@$(BIN)/inference-node down

bench: setup $(TOOLS) ## the engine's figures beside PEFT, vLLM and llama.cpp (VLLM_PYTHON=, LLAMA_SERVER=)
	$(BIN)/python -m benchmarks.cpu

bench-gpu: setup $(TOOLS) ## the GPU path checked and measured on the card at hand, in 8 minutes
	$(BIN)/python -m benchmarks.gpu

.PHONY: bench-edge
bench-edge: $(TOOLS) ## the service edge beside a bare gRPC server (and by h2load where it is)
	$(BIN)/python -m benchmarks.edge

bench-store: setup $(TOOLS) ## the adapter store beside plain boto3, and 10,000 adapters
	$(BIN)/python -m benchmarks.store

fleet-sim: setup $(TOOLS) ## up to 1,000 nodes and 1,000,000 adapters, simulated with measured service times, in 3 minutes
	$(BIN)/python -m benchmarks.fleet_sim

placement: setup $(TOOLS) ## 2,000 adapters on 3 real nodes behind Envoy, beside what fleet-sim says of them
	$(BIN)/python -m benchmarks.placement

chaos: setup $(TOOLS) ## the proof suite, 47 minutes; SCALE=0.1 shortens it, ROWS=T4,T7 chooses
	$(BIN)/python -m tests.chaos --scale $(SCALE) --seed $(SEED) $(if $(ROWS),--rows $(ROWS))

fleet: setup $(TOOLS) ## the proof of the fleet: three nodes, flips, faults, in 15 minutes; SCALE=0.1 shortens it
	$(BIN)/python -m tests.chaos --book fleet --scale $(SCALE) --seed $(SEED) $(if $(ROWS),--rows $(ROWS))

soak: setup $(TOOLS) ## ANSWERS=36000 by tattooed adapters in half an hour, while versions, store and Redis come and go
	$(BIN)/python -m tests.chaos.soak --answers $(ANSWERS) --seed $(SEED)

fuzz: setup $(TOOLS) ## fuzz every reader of foreign bytes for TIME seconds each
	$(BIN)/python -m tests.chaos.fuzzed $(TIME) $(SEED)

clean: ## remove .venv and local state
	rm -rf $(VENV) .lorapool
