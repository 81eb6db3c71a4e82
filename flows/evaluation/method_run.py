"""What one method does on a few images: it finds every region's edit, tries it there, and on other images."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from flows.datasets.contract import SourceImage
from flows.evaluation.ceiling import perfect_bound, truth_of
from flows.evaluation.cells import Rows
from flows.evaluation.trials import Case, References, Trial, best_of_both_signs, run_trials
from flows.evaluation.world import World
from pipeline.errors import InputError
from pipeline.inversion import round_trip_psnr
from pipeline.methods.contract import Found, Method, Refused, Subject
from pipeline.metrics import mask_iou

OVERLAP = 0.5  # mask IoU from which a pair of images counts for transfer success
SHOWN = 2  # images a cell of which pictures are kept


class MethodRun:
    """A method, its images, and those that edits are tried on. `perceived`: edits are judged by the backbones too.
    `known`: the method's reconstructions that are there already."""

    def __init__(
        self,
        world: World,
        method: Method,
        images: Sequence[SourceImage],
        pool: Sequence[SourceImage],
        *,
        perceived: bool = True,
        known: References | None = None,
    ) -> None:
        self.world, self.method, self.perceived = world, method, perceived
        self._known: References = {} if known is None else known
        method.memory = world.recipe.method.memory
        self._bounds: dict[tuple[str, str, tuple[str, bool] | None], bool | None] = {}
        steps = method.settings.inversion_steps
        self.sources = {image.image_id: image for image in (*images, *pool)}
        self.subjects = world.subjects(images, method.timestep, steps)
        self.pool = world.subjects(pool, method.timestep, steps)

    def rows(self, others: int) -> Rows:
        """Rows of kind "home", "transfer" and "cost"."""
        found, rows = self._find()
        cases = [Case(edit, subject) for subject, edit in found if isinstance(edit, Found)]
        trials = dict(zip(map(id, cases), best_of_both_signs(self.world, self.method, cases, self._known), strict=True))
        homes = [(case, trials[id(case)]) for case in cases]
        shown = {subject.name for subject in self.subjects[:SHOWN]} if self.pool else set()
        for case, trial in homes:
            rows.append(self._home(case, trial, case.subject.name in shown))
        others = others if self.method.about.transfers else 0
        for subject, edit in found:
            if isinstance(edit, Refused):
                rows += self._refused(subject, edit, others)
        if homes:
            first = next((home for home in homes if home[1].strength), homes[0])
            rows.append({"kind": "cost", "what": "edit", "seconds": self._edit_seconds(first)})
        return rows + self._transfers(homes, others) if others else rows

    def _find(self) -> tuple[list[tuple[Subject, Found | Refused]], Rows]:
        found: list[tuple[Subject, Found | Refused]] = []
        rows: Rows = []
        for subject in self.subjects:
            begun, spent, passes = self._clock(), replace(self.method.cost), self.world.counter.passes
            edits = self._found(subject)
            cost = self.method.cost - spent
            row = {
                "kind": "cost",
                "what": "find",
                "image": subject.name,
                "seconds": self._clock() - begun,
                "passes": self.world.counter.passes - passes,
                "jvp": cost.jvp,
                "vjp": cost.vjp,
                "backward": cost.backward,
            }
            edits = self.method.guessed(edits, subject)
            row["edits"] = sum(isinstance(edit, Found) for edit in edits.values())
            rows.append(row | (self.world.features(subject.picture) if self.perceived else {}))
            found += [(subject, edit) for edit in edits.values()]
        return found, rows

    def _found(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """What a method finds on an image; refused where the image or its masks are not what it can work on.

        Raises:
            InputError: a budget of memory that is too small for any image.
        """
        try:
            return self.method.find(subject)
        except InputError as error:
            if error.field == "memory":
                raise
            return {region: Refused(region, str(error)) for region in subject.masks}

    def _clock(self) -> float:
        """Seconds, once the device has done all that was asked of it."""
        device = self.world.denoiser.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic()

    def _refused(self, subject: Subject, edit: Refused, others: int) -> Rows:
        """A refused edit as the failures that it is: at home, and wherever it would have been tried."""
        read = {"success": False} if self.world.factors(edit.region) else {}
        head = {"image": subject.name, "region": edit.region, "roir": math.inf, "failure": f"refused: {edit.reason}"}
        rows: Rows = [{"kind": "home", **head, **read}]
        for target in chosen_targets(subject, edit.region, self.pool, others):
            iou = float(mask_iou(subject.masks[edit.region], target.masks[edit.region]))
            elsewhere = {"target": target.name, "iou": iou, "home_success": read.get("success"), **read}
            rows += [{"kind": "transfer", "moved": moved, **head, **elsewhere} for moved in (False, True)]
        return rows

    def _home(self, case: Case, trial: Trial, shown: bool) -> dict[str, Any]:
        from flows.evaluation.pictures import encoded

        row = {"kind": "home", "image": case.subject.name, "region": case.edit.region, **trial.row()}
        row["evidence"] = dict(case.edit.evidence)
        row["reference_psnr"] = float(round_trip_psnr(case.subject.picture[None], trial.before[None])[0])
        if not trial.strength:
            return row
        if self.perceived:
            row |= self.world.perception(trial.before, trial.after, case.subject.masks[case.edit.region])
            row |= self.world.features(trial.after)
        if shown:
            row["pictures"] = [encoded(trial.before), encoded(trial.after)]
        return row

    def _edit_seconds(self, home: tuple[Case, Trial]) -> float:
        """Seconds of one edit of one image, by itself, on another image where there is one and the edit can go there:
        moving it counts."""
        case, trial = home
        region, mask = case.edit.region, case.subject.masks[case.edit.region]
        there = chosen_targets(case.subject, region, self.pool, 1) if self.method.about.transfers else []
        subject = there[0] if there else case.subject
        begun = self._clock()
        edit = self.method.moved(case.edit, mask, subject.masks[region]) if there else case.edit
        self.method.apply([edit], [subject], torch.tensor([trial.strength]))
        return self._clock() - begun

    def _transfers(self, homes: Sequence[tuple[Case, Trial]], others: int) -> Rows:
        """Every edit on `others` images whose masks overlap its own, as it is and moved to their region. Edits that
        cannot be moved are tried once, and stand for both."""
        pairs, still, moved = [], [], []
        for case, trial in homes:
            region, mask = case.edit.region, case.subject.masks[case.edit.region]
            for target in chosen_targets(case.subject, region, self.pool, others):
                edit = replace(case.edit, guess=trial.strength or case.edit.guess)
                pairs.append((case, trial, target))
                still.append(Case(edit, target, like=trial.verdict))
                moved.append(replace(still[-1], edit=self.method.moved(edit, mask, target.masks[region])))
        as_is = run_trials(self.world, self.method, still, self._known)
        others_of = [i for i, case in enumerate(moved) if case.edit is not still[i].edit]
        there = dict(enumerate(as_is))
        trials = run_trials(self.world, self.method, [moved[i] for i in others_of], self._known)
        there |= zip(others_of, trials, strict=True)
        tried = ((False, as_is), (True, there.values()))
        return [
            self._transfer(*pair, flag, trial) for flag, own in tried for pair, trial in zip(pairs, own, strict=True)
        ]

    def _transfer(self, case: Case, home: Trial, target: Subject, moved: bool, trial: Trial) -> dict[str, Any]:
        region = case.edit.region
        iou = float(mask_iou(case.subject.masks[region], target.masks[region]))
        row = {"kind": "transfer", "moved": moved, "image": case.subject.name, "region": region}
        row |= {"target": target.name, "iou": iou, "home_success": home.success, **trial.row()}
        return {**row, "perfect": self._perfect(target, region, home)}

    def _perfect(self, target: Subject, region: str, home: Trial) -> bool | None:
        """Whether a perfect editor would succeed there; None where the truth is not known."""
        like, mask = home.verdict, target.masks[region]
        key = (target.name, region, None if like is None else (like.factor, like.move > 0))
        if key not in self._bounds:  # many edits share one
            factors = truth_of(self.sources[target.name])
            self._bounds[key] = perfect_bound(self.world.read, factors, mask, region, like)
        return self._bounds[key]


def chosen_targets(home: Subject, region: str, pool: Sequence[Subject], count: int) -> list[Subject]:
    """Up to `count` other images whose mask of the region overlaps the home one, drawn by the names."""
    mask = home.masks[region]
    near = [
        subject
        for subject in pool
        if subject.name != home.name
        and region in subject.masks
        and float(mask_iou(mask, subject.masks[region])) >= OVERLAP
    ]
    return random.Random(f"{home.name} {region}").sample(near, min(count, len(near)))
