"""The Dagster code location: thin shells around the core. Read ``definitions`` first."""

import os

# Each of our threads scores one variant with small frames, which polars' threads would only slow down. Polars reads
# this when it is imported; a value from the environment has precedence.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
