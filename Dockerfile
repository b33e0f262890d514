# bge-serverless on NVIDIA GPUs, and on CPUs. Dockerfile.rocm is the same except for BASE and TORCH.
#
#   docker build -t bge-serverless .                              with both models (fetches 4.6 GB)
#   docker build -t bge-serverless --build-arg MODELS=miniature .   with the miniature (fetches nothing)
#
#   TORCH    cuda | cpu | rocm, with the TORCH_INDEX that has it
#   MODELS   bge | miniature | none (mount runtime folders at /models)
#   ENGINE   packed | flagembedding (FlagEmbedding and its dependencies)

ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b
ARG TORCH=cuda
# PyPI's torch includes CUDA 13; no CUDA base image is needed.
ARG TORCH_INDEX=https://pypi.org/simple

# ---------------------------------------------------------------- packages of the worker
FROM ${BASE} AS packages
ARG TORCH
ARG TORCH_INDEX
ARG ENGINE=packed
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY worker/requirements.lock builder/flagembedding.lock builder/torch-*.lock /tmp/locks/
RUN pip install --no-deps --require-hashes -r /tmp/locks/requirements.lock
# No --require-hashes: torch-rocm.lock has no hashes yet.
RUN pip install --index-url "${TORCH_INDEX}" -r "/tmp/locks/torch-${TORCH}.lock"
RUN case "${ENGINE}" in \
        packed) ;; \
        flagembedding) pip install --no-deps --require-hashes -r /tmp/locks/flagembedding.lock ;; \
        *) echo "ENGINE must be packed or flagembedding. Given: ${ENGINE}" >&2; exit 1 ;; \
    esac

# ---------------------------------------------------- the same without pip, for the image
FROM packages AS runtime
RUN pip uninstall -qy pip

# -------------------------------------------------- weights: fetched, verified, converted
FROM packages AS weights
ARG MODELS=bge
ARG ENGINE=packed
COPY builder/requirements.lock /tmp/locks/builder.lock
RUN pip install --no-deps --require-hashes -r /tmp/locks/builder.lock
WORKDIR /src
COPY worker worker
COPY client client
COPY builder builder
# Builds with the setuptools of the lock: fetches nothing.
RUN pip install --no-deps --no-build-isolation ./worker ./client ./builder
RUN python -m bge_builder bake "${MODELS}" --engine "${ENGINE}" --to /models

# ---------------------------------------------------------------------------------- the image
FROM ${BASE}
ARG ENGINE=packed
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bge-serverless" \
      org.opencontainers.image.description="bge-m3 and bge-reranker-v2-m3 on RunPod Serverless or a workstation" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=runtime /opt/venv /opt/venv
COPY --from=weights /models /models
COPY worker /app/worker
COPY test_input.json /app/
# Compiles bytecode now: the file system may be read-only later, and every start would take a second longer.
RUN /opt/venv/bin/python -m compileall -q /app/worker \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bge
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    BGE_ENGINE=${ENGINE} \
    BGE_EMBED_MODEL=/models/bge-m3 \
    BGE_RERANK_MODEL=/models/bge-reranker-v2-m3 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
# Thresholds of the RunPod SDK's checks, which run before the first job and end a worker that fails:
#   RUNPOD_SKIP_GPU_CHECK      its own allocations on every GPU and two runs of nvidia-smi: the models
#                              are on the device by then, and the golden values were computed there
#   RUNPOD_MIN_MEMORY_GB       4 by default: the weights are loaded already; requests hold up to 0.5 GB
#   RUNPOD_MIN_DISK_PERCENT    10 by default: the worker writes nothing, and a full host is not its fault
#   RUNPOD_MIN_CUDA_VERSION    11.8 by default: torch needs 13
ENV RUNPOD_SKIP_GPU_CHECK=true \
    RUNPOD_MIN_MEMORY_GB=2 \
    RUNPOD_MIN_DISK_PERCENT=1 \
    RUNPOD_MIN_CUDA_VERSION=13.0
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A cold start from a slow disk may take minutes.
HEALTHCHECK --interval=15s --timeout=6s --start-period=300s --retries=3 \
    CMD ["/app/worker/entrypoint.sh", "health"]
ENTRYPOINT ["/app/worker/entrypoint.sh"]
