"""The schema of the next release, from that of 0.9.0; the commits between had others, which are not migrated."""

from churn.database.migrations import by_sql

revision = "0020"
down_revision = "0007"
upgrade = by_sql("since_0_9_0.sql")
