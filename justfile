# Recipes for people and for CI, which calls the same ones.

# List the recipes.
default:
    @just --list

# Install everything, tests and tools included, as locked.
setup:
    uv sync --locked

# Format, lint, types, import arrows, Dagster definitions.
check:
    uv run ruff format --check .
    uv run ruff check .
    uv run mypy
    uv run lint-imports
    uv run dagster definitions validate -m orchestration.definitions

# All tests but the slow ones.
test *args:
    uv run pytest {{args}}

# The slow ones: faults and scale.
test-slow *args:
    uv run pytest -m slow {{args}}

# Rebuild data/churn and models/churn from the simulator, byte for byte.
artifacts:
    uv run python -m churn.data.artifacts

# Retake the README's screenshots in headless Chromium.
screenshots:
    uv run python docs/screenshots.py

# Compare with the naive way and with the limit; writes benchmarks/RESULTS.md. Half an hour on two cores.
bench *args:
    uv run --group bench python -m benchmarks {{args}}

# Live through a simulated year of 20 variants: triggers, challengers, promotions, rollback; writes benchmarks/YEAR.md.
year *args:
    uv run python -m benchmarks.year {{args}}

# Serve both UIs on this machine.
up:
    uv run churn up
