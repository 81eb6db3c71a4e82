"""Contact sheets: pictures in rows and columns with captions, drawn as plots so that all figures go one way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flows.evaluation.pictures import decoded
from flows.evaluation.plots import SIZE

CELL, LINE, EDGE = 1.15, 0.13, 0.95  # inches: a picture's side, a line of text under it, the names at the left


def same_heights(axes: Sequence[Axes]) -> None:
    """One range for all of them, so that panels can be compared."""
    ends = [end for ax in axes for end in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(ends), max(ends))


def sheet(
    pictures: Sequence[Sequence[str | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    captions: Sequence[Sequence[str]] = (),
    title: str = "",
) -> Figure:
    """Pictures as `pictures.encoded` gives them, None where there is none; names of rows and columns, captions under
    each picture."""
    down, across = len(pictures), max(len(row) for row in pictures)
    caption_lines = max((text.count("\n") + 1 for row in captions for text in row if text), default=0)
    height = CELL + LINE * caption_lines + 0.04
    head = (0.35 if any(columns) else 0.08) + (0.25 if title else 0.0)
    size = (EDGE + across * CELL, head + down * height)
    figure = Figure(figsize=size, dpi=150)
    FigureCanvasAgg(figure)
    for i, row in enumerate(pictures):
        for j, text in enumerate(row):
            left, bottom = EDGE + j * CELL, size[1] - head - i * height - CELL
            ax = figure.add_axes((left / size[0], bottom / size[1], 0.96 * CELL / size[0], 0.96 * CELL / size[1]))
            ax.set_xticks([]), ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if text is not None:
                ax.imshow(np.asarray(decoded(text)), interpolation="nearest")
            if j == 0:
                ax.set_ylabel(rows[i], fontsize=SIZE, rotation=0, ha="right", va="center", labelpad=6)
            if i == 0:
                ax.set_title(columns[j], fontsize=SIZE, pad=4)
            if captions and captions[i][j]:
                ax.set_xlabel(captions[i][j], fontsize=SIZE - 1.5, labelpad=2, linespacing=1.1)
    if title:
        figure.text(0.5, 1 - 0.06 / size[1], title, fontsize=SIZE + 1, ha="center", va="top")
    return figure
