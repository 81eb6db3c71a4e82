"""The comparison of methods: every one finds edits of the same images, which are tried there and on other images.

Settings are chosen on `mine` images, one method at a time, among those that the method names itself; what is reported
is measured on `holdout` images. Cells are a method's work on a few images, so that a stopped run loses little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from flows.console import complain
from flows.datasets.contract import SourceImage
from flows.evaluation.captions import Captions
from flows.evaluation.cells import Cell, Cells, Rows, cell_name, digest, write
from flows.evaluation.method_run import MethodRun
from flows.evaluation.trials import References
from flows.evaluation.world import Split, World, shipped_folder
from pipeline.errors import InputError
from pipeline.faces.factors import FACTORS, OWNER, VISIBLE
from pipeline.images import as_tensor
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Method, Settings, Subject
from pipeline.methods.guidance import reader_goals
from pipeline.models.prompted import PromptedDenoiser

KEPT = 2**28  # bytes of reconstructions kept from one cell to the next
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
    """A method's settings as a recipe has them: the recipe decides those that the method lets it (`Method.told`).
    Goals are the captions that were given, or else an attribute of each region that shows on every face; no prompt.

    Raises:
        InputError: values that the method refuses.
    """
    recipe, method = world.recipe, world.recipe.method
    own = method.loco if kind.about.space == "x" else method.jive
    read = recipe.region_names if world.reader and kind.about.supervision != "prompts" else ()
    values: dict[str, Any] = {
        "timestep": method.timestep,
        "inversion_steps": method.inversion_steps,
        "tolerance": method.tolerance,
        "steps": method.edit.steps,
        "window": method.edit.h_window,
        "convention": method.edit.convention,
        "eta": method.edit.eta,
        "eta_share": method.edit.eta_share,
        "seed": recipe.seed,
        "goals": world.captions.told(kind.about).goals or reader_goals(FACTORS, OWNER, read, VISIBLE),
        "clip": world.captions.folder,
        **dict(own),
    }
    known = {f.name for f in fields(kind.settings_class)}
    return kind.settings_class(**{name: value for name, value in values.items() if name in known & set(kind.told)})


@dataclass(frozen=True)
class Learned:
    """From how many images a method has learned, and what that took: seconds, network passes with those of inverting
    the images (backward passes count too), and where; NaN and empty where nobody knows. `machine`: None for methods
    that learn nothing."""

    images: int = 1
    seconds: float = 0.0
    passes: float = 0.0
    machine: str | None = None


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
        self._pools: dict[tuple[str, ...], str] = {}
        self._known: tuple[tuple[str, Settings] | None, References] = (None, {})

    def lacking(self, name: str) -> str:
        """What a method would need and is not there; empty where nothing is missing."""
        about, world = kind_of(name).about, self.world
        if (about.space == "h" or about.through_h) and world.denoiser.info.bottleneck_shape is None:
            return "this model has no bottleneck"
        told = bool(self._captions(name).goals)
        if about.supervision == "prompts":
            if not isinstance(world.denoiser, PromptedDenoiser):
                return "this model takes no text"
            return "" if told else "no prompts were given; --caption would tell them"
        if about.supervision != "none" and not (told or any(map(world.factors, world.recipe.region_names))):
            return "nothing reads the attributes of these pictures; --clip and --caption would tell it"
        if not learns(kind_of(name)):
            return ""
        tried = self.grid(name)[: None if self.size.choosing else 1]
        needed = max(self._made(name, settings).images for settings in tried)
        there = max(0, world.count("mine", self.size.choosing + needed) - self.size.choosing)
        if needed > there:
            return f"learns from {needed} `mine` images that no settings are chosen on, of which there are {there}"
        return ""

    def check(self) -> None:
        """Raises InputError where a split has too few images to measure anything: told before anything is measured."""
        self.world.images("holdout", self.size.images)
        self.world.images("mine", self.size.choosing)

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
        best = max(range(len(tasks)), key=lambda i: rank_of(tried[i]))
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

    def cell_name(self, task: Task) -> str:
        """The file of a task's cell, by name."""
        return f"{cell_name(_EXPERIMENT[task.split], self._key(task))}.json"

    def missing(self, tasks: Sequence[Task]) -> list[Task]:
        """Those whose cells are not there."""
        return [task for task in tasks if not self.cells.has(_EXPERIMENT[task.split], self._key(task))]

    def _images(self, task: Task) -> tuple[list[SourceImage], list[SourceImage]]:
        """The task's images, and those its edits are tried on."""
        own = self.world.images(task.split, task.count, skip=task.start)
        return own, self.world.images(task.split, self.size.images) if task.others else []

    def _key(self, task: Task) -> dict[str, Any]:
        """All that the rows of a task depend on. Perceptual backbones judge what is reported, never what is chosen."""
        own, pool = self._images(task)
        key = {**self.world.key(own), "method": task.method, "settings": task.settings.as_dict()}
        key |= {**self._captions(task.method).evidence(), "others": task.others, "pool": self._digest(pool)}
        if learns(kind_of(task.method)):
            key["learned"] = digest(self._lessons(task.method, self._made(task.method, task.settings))[1])
        return key if task.split == "mine" else {**key, "backbones": self.world.backbones.hashes()}

    def _digest(self, pool: Sequence[SourceImage]) -> str:
        """The digest of a pool's key, made once: it reads every mask."""
        names = tuple(image.image_id for image in pool)
        if names not in self._pools:
            self._pools[names] = digest(self.world.key(pool))
        return self._pools[names]

    def _rows(self, task: Task) -> Rows:
        own, pool = self._images(task)
        method = self.method(task.method, task.settings)
        known, perceived = self._reconstructions(task), task.split != "mine"
        return MethodRun(self.world, method, own, pool, perceived=perceived, known=known).rows(task.others)

    def _reconstructions(self, task: Task) -> References:
        """Those of the last cells, as long as it is the same method with the same settings, and they are not many."""
        of, (last, known) = (task.method, task.settings), self._known
        if of != last or sum(picture.nbytes for picture in known.values()) > KEPT:
            self._known = (of, {})
        return self._known[1]

    def method(self, name: str, settings: Settings) -> Method:
        """A method, with what it learns on `mine` images learned now, or taken from before; what was learned and cannot
        be read, or of which nobody knows what it cost, is learned again.

        Raises:
            InputError: no method of this name, or not enough images to learn from.
        """
        method = self._made(name, settings)
        if not learns(kind_of(name)):
            return method
        images, key = self._lessons(name, method)
        path = self.world.folder / "learned" / f"{cell_name('learning', key)}.safetensors"
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
        if known:
            self._learn(method, images)
        else:
            self.cells.get("learning", key, lambda: [self._learn(method, images)])
        write(path, save({tensor_name: tensor.contiguous() for tensor_name, tensor in method.learned().items()}))
        return method

    def _learn(self, method: Method, images: Sequence[SourceImage]) -> dict[str, float]:
        """Let a method learn, and say what it took."""
        begun, steps = time.monotonic(), method.settings.lesson().get("inversion_steps")
        if steps is None:
            pictures = (as_tensor(image.image.copy()) for image in images)
            subjects = [Subject(i.image_id, p, p.new_empty(0), {}) for i, p in zip(images, pictures, strict=True)]
        else:
            subjects = [replace(one, masks={}) for one in self.world.subjects(images, method.timestep, steps)]
        before = self.world.counter.passes
        method.learn(subjects, _percent(method.name))
        passes = self.world.counter.passes - before + len(images) * (steps or 0)
        seconds = time.monotonic() - begun
        return {"seconds": seconds, "passes": passes, "backward": method.cost.backward, "images": len(images)}

    def learning(self, name: str, settings: Settings) -> Learned:
        """What a method's learning has cost."""
        if not learns(kind_of(name)):
            return Learned()
        images, key = self._lessons(name, self._made(name, settings))
        cell = self.cells.find("learning", key)
        if cell is None or not cell.rows:
            return Learned(len(images), math.nan, math.nan, "")
        row = cell.rows[0]
        passes = row["passes"] + row["backward"] if "passes" in row else math.nan
        return Learned(len(images), row["seconds"], passes, cell.machine)

    def _captions(self, name: str) -> Captions:
        """The captions, for a method that is told what to change."""
        return self.world.captions.told(kind_of(name).about)

    def _made(self, name: str, settings: Settings) -> Method:
        guide = self._captions(name).reader(self.world.denoiser.device) or self.world.reader
        method = kind_of(name)(self.world.denoiser, settings, guide)
        method.memory = self.world.recipe.method.memory
        return method

    def _lessons(self, name: str, method: Method) -> tuple[list[SourceImage], dict[str, Any]]:
        """The images a method learns from, none of which its settings are chosen on, and the key of what it learns,
        which says nothing of regions, and of what reads attributes only if that tells the method its own."""
        images = self.world.lessons(method.images, skip=self.size.choosing)
        world, names = self.world.key([]), [image.image_id for image in images]
        key = {"model": world["model"], "images": names, "method": name, "lesson": method.settings.lesson()}
        if kind_of(name).about.supervision != "none":
            key |= self._captions(name).evidence() or {"reader": world["reader"]}
        return images, key


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


def learns(kind: type[Method]) -> bool:
    """Whether a method learns from images of their own, be it a single one."""
    return kind.learn is not Method.learn


def merit(home: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of edits at home: the share that succeeds (left out where nothing reads attributes), the share that became
    visible, and the median ROIR; refused ones have failed."""
    ratios = [row["roir"] for row in home]
    found = {"success": _share(home, "success")} if any("success" in row for row in home) else {}
    return {**found, "visible": _share(home, "reached"), "roir": median(ratios) if ratios else math.inf}


def _share(rows: Sequence[Mapping[str, Any]], flag: str) -> float:
    return sum(bool(row.get(flag)) for row in rows) / max(1, len(rows))


def rank_of(merits: Mapping[str, float]) -> tuple[float, float]:
    """What settings are chosen by, the larger the better: success, or visible edits where nothing reads; then ROIR."""
    return merits.get("success", merits["visible"]), -merits["roir"]
