"""Training of what travels with the project: the denoiser, the attribute reader and the built-in images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline
from PIL import Image, ImageDraw

from flows.builtin_data import write_builtin_data
from flows.console import Advance, stage
from flows.paths import training_folder
from flows.pictures import as_picture, png, strip
from pipeline.errors import InputError
from pipeline.inversion import sample
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.reader import ReaderTraining, train_reader, write_reader
from pipeline.training import DenoiserTraining, new_scheduler, train_denoiser

SAMPLES = 16


def loss_curve(losses: Sequence[float], width: int = 640, height: int = 240) -> Image.Image:
    """The training loss, averaged over 200 bins, on a logarithmic axis."""
    values = np.asarray(losses, dtype=np.float64)
    bins = [float(part.mean()) for part in np.array_split(values, min(200, len(values)))]
    logs = np.log10(np.maximum(bins, 1e-12))
    low, high = float(logs.min()), float(logs.max())
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    span = max(high - low, 1e-9)
    points = [
        (40 + (width - 60) * i / max(1, len(logs) - 1), 20 + (height - 50) * (high - v) / span)
        for i, v in enumerate(logs)
    ]
    draw.line(points, fill=(30, 90, 160), width=2)
    draw.text((40, height - 24), f"steps 1 to {len(values)}", fill="black")
    draw.text((4, 4), f"loss {10**high:.3g} (top) to {10**low:.3g} (bottom), log scale", fill="black")
    return picture


def sample_sheet(denoiser: UNet2DDenoiser, seed: int, steps: int = 100) -> np.ndarray:
    """`SAMPLES` images drawn from noise by DDIM, in two rows."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((SAMPLES, *denoiser.info.image_shape), generator=generator)
    with torch.no_grad():
        images = sample(denoiser, noise, denoiser.info.train_timesteps - 1, steps)
    tiles = [as_picture(image) for image in images]
    rows = [strip(tiles[i : i + SAMPLES // 2], gap=2) for i in (0, SAMPLES // 2)]
    return np.concatenate(rows)


def counted(advance: Advance) -> Callable[[int, float], None]:
    """Progress told as absolute steps, turned into an `Advance`: a resumed training starts where it was."""
    done = 0

    def progress(step: int, loss: float) -> None:
        nonlocal done
        advance(step - done, f"loss {loss:.5f}")
        done = step

    return progress


def shortened(config: DenoiserTraining, steps: int) -> DenoiserTraining:
    """The same training in `steps` steps: each phase keeps its share, and one that has no step left is dropped."""
    done = [0, *accumulate(phase.steps for phase in config.phases)]
    ends = [round(steps * end / config.steps) for end in done]
    phases = [
        phase.model_copy(update={"steps": end - start})
        for phase, (start, end) in zip(config.phases, pairwise(ends), strict=True)
        if end > start
    ]
    return config.model_copy(update={"phases": tuple(phases)})


def train_builtin_denoiser(out: Path, work: Path, steps: int | None) -> dict[str, object]:
    """Train or resume the denoiser in `work`, then write the diffusers pipeline and its evidence to `out`."""
    config = DenoiserTraining() if steps is None else shortened(DenoiserTraining(), steps)
    with stage("training the denoiser", config.steps) as advance:
        average = train_denoiser(config, work, counted(advance))
    out.mkdir(parents=True, exist_ok=True)
    scheduler = new_scheduler()
    DDPMPipeline(average.eval(), scheduler).save_pretrained(out, safe_serialization=True)
    losses = json.loads((work / "losses.json").read_text())
    (out / "training.json").write_text(
        json.dumps({"config": config.model_dump(), "torch": torch.__version__, "final_loss": losses[-1]}, indent=2)
    )
    loss_curve(losses).save(out / "loss.png")
    sheet = sample_sheet(UNet2DDenoiser(average, scheduler), config.seed)
    (out / "samples.png").write_bytes(png(sheet))
    return {"folder": str(out), "steps": config.steps, "loss": losses[-1]}


def train_builtin_reader(out: Path, work: Path, steps: int | None) -> dict[str, object]:
    """Train or resume the attribute reader, then write it to `out`."""
    config = ReaderTraining() if steps is None else ReaderTraining(steps=steps)
    with stage("training the attribute reader", config.steps) as advance:
        reader = train_reader(config, work, counted(advance))
    write_reader(reader, config, json.loads((work / "losses.json").read_text()), out)
    return {"folder": str(out), "steps": config.steps}


def train(what: str, out: Path | None, work: Path | None, steps: int | None) -> dict[str, object]:
    """`rhumb train`: resumes from the checkpoints in `work`, uses a GPU when there is one.

    Raises:
        InputError: `steps` below one, or checkpoints of other settings.
    """
    if steps is not None and steps < 1:
        raise InputError("--steps", steps, "at least 1")
    name = {"builtin": "denoiser", "reader": "reader", "data": ""}[what]
    target = out or training_folder() / name
    checkpoints = work or target.parent.parent / "training" / (name or "data")
    if what == "data":
        write_builtin_data(target)
        return {"folder": str(target)}
    return (train_builtin_denoiser if what == "builtin" else train_builtin_reader)(target, checkpoints, steps)
