"""Asyrp (Kwon, Jeong and Uh 2023): a small network in h-space, trained for one attribute and applied asymmetrically.

f(h, t) is added to the bottleneck h at every DDIM step of the editing interval, and only the predicted x0 sees it
(eq. 4): x_(t-1) = sqrt(abar_(t-1)) P(eps(x_t | f)) + sqrt(1 - abar_(t-1)) eps(x_t). It is trained along its own edited
trajectory, one update a step, with the gradient through that step alone, as the authors' code has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.inversion import BottleneckShift, predict, sample, timestep_grid
from pipeline.methods.clip_guidance import ClipGuidance
from pipeline.methods.contract import About, Found, Method, Reader, Refused, Settings, Subject
from pipeline.methods.guidance import Goal, Guidance, ReaderGuidance
from pipeline.models.contract import Denoiser

TIME_WIDTH = 128
BATCH = 32  # images whose unedited trajectory is walked together


class HFunction(nn.Module):
    """f of section 3.4: 1x1 convolution, time added, group norm, swish, 1x1 convolution that begins as zero.

    (h (B, C, H, W), t) -> a shift of the same shape, in float32. Weights are drawn from `generator` alone.
    """

    def __init__(self, channels: int, timesteps: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.timesteps = timesteps
        with torch.device("meta"):  # layers would draw their weights from the global generator
            self.into = nn.Conv2d(channels, channels, 1)
            self.time = nn.Linear(TIME_WIDTH, channels)
            self.norm = nn.GroupNorm(math.gcd(32, max(1, channels // 16), channels), channels)
            self.out = nn.Conv2d(channels, channels, 1)
        self.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for layer in (self.into, self.time):
                drawn = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(drawn / math.sqrt(layer.weight[0].numel()))
            self.norm.weight.fill_(1.0)

    def forward(self, h: torch.Tensor, t: int) -> torch.Tensor:
        told = self.time(nn.functional.silu(self._embedded(t).to(h.device)))
        shift: torch.Tensor = self.out(nn.functional.silu(self.norm(self.into(h.float()) + told[:, None, None])))
        return shift

    def _embedded(self, t: int) -> torch.Tensor:
        """Sines and cosines (TIME_WIDTH,) of t as a thousandth of the schedule, as diffusion networks are told it."""
        rates = torch.exp(-math.log(10_000.0) * torch.arange(TIME_WIDTH // 2) / (TIME_WIDTH // 2))
        angles = 1000.0 * t / self.timesteps * rates
        return torch.cat([angles.sin(), angles.cos()])


@dataclass(frozen=True)
class AsyrpSettings(Settings):
    """What Asyrp is told besides.

    `goals`: the attributes to learn, a function each; the first of a region is its edit. `clip`: the folder of a
    CLIPModel whose guidance trains them; None is the attribute reader. `window` is the editing interval [T, t_edit];
    `boost` the fraction of T under which steps are stochastic (eta = 1), the quality-boosting interval.
    `samples` images are walked `epochs` times in batches of `batch` and `train_steps` DDIM steps. The loss is `guide` *
    guidance + `recon` * mean |x0 edited - x0 source|; `hold` weighs the reader's other readings within the guidance.
    """

    convention: Literal["both", "x0"] = "x0"
    goals: tuple[Goal, ...] = ()
    clip: str | None = None
    samples: int = 64
    epochs: int = 1
    batch: int = 4
    train_steps: int = 6
    learning_rate: float = 2e-3
    guide: float = 0.8
    recon: float = 3.0
    hold: float = 3.0
    boost: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.samples, self.epochs, self.batch, self.train_steps)
        if least < 1:
            raise InputError("samples, epochs, batch, train_steps", least, "at least 1 each")

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name; of `clip` only whether there is one, as folders differ from machine to machine."""
        own = {"goals": [asdict(goal) for goal in self.goals], "clip": self.clip is not None}
        return {**super().as_dict(), **own}

    def lesson(self) -> dict[str, Any]:
        unused = ("steps", "boost", "eta", "eta_share", "tolerance")
        return {name: value for name, value in self.as_dict().items() if name not in unused}


@dataclass(frozen=True)
class _Walk:
    """The unedited way down of the training images.

    `steps`: (timestep, next) of each step down to the end of the window; `pictures`: (images, C, H, W); `clean`:
    (images, steps, *x_shape), predicted x0 in half precision on the CPU.
    """

    steps: list[tuple[int, int]]
    x_t: torch.Tensor
    pictures: torch.Tensor
    clean: torch.Tensor


class Asyrp(Method):
    """One function of h for each goal; strength scales it, and 1 is the edit as trained."""

    name = "asyrp"
    about = About(
        title="Asyrp",
        paper="Kwon, Jeong and Uh 2023",
        space="h",
        supervision="attribute reader or CLIP",
        localised=False,
        deviations=(
            "learned from fewer images than the paper's 1,000 and along fewer DDIM steps than its 40, as `samples` and"
            " `train_steps` say, and by Adam, where the paper's code descends the plain gradient",
            "where the attribute reader guides, the distance of one reading from the end of its range stands for CLIP's"
            " directional loss, and other readings can be held; the reader that guides is also the one that judges",
            "the editing and the quality-boosting interval are settings, not found by LPIPS, and edits begin at the"
            " timestep of x_t, which is the whole of T only in the paper's own settings",
            "f is told the time by an embedding of its own, as a denoiser is not asked for its own, and its last layer"
            " begins as zero",
            "CLIP is told the captions as they are, without templates, and the weight of the reconstruction does not"
            " depend on how alike they are; for latent models it is of x0, which is no picture",
        ),
    )
    settings_class = AsyrpSettings
    limit = 8.0
    told = (*Method.told, "window")  # asymmetric it is by name

    settings: AsyrpSettings

    def __init__(self, denoiser: Denoiser, settings: Settings, reader: Reader | None = None) -> None:
        if not isinstance(settings, AsyrpSettings):
            raise InputError("settings", type(settings).__name__, "AsyrpSettings")
        super().__init__(denoiser, settings, reader)
        denoiser.need_bottleneck()
        keys = [goal.key for goal in settings.goals]
        if len(set(keys)) < len(keys):
            raise InputError("goals", ", ".join(keys), "each attribute of a region once")
        self._functions: dict[str, HFunction] = {}
        self._losses: dict[str, torch.Tensor] = {}  # mean loss of every epoch, (epochs,)
        self._guidance: Guidance | None = None

    @classmethod
    def grid(cls, settings: Settings) -> Sequence[Settings]:
        """The settings; without holding other readings; from a noisier x_t; and the paper's intervals, from T.

        Where only the upper part of the way is edited, more steps of it are trained on, at about the same cost.
        """
        if not isinstance(settings, AsyrpSettings):
            raise InputError("settings", type(settings).__name__, "AsyrpSettings")
        over_all = replace(settings, timestep=1.0, window=(1.0, 0.5), boost=0.2, inversion_steps=40, steps=40)
        return [
            settings,
            replace(settings, hold=0.0),
            replace(settings, timestep=0.6, window=(0.6, 0.2), train_steps=2 * settings.train_steps),
            replace(over_all, hold=0.0, train_steps=3 * settings.train_steps),
        ]

    @classmethod
    def quick(cls, settings: Settings) -> Settings:
        return replace(cast(AsyrpSettings, settings), samples=4, train_steps=2)

    @property
    def images(self) -> int:
        return self.settings.samples

    def learn(self, subjects: Sequence[Subject], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Train the function of every goal that has none yet; `learned` holds those that are finished.

        Goals are trained one after another, each from a generator of its own, so what an interrupted call had finished
        and `restore` took back is what an uninterrupted one would have. Memory: `samples` x `train_steps` x0 in half
        precision, and one backward pass of `batch` images through the part of the network behind h.
        Cost: `train_steps` passes an image, then for every goal and epoch as many backward passes, and three forward
        passes each, one of them only to h. Raises InputError without images, goals, or what guides.
        """
        waiting = [(i, goal) for i, goal in enumerate(self.settings.goals) if goal.key not in self._functions]
        if self.settings.goals and not waiting:
            return
        if not subjects or not waiting:
            raise InputError("subjects, goals", (len(subjects), len(waiting)), "at least one image and one goal")
        guidance = self._guide()
        for _, goal in waiting:
            guidance.check(goal)
        groups = math.ceil(len(subjects) / self.at_once(BATCH))
        rounds = self.settings.epochs * math.ceil(len(subjects) / self.settings.batch)
        total, done = groups + rounds * len(waiting), 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        walk = self._walked(subjects, advance)
        for place, goal in waiting:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + place)
            function = HFunction(self.denoiser.need_bottleneck()[0], self.denoiser.info.train_timesteps, generator)
            losses = self._trained(function.to(self.denoiser.device), goal, walk, generator, advance)
            self._functions[goal.key], self._losses[goal.key] = function.eval().requires_grad_(False), losses

    def learned(self) -> dict[str, torch.Tensor]:
        """Weights of every finished function, and the mean loss of its epochs, by goal."""
        kept = {f"{key}/losses": losses.clone() for key, losses in self._losses.items()}
        for key, function in self._functions.items():
            kept.update({f"{key}/f.{name}": value.detach().cpu() for name, value in function.state_dict().items()})
        return kept

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Functions of some or all of the settings' goals."""
        functions, losses, left = {}, {}, set(tensors)
        for goal in self.settings.goals:
            names = {name for name in left if name.startswith(f"{goal.key}/")}
            if not names:
                continue
            left -= names
            function = HFunction(self.denoiser.need_bottleneck()[0], self.denoiser.info.train_timesteps)
            shapes = {f"{goal.key}/f.{name}": value.shape for name, value in function.state_dict().items()}
            found = {name: tensors[name].shape for name in names if not name.endswith("/losses")}
            if found != shapes or f"{goal.key}/losses" not in names or not tensors[f"{goal.key}/losses"].numel():
                raise InputError(
                    f"learned: {goal.key}", f"{len(names)} tensors", f"f of {self.denoiser.info.family}'s h"
                )
            prefix = f"{goal.key}/f."
            function.load_state_dict({name.removeprefix(prefix): tensors[name] for name in shapes})
            functions[goal.key] = function.to(self.denoiser.device).eval().requires_grad_(False)
            losses[goal.key] = tensors[f"{goal.key}/losses"].detach().cpu()
        if left:
            raise InputError(
                "learned", min(left), f"goals among {', '.join(g.key for g in self.settings.goals) or 'none'}"
            )
        self._functions, self._losses = functions, losses

    def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
        """Every region's first goal, at the strength it was trained for; `index` is its place among the goals. Regions
        without a goal are left out."""
        first: dict[str, int] = {}
        for place, goal in enumerate(self.settings.goals):
            first.setdefault(goal.region, place)
        answers: dict[str, Found | Refused] = {}
        for region in (region for region in subject.masks if region in first):
            losses = self._losses[self._learned(first[region])[0]]
            evidence = {"first_loss": float(losses[0]), "last_loss": float(losses[-1])}
            answers[region] = Found(region, 1.0, index=first[region], evidence=evidence)
        return answers

    @torch.no_grad()
    def apply(self, edits: Sequence[Found], subjects: Sequence[Subject], strengths: torch.Tensor) -> torch.Tensor:
        """Pictures (n, C, H, W). Cost: `steps` passes an image, and one and a half more at each in the window."""
        if len(edits) != len(subjects) or len(strengths) != len(edits):
            found = (len(edits), len(subjects), len(strengths))
            raise InputError("strengths", found, "one image and strength for each edit")
        chosen = [self._learned(edit.index)[1] for edit in edits]

        def shift(h: torch.Tensor, t: int) -> torch.Tensor:
            shifts = torch.empty_like(h)
            for function in set(chosen):
                rows = [row for row, own in enumerate(chosen) if own is function]
                shifts[rows] = function(h[rows], t).to(h)
            return shifts * strengths.to(h).view(-1, 1, 1, 1)

        share = self._boosted_share()
        clean = sample(
            self.denoiser,
            torch.stack([subject.x_t for subject in subjects]),
            self.timestep,
            self.settings.steps,
            shift=self._shift(shift),
            eta=1.0 if share > 0 else 0.0,
            eta_share=share,
            generator=torch.Generator().manual_seed(self.settings.seed),
        )
        return self.denoiser.decode(clean)

    def _learned(self, place: int) -> tuple[str, HFunction]:
        """Key and function of a goal by its place. Raises InputError where there is none, or none learned yet."""
        if not 0 <= place < len(self.settings.goals):
            raise InputError("edit: index", place, f"a goal of {len(self.settings.goals)}")
        key = self.settings.goals[place].key
        if key not in self._functions:
            raise InputError(f"goal {key}", "not learned", "a learned function", "Call learn or restore first.")
        return key, self._functions[key]

    def _guide(self) -> Guidance:
        if self._guidance is None:
            if self.settings.clip is not None:
                self._guidance = ClipGuidance.load(self.settings.clip, self.denoiser.device)
            elif self.reader is not None:
                self._guidance = ReaderGuidance(self.reader, self.settings.hold)
            else:
                raise InputError("guidance", "neither", "an attribute reader, or the folder of a CLIP model in `clip`")
        return self._guidance

    def _shift(self, function: Callable[[torch.Tensor, int], torch.Tensor]) -> BottleneckShift:
        total = self.denoiser.info.train_timesteps
        high, low = (round(edge * total) for edge in self.settings.window or (1.0, 0.0))
        return BottleneckShift(function, high, low, self.settings.convention)

    def _boosted_share(self) -> float:
        """Share of the steps that begin under the boosting interval's edge."""
        grid = timestep_grid(self.timestep, self.settings.steps)[1:]
        return sum(at < self.settings.boost * self.denoiser.info.train_timesteps for at in grid) / len(grid)

    @torch.no_grad()
    def _walked(self, subjects: Sequence[Subject], advance: Callable[[], None]) -> _Walk:
        """The unedited trajectories, once for all goals."""
        shift = self._shift(lambda h, t: h)
        grid = pairwise(reversed(timestep_grid(self.timestep, self.settings.train_steps)))
        steps = [(at, to) for at, to in grid if at >= shift.low]
        if not any(shift.acts(at) for at, _ in steps):
            raise InputError(
                "window", self.settings.window, "an interval in which a step begins", "Use more train_steps."
            )
        x_t = torch.stack([subject.x_t for subject in subjects])
        groups = []
        for group in x_t.split(self.at_once(BATCH)):
            x, seen = group.to(self.denoiser.device, self.denoiser.dtype), []
            for at, to in steps:
                clean, noise = predict(self.denoiser, x, at)
                seen.append(clean.half().cpu())
                x = self._next(clean, noise, to)
            groups.append(torch.stack(seen, dim=1))
            advance()
        return _Walk(steps, x_t, torch.stack([subject.picture for subject in subjects]), torch.cat(groups))

    def _trained(
        self, function: HFunction, goal: Goal, walk: _Walk, generator: torch.Generator, advance: Callable[[], None]
    ) -> torch.Tensor:
        """Train one function; returns the mean loss of every epoch, (epochs,)."""
        optimiser = torch.optim.Adam(function.parameters(), lr=self.settings.learning_rate)
        means = []
        for _ in range(self.settings.epochs):
            losses: list[float] = []
            for rows in torch.randperm(len(walk.x_t), generator=generator).split(self.settings.batch):
                for loss in self._descended(function, goal, walk, rows):
                    parameters = list(function.parameters())
                    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                        parameter.grad = gradient
                    optimiser.step()
                    self.cost.backward += len(rows)
                    losses.append(float(loss.detach()))
                advance()
            means.append(sum(losses) / len(losses))
        return torch.tensor(means)

    def _descended(self, function: HFunction, goal: Goal, walk: _Walk, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """The losses of a batch along its edited way down; each is to be stepped on before the next is asked for."""
        shift, guidance, own = self._shift(lambda h, t: function(h.detach(), t)), self._guide(), self.settings
        pictures = walk.pictures[rows].to(self.denoiser.device)
        x = walk.x_t[rows].to(self.denoiser.device, self.denoiser.dtype)
        for step, (at, to) in enumerate(walk.steps):
            with torch.enable_grad():
                clean, noise = predict(self.denoiser, x, at, shift)
            if shift.acts(at):
                with torch.enable_grad():
                    away = (clean - walk.clean[rows, step].to(clean)).abs().mean()
                    loss = own.guide * guidance.loss(goal, pictures, self.denoiser.decode(clean)) + own.recon * away
                yield loss
            x = self._next(clean.detach(), noise.detach(), to)

    def _next(self, clean: torch.Tensor, noise: torch.Tensor, to: int) -> torch.Tensor:
        alpha, sigma = self.denoiser.alpha_sigma(to)
        return alpha * clean + sigma * noise
