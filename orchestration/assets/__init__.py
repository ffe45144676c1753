"""The assets, one module for each kind of work; ``metadata`` holds what several of them show."""
