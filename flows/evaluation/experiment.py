"""What every figure of an evaluation is: rows that are measured cell by cell, a plot of them, and what they say.

A figure knows nothing of the others; `experiments.py` lists them. To add one, write a module with an `Experiment` and
add it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.evaluation.cells import Cells, Rows
from flows.evaluation.world import World

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Setup:
    """What an experiment is measured with. `quick` asks for a few images and points: minutes become seconds."""

    world: World
    cells: Cells
    quick: bool = False


@dataclass(frozen=True)
class Experiment:
    """One figure: `name` as users type it, `title` above it, `source` the papers' figure that it measures again, and
    what differs.

    `measure` returns rows of plain values, which cells keep, so that a stopped run goes on; `draw` makes the plots of
    them (file stem -> figure) and `conclude` says in sentences what they show, with numbers of these rows only.
    """

    name: str
    title: str
    source: str
    measure: Callable[[Setup], Rows]
    draw: Callable[[Rows], dict[str, Figure]]
    conclude: Callable[[Rows], list[str]]
