"""Command-line shells around the core: set up the services; log, train and promote models."""
