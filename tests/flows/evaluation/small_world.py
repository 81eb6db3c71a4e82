"""A tiny random model and a few photographs as an evaluation sees them, and the dense truth of its Jacobians."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flows.evaluation.cells import Cells
from flows.evaluation.experiment import Setup
from flows.evaluation.points import subject_of, timestep_of
from flows.evaluation.world import World
from flows.recipe import load_recipe
from pipeline.jacobian import JacobianKind, jacobian
from pipeline.methods.contract import Subject
from tests.flows.tiny import model, photographs, recipe


def small_setup(folder: Path, **changes: Any) -> Setup:
    """Five photographs, two of which are held out, of 8 pixels a side: x has 192 numbers, h has 512. `changes` of the
    recipe."""
    photographs(folder)
    path = recipe(folder, model(folder / "model", size=8), **changes)
    world = World(load_recipe(path), folder / "evaluation")
    return Setup(world, Cells(folder / "evaluation" / "cells", lambda: world.counter.passes))


def dense(setup: Setup, kind: JacobianKind, share: float) -> tuple[torch.Tensor, Subject]:
    """The Jacobian of the first held-out image at a fraction of T as a matrix (out, in), and that image."""
    subject = subject_of(setup.world, setup.world.images("holdout", 1)[0], share)
    operator = jacobian(setup.world.denoiser, subject.x_t, timestep_of(setup.world, share), kind)
    size = torch.Size(operator.shape_out).numel()
    return operator.rmatvec(torch.eye(size).view(-1, *operator.shape_out)).flatten(1), subject


def never(*arguments: object, **options: object) -> Any:
    """In place of what a second run must not call."""
    raise AssertionError("measured again")
