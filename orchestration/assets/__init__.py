"""The assets, one module for each kind of work; ``metadata`` builds the metadata that several of them share."""
