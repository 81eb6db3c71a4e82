"""How plots look: legible in print and to the colour-blind, for every line differs in colour, marker and dashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's eight, told apart under every common deficiency of colour vision; black first.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
WIDTH, HEIGHT = 3.4, 2.6  # inches of one panel: a column of a printed page
SIZE = 8  # points of all text
PER_PANEL = len(COLOURS)  # lines told apart in one panel


def panels(count: int, *, columns: int = 3, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, at most `columns` a row."""
    across = max(1, min(count, columns))
    down = -(-count // across)
    figure = Figure(figsize=(WIDTH * across, height * down), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(down, across, i + 1) for i in range(count)]
    for ax in axes:
        ax.tick_params(labelsize=SIZE)
        ax.grid(visible=True, linewidth=0.3, color="#bbbbbb")
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str) -> None:
    """Title and axis names, units included."""
    ax.set_title(title, fontsize=SIZE + 1)
    ax.set_xlabel(x, fontsize=SIZE)
    ax.set_ylabel(y, fontsize=SIZE)


def split(names: Sequence[str], most: int = PER_PANEL) -> list[Sequence[str]]:
    """The names of lines by panel, at most so many each and about as many in all of them."""
    count = -(-len(names) // most)
    each = -(-len(names) // max(1, count))
    return [names[i * each : (i + 1) * each] for i in range(count)]


def lines(
    ax: Axes,
    series: Mapping[str, Sequence[tuple[float, float]] | Sequence[tuple[float, float, float, float]]],
) -> None:
    """Lines by name, of points (x, y) or (x, y, low, high): intervals become bands. Points that are not finite are left
    out; where none is left, the axes say so."""
    if not any(np.isfinite(point[1]) for points in series.values() for point in points):
        text = "no finite value to draw:\nno edit was made, or none can be read"
        ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=SIZE, color="#555555")
        return
    for i, (name, points) in enumerate(series.items()):
        rows = np.array([point for point in points if np.isfinite(point[1])], dtype=float)
        if rows.size == 0:
            continue
        colour = COLOURS[i % len(COLOURS)]
        style = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
        ax.plot(rows[:, 0], rows[:, 1], label=name, linewidth=1.3, markersize=3.5, **style)
        if rows.shape[1] == 4:
            ax.fill_between(rows[:, 0], rows[:, 2], rows[:, 3], color=colour, alpha=0.12, linewidth=0)
    if len(series) > 1:
        ax.legend(fontsize=SIZE - 1, frameon=False)


def below(ax: Axes, columns: int = 2) -> None:
    """The legend under the axis names, where it hides no line."""
    handles, names = ax.get_legend_handles_labels()
    if len(handles) > 1:
        style = {"fontsize": SIZE - 1, "frameon": False, "handlelength": 3.0}
        ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, **style)


def logarithmic(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure) -> bytes:
    """The figure as PNG, without anything that changes from run to run."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save_vector(figure: Figure) -> bytes:
    """The figure as PDF, for print, without anything that changes from run to run."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"Creator": None, "Producer": None, "CreationDate": None})
    return buffer.getvalue()
