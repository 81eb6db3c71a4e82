"""Rows as cells of a comparison hold them, made by hand, and the lines of tables over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.evaluation.cells import Cell
from flows.evaluation.tables import Line, line
from pipeline.methods.contract import About

ABOUT = About("a method", "Somebody 2024", "x")


def home(image: str, region: str = "mouth", **figures: Any) -> dict[str, Any]:
    """An edit at home that succeeds, but for what `figures` say."""
    row = {"kind": "home", "image": image, "region": region, "strength": 2.0, "rms": 0.15, "reached": True}
    row |= {"limited": False, "roir": 0.4, "psnr": 30.0, "ssim": 0.9, "success": True, "factor": "mouth_opening"}
    return {**row, "move": 0.3, "other": "smile", "other_move": 0.02, "failure": "", **figures}


def refused(image: str, region: str = "mouth") -> dict[str, Any]:
    """An edit that a method has refused."""
    head = {"kind": "home", "image": image, "region": region, "success": False}
    return {**head, "roir": float("inf"), "failure": "refused: nothing there"}


def transfer(image: str, moved: bool, success: bool | None, perfect: bool | None = None) -> dict[str, Any]:
    """An edit on another image."""
    row = {"kind": "transfer", "image": image, "region": "mouth", "target": "other", "moved": moved}
    return row | {"success": success, "perfect": perfect, "roir": 0.6}


def find(image: str, **cost: Any) -> dict[str, Any]:
    """What it took to find the edits of an image."""
    none = {"seconds": 0.0, "passes": 0, "jvp": 0, "vjp": 0, "backward": 0, "edits": 1}
    return {"kind": "cost", "what": "find", "image": image, **none, **cost}


def edit(seconds: float) -> dict[str, Any]:
    """What one edit took."""
    return {"kind": "cost", "what": "edit", "seconds": seconds}


def cell(*rows: Mapping[str, Any]) -> Cell:
    """A cell of these rows."""
    return Cell({}, [dict(row) for row in rows], 0.0, 0)


def line_of(name: str, *rows: Mapping[str, Any], about: About = ABOUT, images: int = 1) -> Line:
    """A method's line over rows."""
    return line(name, about, {}, images, 0.0, [cell(*rows)])


def lines_of(**roirs: Sequence[float]) -> list[Line]:
    """Lines of methods whose edits succeed, with these ROIRs, one an image."""
    return [line_of(name, *(home(str(i), roir=roir) for i, roir in enumerate(own))) for name, own in roirs.items()]
