"""Training of the built-in denoiser on the parametric faces.

The objective is v-prediction under the cosine schedule (Salimans & Ho 2022; Nichol & Dhariwal 2021). Batches are
rendered on the fly from (seed, step), so a resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.checkpoints import load_checkpoint, save_checkpoint
from pipeline.errors import InputError
from pipeline.faces.factors import sample_factors
from pipeline.faces.render import SIZE, render


class Phase(BaseModel):
    """A stretch of steps with an optimiser of its own; it starts from the averaged network of the phase before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1)
    learning_rate: float = 1.2e-3
    warmup: int = Field(default=300, ge=1)
    cooldown: float = 0.3  # last share of the steps, over which the learning rate falls to zero
    levels: tuple[tuple[float, float], ...] = ((0.75, 0.85), (1.0, 0.15))  # (up to t / T, share of each batch)
    antithetic: bool = False  # every image comes with a noise and its negative
    bfloat16_until: float = 0.9  # share of the steps run in bfloat16 autocast

    @field_validator("levels")
    @classmethod
    def _covers_all(cls, levels: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        edges, shares = [0.0, *(edge for edge, _ in levels)], [share for _, share in levels]
        rising = all(low < high for low, high in pairwise(edges)) and edges[-1] == 1.0
        if not rising or min(shares, default=0.0) <= 0.0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError("rising edges that end at 1, with positive shares that add up to 1")
        return levels


class DenoiserTraining(BaseModel):
    """Settings of one training run; written beside the model.

    The first phase learns the faces. The others remove what it leaves of white noise, which is all that keeps the
    posterior mean's Jacobian from low rank: with the noise of a pair cancelled against its negative, the gradient of
    a response linear in the noise is free of the image's own uncertainty. The last two dwell on 0.75 T to
    0.82 T, where the faces are a few broad uncertainties and the rank is least.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    batch: int = Field(default=16, ge=1)
    ema: float = 0.9995
    paintings: float = 0.25  # share of each batch in the second style
    snr_limit: float = 10.0  # weight 1 / (1 + SNR / limit) on the v-loss, after Hang et al. 2023
    channels: tuple[int, ...] = (16, 32, 96)
    phases: tuple[Phase, ...] = Field(
        default=(
            Phase(steps=7500),
            Phase(
                steps=6000, learning_rate=4e-4, cooldown=1.0, levels=((0.6, 0.55), (1.0, 0.45)), antithetic=True,
                bfloat16_until=0.7,
            ),
            Phase(
                steps=3000, learning_rate=3e-4, warmup=100, cooldown=1.0, antithetic=True, bfloat16_until=0.8,
                levels=((0.75, 0.35), (0.82, 0.5), (1.0, 0.15)),
            ),
            Phase(
                steps=1600, learning_rate=3e-4, warmup=100, cooldown=1.0, antithetic=True, bfloat16_until=0.8,
                levels=((0.77, 0.25), (0.82, 0.7), (1.0, 0.05)),
            ),
        ),
        min_length=1,
    )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, counted over all phases, and the steps done in it before."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise InputError("step", step, f"less than {self.steps}, the steps of all phases")


def new_unet(channels: tuple[int, ...]) -> UNet2DModel:
    """The built-in architecture: one residual layer per level, attention at the bottleneck only."""
    levels = len(channels)
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
    )


def new_scheduler() -> DDPMScheduler:
    """Cosine schedule, v-prediction, no clipping of the predicted image."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def training_batch(config: DenoiserTraining, step: int, steps: int = 1000) -> tuple[torch.Tensor, ...]:
    """Images (B, 3, 64, 64), noise of the same shape and timesteps (B,) of one step; drawn from (seed, step).

    In an antithetic phase the second half of the batch has the images and timesteps of the first, and its noise
    negated.
    """
    phase, _ = config.at(step)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    drawn = config.batch // 2 if phase.antithetic else config.batch
    factors = sample_factors(drawn, generator)
    painted = round(drawn * config.paintings)
    images = torch.cat(
        [render(factors[painted:]).images, render(factors[:painted], "paintings64").images]
        if painted
        else [render(factors).images]
    )
    images = images[torch.randperm(drawn, generator=generator)]
    stratum = (torch.arange(drawn) + torch.rand(drawn, generator=generator)) / drawn
    edges = torch.tensor([(0.0, 0.0), *phase.levels])
    shares = edges[:, 1].cumsum(0)
    piece = torch.searchsorted(shares, stratum, right=True).clamp(1, len(edges) - 1)
    within = (stratum - shares[piece - 1]) / (shares[piece] - shares[piece - 1])
    level = edges[piece - 1, 0] + within * (edges[piece, 0] - edges[piece - 1, 0])
    noise = torch.randn(images.shape, generator=generator)
    t = (level * steps).long().clamp(max=steps - 1)
    if phase.antithetic:
        return torch.cat([images, images]), torch.cat([noise, -noise]), torch.cat([t, t])
    return images, noise, t


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `cooldown` share of the phase's steps."""
    rise = min(1.0, (step + 1) / phase.warmup)
    fall = min(1.0, (phase.steps - step) / max(1.0, phase.cooldown * phase.steps))
    return phase.learning_rate * rise * fall


def _optimiser(model: UNet2DModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)


@dataclass
class _Run:
    """All that a training run carries from one step to the next."""

    model: UNet2DModel
    average: UNet2DModel
    optimiser: torch.optim.AdamW
    step: int = 0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, config: DenoiserTraining, device: torch.device) -> _Run:
        torch.manual_seed(config.seed)
        model = new_unet(config.channels).to(device)
        average = copy.deepcopy(model).requires_grad_(False)
        return cls(model, average, _optimiser(model))

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.losses = state["step"], state["losses"]

    def save(self, folder: Path, config: DenoiserTraining) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }
        save_checkpoint(folder, config, state, self.losses)

    def advance(self, config: DenoiserTraining, alphas: torch.Tensor) -> float:
        """One step of the optimiser and of the average; returns the loss."""
        device = alphas.device
        phase, step = config.at(self.step)
        if self.step > 0 and step == 0:
            self.model.load_state_dict(self.average.state_dict())
            self.optimiser = _optimiser(self.model)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(phase, step)
        images, noise, t = (x.to(device) for x in training_batch(config, self.step))
        abar = alphas[t][:, None, None, None]
        noisy = abar.sqrt() * images + (1 - abar).sqrt() * noise
        target = abar.sqrt() * noise - (1 - abar).sqrt() * images
        weight = 1 / (1 + abar / (1 - abar) / config.snr_limit)
        low_precision = step < phase.bfloat16_until * phase.steps
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            output = self.model(noisy, t).sample
        loss = (weight * (output.float() - target) ** 2).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        self.step += 1
        self.losses.append(float(loss.detach()))
        return self.losses[-1]


def train_denoiser(
    config: DenoiserTraining, folder: Path, progress: Callable[[int, float], None], save_every: int = 250
) -> UNet2DModel:
    """Train, or resume from `folder/checkpoint.pt`, and return the averaged (EMA) network.

    `progress(step, loss)` is called after every step. Uses a GPU when there is one. Cost: one forward and one
    backward pass of `config.batch` images per step.

    Raises:
        InputError: the checkpoint is damaged, or of a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run.begin(config, device)
    state = load_checkpoint(folder, config, device)
    if state is not None:
        run.load(state)
    alphas = new_scheduler().alphas_cumprod.to(device)
    while run.step < config.steps:
        loss = run.advance(config, alphas)
        progress(run.step, loss)
        if run.step % save_every == 0 or run.step == config.steps:
            run.save(folder, config)
    return run.average
