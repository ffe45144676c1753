"""Rendering of the report: one HTML file that loads nothing else and is safe with any names and errors. Pure.

Data are embedded as compressed JSON in base64, which cannot contain markup, and the page's script inserts them as text.
A variant's data are decompressed when its page is opened.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

from churn.report.content import Content

VARIANTS_PER_PART = 40

_FOLDER = files("churn.report")


def render(fleet: Content, variants: Sequence[Content]) -> str:
    """Return the page's HTML, from the fleet's part and the variants' parts, in the same order as in the fleet's."""
    page, style, script = ((_FOLDER / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js"))
    starts = range(0, len(variants), VARIANTS_PER_PART)
    parts = (_compress(f"part-{i}", variants[at : at + VARIANTS_PER_PART]) for i, at in enumerate(starts))
    slots = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        # The script begins before the browser has read the variants' parts.
        "fleet": _compress("fleet", fleet | {"variants_per_part": VARIANTS_PER_PART}),
        "parts": "\n".join(parts),
    }
    for name, text in slots.items():
        page = page.replace(f"[[{name}]]", text)
    return page


def _compress(name: str, value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    data = gzip.compress(text.encode(), compresslevel=6, mtime=0)  # without the time, equal content is an equal file
    return f'<script type="application/gzip" id="{name}">{base64.b64encode(data).decode()}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
