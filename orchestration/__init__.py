"""The Dagster code location: thin shells around the core. Read ``definitions`` first."""

import os

# Threads of ours have a variant each, and their frames are small: polars' own threads would only be in the way. Polars
# reads this when it is imported; a value that was given stays.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
