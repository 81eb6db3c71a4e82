"""A world where the truth is known: edits that add a plain patch to their region, read by a reader that is linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.evaluation import homes
from flows.evaluation.cells import Cells
from flows.evaluation.experiment import Setup
from flows.evaluation.world import World
from flows.recipe import load_recipe
from pipeline.faces.factors import FACTORS, factors_of
from pipeline.methods.contract import Found, Method, Refused, Subject
from pipeline.methods.loco import Loco, LocoSettings
from tests.flows.tiny import box, model, recipe

SIDE = 16
PLACES = {
    "left_eye": (0.0, 0.0, 0.5, 0.25),
    "right_eye": (0.5, 0.0, 1.0, 0.25),
    "mouth": (0.25, 0.5, 0.75, 0.75),
    "hair": (0.0, 0.75, 1.0, 1.0),
}


def masks() -> dict[str, torch.Tensor]:
    """Region -> bool (SIDE, SIDE)."""
    return {region: torch.from_numpy(np.array(box((SIDE, SIDE), corners)) > 0) for region, corners in PLACES.items()}


class Planted(Method):
    """Adds strength * a constant patch inside the region; `REFUSED` regions have no edit."""

    about = Loco.about
    settings_class = LocoSettings
    limit = 100.0
    refused: tuple[str, ...] = ()
    finds = 0

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        type(self).finds += 1
        found: dict[str, Found | Refused] = {}
        for region, mask in subject.masks.items():
            patch = mask.to(subject.picture).expand_as(subject.picture)
            edit = Found(region, 0.5, patch / patch.norm(), evidence={"gain": 1.0})
            found[region] = Refused(region, "nothing there") if region in self.refused else edit
        return found

    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        vectors = torch.stack([edit.vector for edit in edits if edit.vector is not None])
        return torch.stack([s.picture for s in subjects]) + strengths.to(vectors).view(-1, 1, 1, 1) * vectors


class MeanReader:
    """The first factor of each region is 0.5 + twice the mean inside it; all others stay 0.5."""

    def fingerprint(self) -> str:
        return "mean"

    def read(self, pictures: torch.Tensor) -> torch.Tensor:
        readings = torch.full((len(pictures), len(FACTORS)), 0.5)
        for region, mask in masks().items():
            readings[:, FACTORS.index(factors_of(region)[0])] += 2 * pictures[..., mask].flatten(1).mean(1)
        return readings


def linear_setup(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, quick: bool = False, reader: bool = True, **planted: Any
) -> Setup:
    """Six grey photographs, three of them held out; both methods are `Planted`, with class attributes `planted`."""
    (folder / "photos").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(6):
        grey = np.random.default_rng(number).integers(118, 138, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(grey).save(folder / "photos" / f"{number}.png")
        for region, corners in PLACES.items():
            box((SIDE, SIDE), corners).save(folder / "masks" / f"{number}_{region}.png")
    path = recipe(folder, model(folder / "model", size=SIDE), regions=list(PLACES))
    kinds = {name: type(name, (Planted,), {"name": name, **planted}) for name in ("loco", "individual")}
    monkeypatch.setattr(homes, "kind_of", kinds.__getitem__)
    world = World(load_recipe(path), folder / "evaluation")
    if reader:
        world.reader = MeanReader()  # type: ignore[assignment]
    return Setup(world, Cells(folder / "evaluation" / "cells", lambda: world.counter.passes), quick)
