"""The SHA-256 of every simulated file that this project was ever bundled with, wherever a copy of it lies.

Feature names are not among them: a real model may have the same ones. A test keeps the newest files listed.
"""

from importlib.resources import files

SIMULATED = frozenset((files(__package__) / "simulated.txt").read_text().split()[::2])
