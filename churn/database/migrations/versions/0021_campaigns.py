"""Campaigns, exclusions, and the lists that left the house."""

from churn.database.migrations import by_sql

revision = "0021"
down_revision = "0020"
upgrade = by_sql("campaigns.sql")
