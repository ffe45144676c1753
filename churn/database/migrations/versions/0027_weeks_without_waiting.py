"""Weeks are opened and dropped with short or weak locks."""

from churn.database.migrations import by_sql

revision = "0027"
down_revision = "0026"
upgrade = by_sql("weeks_without_waiting.sql")
