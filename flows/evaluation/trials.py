"""One trial: an edit applied at visible strength to one image, decoded, measured and read.

Success and transfer success are those of `pipeline.metrics.success`; every comparison is with the method's own
strength-0 reconstruction under the same noise. Trials run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pipeline.methods.contract import Found, Method, Subject
from pipeline.metrics import EditSuccess, psnr_outside, ssim_outside, success, visible_strength
from pipeline.strengths import VISIBLE_RMS

LEAST_MOVE, OTHER_LIMIT, ROIR_LIMIT = 0.15, 0.10, 1.0
BATCH = 32  # trials decoded together, at most: on a CPU, more of 64 x 64 pixels fall out of its cache and take longer
EVALUATIONS = 4  # decodes the search for the visible strength may take
NO_STRENGTH = "refused: every strength that was tried changes nothing, or far too much"


References = dict[tuple[str, str], torch.Tensor]
"""Strength-0 reconstructions (C, H, W) by one method with its settings: of an image, for a region if it matters."""


class Judge(Protocol):
    """What reads attributes; `flows.evaluation.world.World` is one."""

    def read(self, pictures: torch.Tensor) -> list[dict[str, float]]:
        """Readings by factor of pictures (B, C, H, W)."""
        ...

    def factors(self, region: str) -> tuple[str, ...]:
        """The attributes of a region; none where nothing reads them."""
        ...


@dataclass(frozen=True)
class Case:
    """What is to be tried: an edit on an image, from its guess on; the sign of the guess is kept throughout.

    `like` is the edit at home where this is a transfer: then its factor and sign decide.
    """

    edit: Found
    subject: Subject
    like: EditSuccess | None = None

    def turned(self, sign: float) -> Case:
        """The same in one direction or the other."""
        return replace(self, edit=replace(self.edit, guess=sign * self.edit.guess))


@dataclass(frozen=True)
class Trial:
    """Outcome of one case at the strength found; `rms` inside the mask, PSNR (dB) and SSIM outside it.

    `limited`: the largest strength allowed was still too weak; `reached`: RMS within 5 % of the target. `verdict` is
    None where nothing reads attributes. `before` and `after` are pictures (C, H, W). A strength of 0 is no edit: every
    strength that was tried is further from the target than none.
    """

    strength: float
    rms: float
    reached: bool
    limited: bool
    roir: float
    psnr: float
    ssim: float
    verdict: EditSuccess | None
    before: torch.Tensor
    after: torch.Tensor

    @property
    def success(self) -> bool | None:
        """Whether it is a success; None where nothing reads attributes."""
        return None if self.verdict is None else self.verdict.success

    def row(self) -> dict[str, Any]:
        """The figures as one row of plain values; without an edit there is no picture quality."""
        quality = ("psnr", "ssim") if self.strength else ()
        names = ("strength", "rms", "reached", "limited", "roir", *quality)
        row: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.verdict is not None:
            v = self.verdict
            row |= {"success": v.success, "factor": v.factor, "move": v.move}
            row |= {"other": v.other, "other_move": v.other_move, "failure": failure(v)}
        return row if self.strength else {**row, "failure": NO_STRENGTH}


def failure(verdict: EditSuccess) -> str:
    """The first thing that keeps an edit from being a success; empty for one that is."""
    if verdict.success:
        return ""
    if not verdict.roir <= ROIR_LIMIT:
        return f"ROIR above {ROIR_LIMIT:g}"
    if abs(verdict.other_move) >= OTHER_LIMIT:
        return "another factor moved"
    return "own factor moved too little, or the other way"


def run_trials(judge: Judge, method: Method, cases: Sequence[Case], known: References | None = None) -> list[Trial]:
    """Try every case, in batches. Cost: a decode an image, and up to `EVALUATIONS` decodes a case, about two.

    `known`: reconstructions that need not be made again; those that are made are added.
    """
    references = {} if known is None else known
    _reconstruct(method, cases, references)
    trials: list[Trial] = []
    size = method.at_once(BATCH)
    for start in range(0, len(cases), size):
        part = cases[start : start + size]
        trials += _batch(judge, method, part, torch.stack([references[_key(method, case)] for case in part]))
    return trials


def best_of_both_signs(
    judge: Judge, method: Method, cases: Sequence[Case], known: References | None = None
) -> list[Trial]:
    """Try every case with both signs of its guess and keep the better: a success first, then the lower ROIR."""
    both = run_trials(judge, method, [case.turned(sign) for sign in (1.0, -1.0) for case in cases], known)
    pairs = zip(both[: len(cases)], both[len(cases) :], strict=True)
    return [min(pair, key=_demerit) for pair in pairs]


def _demerit(trial: Trial) -> tuple[bool, float]:
    return not trial.success, math.inf if math.isnan(trial.roir) else trial.roir


def _key(method: Method, case: Case) -> tuple[str, str]:
    return case.subject.name, case.edit.region if method.reference_by_region else ""


def _reconstruct(method: Method, cases: Sequence[Case], references: References) -> None:
    """Add the reconstructions that cases need and that are not there."""
    needed = {_key(method, case): case for case in cases}
    wanted = [(key, case) for key, case in needed.items() if key not in references]
    size = method.at_once(BATCH)
    for start in range(0, len(wanted), size):
        part = [case for _, case in wanted[start : start + size]]
        pictures = method.apply([c.edit for c in part], [c.subject for c in part], torch.zeros(len(part)))
        references.update(zip((key for key, _ in wanted[start : start + size]), pictures, strict=True))


def _batch(judge: Judge, method: Method, cases: Sequence[Case], reference: torch.Tensor) -> list[Trial]:
    masks = torch.stack([case.subject.masks[case.edit.region] for case in cases])
    guesses = [math.copysign(min(abs(c.edit.guess), method.limit), c.edit.guess) for c in cases]

    def edited(strengths: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        chosen = [cases[i] for i in which.tolist()]
        return method.apply([c.edit for c in chosen], [c.subject for c in chosen], strengths)

    found = visible_strength(
        edited,
        reference,
        masks,
        target=VISIBLE_RMS,
        first_guess=torch.tensor(guesses).to(reference),
        limit=method.limit,
        evaluations=EVALUATIONS,
    )
    before, after = judge.read(reference), judge.read(found.images)
    psnr, ssim = psnr_outside(reference, found.images, masks), ssim_outside(reference, found.images, masks)
    return [
        Trial(
            strength=float(found.strength[i]),
            rms=float(found.rms[i]),
            reached=bool(found.reached[i]),
            limited=bool(found.limited[i]),
            roir=float(found.roir[i]),
            psnr=float(psnr[i]),
            ssim=float(ssim[i]),
            verdict=_verdict(judge, case, before[i], after[i], float(found.roir[i])),
            before=reference[i],
            after=found.images[i],
        )
        for i, case in enumerate(cases)
    ]


def _verdict(
    judge: Judge, case: Case, before: dict[str, float], after: dict[str, float], roir: float
) -> EditSuccess | None:
    own = judge.factors(case.edit.region)
    if not own:
        return None
    return success(
        before,
        after,
        own,
        roir,
        like=case.like,
        least_move=LEAST_MOVE,
        other_limit=OTHER_LIMIT,
        roir_limit=ROIR_LIMIT,
    )
