"""The one interface of editing methods: learn if need be, find a region's edit on an image, apply it to any image.

Whatever a method is, it is judged by what it does to pictures. So the interface speaks of pictures and strengths, and
leaves open whether an edit is a vector, a small network or a guidance. Strength 0 is always the method's own
reconstruction, under the same noise as its edits: what every edit is compared with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch

from pipeline.errors import InputError
from pipeline.jacobian import JacobianKind, JacobianOperator, jacobian
from pipeline.memory import pictures_at_once
from pipeline.models.contract import Denoiser

Reader = Callable[[torch.Tensor], torch.Tensor]
"""An attribute reader: pictures (B, C, H, W) in [-1, 1] -> readings (B, factors), differentiable."""


@dataclass(frozen=True)
class Subject:
    """One image as methods see it: its picture (C, H, W) in [-1, 1], its x_t (*x_shape) at the method's timestep,
    its regions' masks, bool (H, W)."""

    name: str
    picture: torch.Tensor
    x_t: torch.Tensor
    masks: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Found:
    """One edit of one region.

    `vector`: the unit vector that is added, in x-space or h-space; None where the edit is none. `index`: which of what
    the method has learned. `guess`: the strength to try first; its sign says nothing. `evidence`: figures by name, such
    as gain, leakage, residual, kept_share.
    """

    region: str
    guess: float
    vector: torch.Tensor | None = None
    index: int = 0
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Why a method has no edit of a region of an image."""

    region: str
    reason: str


@dataclass
class Cost:
    """What a method has spent besides the network passes of its denoiser, which count themselves.

    `jvp`, `vjp`: single-vector products with a Jacobian; `backward`: images sent backward through the network.
    """

    jvp: int = 0
    vjp: int = 0
    backward: int = 0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.jvp - other.jvp, self.vjp - other.vjp, self.backward - other.backward)


@dataclass(frozen=True)
class About:
    """What a method is, as comparison tables say it.

    `paper`: authors and year; `supervision`: what tells it the attribute; `theory`: whether its paper says why it
    works; `localised`: whether it is told the region; `transfers`: whether an edit can be applied to another image;
    `through_h`: whether it looks into the bottleneck, though its edits are of another space;
    `outside`: what it does outside the mask that alone explains how little changes there; empty where nothing does;
    `deviations`: where this implementation differs from the paper, and why.
    """

    title: str
    paper: str
    space: Literal["x", "h", "eps"]
    supervision: Literal["none", "attribute reader", "CLIP", "attribute reader or CLIP", "prompts"] = "none"
    one_step: bool = False
    theory: bool = False
    localised: bool = True
    transfers: bool = True
    through_h: bool = False
    outside: str = ""
    deviations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What all methods are told; each adds its own.

    `timestep` and `window` are fractions of T: where x_t is taken, and between which h is shifted, (high, low); None is
    all the way down. `inversion_steps` and `steps` are DDIM steps up to the timestep and down again, of which `eta`
    above 0 makes the last `eta_share` stochastic. `tolerance` is that of singular vectors. `seed` is the only
    randomness.
    """

    timestep: float = 0.4
    inversion_steps: int = 50
    steps: int = 10
    window: tuple[float, float] | None = None
    convention: Literal["both", "x0"] = "both"
    eta: float = 0.0
    eta_share: float = 0.2
    tolerance: float = 0.05
    seed: int = 0

    def at_timestep(self, timestep: float) -> Self:
        """The same at another timestep (fraction of T); a window keeps its shares of the timestep."""
        share = timestep / self.timestep
        window = None if self.window is None else (self.window[0] * share, self.window[1] * share)
        return replace(self, timestep=timestep, window=window)

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, as JSON holds it."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def lesson(self) -> dict[str, Any]:
        """What `Method.learn` depends on among them, as JSON holds it; by default all. Without `inversion_steps` it
        looks at pictures alone."""
        return self.as_dict()


class Method(ABC):
    """An editing method bound to one denoiser and its settings.

    Class attributes: `name` (as users type it), `about`, `settings_class`, `limit` (largest magnitude of
    a strength that makes sense), `reference_by_region` (whether the reconstruction depends on the region edited),
    `told` (settings that a recipe decides where it has them; all others are the method's own).

    `memory`: bytes that the model and what goes through it may take, set by whoever runs a method; None is no limit.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    settings_class: ClassVar[type[Settings]] = Settings
    limit: ClassVar[float]
    reference_by_region: ClassVar[bool] = False
    memory: int | None = None
    told: ClassVar[tuple[str, ...]] = (
        "timestep", "inversion_steps", "steps", "tolerance", "seed", "goals", "clip",
    )  # fmt: skip

    def __init__(self, denoiser: Denoiser, settings: Settings, reader: Reader | None = None) -> None:
        if not isinstance(settings, self.settings_class):
            raise InputError("settings", type(settings).__name__, self.settings_class.__name__)
        self.denoiser, self.settings, self.reader = denoiser, settings, reader
        self.timestep = min(round(settings.timestep * denoiser.info.train_timesteps), denoiser.info.train_timesteps - 1)
        self.cost = Cost()

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """Settings worth trying on `mine` images, of which the best is reported on others; `settings` come first."""
        return [settings]

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        """The same with as little learning and searching as still runs through: for smoke tests."""
        return settings

    @property
    def images(self) -> int:
        """How many images one edit is learned from."""
        return 1

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """What is learned once, before any image is edited, from images of their own. Methods of one image learn none.

        It depends on the settings of `Settings.lesson` alone; the subjects have no masks, and no x_t where nothing is
        inverted. `progress(done, total)` is told how far it is.
        """
        return

    def learned(self) -> dict[str, torch.Tensor]:
        """What `learn` has left, to be kept as safetensors; `restore` takes it back."""
        return {}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the place of `learn`, with what `learned` gave. Raises InputError where it does not fit."""
        return

    @abstractmethod
    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """The first edit of every region of an image, by region. Regions of which a method would have to be told an
        attribute, and is not, are left out."""

    def guessed(self, edits: Mapping[str, Found | Refused], subject: Subject) -> Mapping[str, Found | Refused]:
        """What was found on an image, with strengths to try first that take trials of their own; as it is by default.
        The strength of an edit is searched for in any case, so this is no part of finding it."""
        return edits

    def jacobian(self, subject: Subject, kind: JacobianKind) -> JacobianOperator:
        """The Jacobian of a kind at an image's x_t, whose products keep to `memory`."""
        return jacobian(self.denoiser, subject.x_t, self.timestep, kind, memory=self.memory)

    def at_once(self, most: int, *, backward: bool = False) -> int:
        """How many images, 1 to `most`, may go through the network together; see `pictures_at_once`."""
        return pictures_at_once(self.denoiser, self.timestep, most, self.memory, backward=backward)

    def moved(self, edit: Found, home: torch.Tensor, target: torch.Tensor) -> Found:
        """The edit for an image that has the region at mask `target` (H, W), not at `home`; itself by default."""
        return edit

    @abstractmethod
    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        """Pictures (n, C, H, W), not clamped, of n edits on n images at n strengths, as one batch.

        Each is as it would be alone; strength 0 is the reconstruction. Noise, if any, is drawn from the settings' seed.
        """


def guess_from_gain(gain: float, mask: torch.Tensor, channels: int, limit: float, target: float = 0.15) -> float:
    """Strength at which a unit direction of this gain changes the region by `target` RMS to first order, in limits."""
    pixels = float(mask.sum()) * channels
    return min(target * math.sqrt(pixels) / max(gain, 1e-12), limit)
