"""The flag of the encoded sample in the views of predictions."""

from churn.database.migrations import by_sql

revision = "0025"
down_revision = "0020"
upgrade = by_sql("sample_in_views.sql")
