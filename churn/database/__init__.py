"""PostgreSQL: connections, schema, and all SQL on our tables."""
