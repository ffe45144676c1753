"""The writer adds batches, and changes what is published, recorded or reported only through functions of the owner."""

from churn.database.migrations import by_sql

revision = "0026"
down_revision = "0025"
upgrade = by_sql("roles_that_cannot_forge.sql")
