"""The two comparison tables: figures with their intervals, what each method is, and who wins which column."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from flows.evaluation.cells import Cell, Rows
from pipeline.intervals import Figure, figure
from pipeline.methods.contract import About

NOTHING = Figure(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Line:
    """One method in the tables. Seconds are of this machine; passes count products and backward passes as one each.

    `transfer` moves each edit to the other image's region first where the method can, `transfer_as_is` does not;
    both over images whose masks overlap by half. `perfect` is what an editor that moves the true factor of the edit at
    home, and nothing else, would score on the same pairs.
    """

    name: str
    about: About
    settings: Mapping[str, Any]
    images: int
    edits: int
    refused: int
    success: Figure
    roir: Figure
    own_move: Figure
    other_move: Figure
    ssim: Figure
    psnr: Figure
    lpips: Figure
    identity: Figure
    kid: Figure
    transfer: Figure
    transfer_as_is: Figure
    perfect: Figure
    limited: int
    learn_seconds: float
    find_seconds: float
    find_passes: float
    edit_seconds: float
    failures: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """Every figure by name, for files."""
        from flows.evaluation.cells import plain

        whole: dict[str, Any] = plain(self)
        return whole


@dataclass(frozen=True)
class Column:
    """One column that methods can win: its title, the figure, and whether more is better."""

    title: str
    name: str
    more: bool
    digits: int = 2


FIRST = (
    Column("local edit success", "success", True),
    Column("transfer success", "transfer", True),
    Column("LPIPS (AlexNet) outside", "lpips", False, 3),
    Column("SSIM outside", "ssim", True, 3),
)
SECOND = (
    Column("ROIR, median", "roir", False),
    Column("own attribute moved", "own_move", True),
    Column("largest other moved", "other_move", False),
    Column("identity kept (ArcFace)", "identity", True, 3),
    Column("PSNR outside, dB", "psnr", True, 1),
    Column("KID (Inception)", "kid", False, 4),
)


def line(
    name: str, about: About, settings: Mapping[str, Any], images: int, learn_seconds: float, cells: Sequence[Cell]
) -> Line:
    """A method's figures over the rows of its cells; NaN where nothing was measured."""
    rows = [row for cell in cells for row in cell.rows]
    home = [row for row in rows if row["kind"] == "home"]
    tried = [row for row in home if "strength" in row]
    finds = [row for row in rows if row["kind"] == "cost" and row["what"] == "find"]
    edits = [row["seconds"] for row in rows if row["kind"] == "cost" and row["what"] == "edit"]
    moved = [row for row in rows if row["kind"] == "transfer" and row["moved"]]
    as_is = [row for row in rows if row["kind"] == "transfer" and not row["moved"]]
    found = max(1, sum(row["edits"] for row in finds))
    passes = sum(row["passes"] + row["jvp"] + row["vjp"] + row["backward"] for row in finds)
    failures: dict[str, int] = {}
    for row in home:
        if row.get("failure"):
            failures[row["failure"]] = failures.get(row["failure"], 0) + 1
    return Line(
        name=name,
        about=about,
        settings=settings,
        images=images,
        edits=len(home),
        refused=len(home) - len(tried),
        success=over(home, "success", "mean"),
        roir=over(home, "roir"),
        own_move=over(tried, "move", absolute=True),
        other_move=over(tried, "other_move", absolute=True),
        ssim=over(tried, "ssim"),
        psnr=over(tried, "psnr"),
        lpips=over(tried, "lpips"),
        identity=over(tried, "identity"),
        kid=_kid(tried, finds),
        transfer=over(moved, "success", "mean"),
        transfer_as_is=over(as_is, "success", "mean"),
        perfect=over(moved, "perfect", "mean"),
        limited=sum(bool(row["limited"]) for row in tried),
        learn_seconds=learn_seconds,
        find_seconds=sum(row["seconds"] for row in finds) / found,
        find_passes=passes / found,
        edit_seconds=median(edits) if edits else math.nan,
        failures=failures,
    )


def _kid(edited: Rows, originals: Rows) -> Figure:
    """KID of the edited pictures against the originals, with its interval by the standard error; NaN without features,
    or of fewer than three pictures."""
    from pipeline.perception.distributions import kernel_distance

    sets = [[row["features"] for row in rows if "features" in row] for rows in (edited, originals)]
    if min(map(len, sets)) < 3:
        return NOTHING
    packed = (np.stack([np.frombuffer(base64.b64decode(text), dtype="<f4") for text in texts]) for texts in sets)
    found = kernel_distance(*(torch.from_numpy(features) for features in packed))
    edge = 1.96 * found.standard_error
    return Figure(found.value, found.value - edge, found.value + edge, len(sets[0]))


def over(rows: Rows, name: str, statistic: str = "median", *, absolute: bool = False) -> Figure:
    """A figure over rows that have it, with its interval by bootstrap over images; NaN over none."""
    own = [row for row in rows if row.get(name) is not None]
    values = [abs(float(row[name])) if absolute else float(row[name]) for row in own]
    if not values:
        return NOTHING
    return figure(values, [row["image"] for row in own], "mean" if statistic == "mean" else "median")


def shown(value: Figure, digits: int = 2) -> str:
    """A figure with its interval as people read it; "-" where nothing was measured."""
    if value.count == 0 or math.isnan(value.estimate):
        return "-"
    return f"{value.estimate:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def winners(lines: Sequence[Line], columns: Sequence[Column] = FIRST + SECOND) -> dict[str, list[str]]:
    """By column title: the best method, and those whose intervals reach its estimate; columns of nothing left out."""
    found: dict[str, list[str]] = {}
    for column in columns:
        have = [(each, getattr(each, column.name)) for each in lines]
        have = [(each, value) for each, value in have if value.count and not math.isnan(value.estimate)]
        if not have:
            continue
        best = (max if column.more else min)(have, key=lambda pair: pair[1].estimate)
        bar = best[1].estimate
        close = [e.name for e, v in have if e is not best[0] and (v.high >= bar if column.more else v.low <= bar)]
        found[column.title] = [best[0].name, *close]
    return found


def remarks(lines: Sequence[Line], ours: Sequence[str] = ("loco", "individual")) -> list[str]:
    """What the tables say in sentences: where a rival wins a column, and with what else in its line; and how far any
    method can be expected to transfer."""
    by_name = {each.name: each for each in lines}
    said = []
    for title, names in winners(lines).items():
        if names[0] in ours:
            continue
        column = next(c for c in FIRST + SECOND if c.title == title)
        winner = by_name[names[0]]
        text = (
            f"{title}: {winner.about.title} has the best figure, {shown(getattr(winner, column.name), column.digits)}"
        )
        mine = [f"{n} {shown(getattr(by_name[n], column.name), column.digits)}" for n in ours if n in by_name]
        text += f" ({', '.join(mine)})." if mine else "."
        said.append(text + why(winner))
    loco = by_name.get("loco")
    if loco is not None and loco.transfer.count and loco.perfect.count:
        said.append(
            f"Transfer success: {loco.about.title} has {shown(loco.transfer)}. An editor that moves the true attribute "
            f"of the same edits, and nothing else, has {shown(loco.perfect)} on the same pairs: many a face has no "
            "room left for the change that was made at home."
        )
    return said


def why(winner: Line) -> str:
    """What else is true of a line that wins a column, which may explain it; nothing where there is nothing."""
    reasons = []
    if winner.edits and winner.limited + winner.refused > 0.2 * winner.edits:
        reasons.append(f"{winner.limited + winner.refused} of its {winner.edits} edits never became visible")
    if winner.success.count and winner.success.estimate < 0.5:
        most = max(winner.failures.items(), key=lambda pair: pair[1], default=("", 0))
        reasons.append(f"{winner.success.estimate:.0%} of its edits succeed (most fail: {most[0]})")
    if winner.about.supervision != "none":
        learned = f" and learns from {winner.images} images" if winner.images > 1 else ""
        reasons.append(f"it is told the attribute ({winner.about.supervision}){learned}")
    return f" Its line: {'; '.join(reasons)}." if reasons else ""


def markdown(lines: Sequence[Line]) -> str:
    """Both tables as Markdown, best figures bold, with what each method is and costs."""
    best = {title: names[0] for title, names in winners(lines).items()}

    def cells(each: Line, columns: Sequence[Column]) -> list[str]:
        made = []
        for column in columns:
            text = shown(getattr(each, column.name), column.digits)
            if column.name == "transfer" and not each.about.transfers:
                text = "cannot"
            made.append(f"**{text}**" if best.get(column.title) == each.name else text)
        return made

    first = ["method", *(c.title for c in FIRST), "images", "learning, s", "finding, s", "edit, s", "one step",
             "supervision", "theory", "localised"]  # fmt: skip
    second = ["method", *(c.title for c in SECOND), "passes to find", "refused", "at limit", "transfer as it is",
              "a perfect editor"]  # fmt: skip
    yes = {True: "yes", False: "no"}
    rows = [
        [e.about.title, *cells(e, FIRST), str(e.images), f"{e.learn_seconds:.0f}", f"{e.find_seconds:.2f}",
         f"{e.edit_seconds:.2f}", yes[e.about.one_step], e.about.supervision, yes[e.about.theory],
         yes[e.about.localised]]
        for e in lines
    ]  # fmt: skip
    more = [
        [e.about.title, *cells(e, SECOND), f"{e.find_passes:.0f}", str(e.refused), str(e.limited),
         shown(e.transfer_as_is), shown(e.perfect)]
        for e in lines
    ]  # fmt: skip
    return "\n\n".join((_table(first, rows), _table(second, more))) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(_cell(text) for text in row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _cell(text: str) -> str:
    """A text within a row: a bar would end its cell, a line break the row."""
    return " ".join(text.replace("|", "\\|").split())


def targets(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The bars: name, value, target in words, met; of methods that were measured."""
    by_name = {each.name: each for each in lines}
    found: list[dict[str, Any]] = []

    def add(name: str, value: float, bar: float, more: bool) -> None:
        if not math.isnan(value):
            met = value >= bar if more else value <= bar
            found.append({"name": name, "value": value, "target": f"{'>=' if more else '<='} {bar:g}", "met": met})

    if (loco := by_name.get("loco")) is not None:
        add("LOCO: local edit success", loco.success.estimate, 0.90, True)
        add("LOCO: transfer success, mask IoU >= 0.5", loco.transfer.estimate, 0.95, True)
        add("LOCO: median ROIR", loco.roir.estimate, 0.5, False)
    if (individual := by_name.get("individual")) is not None and (plain := by_name.get("h-masked")) is not None:
        ratio = individual.roir.estimate / plain.roir.estimate if plain.roir.estimate else math.nan
        add("individual: median ROIR over that of the masked h-space SVD", ratio, 2 / 3, False)
    return found
