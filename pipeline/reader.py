"""The attribute reader: a small network that recovers the true factors of a parametric face from its picture.

It turns "the edit worked" into a measurement. Where a factor is shown matters as much as what is shown (a gaze moves
a pupil by tenths of a pixel), so the feature map is flattened with its positions, never averaged. There is no
normalisation over the picture, which would let an edit in one region move the readings of all others.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save
from torch import nn

from pipeline.checkpoints import load_checkpoint, save_checkpoint
from pipeline.errors import ModelError
from pipeline.faces.factors import FACTORS, OWNER, REGIONS, sample_factors
from pipeline.faces.render import SIZE, STYLES, render
from pipeline.models.fingerprints import fingerprint

HELD_OUT_SEED = 0xFF00_0000  # above all that training draws from; see `pipeline.faces.dataset`


class ReaderTraining(BaseModel):
    """Settings of one training run; written beside the weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    steps: int = 3000
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.5  # last share of the steps, over which the learning rate falls to zero
    ema: float = 0.998
    paintings: float = 0.25  # share of each batch in the second style
    noise: float = 0.04  # largest standard deviation of the added noise
    disturbed: float = 0.25  # share of each batch with one region painted over by smooth noise
    focus: float = 0.5  # factors are weighted by their running error to this power: those that lag count more
    repeats: int = 2  # steps that share one rendering (drawing costs more than learning), disturbed afresh each time
    channels: tuple[int, int, int] = (32, 64, 96)
    width: int = 128
    bfloat16_until: float = 0.6  # share of the steps whose convolutions run in bfloat16


class AttributeReader(nn.Module):
    """Convolutions to an 8 x 8 map, flattened; (B, 3, 64, 64) -> (B, 22). About 0.06 GFLOP an image."""

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 96), width: int = 128) -> None:
        super().__init__()
        first, second, third = channels
        self.channels, self.width = channels, width
        self.features = nn.Sequential(
            *_block(5, first, 2, 5),
            *_block(first, second, 2, 3),
            *_block(second, second, 1, 3),
            *_block(second, third, 2, 3),
            *_block(third, third, 1, 3),
            nn.Conv2d(third, 24, 1),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(24 * (SIZE // 8) ** 2, width), nn.SiLU(), nn.Linear(width, len(FACTORS))
        )
        axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1.0
        grid = torch.stack([axis[None, :].expand(SIZE, SIZE), axis[:, None].expand(SIZE, SIZE)])
        self.register_buffer("grid", grid[None].clone(), persistent=False)

    def forward(self, images: torch.Tensor, bfloat16: bool = False) -> torch.Tensor:
        """(B, 3, 64, 64) in [-1, 1] -> (B, 22), differentiable; columns in `FACTORS` order.

        `bfloat16` runs the convolutions in that type, for training.
        """
        grid = self.get_buffer("grid").to(images.dtype).expand(len(images), -1, -1, -1)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            features = self.features(torch.cat([images, grid], dim=1))
        result: torch.Tensor = 0.5 + self.head(features.to(images.dtype))
        return result

    def fingerprint(self) -> str:
        """sha256 over form and weights, 32 hex digits: the same on every machine."""
        return fingerprint(["AttributeReader", self.channels, self.width], self.state_dict())

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> torch.Tensor:
        """Read the factors of faces.

        Args:
            images: (B, 3, 64, 64) floats in [-1, 1], either style.

        Returns:
            float32 (B, 22) in `FACTORS` order, near [0, 1] and not clamped. No randomness; one forward pass.

        Raises:
            ModelError: images of another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise ModelError("reader: images", tuple(images.shape), f"shape (B, 3, {SIZE}, {SIZE})")
        weight = self.head[1].weight
        self.eval()
        return torch.cat([self(part.to(weight.device, weight.dtype)) for part in images.split(256)]).float()

    def save(self, folder: Path, notes: dict[str, Any] | None = None) -> None:
        """Write `model.safetensors` and `config.json` (architecture, factor names, `notes`) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "family": "rhumb-attribute-reader",
            "image_size": SIZE,
            "channels": list(self.channels),
            "width": self.width,
            "factors": list(FACTORS),
            **(notes or {}),
        }
        weights = folder / "model.safetensors.tmp"
        # Bytes written by us: `save_file` would leave a file that only its owner may read.
        weights.write_bytes(save({name: value.contiguous() for name, value in self.state_dict().items()}))
        weights.replace(folder / "model.safetensors")
        text = folder / "config.json.tmp"
        text.write_text(json.dumps(config, indent=1) + "\n")
        text.replace(folder / "config.json")

    @classmethod
    def load(cls, folder: Path) -> AttributeReader:
        """The reader saved in `folder`, in evaluation mode on the CPU.

        Raises:
            ModelError: a file is missing or unreadable, or the weights belong to other factors or another shape.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ModelError(f"reader: {folder / name}", "no such file", "a saved attribute reader")
        try:
            config = json.loads((folder / "config.json").read_text())
            shape = _Shape.model_validate({k: config.get(k) for k in ("channels", "width", "factors")})
        except (json.JSONDecodeError, ValidationError, AttributeError) as error:
            raise ModelError("reader: config.json", str(error), "channels, width and factors") from error
        if shape.factors != FACTORS:
            raise ModelError("reader: factors", shape.factors, f"the factors of this version: {', '.join(FACTORS)}")
        reader = cls(shape.channels, shape.width)
        try:
            reader.load_state_dict(load_file(str(folder / "model.safetensors")))
        except Exception as error:  # safetensors and torch raise several unrelated types for damaged weights
            raise ModelError("reader: model.safetensors", str(error)[:300], "the weights of config.json") from error
        return reader.eval()


class _Shape(BaseModel):
    channels: tuple[int, int, int]
    width: int
    factors: tuple[str, ...]


def _block(inputs: int, outputs: int, stride: int, kernel: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.SiLU()


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Binomial 3 x 3 blur, edges replicated."""
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    rows = 0.25 * padded[:, :, :-2] + 0.5 * padded[:, :, 1:-1] + 0.25 * padded[:, :, 2:]
    return 0.25 * rows[..., :-2] + 0.5 * rows[..., 1:-1] + 0.25 * rows[..., 2:]


def _disturb(
    images: torch.Tensor, masks: torch.Tensor, share: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paint smooth noise over one region of the first `share` of the images.

    Returns the images and which factors may still be asked, (B, 22): those that the region does not show. So the
    reader learns not to read an eye from the hair, even where an edit leaves the manifold of rendered faces.
    """
    asked = torch.ones((len(images), len(FACTORS)))
    count = round(len(images) * share)
    if count == 0:
        return images, asked
    chosen = torch.randint(len(REGIONS), (count,), generator=generator)
    coarse = torch.randn((count, 3, 8, 8), generator=generator)
    noise = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    strength = 0.4 * torch.rand((count, 1, 1, 1), generator=generator)
    mask = masks[torch.arange(count), chosen][:, None].to(images.dtype)
    images = torch.cat([images[:count] + strength * noise * mask, images[count:]])
    for row, index in enumerate(chosen.tolist()):
        region = REGIONS[index]
        hidden = {name for name, owner in OWNER.items() if owner == region}
        hidden |= {"light", "hair_volume", "face_size"} if region in ("skin", "hair", "background") else set()
        asked[row, [i for i, name in enumerate(FACTORS) if name in hidden]] = 0.0
    return images, asked


@functools.lru_cache(maxsize=1)
def _renderings(config: ReaderTraining, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean images, masks and factors that the `repeats` steps of one block share."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + block)
    factors = sample_factors(config.batch, generator)
    painted = round(config.batch * config.paintings)
    parts = [render(factors[:painted], STYLES[1])] if painted else []
    parts.append(render(factors[painted:]))
    return torch.cat([part.images for part in parts]), torch.cat([part.masks for part in parts]), factors


def reader_batch(config: ReaderTraining, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (B, 3, 64, 64), factors (B, 22) and which are asked (B, 22) of one step; drawn from (seed, step)."""
    images, masks, factors = _renderings(config, step // config.repeats)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + config.steps + step)
    order = torch.randperm(config.batch, generator=generator)
    images, masks = images[order], masks[order]
    images, asked = _disturb(images, masks, config.disturbed, generator)
    amount = (torch.rand((config.batch, 1, 1, 1), generator=generator) - 0.5).clamp(min=0.0)
    images = images + amount * (_blur(images) - images)
    sigma = config.noise * torch.rand((config.batch, 1, 1, 1), generator=generator) ** 2
    images = images + sigma * torch.randn(images.shape, generator=generator)
    limit = 0.95 + 0.15 * torch.rand((config.batch, 1, 1, 1), generator=generator)
    return torch.maximum(torch.minimum(images, limit), -limit), factors[order], asked


def _learning_rate(config: ReaderTraining, step: int) -> float:
    rise = min(1.0, (step + 1) / config.warmup)
    fall = min(1.0, (config.steps - step) / max(1.0, config.cooldown * config.steps))
    return config.learning_rate * rise * fall


def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.lerp_(b, 1 - decay)
            else:
                a.copy_(b)


@dataclass
class _Run:
    """All that a training run carries from one step to the next; `running` is the smoothed error of each factor."""

    model: AttributeReader
    average: AttributeReader
    optimiser: torch.optim.AdamW
    running: torch.Tensor
    step: int = 0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, config: ReaderTraining, device: torch.device) -> _Run:
        torch.manual_seed(config.seed)
        model = AttributeReader(config.channels, config.width).to(device)
        average = copy.deepcopy(model).requires_grad_(False)
        optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-4)
        return cls(model, average, optimiser, torch.full((len(FACTORS),), 1.0 / 12.0, device=device))

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.losses, self.running = state["step"], state["losses"], state["running"]

    def save(self, folder: Path, config: ReaderTraining) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "running": self.running,
        }
        save_checkpoint(folder, config, state, self.losses)

    def advance(self, config: ReaderTraining, device: torch.device) -> float:
        """One step of the optimiser and of the average; returns the mean squared error over the factors."""
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(config, self.step)
        images, factors, asked = (x.to(device) for x in reader_batch(config, self.step))
        images = images.contiguous(memory_format=torch.channels_last)
        read = self.model(images, bfloat16=self.step < config.bfloat16_until * config.steps)
        squares = (read - factors) ** 2 * asked
        per_factor = squares.sum(0) / asked.sum(0).clamp(min=1.0)
        self.running = 0.99 * self.running + 0.01 * per_factor.detach()
        weight = self.running**config.focus
        loss = (per_factor * weight / weight.mean()).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimiser.step()
        _average(self.average, self.model, min(config.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.losses.append(float(per_factor.detach().mean()))
        return self.losses[-1]


def train_reader(
    config: ReaderTraining,
    folder: Path,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    save_every: int = 250,
) -> AttributeReader:
    """Train, or resume from `folder/checkpoint.pt`, and return the averaged (EMA) reader in evaluation mode.

    `progress(step, loss)` is called after every step; `folder/losses.json` holds the loss curve. A resumed run sees
    the same batches as an uninterrupted one. Uses a GPU when there is one. Cost: one forward and one backward pass
    of `config.batch` images per step, and rendering them.

    Raises:
        InputError: the checkpoint is damaged, or of a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = _Run.begin(config, device)
    state = load_checkpoint(folder, config, device)
    if state is not None:
        run.load(state)
    while run.step < config.steps:
        loss = run.advance(config, device)
        progress(run.step, loss)
        if run.step % save_every == 0 or run.step == config.steps:
            run.save(folder, config)
    return run.average.eval()


def held_out_r2(reader: AttributeReader, style: str, count: int = 2048) -> dict[str, float]:
    """Coefficient of determination per factor on `count` fresh renderings that no training run has drawn."""
    factors = sample_factors(count, torch.Generator().manual_seed(HELD_OUT_SEED))
    read = torch.cat([reader.read(render(part, style).images).cpu() for part in factors.split(128)])
    residual = ((read - factors) ** 2).mean(0)
    return dict(zip(FACTORS, (1 - residual / factors.var(0, unbiased=False)).tolist(), strict=True))


def noise_movement(reader: AttributeReader, style: str, psnr: float = 42.0, count: int = 256) -> float:
    """95th percentile, over faces and factors, of how far white noise of `psnr` dB (range 2) moves the reading."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + 1)
    images = render(sample_factors(count, generator), style).images
    noise = 2.0 * 10 ** (-psnr / 20) * torch.randn(images.shape, generator=generator)
    moved = (reader.read((images + noise).clamp(-1.0, 1.0)) - reader.read(images)).abs()
    return float(moved.flatten().quantile(0.95))


def write_reader(reader: AttributeReader, config: ReaderTraining, losses: list[float], folder: Path) -> dict[str, Any]:
    """Save a trained reader with its evidence, and return that evidence as written to `metrics.json`.

    `metrics.json` holds the held-out R^2 per style and factor, the movement under the error of a 42 dB and a 36 dB
    round trip, and the loss curve (mean squared error over factors, averaged over 50 steps).
    """
    reader.save(folder, {"training": config.model_dump()})
    curve = [sum(part) / len(part) for part in (losses[i : i + 50] for i in range(0, len(losses), 50))]
    metrics = {
        "held_out_r2": {s: {k: round(v, 5) for k, v in held_out_r2(reader, s).items()} for s in STYLES},
        "movement_p95": {s: {f"{db} dB": round(noise_movement(reader, s, db), 5) for db in (42, 36)} for s in STYLES},
        "loss_curve": {"steps_per_point": 50, "mean_squared_error": [round(x, 6) for x in curve]},
    }
    temporary = folder / "metrics.json.tmp"
    temporary.write_text(json.dumps(metrics, indent=1) + "\n")
    temporary.replace(folder / "metrics.json")
    return metrics
