"""What a perfect editor would score: the true factor moved in the renderer, judged by the same reader and rules.

A factor near the end of its range has no room for the edit that worked at home, and at visible strength some factors
move by little more than success asks. Both bound every method; the bound is measured here, pair by pair.
"""

from __future__ import annotations

import torch

from pipeline.faces.factors import FACTORS, factors_of
from pipeline.faces.render import render
from pipeline.metrics import EditSuccess, rms_inside, success
from pipeline.strengths import VISIBLE_RMS
from tests.benchmarks.subjects import Bench, Subject

STEPS = 50  # positions tried over the whole range of a factor


def perfect_images(subject: Subject, region: str, factor: str, sign: float) -> torch.Tensor:
    """(2, 3, 64, 64): the face as it is, and with `factor` moved until the change is visible, or its range ends."""
    truth = torch.tensor([[subject.factors[name] for name in FACTORS]])
    column = FACTORS.index(factor)
    moved = truth.repeat(STEPS + 1, 1)
    moved[:, column] += sign * torch.linspace(0.0, 1.0, STEPS + 1)
    moved = moved[(moved[:, column] >= 0.0) & (moved[:, column] <= 1.0)]
    faces = render(moved).images
    mask = subject.masks[region].to(faces.device).expand(len(faces), *faces.shape[-2:])
    visible = (rms_inside(faces - faces[:1], mask) >= VISIBLE_RMS).nonzero().flatten().tolist()
    return faces[[0, visible[0] if visible else -1]]


def perfect_transfer(bench: Bench, subject: Subject, region: str, like: EditSuccess) -> bool:
    """Whether a perfect edit of the factor and sign of `like` is a transfer success on this image."""
    before, after = bench.read(perfect_images(subject, region, like.factor, 1.0 if like.move > 0 else -1.0))
    return success(before, after, factors_of(region), 0.0, like=like).success
