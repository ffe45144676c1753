"""Command-line shells around the core: set up MLflow, log and register models."""
