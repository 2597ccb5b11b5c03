# The image of the server.
#
#   docker build -t pruning-service --build-arg TORCH_INDEX_URL=URL .
#       CPU (the default). URL: the index of CPU wheels that PyTorch's install page names. It can be left out where
#       pip's own configuration finds a CPU wheel. The pin `torch==X+cpu` makes the build fail, rather than pull
#       several gigabytes of CUDA packages, where only those are offered.
#   docker build -t pruning-service --build-arg TORCH_VARIANT=cuda .
#       CUDA, as the default package index serves it for x86-64; or TORCH_VARIANT=cu126 and the like with the
#       TORCH_INDEX_URL of that variant. Run it with `--gpus all`; the driver comes from the host.
#
#   docker run -p 127.0.0.1:50051:50051 -v pruning-data:/data pruning-service --insecure-no-tls
#       or, to be reached by others: --tls-cert FILE --tls-key FILE. Without either, the server says so and stops.
#
# Workers are contained by the host's kernel (Landlock, seccomp), without any privilege: never --privileged, see
# docs/security.md. Where the kernel cannot, the server says what is lacking and stops.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
ARG TORCH_VARIANT=cpu
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PATH=/opt/venv/bin:$PATH
WORKDIR /src
RUN python3 -m venv /opt/venv

# torch on its own: its layer is the largest, and a change of the product's code must not rebuild it. Its C++ headers
# and test programs, a sixth of it, serve no job.
COPY constraints.txt ./
RUN set -eu; \
    torch="$(grep '^torch==' constraints.txt)"; \
    if [ "$TORCH_VARIANT" != cuda ]; then torch="$torch+$TORCH_VARIANT"; fi; \
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch" \
        || { echo "no $torch was found: give its index, --build-arg TORCH_INDEX_URL=URL (see the Dockerfile)" >&2; exit 1; }; \
    rm -rf /opt/venv/lib/python3*/site-packages/torch/include /opt/venv/lib/python3*/site-packages/torch/test; \
    find /opt/venv/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete; \
    python -c 'import sys, torch; variant, cuda = sys.argv[1], torch.version.cuda; \
        sys.exit(None if (cuda is None) == (variant == "cpu") else f"TORCH_VARIANT={variant} gave CUDA {cuda}")' \
        "$TORCH_VARIANT"

COPY pyproject.toml README.md ./
COPY protos protos
COPY server server
COPY client client
# pip leaves compiled files beside the modules; without them every worker would compile torch anew.
RUN pip install -c constraints.txt '.[server]' && pip check && pip uninstall --yes pip


FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="pruning-service" \
      org.opencontainers.image.description="A gRPC microservice that prunes TorchScript models without their source."

# tini is process 1: it passes SIGTERM on to the server and reaps what workers leave behind (-s: also where something
# else is process 1, as in a pod that shares its process namespace).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin pruning \
    && install --directory --owner=pruning --group=pruning --mode=0700 /data

COPY --from=builder /opt/venv /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PRUNING_ADDRESS=0.0.0.0:50051 \
    PRUNING_METRICS_ADDRESS=0.0.0.0:9464 \
    PRUNING_DATA_DIR=/data \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# It reads the server's own variables, so a container that listens elsewhere or with TLS should set those, not flags.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD exec python -m pruning_server.service.healthcheck --address "$PRUNING_ADDRESS" \
        ${PRUNING_TLS_CERT:+--tls-cert "$PRUNING_TLS_CERT" --tls-key "$PRUNING_TLS_KEY"}
ENTRYPOINT ["tini", "-s", "--", "pruning-server"]
