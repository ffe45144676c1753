"""Rendering of the report: one HTML file that loads nothing else and is safe with any names and errors. Pure.

Data are embedded as compressed JSON in base64, which cannot contain markup, and the page's script inserts them as text.
A variant's data are unpacked when its page is opened.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files

from churn.report.content import Content

VARIANTS_PER_PART = 40

_FOLDER = files("churn.report")


def render(fleet: Content, variants: Sequence[Content]) -> str:
    """Return the page's HTML.

    Args:
        variants: In the order of the fleet's.
    """
    style, script = ((_FOLDER / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    parts = (_packed(f"part-{i}", part) for i, part in enumerate(_parts(variants)))
    slots = {
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        f"base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        # The script begins before the browser has read the variants' parts.
        "fleet": _packed("fleet", fleet | {"variants_per_part": VARIANTS_PER_PART}),
        "parts": "\n".join(parts),
    }
    page = (_FOLDER / "page.html").read_text(encoding="utf-8")
    for name, text in slots.items():
        page = page.replace(f"[[{name}]]", text)
    return page


def _parts(variants: Sequence[Content]) -> Iterator[Sequence[Content]]:
    for start in range(0, len(variants), VARIANTS_PER_PART):
        yield variants[start : start + VARIANTS_PER_PART]


def _packed(name: str, value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # No time in it, so that the same content is the same file.
    packed = gzip.compress(text.encode(), compresslevel=6, mtime=0)
    return f'<script type="application/gzip" id="{name}">{base64.b64encode(packed).decode()}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
