"""Readers that are bound to variants: grants by login, and views that show no other variant."""

from churn.database.migrations import by_sql

revision = "0028"
down_revision = "0021"
upgrade = by_sql("readers_of_some_variants.sql")
