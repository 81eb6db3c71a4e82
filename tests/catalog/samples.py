"""Small catalogs of random directions for the tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from catalog.manifest import Provenance
from catalog.records import Chunk, DirectionRecord, ImageRecord, RegionRecord, content_id
from catalog.writer import CatalogWriter

SIZE = 16
SPACES: dict[str, tuple[int, ...]] = {"x": (3, SIZE, SIZE), "h": (4, 4, 4)}
MODEL = "m" * 8


def provenance(
    recipe: str = "recipe-1", spaces: dict[str, tuple[int, ...]] | None = None, model: str = MODEL
) -> Provenance:
    return Provenance.model_validate(
        {
            "recipe_fingerprint": recipe,
            "recipe": {"name": "small", "method": {"timestep": 0.35}},
            "model": {"fingerprint": model, "family": "unet2d"},
            "data": {"fingerprint": "d" * 8, "name": "random"},
            "seeds": {"seed": 0},
            "code_version": "0.1.0",
            "packages": {"numpy": "2.4"},
            "spaces": spaces or SPACES,
        }
    )


def unit(generator: np.random.Generator, *shape: int) -> np.ndarray:
    array = generator.standard_normal(shape).astype(np.float32)
    return array / np.linalg.norm(array)


def alike(read: np.ndarray, written: np.ndarray) -> bool:
    """Whether a vector came back as its codec promises, by cosine."""
    return float(read.ravel() @ written.ravel()) >= 0.9995 - 1e-6


def image_record(name: str, size: int = SIZE) -> ImageRecord:
    generator = np.random.default_rng(int(content_id("image", name)[:8], 16))
    pixels = generator.integers(0, 256, (size, size, 3)).astype(np.uint8)
    latent = generator.standard_normal((3, size, size)).astype(np.float32)
    key = content_id("image", name)
    return ImageRecord(key, "random", "mine", f"{name}.png", pixels, 350, latent, 44.5, {"a": 0.5})


def region_record(image: ImageRecord, region: str) -> RegionRecord:
    mask = np.zeros(image.image.shape[:2], dtype=bool)
    mask[2:7, 3:9] = True
    return RegionRecord(content_id(image.image_id, region), image.image_id, region, mask)


def direction_record(
    image: ImageRecord, region: str, space: str, kind: str, rank: int, parents: tuple[str, ...] = ()
) -> DirectionRecord:
    key = content_id(image.image_id, region, space, kind, rank)
    generator = np.random.default_rng(int(key[:8], 16))
    size = image.image.shape[0]
    shape = (3, size, size) if space == "x" else SPACES["h"]
    singular = kind == "singular"
    return DirectionRecord(
        direction_id=key, image_id=image.image_id, dataset="random", model=MODEL, region=region,
        space=space, kind=kind, rank=rank, timestep=350,  # type: ignore[arg-type]
        vector=unit(generator, *shape), effect=unit(generator, 3, 16, 16),
        preview=generator.integers(0, 256, (size, 3 * size, 3)).astype(np.uint8),
        spectrum=np.array([3.0, 2.0, 1.0], dtype=np.float32), strength=4.0, gain=2.0, leakage=0.5,
        sigma=2.0 if singular else None, residual=1e-4 if singular else None, converged=True if singular else None,
        checked=True if singular else None, gap=0.1 if singular else None, angle=0.2 if singular else None,
        cluster_first=0 if singular else None, cluster_last=1 if singular else None,
        parents=parents, kept_share=None if singular else 0.8, roir=float("nan"),
    )  # fmt: skip


def chunk_of(name: str, images: int = 2, regions: tuple[str, ...] = ("mouth", "hair"), size: int = SIZE) -> Chunk:
    """Per image and region: two singular and two local x directions, one singular h direction."""
    image_records = tuple(image_record(f"{name}-{i}", size) for i in range(images))
    region_records, directions = [], []
    for image in image_records:
        for region in regions:
            region_records.append(region_record(image, region))
            for rank in range(2):
                parent = direction_record(image, region, "x", "singular", rank)
                directions += [parent, direction_record(image, region, "x", "local", rank, (parent.direction_id,))]
            directions.append(direction_record(image, region, "h", "singular", 0))
    return Chunk(name, image_records, tuple(region_records), tuple(directions))


def failed_chunk(name: str, source: str) -> Chunk:
    record = dataclasses.replace(
        image_record(source), failure="round trip of 12 dB", latent=np.empty(0), round_trip_psnr=float("nan")
    )
    return Chunk(name, (record,), (), ())


def small_catalog(folder: Path, chunks: int = 2) -> list[Chunk]:
    made = [chunk_of(f"chunk-{i}") for i in range(chunks)]
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in made:
            writer.commit(chunk)
    return made
