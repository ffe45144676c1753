"""Account ids that are text: a column for them beside the number, and the number of a text."""

from churn.database.migrations import by_sql

revision = "0021"
down_revision = "0027"
upgrade = by_sql("text_ids.sql")
