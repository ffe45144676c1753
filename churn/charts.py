"""Small pictures as SVG text: drawn in microseconds, so that a fleet can have one for every variant. Pure."""

from collections.abc import Mapping
from xml.sax.saxutils import escape

_ROW, _LABELS, _BARS, _FIGURES = 24, 170, 300, 60
_MOST = 20


def draw_importance(importance: Mapping[str, float], title: str) -> str:
    """Draw the mean absolute contribution of each feature as bars, the largest first; at most 20.

    Args:
        importance: Log-odds by feature, in falling order.
    """
    shown = list(importance.items())[:_MOST]
    longest = max([size for _, size in shown], default=0) or 1
    width, height = _LABELS + _BARS + _FIGURES, _ROW * (len(shown) + 1) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="18" font-weight="bold" fill="#222">{escape(title)}</text>'
    ]
    for i, (feature, size) in enumerate(shown, start=1):
        top, length = _ROW * i + 4, max(_BARS * size / longest, 1)
        lines.append(
            f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end" fill="#222">{escape(feature)}</text>'
            f'<rect x="{_LABELS}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 8}" fill="#4f6bed"/>'
            f'<text x="{_LABELS + length + 6:.1f}" y="{top + 15}" fill="#222">{size:.3f}</text>'
        )
    return "\n".join([*lines, "</svg>"])
