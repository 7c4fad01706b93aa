# syntax=docker/dockerfile:1
# RUNTIME=cpu or gpu: which ONNX Runtime is installed. The gpu wheels bring CUDA and cuDNN.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG RUNTIME=cpu
WORKDIR /app
RUN python -m venv /app/.venv
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY models models
COPY profiling profiling
COPY scheduler scheduler
COPY server server
RUN .venv/bin/python -m pip install --no-cache-dir -q -c constraints.txt -e ".[${RUNTIME}]"

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --no-create-home eenet
WORKDIR /app
COPY --from=build /app /app
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    EENET_HOST=0.0.0.0 \
    EENET_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-m", "server.health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["eenet", "serve"]
