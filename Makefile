# On a fresh machine with Python 3.11 and make: `make run`. `make help` lists the targets.

# Settings: on the command line (`make serve PORT=8001`) or in the environment.
PYTHON ?= python3
MODELS ?= miniature
ENGINE ?= packed
HOST ?= 127.0.0.1
# Where PyTorch's indexes of CPU and ROCm builds are.
PYTORCH ?= https://download.pytorch.org/whl

VENV := .venv
PY := $(VENV)/bin/python
RUNTIME := models/$(MODELS)-$(ENGINE)$(DTYPE:%=-%)
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
ifneq ($(filter-out float16 float32 int8,$(DTYPE)),)
$(error DTYPE must be float16, float32 or int8. Given: $(DTYPE))
endif
ifneq ($(filter-out cpu cuda rocm,$(TORCH)),)
$(error TORCH must be cpu, cuda or rocm. Given: $(TORCH))
endif

.DELETE_ON_ERROR:
.PHONY: help setup run serve verify deploy undeploy field-report test check docs
.PHONY: setup-test lint types format lock lock-torch clean
.PHONY: parity fuzz image-test lint-images smoke-amd bench load soak

help: # `##@` starts a group, `##` describes a target
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s%s\n", $$1, $$2}' Makefile
	@echo
	@echo "Settings, here or in the environment:"
	@echo "  MODELS=bge     the real weights: fetch (4.6 GB), verify and convert them"
	@echo "  DTYPE=int8     weights for a CPU in 8 bits; float16 (default), float32"
	@echo "  TORCH=cuda     PyTorch for NVIDIA; cpu, rocm"
	@echo "  INPUT='{…}'    what \`make run\` answers; FULL=1 prints the whole reply as JSON"
	@echo "  HOST, PORT     where \`make serve\` listens; PYTHON, ENGINE=flagembedding"
	@echo
	@echo "make -C tests help, make -C benchmarks help: heavy checks, and benchmarks"

##@ Start

setup: $(VENV)/setup ## Install the worker and the builder into .venv

run: $(VENV)/setup$(if $(filter flagembedding,$(ENGINE)),-test) $(RUNTIME)/done ## Answer test_input.json, or INPUT, in RunPod's local harness
	@$(PY) -m bge_builder.run --input="$$INPUT" $(if $(filter-out 0,$(FULL)),--full)

serve: $(VENV)/setup$(if $(filter flagembedding,$(ENGINE)),-test) $(RUNTIME)/done ## Run the HTTP server on HOST (127.0.0.1) and PORT (8000)
	@exec $(PY) worker/server.py --host "$(HOST)"

verify: $(RUNTIME)/done ## Check the models' files; with MODELS=bge also the published values
	@$(PY) -m bge_builder verify $(RUNTIME)/bge-m3 $(RUNTIME)/bge-reranker-v2-m3

##@ Deploy

BUILDER = $(PY) -m bge_builder
TARGET = $(if $(TYPE),--type "$(TYPE)") $(if $(ENDPOINT),--endpoint "$(ENDPOINT)")
DEPLOY_OPTIONS = $(if $(REGISTRY),--registry "$(REGISTRY)") $(if $(DRY_RUN),--dry-run) $(if $(WAIT),--wait "$(WAIT)")
DEPLOY_USAGE := make deploy IMAGE=registry/name:tag [TYPE=lb] [ENDPOINT=id] [REGISTRY=credential] [DRY_RUN=1] [WAIT=seconds], or STATUS=1

deploy: $(VENV)/setup ## Create or update an endpoint on RunPod: IMAGE=registry/name:tag, DRY_RUN=1
	@test -n "$(IMAGE)$(STATUS)" || { echo "$(DEPLOY_USAGE)"; exit 2; }
	@$(BUILDER) $(if $(STATUS),status,deploy "$(IMAGE)" $(DEPLOY_OPTIONS)) $(TARGET)

undeploy: $(VENV)/setup ## Delete the endpoint: TYPE=lb, ENDPOINT=id, YES=1
	@$(BUILDER) undeploy $(TARGET) $(if $(YES),--yes)

FIELD_OPTIONS = $(if $(IMAGE),--image "$(IMAGE)") $(if $(REGISTRY),--registry "$(REGISTRY)") \
	$(if $(MAX_DOLLARS),--max-dollars "$(MAX_DOLLARS)") $(if $(LOCAL),--local) $(if $(CLEAN),--clean) $(if $(TABLE),--table)
field-report: $(VENV)/setup-test ## An hour of checks on RunPod, or with LOCAL=1 on a GPU: IMAGE, MAX_DOLLARS=5
	@$(BUILDER) field-report $(FIELD_OPTIONS)

##@ Develop

# Bytecode is kept even where the environment says otherwise: tests start hundreds of processes.
test: $(VENV)/setup-test ## Run the tests: a few minutes, no network, no GPU
	PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -q -n auto --dist worksteal

check: lint types ## Lint and check types

docs: .venv-docs/done ## Build the documentation into site/, and fail on a broken link
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/done: docs/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

lint: $(VENV)/setup-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/setup-test
	$(PY) -m mypy

format: $(VENV)/setup-test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Heavy checks and benchmarks: the targets of their folders' Makefiles.
parity fuzz image-test lint-images smoke-amd:
	@$(MAKE) --no-print-directory -C tests $@

bench load soak:
	@$(MAKE) --no-print-directory -C benchmarks $@

test-%:
	@$(MAKE) --no-print-directory -C tests $@

bench-%:
	@$(MAKE) --no-print-directory -C benchmarks $@

# ------------------------------------------------------------------------------- install

setup-test: $(VENV)/setup-test

INSTALL = @$(PYTHON) builder/install.py $(VENV)
$(VENV)/setup: worker/requirements.txt builder/requirements.txt $(wildcard */pyproject.toml) $(PY) $(TORCH:%=$(VENV)/torch-%)
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not found: install Python 3.11 or later, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: set PYTHON. Given: " + sys.version.split()[0])'
	$(INSTALL) --pytorch "$(PYTORCH)" $(TORCH:%=--torch %)
	@rm -f $(VENV)/torch-* && touch $(TORCH:%=$(VENV)/torch-%) $@

$(VENV)/setup-test: $(VENV)/setup tests/requirements.txt
	$(INSTALL) --tests
	@touch $@

# Absent before the first setup, and when the Python that it links to is gone.
$(PY): ;
# Written by a setup with this TORCH: another choice installs again.
$(VENV)/torch-%: ;

# -------------------------------------------------------------------------------- models

# STEP TITLE COMMAND: a line with its seconds, and the command's output if it fails.
STEP := @$(PY) builder/bge_builder/progress.py

checkpoints/miniature/done: builder/bge_builder/miniature.py builder/bge_builder/vocabulary.py builder/bge_builder/corpus.jsonl | $(VENV)/setup
	$(STEP) "building the miniature models" $(PY) -m bge_builder miniature --to $(@D)
	@touch $@

checkpoints/bge/done: builder/bge_builder/pins.toml | $(VENV)/setup
	@$(PY) -m bge_builder fetch --to $(@D) >&2
	@touch $@

CONVERT := $(PY) -m bge_builder convert --engine $(ENGINE) $(DTYPE:%=--dtype %)
CONVERT_SOURCES := $(addprefix builder/bge_builder/,convert.py hub_config.py smoothing.py) \
	$(addprefix worker/bge_worker/engine/,checkpoint.py config.py manifest.py quantization.py)
$(RUNTIME)/done: checkpoints/$(MODELS)/done $(CONVERT_SOURCES)
	$(STEP) "converting bge-m3" $(CONVERT) --name $(MODELS)/bge-m3 $(<D)/bge-m3 $(@D)/bge-m3
	$(STEP) "converting bge-reranker-v2-m3" $(CONVERT) --name $(MODELS)/bge-reranker-v2-m3 $(<D)/bge-reranker-v2-m3 $(@D)/bge-reranker-v2-m3
	@touch $@

# -------------------------------------------------------------------------------- locks

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

# The images' hash-locked requirements.
lock: $(VENV)/setup-test
	$(PY) -m pip install -q --disable-pip-version-check uv==0.13.9
	$(COMPILE) worker/requirements.txt -o worker/requirements.lock
	$(COMPILE) builder/requirements.txt -c worker/requirements.lock -o builder/requirements.lock
	grep -E '^(FlagEmbedding|transformers|sentencepiece|protobuf|sentence-transformers)==' tests/requirements.txt \
		| $(COMPILE) - -c worker/requirements.lock -o builder/flagembedding.lock
	$(call COMPILE_TORCH) --custom-compile-command 'make lock' -o builder/torch-cuda.lock

FROM_PYTORCH = --custom-compile-command 'make lock-torch' --index-strategy unsafe-best-match

# The same for the wheels of PyTorch's own index, which must be reachable.
lock-torch: lock
	$(call COMPILE_TORCH,+cpu) $(FROM_PYTORCH) --index $(PYTORCH)/cpu -o builder/torch-cpu.lock
	$(call COMPILE_TORCH,+rocm7.2) $(FROM_PYTORCH) --index $(PYTORCH)/rocm7.2 -o builder/torch-rocm.lock

# Removes build products; keeps .venv and fetched checkpoints.
clean:
	rm -rf models checkpoints/miniature checkpoints/bench .pytest_cache .mypy_cache .ruff_cache .hypothesis
