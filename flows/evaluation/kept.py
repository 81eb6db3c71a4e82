"""What earlier calls have left in an evaluation's folder: figures with their rows, and the comparison last asked for.

Each names what it is of. What is of another model, recipe or images is told apart, and what is damaged is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flows.evaluation.cells import VERSION, Cell, Cells, Rows, digest, write
from flows.evaluation.comparison import FULL, Size
from flows.evaluation.world import World, shipped_folder
from flows.plain import plain

_MOST = 10**9  # images
_NUMBERS = {text: float(text) for text in ("inf", "-inf", "nan")}


class MissingCellError(Exception):
    """A cell that would have to be measured."""


class ReadCells(Cells):
    """The cells of a world that are read and never measured: `get` raises MissingCellError."""

    def __init__(self, world: World) -> None:
        super().__init__(world.folder / "cells", also=[shipped_folder() / "cells"])

    def get(self, experiment: str, key: Mapping[str, Any], make: Callable[[], Rows]) -> Cell:
        def refuse() -> Rows:
            raise MissingCellError(experiment)

        return super().get(experiment, key, refuse)


@dataclass(frozen=True)
class Asked:
    """The comparison that was last asked for: its methods in their order, and how much was measured of each."""

    methods: tuple[str, ...]
    size: Size


@dataclass(frozen=True)
class KeptFigure:
    """A figure's rows, and whether few images and points were asked for."""

    rows: Rows
    quick: bool


def identity(world: World) -> dict[str, Any]:
    """What figures and comparisons of one folder must share: the recipe's content but for its name, the model, what
    reads attributes, and the first held-out image, as a recipe names places in which other images may lie.

    Raises:
        InputError: no held-out image.
    """
    return {"recipe": world.recipe.fingerprint(), "version": VERSION, **world.key(world.up_to("holdout", 1))}


def held_out(world: World, count: int) -> dict[str, Any]:
    """What a figure is of besides: as many held-out images as were asked for until it was measured, and their masks."""
    return {"count": count, "key": digest(world.key(world.up_to("holdout", count)))}


class Kept:
    """The files of one folder that are `of` one model, recipe and images. `held_out`: what a figure of so many held-out
    images is of besides; see the function."""

    def __init__(
        self,
        folder: Path,
        of: Mapping[str, Any],
        held_out: Callable[[int], Mapping[str, Any]] = lambda count: {"count": count},
    ) -> None:
        self.folder, self._of, self._held_out = folder, dict(of), held_out

    def others(self) -> list[str]:
        """Files that are of another model, recipe or images."""
        paths = [self._comparison, *sorted((self.folder / "figures").glob("*.json"))]
        found = {path: _read(path) for path in paths}
        return [str(path.relative_to(self.folder)) for path, own in found.items() if own and not self._ours(own)]

    def comparison(self) -> Asked | None:
        """The comparison last asked for; None where there is none, or nobody could have asked for it."""
        content = _read(self._comparison)
        if content is None or not self._ours(content):
            return None
        size, methods = content.get("size"), content.get("methods")
        kinds = {f.name: type(getattr(FULL, f.name)) for f in fields(Size)}
        if not isinstance(size, dict) or {name: type(value) for name, value in size.items()} != kinds:
            return None
        if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
            return None
        asked = Size(**size)
        sound = 1 <= asked.chunk <= asked.images <= _MOST and 0 <= asked.choosing <= _MOST and asked.others >= 0
        return Asked(tuple(methods), asked) if sound else None

    def keep_comparison(self, asked: Asked) -> None:
        content = {"of": self._of, "size": asdict(asked.size), "methods": list(asked.methods)}
        write(self._comparison, json.dumps(strict(content), indent=1) + "\n")

    def figure(self, name: str) -> KeptFigure | None:
        """A figure that was measured here; None where it was not."""
        content = _read(self._figure(name))
        if content is None or not self._ours(content):
            return None
        rows, quick = content.get("rows"), content["of"].get("quick")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not isinstance(quick, bool):
            return None
        return KeptFigure(_numbers(rows), quick)

    def keep_figure(self, name: str, figure: KeptFigure, count: int = 1) -> None:
        """`count`: how many held-out images it was measured on, or more."""
        of = {**self._of, "quick": figure.quick, "held_out": self._held_out(count)}
        content = {"of": of, "rows": figure.rows}
        write(self._figure(name), json.dumps(strict(content, nan="nan"), indent=1) + "\n")

    @property
    def _comparison(self) -> Path:
        return self.folder / "comparison.json"

    def _figure(self, name: str) -> Path:
        return self.folder / "figures" / f"{name}.json"

    def _ours(self, content: Mapping[str, Any]) -> bool:
        own = {name: value for name, value in content["of"].items() if name not in ("quick", "held_out")}
        if own != strict(self._of):
            return False
        if "quick" not in content["of"]:  # a comparison, whose cells say what they are of
            return True
        told = content["of"].get("held_out")
        count = told.get("count") if isinstance(told, dict) else None
        return type(count) is int and 1 <= count <= _MOST and told == strict(self._held_out(count))


def strict(value: Any, nan: str | None = None) -> Any:
    """`value` as strict JSON that tells infinity from nothing: "inf" and "-inf", and `nan` for what is no number."""
    return plain(value, lambda number: nan if math.isnan(number) else str(number))


def _numbers(value: Any) -> Any:
    """What `strict` has written, with its numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _read(path: Path) -> dict[str, Any] | None:
    """A file that says what it is of; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("of"), dict) else None
