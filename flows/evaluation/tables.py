"""The two comparison tables: figures with their intervals, what each method is, and who wins which column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from flows.evaluation.cells import Cell, Rows
from flows.evaluation.quality import kid
from pipeline.intervals import Figure, figure
from pipeline.methods.contract import About

NOTHING = Figure(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Line:
    """One method in the tables. Seconds are of `machines`, where they were measured, as people read it (empty: nobody
    knows); passes count products and backward passes as one each. What learning took is NaN where nobody knows.

    `transfer` moves each edit to the other image's region first where the method can, `transfer_as_is` does not;
    both over images whose masks overlap by half. `perfect` is what an editor that moves the true factor of the edit at
    home, and nothing else, would score on the same pairs. `limited` edits are still too weak at the largest strength
    allowed, `off_target` ones ended beside the visible change though they are not, at home and on other images.
    `reconstruction` is PSNR (dB) of the picture at strength 0 against the source.
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
    reconstruction: Figure
    regions: tuple[str, ...]
    limited: int
    off_target: int
    transfers_off_target: int
    learn_seconds: float
    find_seconds: float
    find_passes: float
    edit_seconds: float
    failures: Mapping[str, int]
    learn_passes: float = 0.0
    machines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """One column that methods can win: its title, the figure, and whether more is better.

    What may explain a good figure: `outside`, it is of what changes outside the mask; `weak`, an edit too weak to be
    seen does well in it; `told`, it is of attributes, which some methods are told; `made`, it is over the edits that
    were made, without those refused; `unedited`, it is of pictures without an edit.
    """

    title: str
    name: str
    more: bool
    digits: int = 2
    outside: bool = False
    weak: bool = False
    told: bool = False
    made: bool = True
    unedited: bool = False


FIRST = (
    Column("local edit success", "success", True, told=True, made=False),
    Column("transfer success", "transfer", True, told=True, made=False),
    Column("LPIPS (AlexNet) outside", "lpips", False, 3, outside=True, weak=True),
    Column("SSIM outside", "ssim", True, 3, outside=True, weak=True),
)
SECOND = (
    Column("ROIR, median", "roir", False, outside=True, made=False),
    Column("own attribute moved", "own_move", True, told=True),
    Column("largest other moved", "other_move", False, outside=True, weak=True),
    Column("identity kept (ArcFace)", "identity", True, 3, weak=True),
    Column("PSNR outside, dB", "psnr", True, 1, outside=True, weak=True),
    Column("KID (Inception)", "kid", False, 4, weak=True),
    Column("reconstruction, PSNR dB", "reconstruction", True, 1, outside=True, unedited=True),
)


def line(
    name: str,
    about: About,
    settings: Mapping[str, Any],
    images: int,
    learn_seconds: float,
    cells: Sequence[Cell],
    learn_passes: float = 0.0,
    learned_on: str | None = None,
) -> Line:
    """A method's figures over the rows of its cells; NaN where nothing was measured. An edit without a strength, or of
    strength 0, is none, so it counts as refused. `learned_on`: the machine on which it has learned, where it
    learns."""
    rows = [row for cell in cells for row in cell.rows]
    home = [row for row in rows if row["kind"] == "home"]
    tried = [row for row in home if row.get("strength")]
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
        about=_as_told(about, settings),
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
        kid=kid(tried, finds),
        transfer=over(moved, "success", "mean", crossed="target"),
        transfer_as_is=over(as_is, "success", "mean", crossed="target"),
        perfect=over(moved, "perfect", "mean", crossed="target"),
        reconstruction=over(home, "reference_psnr"),
        regions=tuple(dict.fromkeys(row["region"] for row in home)),
        limited=sum(bool(row["limited"]) for row in tried),
        off_target=_off_target(tried),
        transfers_off_target=_off_target([row for row in moved if "strength" in row]),
        learn_seconds=learn_seconds,
        find_seconds=sum(row["seconds"] for row in finds) / found,
        find_passes=passes / found,
        edit_seconds=median(edits) if edits else math.nan,
        failures=failures,
        learn_passes=learn_passes,
        machines=tuple(sorted({*(cell.machine for cell in cells), *([] if learned_on is None else [learned_on])})),
    )


def _as_told(about: About, settings: Mapping[str, Any]) -> About:
    """What a method is, with what told it the attribute here: CLIP where its goals are captions."""
    goals = settings.get("goals") or ()
    if about.supervision in ("none", "prompts") or not goals:
        return about
    captions = any(goal.get("source") for goal in goals)
    return replace(about, supervision="CLIP" if captions else "attribute reader")


def _off_target(rows: Rows) -> int:
    """Of edits that were made, those whose change is neither the visible one nor the largest allowed."""
    return sum(not row.get("reached", True) and not row.get("limited") for row in rows)


def over(
    rows: Rows, name: str, statistic: str = "median", *, absolute: bool = False, crossed: str | None = None
) -> Figure:
    """A figure over rows that have it, with its interval (`pipeline.intervals.figure`); NaN over none. `crossed`: the
    column of a second image that rows depend on."""
    own = [row for row in rows if row.get(name) is not None]
    values = [abs(float(row[name])) if absolute else float(row[name]) for row in own]
    if not values:
        return NOTHING
    second = None if crossed is None else [row[crossed] for row in own]
    return figure(values, [row["image"] for row in own], "mean" if statistic == "mean" else "median", crossed=second)


def measured_on(lines: Sequence[Line], here: str = "") -> str:
    """Whose seconds are of which machine; empty where all are of one, or of the one that is `here`."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for each in lines:
        groups.setdefault(each.machines, []).append(each.name)
    if len(groups) < 2 and (not here or set(groups) <= {(here,)}):
        return ""
    places = {key: " and ".join(one or "a machine that is not known" for one in key) for key in groups}
    if len(groups) == 1:
        return next(iter(places.values()))
    return "; ".join(f"{', '.join(names)}: {places[key]}" for key, names in groups.items())


def counted(value: float) -> str:
    """A cost as a whole number; "-" where nobody knows."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def shown(value: Figure, digits: int = 2) -> str:
    """A figure with its interval as people read it; "-" where nothing was measured."""
    if value.count == 0 or math.isnan(value.estimate):
        return "-"
    return f"{value.estimate:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


@dataclass(frozen=True)
class Winners:
    """Of one column: the methods that share its best figure, and those whose intervals reach it."""

    best: list[str]
    close: list[str]


def winners(lines: Sequence[Line], columns: Sequence[Column] = FIRST + SECOND) -> dict[str, Winners]:
    """By column title. Nobody wins a column of nothing: one without figures, one in which more is better and the best
    is 0, or less and the best infinite."""
    found: dict[str, Winners] = {}
    for column in columns:
        have = [(each.name, getattr(each, column.name)) for each in lines]
        have = [(name, value) for name, value in have if value.count and not math.isnan(value.estimate)]
        bar = (max if column.more else min)((value.estimate for _, value in have), default=math.nan)
        if math.isnan(bar) or (bar <= 0 if column.more else bar == math.inf):
            continue
        best = [name for name, value in have if value.estimate == bar]
        reach = [name for name, value in have if (value.high >= bar if column.more else value.low <= bar)]
        found[column.title] = Winners(best, [name for name in reach if name not in best])
    return found


def stars(lines: Sequence[Line], columns: Sequence[Column] = FIRST + SECOND) -> set[tuple[str, str]]:
    """The title of a column with the name of a method, for all that share its best figure."""
    return {(title, name) for title, won in winners(lines, columns).items() for name in won.best}


def remarks(lines: Sequence[Line], ours: Sequence[str] = ("loco", "individual")) -> list[str]:
    """What the tables say in sentences: where a rival wins or shares a column, and why if its line tells; and how far
    any method can be expected to transfer."""
    by_name = {each.name: each for each in lines}
    said = []
    columns = {column.title: column for column in FIRST + SECOND}
    for title, won in winners(lines).items():
        rivals = [by_name[name] for name in won.best if name not in ours]
        if rivals:
            here = [by_name[name] for name in ours if name in by_name]
            said.append(_won(columns[title], won, rivals, here))
    every = dict.fromkeys(region for each in lines for region in each.regions)
    for each in lines:
        untold = [region for region in every if region not in each.regions]
        if each.about.supervision != "none" and each.regions and untold:
            said.append(
                f"{each.about.title} is measured on {', '.join(each.regions)} alone: nothing tells it what to change "
                f"in {', '.join(untold)}."
            )
    loco = by_name.get("loco")
    if loco is not None and loco.transfer.count and loco.perfect.count:
        said.append(
            f"Transfer success: {loco.about.title} has {shown(loco.transfer)}. An editor that moves the true attribute "
            f"of the same edits, and nothing else, has {shown(loco.perfect)} on the same pairs: many a face has no "
            "room left for the change that was made at home."
        )
    return said


def _won(column: Column, won: Winners, rivals: Sequence[Line], ours: Sequence[Line]) -> str:
    """A remark on a column whose best figure `rivals` have, alone or with some of `ours`."""
    best = [each for each in (*ours, *rivals) if each.name in won.best]
    others = [each for each in ours if each.name not in won.best]
    mine = ", ".join(f"{each.name} {_shown(each, column)}" for each in others)
    if len(best) == 1:
        head = f"{best[0].about.title} has the best figure, {_shown(best[0], column)}"
    else:
        titles = " and ".join((", ".join(each.about.title for each in best[:-1]), best[-1].about.title))
        head = f"{titles} share the best figure, {getattr(best[0], column.name).estimate:.{column.digits}f}"
    near = [each.name for each in others if each.name in won.close]
    chance = f" The interval of {' and that of '.join(near)} reaches it, so it may be chance." if near else ""
    reasons = [(each, why(each, column)) for each in rivals]
    several = len(best) > 1
    told = [
        f" What may explain it{f' of {each.about.title}' if several else ''}: {'; '.join(own)}."
        for each, own in reasons
        if own
    ]
    silent = [each.about.title for each, own in reasons if not own and len(best) == len(rivals)]
    unknown = f" No reason is known for {' and '.join(silent)}." if silent else ""
    return f"{column.title}: {head}{f' ({mine})' if mine else ''}.{chance}{''.join(told)}{unknown}"


def _shown(each: Line, column: Column) -> str:
    return shown(getattr(each, column.name), column.digits)


def why(winner: Line, column: Column) -> list[str]:
    """What a method does, or what its line says, that explains a good figure in a column; empty where nothing does."""
    about, reasons = winner.about, []
    if column.outside and about.outside:
        return [about.outside]
    if column.unedited:
        return _reconstructing(winner.settings)
    if column.weak and winner.limited > 0.2 * winner.edits:
        reasons.append(f"{winner.limited} of its {winner.edits} edits stay too weak to be seen")
    if column.made and winner.refused > 0.2 * winner.edits:
        reasons.append(f"{winner.refused} of its {winner.edits} edits were refused and are not counted here")
    if column.name not in ("success", "transfer") and winner.success.count and winner.success.estimate < 0.5:
        failure = max(winner.failures.items(), key=lambda pair: pair[1], default=("", 0))[0]
        most = f" (most fail: {failure})" if failure else ""
        reasons.append(f"only {winner.success.estimate:.0%} of its edits succeed{most}")
    if column.told and about.supervision != "none":
        learned = f" and learns from {winner.images} images" if winner.images > 1 else ""
        by = "by the reader that judges it" if about.supervision == "attribute reader" else f"({about.supervision})"
        reasons.append(f"it is told the attribute {by}{learned}")
    return reasons


def _reconstructing(settings: Mapping[str, Any]) -> list[str]:
    """From where a method comes back, and in how many steps, where its settings say so."""
    names = ("timestep", "inversion_steps", "steps")
    if any(settings.get(name) is None for name in names):
        return []
    timestep, up, down = (settings[name] for name in names)
    return [f"it goes up to {timestep:g} T in {up} steps and down again in {down}"]


def markdown(lines: Sequence[Line]) -> str:
    """Both tables as Markdown, best figures bold, all that are equal, with what each method is and costs."""
    best = stars(lines)

    def cells(each: Line, columns: Sequence[Column]) -> list[str]:
        made = []
        for column in columns:
            text = shown(getattr(each, column.name), column.digits)
            if column.name == "transfer" and not each.about.transfers:
                text = "cannot"
            made.append(f"**{text}**" if (column.title, each.name) in best else text)
        return made

    first = ["method", *(c.title for c in FIRST), "images", "learning, s", "learning, passes", "finding, s",
             "transfer edit, s", "one step", "supervision", "theory", "localised"]  # fmt: skip
    second = ["method", *(c.title for c in SECOND), "passes to find", "refused", "at limit", "off target",
              "transfers off target", "transfer as it is", "a perfect editor"]  # fmt: skip
    yes = {True: "yes", False: "no"}
    rows = [
        [e.about.title, *cells(e, FIRST), str(e.images), counted(e.learn_seconds), counted(e.learn_passes),
         f"{e.find_seconds:.2f}", f"{e.edit_seconds:.2f}", yes[e.about.one_step], e.about.supervision,
         yes[e.about.theory], yes[e.about.localised]]
        for e in lines
    ]  # fmt: skip
    more = [
        [e.about.title, *cells(e, SECOND), f"{e.find_passes:.0f}", str(e.refused), str(e.limited),
         str(e.off_target), str(e.transfers_off_target), shown(e.transfer_as_is), shown(e.perfect)]
        for e in lines
    ]  # fmt: skip
    places = measured_on(lines)
    note = [f"Seconds were measured on: {places}."] if places else []
    return "\n\n".join((_table(first, rows), _table(second, more), *note)) + "\n"


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
