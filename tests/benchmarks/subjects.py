"""The images a benchmark works on: loaded, inverted and decoded again, with the model and reader that judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flows.console import stage
from flows.datasets.contract import SourceImage
from flows.datasets.dataset import load_dataset
from flows.miner import mining_settings
from flows.opening import open_model
from flows.paths import builtin_folder, builtin_recipe
from flows.recipe import Recipe, load_recipe, parse_recipe
from pipeline.editing import DecodeSettings, decode
from pipeline.faces.factors import FACTORS
from pipeline.images import as_tensor
from pipeline.inversion import invert
from pipeline.mining import MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.models.counting import CountingDenoiser
from pipeline.reader import AttributeReader
from tests.benchmarks.harness import Clock

BATCH = 32  # images decoded or inverted together


@dataclass(frozen=True)
class Bench:
    """Model, reader and recipe of a run; `settings` are the recipe's in the pipeline's terms."""

    denoiser: Denoiser
    reader: AttributeReader
    recipe: Recipe
    settings: MiningSettings
    clock: Clock

    def at(self, timestep: int, decoding: DecodeSettings) -> Bench:
        """The same bench with another timestep and other decode settings."""
        return replace(self, settings=replace(self.settings, timestep=timestep, decode=decoding))

    def fraction(self, share: float) -> int:
        """The timestep index at a share of T."""
        return round(share * self.denoiser.info.train_timesteps)

    def read(self, images: torch.Tensor) -> list[dict[str, float]]:
        """Factor readings of images (B, C, H, W), clamped to the range of pictures first."""
        readings = self.reader.read(images.clamp(-1.0, 1.0)).tolist()
        return [dict(zip(FACTORS, row, strict=True)) for row in readings]


def open_bench(recipe: Recipe | None = None) -> Bench:
    """The built-in model and reader with a recipe; left out, the demo's."""
    recipe = recipe or load_recipe(builtin_recipe())
    clock = Clock()
    denoiser = CountingDenoiser(open_model(recipe.model), clock)
    reader = AttributeReader.load(builtin_folder() / "reader")
    return Bench(denoiser, reader, recipe, mining_settings(recipe, denoiser), clock)


@dataclass(frozen=True)
class Subject:
    """One image with its latent x_t at the bench's timestep and its strength-0 reconstruction, all (C, H, W).

    `before` is the reader's reading of the reconstruction: what every edit is compared with. `factors` are the truth.
    """

    name: str
    masks: dict[str, torch.Tensor]
    x0: torch.Tensor
    x_t: torch.Tensor
    reference: torch.Tensor
    before: dict[str, float]
    factors: dict[str, float]


def load_images(
    name: str, split: str, count: int, regions: Sequence[str], image_shape: tuple[int, int, int]
) -> list[SourceImage]:
    """The first `count` images of a built-in split with the masks of `regions`."""
    dataset = {"kind": "builtin", "name": name, "split": split, "limit": count}
    recipe = parse_recipe({"name": "benchmark", "dataset": dataset, "regions": list(regions)})
    return list(load_dataset(recipe, image_shape).images)


def pixels(images: Sequence[SourceImage], bench: Bench) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] on the model's device."""
    stacked = torch.stack([as_tensor(image.image.copy()) for image in images])
    return stacked.to(bench.denoiser.device, bench.denoiser.dtype)


def inverted(bench: Bench, x0: torch.Tensor, timestep: int, steps: int) -> torch.Tensor:
    """x_t of images (B, C, H, W) in batches. Cost: `steps` passes an image."""
    with bench.clock.stage("inversion"), stage(f"inverting to t = {timestep}", len(x0)) as advance:
        parts = []
        for part in torch.split(x0, BATCH):
            parts.append(invert(bench.denoiser, part, timestep, steps))
            advance(len(part), "")
    return torch.cat(parts)


def decoded(bench: Bench, x_t: torch.Tensor, timestep: int, settings: DecodeSettings) -> torch.Tensor:
    """Images of latents (B, C, H, W) in batches, unedited. Cost: `settings.steps` passes an image."""
    with bench.clock.stage("reconstruction"):
        return torch.cat([decode(bench.denoiser, part, timestep, settings) for part in torch.split(x_t, BATCH)])


def make_subjects(bench: Bench, images: Sequence[SourceImage]) -> list[Subject]:
    """Invert images to the bench's timestep and decode them unedited under the bench's decode settings."""
    x0, t = pixels(images, bench), bench.settings.timestep
    x_t = inverted(bench, x0, t, bench.recipe.method.inversion_steps)
    return subjects_from_latents(bench, images, x0, x_t)


def subjects_from_latents(
    bench: Bench, images: Sequence[SourceImage], x0: torch.Tensor, x_t: torch.Tensor
) -> list[Subject]:
    """`make_subjects` where the latents (B, C, H, W) are known."""
    references = decoded(bench, x_t, bench.settings.timestep, bench.settings.decode)
    readings = bench.read(references)
    return [
        Subject(
            name=image.image_id,
            masks={region: torch.from_numpy(mask).to(x_t.device) for region, mask in image.masks.items()},
            x0=x0[i],
            x_t=x_t[i],
            reference=references[i],
            before=readings[i],
            factors=dict(image.factors),
        )
        for i, image in enumerate(images)
    ]
