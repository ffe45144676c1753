"""The schema of release 0.9.0, as pg_dump writes it; nothing older is migrated."""

from churn.database.migrations import by_sql

revision = "0007"
down_revision = None
upgrade = by_sql("release_0_9_0.sql")
