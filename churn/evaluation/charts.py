"""Small charts as SVG text, drawn in microseconds, so that every variant of a fleet can have them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from churn.evaluation.metrics import wilson_interval
from churn.wording import printable

_ROW, _LABELS, _BARS, _FIGURES = 24, 170, 300, 60
_MOST = 20
_LEFT, _TOP, _SIDE = 48, 62, 260
_THIN, _MOST_BINS, _LABEL_LENGTH = 14, 12, 24


@dataclass(frozen=True)
class Distribution:
    """Row counts of a feature in the same bins, of a reference and of a batch."""

    name: str
    labels: Sequence[str]
    reference: Sequence[int]
    batch: Sequence[int]


def draw_importance(importance: Mapping[str, float], title: str) -> str:
    """Draw the mean absolute contribution of each feature as bars, the largest first; at most 20.

    Args:
        importance: Log-odds by feature, in falling order.
    """
    shown = list(importance.items())[:_MOST]
    longest = max([size for _, size in shown], default=0) or 1
    bars = []
    for i, (feature, size) in enumerate(shown, start=1):
        top, length = _ROW * i + 4, max(_BARS * size / longest, 1)
        bars.append(
            f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end">{_text(feature)}</text>'
            f'<rect x="{_LABELS}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 8}" fill="#4f6bed"/>'
            f'<text x="{_LABELS + length + 6:.1f}" y="{top + 15}">{size:.3f}</text>'
        )
    return _svg(_LABELS + _BARS + _FIGURES, _ROW * (len(shown) + 1) + 8, title, "", bars)


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


def draw_distributions(features: Sequence[Distribution], title: str) -> str:
    """Draw the share of rows per bin, the reference's above the batch's; of many bins those that differ most."""
    lines, top = [], 2 * _ROW + 8
    for feature in features:
        names, *shares = zip(*_most_different(feature), strict=True) if feature.labels else ((), (), ())
        longest = max([*shares[0], *shares[1]], default=0) or 1
        lines.append(f'<text x="8" y="{top + 2}" font-weight="bold">{_text(feature.name)}</text>')
        before, now = (
            "".join(
                f"M{_LABELS} {top + 10 + _THIN * i + offset}h{_BARS * share / longest:.1f}v5H{_LABELS}z"
                for i, share in enumerate(side)
            )
            for offset, side in zip((0, 5), shares, strict=True)
        )
        labels = "".join(
            f'<tspan x="{_LABELS - 8}" y="{top + 19 + _THIN * i}">{_text(name[:_LABEL_LENGTH])}</tspan>'
            for i, name in enumerate(names)
        )
        lines.append(
            f'<path d="{before}" fill="#c4c9d4"/><path d="{now}" fill="#4f6bed"/>'
            f'<text text-anchor="end" font-size="11">{labels}</text>'
        )
        top += _THIN * len(names) + 2 * _ROW
    about = "grey: the reference; blue: this batch"
    return _svg(_LABELS + _BARS + 16, top - _ROW, title, about, lines)


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


def _most_different(feature: Distribution) -> list[tuple[str, float, float]]:
    """Return label and shares of the bins to draw, in order; the others follow as one."""
    totals = [sum(counts) or 1 for counts in (feature.reference, feature.batch)]
    shares = [
        (label, before / totals[0], now / totals[1])
        for label, before, now in zip(feature.labels, feature.reference, feature.batch, strict=True)
    ]
    by_difference = sorted(range(len(shares)), key=lambda i: -abs(shares[i][1] - shares[i][2]))
    drawn = set(by_difference[:_MOST_BINS] if len(shares) > _MOST_BINS + 1 else by_difference)
    rest = [share for i, share in enumerate(shares) if i not in drawn]
    others = [("all others", sum(one[1] for one in rest), sum(one[2] for one in rest))] if rest else []
    return [share for i, share in enumerate(shares) if i in drawn] + others
