"""Training of the built-in denoiser on the parametric faces.

The objective is v-prediction under the cosine schedule (Salimans & Ho 2022; Nichol & Dhariwal 2021). Batches are
rendered on the fly from (seed, step), so a resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError
from pipeline.faces.factors import sample_factors
from pipeline.faces.render import SIZE, render


class DenoiserTraining(BaseModel):
    """Settings of one training run; written beside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    steps: int = Field(default=20000, ge=1)
    batch: int = Field(default=16, ge=1)
    learning_rate: float = 1.2e-3
    warmup: int = Field(default=300, ge=1)
    cooldown: float = 0.3  # last share of the steps, over which the learning rate falls to zero
    ema: float = 0.9995
    paintings: float = 0.25  # share of each batch in the second style
    low_noise: float = 0.85  # share of each batch with t below 0.75 T
    snr_limit: float = 10.0  # weight 1 / (1 + SNR / limit) on the v-loss, after Hang et al. 2023
    channels: tuple[int, ...] = (16, 32, 96)
    bfloat16_until: float = 0.9  # share of the steps run in bfloat16 autocast


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
    """Images (B, 3, 64, 64), noise of the same shape and timesteps (B,) of one step; drawn from (seed, step)."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    factors = sample_factors(config.batch, generator)
    painted = round(config.batch * config.paintings)
    images = torch.cat(
        [render(factors[painted:]).images, render(factors[:painted], "paintings64").images]
        if painted
        else [render(factors).images]
    )
    images = images[torch.randperm(config.batch, generator=generator)]
    stratum = (torch.arange(config.batch) + torch.rand(config.batch, generator=generator)) / config.batch
    share, knee = config.low_noise, 0.75
    level = torch.where(stratum < share, stratum / share * knee, knee + (stratum - share) / (1 - share) * (1 - knee))
    noise = torch.randn(images.shape, generator=generator)
    return images, noise, (level * steps).long().clamp(max=steps - 1)


def learning_rate(config: DenoiserTraining, step: int) -> float:
    """Linear warm-up, constant, then linear to zero over the last `cooldown` share of the steps."""
    rise = min(1.0, (step + 1) / config.warmup)
    fall = min(1.0, (config.steps - step) / max(1.0, config.cooldown * config.steps))
    return config.learning_rate * rise * fall


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
        return cls(model, average, torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0))

    def load(self, path: Path, config: DenoiserTraining, device: torch.device) -> None:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(str(path), "a damaged checkpoint", "a whole one", "Delete it to begin anew.") from error
        there, wanted = json.loads(state.get("config", "{}")), json.loads(config.model_dump_json())
        for name, value in there.items():
            if wanted.get(name) != value:
                raise InputError(
                    f"training: {name}", wanted.get(name), f"{value}, as in {path}",
                    "Train with the settings that were begun with, or in another folder.",
                )  # fmt: skip
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.losses = state["step"], state["losses"]

    def save(self, folder: Path, config: DenoiserTraining) -> None:
        """The losses first: whoever finds a checkpoint finds at least its losses."""
        state = {
            "config": config.model_dump_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "losses": self.losses,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _replace(folder / "losses.json", json.dumps(self.losses).encode())
        _replace(folder / "checkpoint.pt", buffer.getvalue())

    def advance(self, config: DenoiserTraining, alphas: torch.Tensor) -> float:
        """One step of the optimiser and of the average; returns the loss."""
        device = alphas.device
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, self.step)
        images, noise, t = (x.to(device) for x in training_batch(config, self.step))
        abar = alphas[t][:, None, None, None]
        noisy = abar.sqrt() * images + (1 - abar).sqrt() * noise
        target = abar.sqrt() * noise - (1 - abar).sqrt() * images
        weight = 1 / (1 + abar / (1 - abar) / config.snr_limit)
        low_precision = self.step < config.bfloat16_until * config.steps
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            output = self.model(noisy, t).sample
        loss = (weight * (output.float() - target) ** 2).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.model.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        self.step += 1
        self.losses.append(float(loss.detach()))
        return self.losses[-1]


def _replace(path: Path, data: bytes) -> None:
    """The whole new file or the old one, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    if (folder / "checkpoint.pt").exists():
        run.load(folder / "checkpoint.pt", config, device)
    alphas = new_scheduler().alphas_cumprod.to(device)
    while run.step < config.steps:
        loss = run.advance(config, alphas)
        progress(run.step, loss)
        if run.step % save_every == 0 or run.step == config.steps:
            run.save(folder, config)
    return run.average
