"""The recipe: one YAML file, typed, that says what is mined from which images with which model.

A misspelt key is an error that names the nearest right one; every other message names the field, what was found and
what was expected.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from flows.datasets.config import Part, quiet
from flows.datasets.kinds import AnyDataset
from flows.gates import Gates
from flows.model_choice import BUILTIN, ModelChoice
from flows.recipe_errors import first_error
from flows.regions import RegionChoice, Regions, open_regions, region_names
from pipeline.errors import InputError

Rule = Literal["permutation", "angles", "product"]  # those of pipeline.jive_ranks, which torch stands behind
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


_SAYS_NOTHING = ("name", "gates", "licence")  # of what is found on an image


class Loco(Part):
    """x-space: `rank` directions per region, projected off the `null_rank` strongest ones of the complement.

    `variant` "projected": singular directions of the region, projected afterwards; "inside": those of the region's
    Jacobian within the null space, the strongest there are.
    """

    rank: int = Field(default=5, ge=1)
    null_rank: int = Field(default=30, ge=0)
    variant: Literal["projected", "inside"] = quiet("projected")


class Jive(Part):
    """h-space: SVDs of `rank` per block, then the ranks of the joint and of each individual part.

    `auto` leaves a rank to `rank_rule` (`pipeline.jive_ranks`), which chooses it from each image's blocks, all `rank`
    rows taken for signal; a region then has as many directions of each kind as its individual rank, at least one.
    `orthogonal_individuals` keeps the regions' individual parts orthogonal to each other too; then the order of the
    regions matters.
    """

    rank: int = Field(default=20, ge=1)
    joint_rank: Literal["auto"] | Annotated[int, Field(ge=0)] = 30
    individual_rank: Literal["auto"] | Annotated[int, Field(ge=1)] = 3
    scale: bool = True
    orthogonal_individuals: bool = quiet(False)
    rank_rule: Rule = quiet("permutation")


class Edit(Part):
    """How strong previews are ("visible", or a number), and how edits are decoded.

    `h_window` [start, end] in fractions of T, start > end: h is shifted from `start` down to `end`; None is from the
    recipe's timestep down to 0. `steps` DDIM steps over [0, t]; `convention` "both" DDIM terms see the shifted h, or
    "x0" only (Asyrp). `eta` above 0 makes the last `eta_share` of the steps stochastic, with noise from the recipe's
    seed, the same for an edit and what it is compared with.
    """

    strength: Literal["visible"] | Annotated[float, Field(gt=0.0)] = "visible"
    h_window: tuple[Annotated[float, Field(ge=0.0, le=1.0)], Annotated[float, Field(ge=0.0, le=1.0)]] | None = None
    steps: int = Field(default=25, ge=1, le=1000)
    convention: Literal["both", "x0"] = "both"
    eta: float = quiet(0.0, ge=0.0, le=1.0)
    eta_share: float = quiet(0.2, gt=0.0, le=1.0)

    @field_validator("h_window")
    @classmethod
    def _runs_downwards(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and window[0] <= window[1]:
            raise ValueError("[start, end] with start > end, since denoising runs from high t to low")
        return window


class Method(Part):
    """Numerical settings: `timestep` as a fraction of T in (0, 1), `tolerance` the residual at which an SVD stops.

    `memory`: what weights and Jacobian products may take in each process, in bytes or as "4GB"; None is no limit. It
    belongs to the machine: another budget gives the same directions up to rounding, under the same ids.
    `warm_start`: searches start from what was found on the nearest image that the catalog already holds. Off by
    default: on the built-in model it saves at most a tenth of the products in x-space and none in h-space, and results
    then depend, within the tolerance, on what was committed before. Where a search starts enters ids, as `seed` does.
    """

    timestep: Fraction = 0.35
    inversion_steps: int = Field(default=100, ge=2, le=1000)
    tolerance: float = Field(default=1e-2, gt=0.0, lt=1.0)
    memory: Annotated[int, Field(ge=1)] | None = Field(default=None, exclude=True)
    warm_start: bool = quiet(False)
    loco: Loco = Loco()
    jive: Jive = Jive()
    edit: Edit = Edit()

    @field_validator("memory", mode="before")
    @classmethod
    def _in_bytes(cls, memory: object) -> object:
        if not isinstance(memory, str):
            return memory
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?", memory.strip())
        if found is None:
            raise ValueError("bytes, or a number with kB, MB, GB or TB, such as 4GB")
        return round(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))

    @model_validator(mode="after")
    def _window_below_timestep(self) -> Method:
        if self.edit.h_window is not None and self.edit.h_window[0] > self.timestep + 1e-9:
            raise ValueError(f"edit.h_window to start at or below timestep {self.timestep}, where the edit begins")
        return self


class Recipe(Part):
    """One mining job. `load_recipe` reads it from YAML.

    `licence`: of packs that are published from it; None where it is to follow from those of model and data.
    """

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: ModelChoice = ModelChoice(reference=BUILTIN)
    dataset: AnyDataset
    regions: RegionChoice
    method: Method = Method()
    gates: Gates = Gates()
    licence: str | None = quiet(None, min_length=1, max_length=200)
    seed: int = Field(default=0, ge=0, lt=2**31)
    _folder: Path = PrivateAttr(default=Path())

    @field_validator("regions")
    @classmethod
    def _named_once(cls, regions: RegionChoice) -> RegionChoice:
        if isinstance(regions, tuple) and len(set(regions)) != len(regions):
            raise ValueError("every region once")
        return regions

    @property
    def region_names(self) -> tuple[str, ...]:
        """The names of the regions, in the recipe's order."""
        return region_names(self.regions)

    def open_regions(self) -> Regions:
        """The regions, ready to make masks; templates are read. Raises InputError for one that is not there."""
        return open_regions(self.regions, self.resolve)

    def limited_to(self, limit: int) -> Recipe:
        """The same recipe on the first `limit` images of its data set."""
        shorter = self.model_copy(update={"dataset": self.dataset.model_copy(update={"limit": limit})})
        shorter._folder = self._folder
        return shorter

    def resolve(self, path: str) -> Path:
        """A path of the recipe on this machine: relative paths start at the recipe's own folder."""
        return self._folder / Path(path).expanduser()

    def numerical(self) -> dict[str, Any]:
        """The settings that a direction's numbers depend on, besides model, image and mask: JSON-serialisable."""
        return {"method": self.method.model_dump(mode="json"), "seed": self.seed}

    def fingerprint(self) -> str:
        """32 hex digits over everything that decides what is found on an image: all but the recipe's name, its gates
        and licence, and how many images it takes.

        Two recipes with one fingerprint may continue each other's catalog.
        """
        parts = self.model_dump(mode="json", exclude={**dict.fromkeys(_SAYS_NOTHING, True), "dataset": {"limit"}})
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        InputError: no such file, not YAML, a misspelt or missing key, a value that does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("recipe", f"{path}, which is not a file", "a YAML recipe", "Check the path.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path.name}", f"unreadable YAML ({_line(error)})", "one YAML mapping") from error
    recipe = parse_recipe(content)
    recipe._folder = path.resolve().parent
    return recipe


def parse_recipe(content: object) -> Recipe:
    """Check an already parsed recipe; paths in it are relative to the working directory.

    Raises:
        InputError: as `load_recipe`.
    """
    if not isinstance(content, dict):
        raise InputError("recipe", f"{type(content).__name__}", "a mapping with name, dataset and regions")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise first_error(error, Recipe) from error


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}" if mark is not None else "not UTF-8 text"
