"""Cells: what an evaluation has measured already, by what it depends on. A rerun measures only what is missing.

A cell is one JSON file of rows, written whole or not at all, and named by a digest of its key: the experiment, the
model, images and settings, and `VERSION`, which is raised when the same key gives other numbers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.files import write_whole
from flows.plain import plain

VERSION = 1

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """What one cell holds: its key, its rows, and what they cost. `machine`: where its seconds were measured, as people
    read it; empty where nobody knows."""

    key: dict[str, Any]
    rows: Rows
    seconds: float
    passes: int
    machine: str = ""


class Cells:
    """The cells of one evaluation, in `folder`. `passes` tells how many network passes were made so far; cells that lie
    in `also` are taken from there. `machine`: what `Cell.machine` says of those that are measured now."""

    def __init__(
        self,
        folder: Path,
        passes: Callable[[], int] = lambda: 0,
        also: Sequence[Path] = (),
        machine: str = "",
    ) -> None:
        self.folder, self._passes, self._also, self._machine = folder, passes, also, machine

    def get(self, experiment: str, key: Mapping[str, Any], make: Callable[[], Rows]) -> Cell:
        """The cell of this key, measured now unless it is there; rows are of plain values, NaN and infinity included.

        A file that is damaged, or of another key, counts as missing.
        """
        found = self.find(experiment, key)
        if found is not None:
            return found
        whole = _whole(experiment, key)
        begun, before = time.monotonic(), self._passes()
        rows = plain(make(), float)
        content = {"key": whole, "rows": rows, "seconds": time.monotonic() - begun, "passes": self._passes() - before}
        content["machine"] = self._machine
        write(self._path(self.folder, experiment, whole), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return Cell(**content)

    def find(self, experiment: str, key: Mapping[str, Any]) -> Cell | None:
        """The cell of this key; None where it is missing."""
        whole = _whole(experiment, key)
        read = (_read(self._path(place, experiment, whole), whole) for place in (self.folder, *self._also))
        return next((cell for cell in read if cell is not None), None)

    def has(self, experiment: str, key: Mapping[str, Any]) -> bool:
        """Whether the cell is there and sound."""
        return self.find(experiment, key) is not None

    @staticmethod
    def _path(place: Path, experiment: str, whole: Mapping[str, Any]) -> Path:
        return place / experiment / f"{digest(whole)}.json"


def cell_name(experiment: str, key: Mapping[str, Any]) -> str:
    """The digest that names the cell of a key, and whatever else belongs to it alone."""
    return digest(_whole(experiment, key))


def _whole(experiment: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """A key with all that it leaves unsaid, in what JSON has."""
    whole: dict[str, Any] = plain({"experiment": experiment, "version": VERSION, **key}, float)
    return whole


def digest(key: Any) -> str:
    """24 hex digits of a key's plain form."""
    return hashlib.sha256(json.dumps(plain(key, float), sort_keys=True).encode()).hexdigest()[:24]


def write(path: Path, content: str | bytes) -> None:
    """`write_whole` into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.encode() if isinstance(content, str) else content)


def _read(path: Path, whole: Mapping[str, Any]) -> Cell | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cell = Cell(
            **{name: content[name] for name in ("key", "rows", "seconds", "passes")},
            machine=str(content.get("machine", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return cell if cell.key == whole and isinstance(cell.rows, list) else None
