"""One trial: a direction applied at visible strength to one image, decoded and judged by the attribute reader.

Success and transfer success are those of `pipeline.metrics.success`; every comparison is with the strength-0
reconstruction under the same steps and noise. Trials of many images run as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flows.console import stage
from pipeline.editing import decode
from pipeline.faces.factors import factors_of
from pipeline.metrics import EditSuccess, better_sign, psnr_outside, ssim_outside, success, visible_strength
from pipeline.strengths import STRENGTH_LIMIT, VISIBLE_RMS
from tests.benchmarks.subjects import Bench, Subject

LEAST_MOVE, OTHER_LIMIT, ROIR_LIMIT = 0.15, 0.10, 1.0
BATCH = 64  # trials decoded together
EVALUATIONS = 4  # decodes the search for the visible strength may take; mining allows one fewer


@dataclass(frozen=True)
class Case:
    """What is to be tried: a unit direction on one image's region; the sign of `first_guess` is kept throughout.

    `like` is the edit at home when this is a transfer: then its factor and sign decide.
    """

    subject: Subject
    region: str
    space: Literal["x", "h"]
    vector: torch.Tensor
    first_guess: float
    like: EditSuccess | None = None


@dataclass(frozen=True)
class Trial:
    """Outcome of one case at the strength found; `rms` inside the mask, PSNR (dB) and SSIM outside it.

    `limited`: the largest strength allowed was still too weak; `reached`: RMS within 5 % of the target.
    """

    strength: float
    rms: float
    reached: bool
    limited: bool
    verdict: EditSuccess
    psnr: float
    ssim: float

    def reasons(self, like: EditSuccess | None = None) -> tuple[str, ...]:
        """Why it is no success; empty where it is one."""
        if self.verdict.success:
            return ()
        v, found = self.verdict, []
        if abs(v.move) < LEAST_MOVE:
            found.append(f"own factor moved by less than {LEAST_MOVE}")
        elif like is not None and v.move * like.move <= 0:
            found.append("own factor moved the other way")
        if abs(v.other_move) >= OTHER_LIMIT:
            found.append(f"other factor moved: {v.other}")
        if not v.roir <= ROIR_LIMIT:
            found.append(f"ROIR above {ROIR_LIMIT:g}")
        return tuple(found)


def _decoder(bench: Bench, cases: Sequence[Case]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(strengths (n,), cases (n,)) -> edited images (n, C, H, W)."""
    vectors = torch.stack([case.vector for case in cases])
    latents = torch.stack([case.subject.x_t for case in cases])
    settings, space = bench.settings, cases[0].space

    def edited(strengths: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        shift = vectors[which] * strengths.to(vectors)[:, None, None, None]
        if space == "x":
            return decode(bench.denoiser, latents[which] + shift, settings.timestep, settings.decode)
        return decode(bench.denoiser, latents[which], settings.timestep, settings.decode, h_shift=shift)

    return edited


def run_trials(bench: Bench, cases: Sequence[Case], title: str) -> list[Trial]:
    """Try every case, in batches of one space; results in the order of `cases`. `title` names the progress bar.

    Cost: up to `EVALUATIONS` decodes per case, about two on average.
    """
    results: dict[int, Trial] = {}
    with bench.clock.stage("edits"), stage(title, len(cases)) as advance:
        for space in ("x", "h"):
            chosen = [i for i, case in enumerate(cases) if case.space == space]
            for start in range(0, len(chosen), BATCH):
                part = chosen[start : start + BATCH]
                results.update(zip(part, _batch(bench, [cases[i] for i in part]), strict=True))
                advance(len(part), "")
    return [results[i] for i in range(len(cases))]


def _batch(bench: Bench, cases: Sequence[Case]) -> list[Trial]:
    limit = STRENGTH_LIMIT[cases[0].space]
    reference = torch.stack([case.subject.reference for case in cases])
    masks = torch.stack([case.subject.masks[case.region] for case in cases])
    guesses = torch.tensor([math.copysign(min(abs(case.first_guess), limit), case.first_guess) for case in cases])
    found = visible_strength(
        _decoder(bench, cases),
        reference,
        masks,
        target=VISIBLE_RMS,
        first_guess=guesses.to(reference),
        limit=limit,
        evaluations=EVALUATIONS,
    )
    readings = bench.read(found.images)
    psnr, ssim = psnr_outside(reference, found.images, masks), ssim_outside(reference, found.images, masks)
    trials = []
    for i, case in enumerate(cases):
        verdict = success(
            case.subject.before,
            readings[i],
            factors_of(case.region),
            float(found.roir[i]),
            like=case.like,
            least_move=LEAST_MOVE,
            other_limit=OTHER_LIMIT,
            roir_limit=ROIR_LIMIT,
        )
        trials.append(
            Trial(
                strength=float(found.strength[i]),
                rms=float(found.rms[i]),
                reached=bool(found.reached[i]),
                limited=bool(found.limited[i]),
                verdict=verdict,
                psnr=float(psnr[i]),
                ssim=float(ssim[i]),
            )
        )
    return trials


def better_of_both_signs(bench: Bench, cases: Sequence[Case], title: str) -> list[Trial]:
    """Try every case with both signs of its first guess and keep the better one."""
    both = run_trials(bench, [replace(c, first_guess=s * c.first_guess) for s in (1.0, -1.0) for c in cases], title)
    pairs = zip(both[: len(cases)], both[len(cases) :], strict=True)
    return [(plus, minus)[better_sign(plus.verdict, minus.verdict)] for plus, minus in pairs]
