"""Small charts as inline SVG: the singular spectrum and the locality bars. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flows.report.markup import Markup, join, tag
from flows.report.page import number

_WIDTH = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 8, 40
_PLOT = 170
_TICKS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_LEGEND = 18


def _usable(series: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The series with something to draw: finite positive values, strongest first."""
    kept = {
        name: sorted((v for v in values if math.isfinite(v) and v > 0), reverse=True) for name, values in series.items()
    }
    return {name: values for name, values in kept.items() if values}


def _clipped(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _text(x: float, y: float, content: str, anchor: str = "start", class_: str = "tick") -> Markup:
    return tag("text", content, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=class_)


class _Axes:
    """Rank (from 1) to x, and sigma / sigma_1 to y: logarithmic once the last value is under a twentieth."""

    def __init__(self, ranks: int, smallest: float) -> None:
        self.ranks = max(ranks, 2)
        self.log = smallest < 0.05
        self.floor = max(smallest, 1e-3) if self.log else 0.0

    def x(self, rank: int) -> float:
        return _LEFT + 6 + (rank - 1) / (self.ranks - 1) * (_WIDTH - _LEFT - _RIGHT - 12)

    def y(self, share: float) -> float:
        if self.log:
            depth = math.log(max(share, self.floor)) / math.log(self.floor)
            return _TOP + depth * _PLOT
        return _TOP + (1.0 - share) * _PLOT

    def frame(self) -> Markup:
        shares = [t for t in _TICKS if t >= self.floor] if self.log else [1.0, 0.75, 0.5, 0.25, 0.0]
        parts = []
        for share in shares:
            parts.append(_line(_LEFT, self.y(share), _WIDTH - _RIGHT, self.y(share), "rule"))
            parts.append(_text(_LEFT - 6, self.y(share) + 4, f"{share:g}", "end"))
        step = max(1, math.ceil(self.ranks / 10))
        for rank in [1, *range(1 + step, self.ranks + 1, step)]:
            parts.append(_text(self.x(rank), _TOP + _PLOT + 17, str(rank), "middle"))
        scale = "log scale" if self.log else "linear scale"
        parts.append(_text((_LEFT + _WIDTH) / 2, _TOP + _PLOT + 35, "rank of the direction (1 = strongest)", "middle"))
        middle = _TOP + _PLOT / 2
        turned = f"rotate(-90 12 {middle:g})"
        parts.append(
            tag(
                "text",
                f"\N{GREEK SMALL LETTER SIGMA} / \N{GREEK SMALL LETTER SIGMA}₁, {scale}",
                x="12",
                y=f"{middle:g}",
                text_anchor="middle",
                class_="tick",
                transform=turned,
            )
        )
        return join(*parts)


def spectrum(series: Mapping[str, Sequence[float]]) -> Markup:
    """Singular values relative to each operator's largest, against rank, one line per operator.

    x- and h-space values carry different units, so only their decay can be compared; sigma_1 stands in the legend.
    Values that are not finite and positive are left out; without any, a sentence says so.
    """
    usable = _usable(series)
    if not usable:
        return tag("p", "No singular values were stored for this region.", class_="none")
    axes = _Axes(max(len(v) for v in usable.values()), min(v[-1] / v[0] for v in usable.values()))
    height = _TOP + _PLOT + _BOTTOM + _LEGEND * len(usable) + 4
    parts = [axes.frame()]
    for index, (name, values) in enumerate(usable.items()):
        style = f"s{index % 4}"
        points = [(axes.x(rank), axes.y(value / values[0])) for rank, value in enumerate(values, start=1)]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=f"curve {style}"))
        parts += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.6", class_=f"dot {style}") for x, y in points]
        y = _TOP + _PLOT + _BOTTOM + _LEGEND * index + 12
        parts.append(_line(_LEFT, y - 4, _LEFT + 26, y - 4, f"curve {style}"))
        parts.append(_text(_LEFT + 34, y, f"{_clipped(name, 24)}   (σ₁ = {number(values[0])})"))
    spoken = "; ".join(
        f"{name}: {len(v)} values, the last {v[-1] / v[0]:.2g} of the first" for name, v in usable.items()
    )
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {height}",
        role="img",
        class_="chart",
        aria_label=f"Singular values against rank. {spoken}.",
    )


def _names(label: str) -> tuple[str, str]:
    """What the two bars of a locality pair compare."""
    if label.strip().lower().startswith("h"):
        return "plain SVD of the region", "individual component (JIVE)"
    return "without null-space projection", "with null-space projection"


def locality(pairs: Sequence[tuple[str, float, float]]) -> Markup:
    """Median ROIR before and after the step that makes directions local, as a pair of bars per label.

    The rule at 1 marks as much change outside the region as inside; shorter bars are more local.
    """
    if not pairs:
        return tag("p", "Locality was not measured for this region.", class_="none")
    finite = [v for _, *both in pairs for v in both if math.isfinite(v)]
    # A far outlier may leave the frame (its number stays readable); it must not flatten all other bars.
    top = min(max([1.25, *finite]), 4.0)
    plot = _WIDTH - 20 - 60
    parts, y = [], 0
    for label, before, after in pairs:
        parts.append(_text(20, y + 16, _clipped(label, 42), class_="bar-title"))
        y += 24
        for name, value, style in zip(_names(label), (before, after), ("before", "after"), strict=True):
            parts.append(_text(20, y + 11, name))
            if math.isfinite(value):
                width = max(2.0, min(value, top) / top * plot)
                size = {"x": "20", "y": f"{y + 16}", "width": f"{width:.1f}", "height": "11"}
                parts.append(tag("rect", **size, class_=f"bar {style}"))
                parts.append(_text(26 + width, y + 26, number(value), class_="value"))
            else:
                parts.append(_text(20, y + 26, "not measured", class_="value"))
            y += 34
        y += 6
    one = 20 + plot / top
    parts.insert(0, _line(one, 20, one, y, "limit"))  # first, so that words and bars lie over it
    parts.append(_text(one, y + 14, "1 = as much outside as inside", "middle" if one < _WIDTH - 110 else "end"))
    spoken = "; ".join(
        f"{label}: {number(b)} {_names(label)[0]}, {number(a)} {_names(label)[1]}" for label, b, a in pairs
    )
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {y + 24}",
        role="img",
        class_="chart",
        aria_label=f"Median ROIR, smaller is more local. {spoken}.",
    )
