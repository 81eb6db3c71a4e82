"""The comparison of methods: every one finds edits of the same images, which are tried there and on other images.

Settings are chosen on `mine` images, one method at a time, among those that the method names itself; what is reported
is measured on `holdout` images. Cells are a method's work on a few images, so that a stopped run loses little.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from flows.console import complain
from flows.datasets.contract import SourceImage
from flows.evaluation.ceiling import perfect_bound
from flows.evaluation.cells import Cell, Cells, Rows, digest, write
from flows.evaluation.trials import Case, Trial, best_of_both_signs, run_trials
from flows.evaluation.world import Split, World, shipped_folder
from pipeline.errors import InputError
from pipeline.faces.factors import FACTORS, OWNER
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Found, Method, Refused, Settings, Subject
from pipeline.methods.guidance import reader_goals
from pipeline.metrics import mask_iou

OVERLAP = 0.5  # mask IoU from which a pair of images counts for transfer success
SHOWN = 2  # images a cell of which pictures are kept
_EXPERIMENT: dict[Split, str] = {"mine": "choosing", "holdout": "comparison"}


@dataclass(frozen=True)
class Size:
    """How much is measured: held-out images, `mine` images that settings are chosen on (0: each method's first are
    taken), other images that each edit is tried on, images a cell. `quick`: methods learn and search as little as they
    can."""

    images: int = 50
    choosing: int = 4
    others: int = 2
    chunk: int = 10
    quick: bool = False


FULL, QUICK = Size(), Size(images=3, choosing=0, others=1, chunk=3, quick=True)


@dataclass(frozen=True)
class Chosen:
    """A method's settings, and the rows of all that were tried: settings, success, ROIR. `by`: on how many images, 0
    where they were given."""

    settings: Settings
    tried: Rows
    by: int


def base_settings(kind: type[Method], world: World) -> Settings:
    """A method's settings as a recipe has them: where both know a name, the recipe decides, but for ranks that it
    leaves to a rule. Goals are the first attribute of each region.

    Raises:
        InputError: values that the method refuses.
    """
    recipe, method = world.recipe, world.recipe.method
    own = method.loco if kind.about.space == "x" else method.jive
    values: dict[str, Any] = {
        "timestep": method.timestep,
        "inversion_steps": method.inversion_steps,
        "tolerance": method.tolerance,
        "steps": method.edit.steps,
        "window": method.edit.h_window,
        "convention": method.edit.convention,
        "seed": recipe.seed,
        "goals": reader_goals(FACTORS, OWNER, recipe.region_names) if world.reader is not None else (),
        **{name: value for name, value in dict(own).items() if value != "auto"},
    }
    known = {f.name for f in fields(kind.settings_class)}
    given = {name: value for name, value in values.items() if name in known}
    return kind.settings_class(**given)


@dataclass(frozen=True)
class Task:
    """One cell to be measured: a method with its settings on some images of a split, each edit on `others` more."""

    method: str
    settings: Settings
    split: Split
    start: int
    count: int
    others: int = 0


class Comparison:
    """One comparison: a world, its cells and its size."""

    def __init__(self, world: World, cells: Cells, size: Size = FULL) -> None:
        self.world, self.cells, self.size = world, cells, size

    def lacking(self, name: str) -> str:
        """What a method would need and is not there; empty where nothing is missing."""
        about, world = kind_of(name).about, self.world
        if (about.space == "h" or about.through_h) and world.denoiser.info.bottleneck_shape is None:
            return "this model has no bottleneck"
        if about.supervision != "none" and not any(map(world.factors, world.recipe.region_names)):
            return "nothing reads the attributes of these pictures"
        return ""

    def check(self, names: Sequence[str]) -> None:
        """Raises InputError where a split has too few images for these methods: told before anything is measured."""
        self.world.images("holdout", self.size.images)
        tried = [(name, s) for name in names for s in self.grid(name)[: None if self.size.choosing else 1]]
        needed = max((self._made(name, settings).images for name, settings in tried), default=1)
        self.world.images("mine", needed if needed > 1 else 0, skip=self.size.choosing)

    def choosing(self, name: str) -> list[Task]:
        """What must be measured to choose a method's settings: those of its grid, on `mine` images."""
        grid = self.grid(name)
        if self.size.choosing == 0 or len(grid) == 1:
            return []
        return [Task(name, settings, "mine", 0, self.size.choosing) for settings in grid]

    def grid(self, name: str) -> list[Settings]:
        """The settings that a method names as worth trying under this recipe, the recipe's own first."""
        kind = kind_of(name)
        first = base_settings(kind, self.world)
        return [kind.quick(first)] if self.size.quick else list(kind.grid(first))

    def chosen(self, name: str) -> Chosen:
        """The settings of a method's grid that did best on `mine` images: most successes, then the lowest ROIR."""
        tasks = self.choosing(name)
        if not tasks:
            return Chosen(self.grid(name)[0], [], 0)
        tried: Rows = []
        for task in tasks:
            home = [row for row in self.cell(task).rows if row["kind"] == "home"]
            tried.append({"settings": task.settings.as_dict(), **merit(home)})
        best = max(range(len(tasks)), key=lambda i: (tried[i]["success"], -tried[i]["roir"]))
        return Chosen(tasks[best].settings, tried, self.size.choosing)

    def reporting(self, name: str, settings: Settings) -> list[Task]:
        """What is reported of a method: all held-out images, a cell for every few."""
        step, whole = self.size.chunk, self.size.images
        return [
            Task(name, settings, "holdout", start, min(step, whole - start), self.size.others)
            for start in range(0, whole, step)
        ]

    def cell(self, task: Task) -> Cell:
        """The cell of a task, measured now unless it is there."""
        return self.cells.get(_EXPERIMENT[task.split], self._key(task), lambda: self._rows(task))

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """Those whose cells are not there."""
        return [task for task in tasks if not self.cells.has(_EXPERIMENT[task.split], self._key(task))]

    def _images(self, task: Task) -> tuple[list[SourceImage], list[SourceImage]]:
        """The task's images, and those its edits are tried on."""
        own = self.world.images(task.split, task.count, skip=task.start)
        return own, self.world.images(task.split, self.size.images) if task.others else []

    def _key(self, task: Task) -> dict[str, Any]:
        own, pool = self._images(task)
        key = {**self.world.key(own), "method": task.method, "settings": task.settings.as_dict()}
        return {
            **key,
            "others": task.others,
            "pool": digest([image.image_id for image in pool]),
            "backbones": self.world.backbones.evidence(),
        }

    def _rows(self, task: Task) -> Rows:
        own, pool = self._images(task)
        method = self.method(task.method, task.settings)
        return list(_Work(self.world, method, own, pool).rows(task.others))

    def method(self, name: str, settings: Settings) -> Method:
        """A method, with what it learns on `mine` images learned now, or taken from before; what was learned and cannot
        be read, or of which nobody knows what it cost, is learned again.

        Raises:
            InputError: no method of this name, or not enough images to learn from.
        """
        method = self._made(name, settings)
        if method.images <= 1:
            return method
        subjects, key = self._lessons(name, method)
        path = self.world.folder / "learned" / f"{digest(key)}.safetensors"
        known = (path, shipped_folder() / "learned" / path.name) if self.cells.has("learning", key) else ()
        for file in known:
            try:
                method.restore(load(file.read_bytes()))
                return method
            except FileNotFoundError:
                continue
            except (SafetensorError, InputError) as error:
                complain(f"{file}: not what {name} has learned, so it learns again ({error})")
                method = self._made(name, settings)
        begun = time.monotonic()
        method.learn(subjects, _percent(name))
        cost = {"seconds": time.monotonic() - begun, "backward": method.cost.backward, "images": len(subjects)}
        self.cells.get("learning", key, lambda: [cost])
        write(path, save({tensor_name: tensor.contiguous() for tensor_name, tensor in method.learned().items()}))
        return method

    def learning(self, name: str, settings: Settings) -> dict[str, float]:
        """What a method's learning has cost: seconds and images; nothing for methods of one image."""
        method = self._made(name, settings)
        if method.images <= 1:
            return {"seconds": 0.0, "images": 1}
        _, key = self._lessons(name, method)
        cost: dict[str, float] = self.cells.get("learning", key, lambda: []).rows[0]
        return cost

    def _made(self, name: str, settings: Settings) -> Method:
        return kind_of(name)(self.world.denoiser, settings, self.world.reader)

    def _lessons(self, name: str, method: Method) -> tuple[list[Subject], dict[str, Any]]:
        """The images a method learns from, none of which its settings are chosen on, and the key of what it learns."""
        images = self.world.images("mine", method.images, skip=self.size.choosing)
        subjects = self.world.subjects(images, method.timestep, method.settings.inversion_steps)
        return subjects, {**self.world.key(subjects), "method": name, "settings": method.settings.as_dict()}


def _percent(name: str) -> Callable[[int, int], None]:
    """Tells how far a method's learning is, at every tenth."""
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if 10 * done // max(1, total) > told:
            told = 10 * done // max(1, total)
            complain(f"{name}: learning, {10 * told} %")

    return progress


def kind_of(name: str) -> type[Method]:
    """The class of a method. Raises InputError, naming the methods there are."""
    if name not in METHODS:
        raise InputError("method", name, f"one of {', '.join(METHODS)}")
    return METHODS[name]


def merit(home: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Success share (0 where nothing reads attributes) and median ROIR of edits at home; refused ones have failed."""
    ratios = sorted(row["roir"] for row in home)
    middle = ratios[len(ratios) // 2] if ratios else float("inf")
    return {"success": sum(bool(row.get("success")) for row in home) / max(1, len(home)), "roir": middle}


class _Work:
    """What one method does on a few images."""

    def __init__(
        self, world: World, method: Method, images: Sequence[SourceImage], pool: Sequence[SourceImage]
    ) -> None:
        self.world, self.method = world, method
        self._bounds: dict[tuple[str, str, tuple[str, bool] | None], bool | None] = {}
        steps = method.settings.inversion_steps
        self.sources = {image.image_id: image for image in (*images, *pool)}
        self.subjects = world.subjects(images, method.timestep, steps)
        self.pool = world.subjects(pool, method.timestep, steps)

    def rows(self, others: int) -> Rows:
        """Rows of kind "home", "transfer" and "cost"."""
        found, rows = self._find()
        cases = [Case(edit, subject) for subject, edit in found if isinstance(edit, Found)]
        trials = dict(zip(map(id, cases), best_of_both_signs(self.world, self.method, cases), strict=True))
        homes = [(case, trials[id(case)]) for case in cases]
        shown = {subject.name for subject in self.subjects[:SHOWN]} if self.pool else set()
        for case, trial in homes:
            rows.append(self._home(case, trial, case.subject.name in shown))
        if homes:
            rows.append({"kind": "cost", "what": "edit", "seconds": self._edit_seconds(homes[0])})
        if others and self.method.about.transfers:
            for moved in (False, True):
                rows += self._transfers(homes, others, moved)
        return rows

    def _find(self) -> tuple[list[tuple[Subject, Found | Refused]], Rows]:
        found: list[tuple[Subject, Found | Refused]] = []
        rows: Rows = []
        for subject in self.subjects:
            begun, spent, passes = time.monotonic(), replace(self.method.cost), self.world.counter.passes
            edits = self.method.find(subject)
            cost = self.method.cost - spent
            rows.append(
                {
                    "kind": "cost",
                    "what": "find",
                    "image": subject.name,
                    "seconds": time.monotonic() - begun,
                    "passes": self.world.counter.passes - passes,
                    "jvp": cost.jvp,
                    "vjp": cost.vjp,
                    "backward": cost.backward,
                    "edits": sum(isinstance(edit, Found) for edit in edits.values()),
                    **self.world.features(subject.picture),
                }
            )
            for region, edit in edits.items():
                found.append((subject, edit))
                if isinstance(edit, Refused):
                    head = {"kind": "home", "image": subject.name, "region": region}
                    read = {"success": False} if self.world.factors(region) else {}
                    rows.append({**head, **read, "roir": float("inf"), "failure": f"refused: {edit.reason}"})
        return found, rows

    def _home(self, case: Case, trial: Trial, shown: bool) -> dict[str, Any]:
        from flows.evaluation.pictures import encoded

        row = {"kind": "home", "image": case.subject.name, "region": case.edit.region, **trial.row()}
        row["evidence"] = dict(case.edit.evidence)
        row |= self.world.perception(trial.before, trial.after, case.subject.masks[case.edit.region])
        row |= self.world.features(trial.after)
        if shown:
            row["pictures"] = [encoded(trial.before), encoded(trial.after)]
        return row

    def _edit_seconds(self, home: tuple[Case, Trial]) -> float:
        """Seconds of one edit of one image, by itself."""
        case, trial = home
        begun = time.monotonic()
        self.method.apply([case.edit], [case.subject], torch.tensor([trial.strength]))
        return time.monotonic() - begun

    def _transfers(self, homes: Sequence[tuple[Case, Trial]], others: int, moved: bool) -> Rows:
        """Every edit on `others` images whose masks overlap its own, as it is or moved to their region."""
        pairs, cases = [], []
        for case, trial in homes:
            region, mask = case.edit.region, case.subject.masks[case.edit.region]
            for target in chosen_targets(case.subject, region, self.pool, others):
                edit = replace(case.edit, guess=trial.strength or case.edit.guess)
                if moved:
                    edit = self.method.moved(edit, mask, target.masks[region])
                pairs.append((case, trial, target))
                cases.append(Case(edit, target, like=trial.verdict))
        rows = []
        for (case, home, target), trial in zip(pairs, run_trials(self.world, self.method, cases), strict=True):
            region = case.edit.region
            iou = float(mask_iou(case.subject.masks[region], target.masks[region]))
            row = {"kind": "transfer", "moved": moved, "image": case.subject.name, "region": region}
            row |= {"target": target.name, "iou": iou, "home_success": home.success, **trial.row()}
            row["perfect"] = self._perfect(target, region, home)
            rows.append(row)
        return rows

    def _perfect(self, target: Subject, region: str, home: Trial) -> bool | None:
        """Whether a perfect editor would succeed there; None where the truth is not known."""
        like, mask = home.verdict, target.masks[region]
        key = (target.name, region, None if like is None else (like.factor, like.move > 0))
        if key not in self._bounds:  # many edits share one
            factors = self.sources[target.name].factors
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
