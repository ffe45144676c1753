"""What tests, benchmarks, documentation and ``data/make_artifacts.py`` share: services, data, people.

It imports none of them.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
