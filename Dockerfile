# syntax=docker/dockerfile:1

# Everything is installed here; compilers and caches stay behind.
FROM python:3.11-slim AS builder
WORKDIR /build
RUN python -m venv /opt/errata
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY editors editors
COPY migrations migrations
# On Linux the plain torch wheel brings CUDA with it; pip's own variables (PIP_EXTRA_INDEX_URL) choose a smaller one.
ARG PIP_EXTRA_INDEX_URL
RUN /opt/errata/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM python:3.11-slim
RUN groupadd --system --gid 10001 errata \
 && useradd --system --uid 10001 --gid errata --no-create-home --home-dir /var/lib/errata errata \
 && install --directory --owner=errata --group=errata /var/lib/errata
COPY --from=builder /opt/errata /opt/errata

# All state is in one volume, so that the rest of the file system may be read-only.
ENV PATH=/opt/errata/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=passive \
    HF_HOME=/var/lib/errata/huggingface \
    ERRATA_HOST=0.0.0.0 \
    ERRATA_PORT=8000 \
    ERRATA_DATABASE_URL=sqlite:////var/lib/errata/errata.db \
    ERRATA_CACHE_DIR=/var/lib/errata/cache \
    ERRATA_LOG_FORMAT=json
VOLUME /var/lib/errata
WORKDIR /var/lib/errata
USER 10001:10001
EXPOSE 8000
# The first start fits the built-in model; until then /readyz answers 503.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"ERRATA_PORT\"]}/readyz', timeout=2)"]
CMD ["errata", "serve"]
