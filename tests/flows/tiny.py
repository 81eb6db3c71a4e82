"""A stranger's world, made small: a random model folder, photographs of odd sizes and modes, masks, a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from catalog.reader import Catalog
from flows.cli import main
from pipeline.mining import Direction, MinedImage, MiningSettings
from pipeline.models.contract import Denoiser
from pipeline.operators import Products
from pipeline.svd import canonical_sign
from pipeline.training import DenoiserTraining, Phase
from tests.pipeline.tiny_models import tiny_pipeline_folder

CHUNK = 2
REGIONS = ("eye", "mouth")
METHOD: dict[str, Any] = {
    "timestep": 0.35,
    "inversion_steps": 3,
    "tolerance": 0.3,
    "loco": {"rank": 1, "null_rank": 2},
    "jive": {"rank": 2, "joint_rank": 1, "individual_rank": 1},
    "edit": {"steps": 2, "h_window": [0.35, 0.0]},
}


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """A smooth random picture (RGB) of `size` (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def box(size: tuple[int, int], corners: tuple[float, float, float, float]) -> Image.Image:
    """A grey mask of `size`, white within the box (left, top, right, bottom) in shares of it."""
    mask = Image.new("L", size, 0)
    left, top, right, bottom = corners
    mask.paste(255, (int(left * size[0]), int(top * size[1]), int(right * size[0]), int(bottom * size[1])))
    return mask


BOXES = {"eye": (0.3, 0.2, 0.55, 0.45), "mouth": (0.3, 0.6, 0.7, 0.85)}


def photographs(folder: Path, count: int = 5) -> None:
    """`folder`/photos and `folder`/masks: odd sizes, several modes and file types, both layouts of masks."""
    kinds = (
        ("a.png", "RGB", (37, 29)),
        ("b.jpg", "RGB", (31, 40)),
        ("c.png", "RGBA", (16, 16)),
        ("d.png", "P", (50, 33)),
        ("e.tif", "L", (23, 23)),
    )
    (folder / "photos").mkdir(parents=True)
    (folder / "masks" / "b").mkdir(parents=True)
    for seed, (name, mode, size) in enumerate(kinds[:count]):
        picture = photograph(seed, size)
        (picture.quantize(16) if mode == "P" else picture.convert(mode)).save(folder / "photos" / name)
        stem = name.split(".")[0]
        for region, corners in BOXES.items():
            place = f"{stem}/{region}.png" if stem == "b" else f"{stem}_{region}.png"
            box(size, corners).save(folder / "masks" / place)


def recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """`folder`/recipe.yaml over `folder`/photos; `changes` replace its keys, `method` is merged."""
    content: dict[str, Any] = {
        "name": "tiny",
        "model": str(model),
        "dataset": {"kind": "folder", "path": "photos", "masks": "masks"},
        "regions": list(REGIONS),
        "method": {**METHOD, **changes.pop("method", {})},
        "licence": "cc0-1.0",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def model(folder: Path, **options: Any) -> Path:
    """A random diffusers pipeline of one level for 16 x 16 pictures: h is (8, 16, 16)."""
    one_level = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return tiny_pipeline_folder(folder, **{"size": 16, **one_level, **options})


def quick_mine_image(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    settings: MiningSettings,
    start: Mapping[str, torch.Tensor] | None = None,
) -> MinedImage:
    """In place of `mine_image` where a test is about what happens around it: one x-space direction per region."""
    found = []
    for region, mask in masks.items():
        vector = x_t * mask
        vector = canonical_sign((vector / vector.norm())[None])[0]
        found.append(
            Direction(
                region,
                "x",
                "singular",
                0,
                vector,
                torch.ones(1),
                sigma=1.0,
                residual=0.0,
                converged=True,
                checked=True,
                gap=1.0,
                angle=0.0,
                cluster_first=0,
                cluster_last=0,
                effect=vector,
                gain=1.0,
                leakage=0.0,
                strength=1.0,
                roir=0.0,
            )
        )
    return MinedImage(tuple(found), Products(), {})


def small_training(**settings: Any) -> DenoiserTraining:
    """In place of `DenoiserTraining` where a test is about what happens around it."""
    phases = (Phase(steps=2, warmup=1), Phase(steps=2, warmup=1, antithetic=True))
    small: dict[str, Any] = {"batch": 2, "channels": (8, 32), "phases": phases}
    return DenoiserTraining(**{**small, **settings})


def run(*arguments: object) -> int:
    """One `rhumb` command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, with its content, but for locks and what runs say of themselves."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".lock"]
    files = [file for file in files if ".run" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def parsed(text: str) -> Any:
    """The one JSON document a command printed; numbers that JSON does not know are refused."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def lines(text: str) -> Sequence[str]:
    """The lines of an output that say something."""
    return [line for line in text.splitlines() if line.strip()]


def direction_ids(folder: Path, **equals: Any) -> list[str]:
    """Ids of a catalog's directions, filtered as `Catalog.directions` does."""
    with Catalog.open(folder) as catalog:
        return [str(key) for key in catalog.directions(**equals).column("direction_id").to_pylist()]
