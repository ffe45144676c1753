"""The Dagster code location: thin shells around the core. Read ``definitions`` first."""
