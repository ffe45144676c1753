"""Alembic migrations of the predictions database."""
