"""Edits at home: the first edit of every region on its own image, at visible strength, found once for all figures.

Vectors are kept beside the cells, so that figures about strengths, sums and grids of the same edits do not find them
again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.evaluation.cells import Rows, digest, write
from flows.evaluation.comparison import base_settings, kind_of
from flows.evaluation.experiment import Setup
from flows.evaluation.pictures import encoded
from flows.evaluation.series import measured
from flows.evaluation.trials import BATCH, Case, best_of_both_signs
from flows.evaluation.world import World
from pipeline.errors import InputError
from pipeline.methods.contract import Found, Method, Refused, Subject
from pipeline.metrics import EditSuccess

METHODS = ("loco", "individual")
TITLES = {"loco": "LOCO", "individual": "individual"}  # as plots and sentences name them
WAYS = {False: "as it is", True: "moved there"}  # whether an edit is moved to where another image has the region
SHOWN = 2  # images of which pictures are kept
QUICK_REGIONS, QUICK_INVERSION, QUICK_STEPS = 2, 20, 5


@dataclass(frozen=True)
class Home:
    """One region's edit on its own image. `edit.guess` is the visible strength, sign included; None where it was
    refused. `row`: the trial's figures (`Trial.row`), with `pictures` before and after where they are kept."""

    region: str
    edit: Found | None
    row: Mapping[str, Any]

    @property
    def verdict(self) -> EditSuccess | None:
        """The verdict on the trial; None where it was refused or nothing reads attributes."""
        row = self.row
        if "move" not in row:
            return None
        return EditSuccess(row["success"], row["factor"], row["move"], row["other"], row["other_move"], row["roir"])


class Homes:
    """The edits at home of both papers' methods on held-out images.

    Quick: `quick` images with their first two regions, and fewer steps.
    """

    def __init__(self, setup: Setup, count: int, *, quick: int = 1) -> None:
        self.setup, self.world = setup, setup.world
        self.images = self.world.up_to("holdout", quick if setup.quick else count)
        self._methods: dict[tuple[str, float | None], Method] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that this model has a space for."""
        return METHODS if self.world.denoiser.info.bottleneck_shape is not None else METHODS[:1]

    def left_out(self) -> Rows:
        """What cannot be measured on this model and data, as rows."""
        rows = []
        if len(self.methods) < len(METHODS):
            rows.append(left_out("individual components", "this model has no bottleneck"))
        if not any(map(self.world.factors, self.world.recipe.region_names)):
            what = "pictures" if self.world.reader is None else "regions"
            rows.append(left_out("success and attribute changes", f"nothing reads the attributes of these {what}"))
        return rows

    def refusals(self, images: Sequence[SourceImage] | None = None, shares: Sequence[float | None] = (None,)) -> Rows:
        """How many edits of these images (all, unless given) and timesteps cannot be tried, as rows."""
        rows = []
        for name in self.methods:
            own = self._all(name, images, shares)
            if gone := len(own) - len(usable(own)):
                text = f"{gone} of {len(own)} {TITLES[name]} edits were refused and are left out."
                rows.append({"kind": "note", "text": text})
        return rows

    def limits(self) -> Rows:
        """How many edits are not visible at the strength that counts as their visible one, as rows."""
        rows = []
        for name in self.methods:
            own = usable(self._all(name, None, (None,)))
            if weak := sum(bool(home.row.get("limited")) for home, _ in own):
                text = f"{weak} of {len(own)} {TITLES[name]} edits stay weaker than visible at the largest strength "
                rows.append({"kind": "note", "text": f"{text}allowed, which stands for their visible strength."})
        return rows

    def _all(self, name: str, images: Sequence[SourceImage] | None, shares: Sequence[float | None]) -> list[Home]:
        found = self.images if images is None else images
        return [home for at in shares for image in found for home in self.get(self.method(name, at), image)]

    def gathered(self, title: str, own: Callable[[str, int, SourceImage], Rows], nothing: str) -> Rows:
        """The rows that `own` (method, place of the image, image) gives of every image and method, and how many
        edits were refused; where there are none, a row that says `nothing` of the figure could be measured, and why."""
        rows: Rows = []
        with stage(title, len(self.images) * len(self.methods)) as advance:
            for i, image in enumerate(self.images):
                for name in self.methods:
                    rows += own(name, i, image)
                    advance(1, TITLES[name])
        rows = rows if measured(rows) else [*rows, left_out("the whole figure", nothing)]
        return rows + self.refusals()

    def method(self, name: str, timestep: float | None = None) -> Method:
        """A method with the recipe's settings, at another timestep (fraction of T) if asked.

        A window of h-space keeps its shares of the timestep.
        """
        if (name, timestep) not in self._methods:
            kind = kind_of(name)
            settings = base_settings(kind, self.world)
            if timestep is not None:
                settings = settings.at_timestep(timestep)
            if self.setup.quick:
                inversion, steps = min(settings.inversion_steps, QUICK_INVERSION), min(settings.steps, QUICK_STEPS)
                settings = replace(settings, inversion_steps=inversion, steps=steps)
            method = kind(self.world.denoiser, settings, self.world.reader)
            method.memory = self.world.recipe.method.memory
            self._methods[name, timestep] = method
        return self._methods[name, timestep]

    def subject(self, method: Method, image: SourceImage) -> Subject:
        """An image with its x_t at the method's timestep. Cost: the inversion, once."""
        subject = self.world.subjects([image], method.timestep, method.settings.inversion_steps)[0]
        regions = list(subject.masks)[: QUICK_REGIONS if self.setup.quick else None]
        return replace(subject, masks={region: subject.masks[region] for region in regions})

    def key(self, method: Method, image: SourceImage) -> dict[str, Any]:
        """What every figure of a method on one image depends on."""
        regions = list(image.masks)[: QUICK_REGIONS if self.setup.quick else None]
        own = {"method": method.name, "settings": method.settings.as_dict(), "of": regions}
        return {**self.world.key([image]), **own}

    def get(self, method: Method, image: SourceImage) -> list[Home]:
        """The edits of an image, better sign, in the order of its masks. Cost: `find` and the trials, once."""
        subject = self.subject(method, image)
        if not subject.masks:
            return []
        shown = image.image_id in [other.image_id for other in self.images[:SHOWN]]
        key = {**self.key(method, image), "shown": shown}
        cell = self.setup.cells.get("home", key, lambda: self._rows(method, subject, key, shown))
        found = self._found(method, subject, key)
        homes = []
        for row in cell.rows:
            edit = found[row["region"]]
            at_visible = replace(edit, guess=row["strength"]) if isinstance(edit, Found) else None
            homes.append(Home(row["region"], at_visible, row))
        return homes

    def _rows(self, method: Method, subject: Subject, key: Mapping[str, Any], shown: bool) -> Rows:
        found = self._found(method, subject, key)
        return trial_rows(self.world, method, subject, found, shown=shown)

    def _found(self, method: Method, subject: Subject, key: Mapping[str, Any]) -> dict[str, Found | Refused]:
        own = {name: value for name, value in key.items() if name not in ("reader", "shown")}
        path = self.world.folder / "found" / f"{digest(own)}.safetensors"
        try:
            return _unpacked(path, subject.x_t)
        except (FileNotFoundError, SafetensorError, ValueError, LookupError, TypeError):  # missing, or damaged
            write(path, _packed(method.find(subject)))
        return _unpacked(path, subject.x_t)


def trial_rows(
    world: World, method: Method, subject: Subject, found: Mapping[str, Found | Refused], *, shown: bool = False
) -> Rows:
    """One row per region: its edit at visible strength, better sign. A refused edit has an infinite ROIR, and is a
    failure where attributes are read."""
    edits = [edit for edit in found.values() if isinstance(edit, Found)]
    trials = iter(best_of_both_signs(world, method, [Case(edit, subject) for edit in edits]))
    rows = []
    for region, edit in found.items():
        row: dict[str, Any] = {"image": subject.name, "region": region}
        if isinstance(edit, Refused):
            row |= {"roir": float("inf"), "failure": f"refused: {edit.reason}"}
            row |= {"success": False} if world.factors(region) else {}
        else:
            trial = next(trials)
            row |= trial.row()
            if shown:
                row["pictures"] = [encoded(trial.before), encoded(trial.after)]
        rows.append(row)
    return rows


def usable(homes: Sequence[Home]) -> list[tuple[Home, Found]]:
    """Edits that can be tried elsewhere: not refused, and of some strength."""
    return [(home, home.edit) for home in homes if home.edit is not None and home.edit.guess != 0]


def left_out(what: str, why: str) -> dict[str, Any]:
    """The row that says that something was not measured, and why."""
    return {"kind": "left out", "what": what, "why": why}


def apply_all(method: Method, subject: Subject, edits: Sequence[Found], strengths: Sequence[float]) -> torch.Tensor:
    """Pictures (n, C, H, W) of n edits of one image. Cost: a decode a picture."""
    return applied(method, edits, [subject] * len(edits), strengths)


@torch.no_grad()
def applied(
    method: Method, edits: Sequence[Found], subjects: Sequence[Subject], strengths: Sequence[float]
) -> torch.Tensor:
    """Pictures (n, C, H, W) of n edits on n images. Cost: a decode a picture."""
    size, parts = method.at_once(BATCH), []
    for start in range(0, len(edits), size):
        end = start + size
        weights = torch.tensor(strengths[start:end], dtype=torch.float64)
        parts.append(method.apply(edits[start:end], subjects[start:end], weights))
    return torch.cat(parts)


def combined(homes: Sequence[Home], weights: Sequence[float]) -> tuple[Found, float]:
    """Edits of one image and method added up, each at `weights` of its visible strength: a unit vector, its strength.

    Raises:
        InputError: an edit without a vector.
    """
    total = None
    for home, weight in zip(homes, weights, strict=True):
        if home.edit is None or home.edit.vector is None:
            raise InputError("edits", f"none of {home.region}", "edits that are vectors")
        step = weight * home.edit.guess * home.edit.vector
        total = step if total is None else total + step
    if total is None:
        raise InputError("edits", "none", "at least one")
    size = float(total.norm())
    unit = total / size if size > 0 else total
    return Found(homes[0].region, size or 1.0, unit), size


def _packed(edits: Mapping[str, Found | Refused]) -> bytes:
    vectors = {}
    told: dict[str, dict[str, Any]] = {}
    for region, edit in edits.items():
        if isinstance(edit, Refused):
            told[region] = {"reason": edit.reason}
            continue
        told[region] = {"guess": edit.guess, "index": edit.index, "evidence": dict(edit.evidence)}
        if edit.vector is not None:
            vectors[region] = edit.vector.detach().cpu().clone()
    return save(vectors, metadata={"edits": json.dumps(told)})


def _unpacked(path: Path, like: torch.Tensor) -> dict[str, Found | Refused]:
    """What `_packed` kept, on the device and in the dtype of `like`."""
    edits: dict[str, Found | Refused] = {}
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for region, told in json.loads(file.metadata()["edits"]).items():
            if "reason" in told:
                edits[region] = Refused(region, told["reason"])
                continue
            vector = file.get_tensor(region).to(like) if region in names else None
            edits[region] = Found(region, told["guess"], vector, told["index"], told["evidence"])
    return edits
