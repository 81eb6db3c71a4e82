"""What a recipe needs on this machine, looked for and never fetched: its models, its data set, room on the disk.

Every check returns what it found and the problems beside it, so that all of them are told at once.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from catalog import manifest as manifests
from catalog.fs import MANIFEST
from flows.datasets.contract import Source, SourceImage
from flows.datasets.dataset import Dataset
from flows.known_models import Outline, known_outline, outline_of, preset_of
from flows.miner import method_fingerprint
from flows.model_choice import BUILTIN, ModelChoice
from flows.opening import model_place, open_model
from flows.ranks import check_method, check_ranks
from flows.recipe import Recipe
from flows.regions import GeneratedRegions, Regions, check_regions
from pipeline.errors import ConflictError, InputError, RhumbError
from pipeline.models.contract import Denoiser, Shape
from pipeline.models.files import ModelFiles
from pipeline.models.guided_presets import PRESETS

HERE, CACHED, MISSING = "here", "in the Hub's cache", "missing"
TO_FETCH = "not here; `rhumb mine` downloads it from the Hub"
IMAGES = 3  # read and reported
PATIENCE = 16  # images read at most until one of them can be mined
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SHAPE: Shape = (3, 256, 256)  # at which images are read where nobody knows the model's
_MASK_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json",
                 "pytorch_model.bin.index.json")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that keeps the recipe from being mined, and what to do about it."""

    field: str
    found: str
    expected: str
    action: str

    @classmethod
    def of(cls, error: Exception, field: str, action: str) -> Problem:
        """The problem that an error tells; `field` and `action` are for errors that name none."""
        if isinstance(error, RhumbError):
            return cls(error.field, error.found, error.expected, error.action or action)
        return cls(field, f"{type(error).__name__}: {error}", "files that can be read", action)


@dataclass(frozen=True)
class ModelFound:
    """A model's place: `state` is one of HERE, CACHED, TO_FETCH and MISSING, `where` its folder or Hub id."""

    state: str
    where: str


@dataclass(frozen=True)
class FirstImage:
    """One image as it would be mined: its `size` (width, height), masks as shares of the picture, or its `failure`."""

    source: str
    size: tuple[int, int] | None = None
    masks: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True)
class DataFound:
    """The data set as it lies here: `images` as many as will be mined, None where only reading all would tell."""

    name: str
    split: str
    images: int | None
    licence: str | None
    parts: tuple[str, ...]
    first: tuple[FirstImage, ...]


# --- models -------------------------------------------------------------------------------------------------------


def find_model(recipe: Recipe) -> tuple[ModelFound, Denoiser | None, Outline | None, list[Problem]]:
    """The recipe's model: loaded where its files are here, which checks every one of them, and else its outline."""
    choice = model_place(recipe)
    reference = choice.reference
    if reference == BUILTIN or Path(reference).expanduser().exists():
        return _loaded(choice, HERE)
    name, _, revision = reference.partition("@")
    if not _is_hub_id(name):
        problem = Problem("model", f"no folder {reference}", "a diffusers folder", _how_to_get(reference))
        return ModelFound(MISSING, reference), None, known_outline(reference), [problem]
    folder = cached(name, choice.revision or revision or None)
    if folder is not None:
        found = _loaded(choice.at(str(folder)), CACHED)
        if found[1] is not None:
            return found
    state, problems = _from_hub("model", reference)
    return ModelFound(state, reference), None, known_outline(reference), problems


def _loaded(choice: ModelChoice, state: str) -> tuple[ModelFound, Denoiser | None, Outline | None, list[Problem]]:
    try:
        denoiser = open_model(choice)
    except (RhumbError, OSError) as error:
        problem = Problem.of(error, "model", "Convert or download the model again.")
        return ModelFound(MISSING, choice.reference), None, known_outline(choice.reference), [problem]
    return ModelFound(state, choice.reference), denoiser, outline_of(denoiser), []


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a Hub id, owner/name; a path that begins with a dot or a slash is none."""
    return _HUB_ID.fullmatch(name) is not None


def cached(name: str, revision: str | None) -> Path | None:
    """The folder of a Hub model in the cache of this machine, which may be incomplete; None without one."""
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _from_hub(field: str, reference: str) -> tuple[str, list[Problem]]:
    """The state of a Hub model that is not whole in the cache: a problem only where nothing may be fetched."""
    if not constants.HF_HUB_OFFLINE:
        return TO_FETCH, []
    return MISSING, [Problem(field, f"{reference}, not in the Hub's cache, and HF_HUB_OFFLINE", "a cached model",
                             "Unset HF_HUB_OFFLINE, or copy the model's folder here and name that.")]  # fmt: skip


def _how_to_get(reference: str) -> str:
    """What to do about a folder that is not there: a preset's checkpoint is to be converted."""
    name = preset_of(reference)
    if name is None:
        return "Put the folder there, or name a Hub id such as owner/name."
    preset = PRESETS[name]
    convert = f"rhumb convert {preset.file} --preset {name} --out {reference}"
    return f"Get {preset.file} from {preset.source} and convert it with: {convert}"


def find_mask_model(recipe: Recipe) -> tuple[ModelFound | None, list[Problem]]:
    """The mask-generation model where the recipe asks for one; its weights are not read."""
    made = recipe.regions
    if not isinstance(made, GeneratedRegions) or made.provider != "mask-generation":
        return None, []
    problems = []
    if importlib.util.find_spec("transformers") is None:
        problems.append(Problem("regions.provider", "no package transformers", "it, for mask-generation models",
                                "Install it with: pip install 'rhumb[masks]'"))  # fmt: skip
    folder, state = Path(made.model).expanduser(), HERE
    if not folder.is_dir():
        name, _, revision = made.model.partition("@")
        if not _is_hub_id(name):
            problems.append(Problem("regions.model", f"no folder {made.model}", "a folder or a Hub id",
                                    "Name facebook/sam-vit-large, or put the folder there."))  # fmt: skip
            return ModelFound(MISSING, made.model), problems
        snapshot, state = cached(name, made.revision or revision or None), CACHED
        if snapshot is None or _lacks(snapshot):
            state, more = _from_hub("regions.model", made.model)
            return ModelFound(state, made.model), problems + more
        folder = snapshot
    if lacking := _lacks(folder):
        problems.append(Problem("regions.model", f"{folder} without {lacking}", "a model of transformers",
                                "Download the model again."))  # fmt: skip
        state = MISSING
    return ModelFound(state, str(folder)), problems


def _lacks(folder: Path) -> str:
    """What a folder of transformers is short of, "" for nothing."""
    files = ModelFiles(str(folder), folder)
    if not files.has("config.json"):
        return "config.json"
    return "" if any(files.has(name) for name in _MASK_WEIGHTS) else _MASK_WEIGHTS[0]


# --- data ---------------------------------------------------------------------------------------------------------


def find_data(
    recipe: Recipe, outline: Outline | None, denoiser: Denoiser | None = None
) -> tuple[DataFound | None, list[Problem]]:
    """The recipe's images and regions: opened, listed, and the first ones read at the model's size, where known.

    The method is checked here too: its ranks must fit the masks. `denoiser`: the model itself, where it is here.
    """
    problems: list[Problem] = []
    source: Source | None = None
    regions: Regions | None = None
    try:
        source = recipe.dataset.open(recipe.resolve)
    except (RhumbError, OSError, ImportError) as error:
        problems.append(Problem.of(error, "dataset", _get_data(recipe)))
    try:
        regions = recipe.open_regions()
    except RhumbError as error:
        problems.append(Problem.of(error, "regions", "Correct the region in the recipe."))
    model = denoiser if denoiser is not None else cast(Denoiser | None, outline)
    if model is not None:
        problems += _errors_of(lambda: check_method(recipe, model), "method", "Change it in the recipe.")
    if source is None:
        return None, problems
    first: tuple[FirstImage, ...] = ()
    images = None
    if regions is not None:
        unknown = _unknown_regions(regions, source)
        problems += unknown
        try:
            data = Dataset(source, regions, outline.info.image_shape if outline else _SHAPE, recipe.dataset.resize.fit,
                           recipe.dataset.limit)  # fmt: skip
            images = data.count()
            if not unknown:
                first, more = _read_first(recipe, data, model)
                problems += more
        except (RhumbError, OSError) as error:
            problems.append(Problem.of(error, "dataset", _get_data(recipe)))
    return DataFound(source.name, source.split, images, source.licence, tuple(source.parts), first), problems


def _get_data(recipe: Recipe) -> str:
    kind = getattr(recipe.dataset, "kind", "")
    return f"Put the data set there, in the layout of {kind}, or change the recipe's dataset."


def _errors_of(check: Callable[[], object], field: str, action: str) -> list[Problem]:
    try:
        check()
    except RhumbError as error:
        return [Problem.of(error, field, action)]
    return []


def _unknown_regions(regions: Regions, source: Source) -> list[Problem]:
    """A problem for every region whose parts or labels the data set has not."""
    found = []
    for name, spec in regions.specs.items():
        one = partial(check_regions, replace(regions, specs={name: spec}), source)
        found += _errors_of(one, "regions", "Correct it in the recipe.")
    return found


def _read_first(recipe: Recipe, data: Dataset, model: Denoiser | None) -> tuple[tuple[FirstImage, ...], list[Problem]]:
    """The first images, as many as are to be shown and until one can be mined; problems where none can."""
    shown: list[FirstImage] = []
    errors: list[InputError] = []
    usable = fitting = 0
    for item in islice(data, PATIENCE):
        if len(shown) >= IMAGES and usable:
            break
        if not isinstance(item, SourceImage):
            shown.append(FirstImage(item.source, failure=item.reason))
            continue
        usable += 1
        shares = {name: float(mask.mean()) for name, mask in item.masks.items()}
        shown.append(FirstImage(item.source, item.source_size, shares, item.skipped))
        try:
            if item.masks and model is not None:
                check_ranks(recipe, model, item)
            fitting += 1
        except InputError as error:
            errors.append(error)
    if not usable:
        reasons = "; ".join(f"{image.source}: {image.failure}" for image in shown[:IMAGES]) or "no image at all"
        return tuple(shown), [Problem("dataset", f"none of the first {len(shown)} images can be mined ({reasons})",
                                      "images with a mask", "Repair or replace them.")]  # fmt: skip
    problems = [] if fitting else [Problem.of(errors[0], "method", "Lower it in the recipe.")]
    return tuple(shown), problems


# --- the catalog's place ------------------------------------------------------------------------------------------


def free_space(out: Path, wanted: float | None, recipe: Recipe) -> tuple[int, list[Problem]]:
    """Bytes free where the catalog will lie, and problems: too little room, or something else that is there."""
    problems: list[Problem] = []
    place = out.expanduser().absolute()
    try:
        if (place / MANIFEST).is_file():
            there = manifests.load(place).provenance.recipe_fingerprint
            if there != method_fingerprint(recipe):
                raise ConflictError("--out", f"{out}, a catalog of another recipe", "a new folder, or this recipe's")
        elif place.is_file() or (place.is_dir() and any(place.iterdir())):
            raise ConflictError("--out", f"{out}, which holds something else", "a new or empty folder, or a catalog")
    except (RhumbError, OSError) as error:
        problems.append(Problem.of(error, "--out", "Choose another --out."))
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted is not None and free < wanted:
        problems.append(Problem("--out", f"{free / 1e9:.1f} GB free in {place}", f"about {wanted / 1e9:.1f} GB",
                                "Choose another disk, or set dataset.limit."))  # fmt: skip
    return free, problems
