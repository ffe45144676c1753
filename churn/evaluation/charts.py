"""The reliability diagram as SVG text, drawn in microseconds, so that every variant of a fleet can have it. Pure."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from churn.evaluation.metrics import wilson_interval
from churn.wording import printable

_LEFT, _TOP, _SIDE = 48, 62, 260


def draw_reliability(bins: Mapping[str, Sequence[float]], title: str, about: str) -> str:
    """Draw the share that churned against the mean score of each bin, with 95 % intervals.

    Args:
        bins: From :func:`churn.evaluation.metrics.reliability`, or the column ``evaluated_batches.reliability``.
        about: Names the model and the rows; shown below the title.
    """
    ends = wilson_interval(bins["n"], bins["churned_share"])
    points = list(zip(bins["mean_score"], bins["churned_share"], *(end.tolist() for end in ends), strict=True))
    top = min(1.0, 1.08 * max([max(score, high) for score, _, _, high in points], default=1.0))

    def x(score: float) -> str:
        return f"{_LEFT + _SIDE * score / top:.1f}"

    def y(share: float) -> str:
        return f"{_TOP + _SIDE * (1 - share / top):.1f}"

    marks = "".join(
        f'<path d="M{x(score)} {y(low)}V{y(high)}" stroke="#4f6bed"/>'
        f'<circle cx="{x(score)}" cy="{y(share)}" r="3.5" fill="#4f6bed"/>'
        for score, share, low, high in points
    )
    line = " ".join(f"{x(score)},{y(share)}" for score, share, _, _ in points)
    ticks = "".join(
        f'<text x="{_LEFT + _SIDE * part}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{top * part:.2f}</text>'
        f'<text x="{_LEFT - 6}" y="{_TOP + _SIDE * (1 - part) + 4}" text-anchor="end">{top * part:.2f}</text>'
        for part in (0, 0.5, 1)
    )
    chart = (
        f'<g font-size="12" fill="#6b7280">'
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#e5e7eb"/>'
        f'<path d="M{x(0)} {y(0)}L{x(top)} {y(top)}" stroke="#6b7280" stroke-dasharray="5 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#4f6bed" stroke-width="1.5"/>{marks}{ticks}'
        f'<text x="{_LEFT + _SIDE / 2}" y="{_TOP + _SIDE + 32}" text-anchor="middle">mean score</text>'
        f'<text x="{_LEFT}" y="{_TOP - 6}">share that churned</text></g>'
    )
    return _svg(_LEFT + _SIDE + 24, _TOP + _SIDE + 40, title, about, [chart])


def _text(text: str) -> str:
    """Return a text as SVG shows it; XML allows no control characters, not even escaped."""
    return escape(printable(text))


def _svg(width: int, height: int, title: str, about: str, marks: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
            f'font-size="13" fill="#222"><rect width="100%" height="100%" fill="white"/>'
            f'<text x="8" y="18" font-weight="bold">{_text(title)}</text>'
            f'<text x="8" y="36" font-size="12" fill="#6b7280">{_text(about)}</text>',
            *marks,
            "</svg>",
        ]
    )
