"""Rows to curves and sentences: statistics over images with their intervals, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from flows.evaluation.cells import Rows
from pipeline.intervals import Figure, figure

Value = str | Callable[[Mapping[str, Any]], float | None]  # a column, or what to make of a row: None, nothing
Kind = Literal["median", "mean"]
Curve = list[tuple[float, float, float, float]]


def statistic(rows: Rows, value: Value, kind: Kind = "median") -> Figure:
    """A value's median or mean over rows, with its interval over their images; rows without it do not count."""
    found = [(row["image"], row[value] if isinstance(value, str) else value(row)) for row in rows]
    known = [(image, float(one)) for image, one in found if one is not None]
    return figure([one for _, one in known], [image for image, _ in known], kind)


def curve(rows: Rows, x: str, value: Value, kind: Kind = "median") -> Curve:
    """Points (x, estimate, low, high) for each number in column `x`."""
    points = []
    for at in sorted({row[x] for row in rows}):
        found = statistic([row for row in rows if row[x] == at], value, kind)
        points.append((float(at), found.estimate, found.low, found.high))
    return points


def of(rows: Rows, **equals: Any) -> Rows:
    """Rows whose columns have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in equals.items())]


def names(rows: Rows, column: str) -> list[Any]:
    """The values of a column, each once, in the order of the rows; rows without it are left out."""
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def written(found: Figure) -> str:
    """0.42 (0.35 to 0.51), and without an interval where there is none, as of one image."""
    text = f"{found.estimate:.2f}"
    return text if found.low == found.high else f"{text} ({found.low:.2f} to {found.high:.2f})"


def listed(parts: Iterable[str]) -> str:
    """a, b and c"""
    items = list(parts)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def omissions(rows: Rows) -> list[str]:
    """Sentences on what was left out, and those that rows bring with them."""
    left = [f"Left out: {row['what']}, for {row['why']}." for row in rows if row.get("kind") == "left out"]
    return left + [row["text"] for row in rows if row.get("kind") == "note"]


def measured(rows: Rows) -> Rows:
    """Rows of measurements: those that only say something are no longer among them."""
    return [row for row in rows if row.get("kind") not in ("left out", "note")]


def succeeded(row: Mapping[str, Any]) -> float | None:
    """1 for a success, 0 for a failure, None where nothing reads the region's attributes."""
    return float(bool(row["success"])) if row.get("success") is not None else None


def size(name: str) -> Value:
    """The magnitude of a column, 0 for an edit that was refused, as it changes nothing; None where nothing is read."""

    def of_row(row: Mapping[str, Any]) -> float | None:
        if name in row:
            return float(abs(row[name]))
        return 0.0 if "success" in row else None

    return of_row


def success_told(rows: Rows) -> str:
    """What share of rows succeeds, as part of a sentence, and of how many where not all are read."""
    share = statistic(rows, succeeded, "mean")
    few = f" of the {share.count} whose attributes are read" if share.count < len(rows) else ""
    return f"{written(share)}{few} succeed"


def are_read(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether attributes were read in any of these rows."""
    return any("move" in row for row in rows)
