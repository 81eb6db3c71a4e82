"""Latent models from end to end: pictures in, a catalog of latent directions, edited pictures out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catalog.reader import Catalog
from flows.datasets.dataset import load_dataset
from flows.miner import Miner, MiningReport, frame_of
from flows.recipe import load_recipe
from flows.runners.capacity import worker_bytes
from pipeline.editing import DecodeSettings, decode
from pipeline.models.latents import LatentDenoiser
from tests.flows import tiny
from tests.pipeline.tiny_latents import tiny_dit_folder, tiny_latent_denoiser

PICTURES, LATENTS = (3, 16, 16), (4, 8, 8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, masks/, a DiT with an autoencoder in model/, recipe.yaml and the catalog/ mined with them."""
    folder = tmp_path_factory.mktemp("latent")
    tiny.photographs(folder, count=2)
    recipe = tiny.recipe(folder, tiny_dit_folder(folder / "model"))
    assert tiny.run("mine", recipe, "--out", folder / "catalog", "--json") == 0
    return folder


@pytest.fixture
def catalog(world: Path) -> Iterator[Catalog]:
    with Catalog.open(world / "catalog") as opened:
        yield opened


def test_a_transformer_is_mined_in_x_space_alone_and_its_catalog_verifies(
    world: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.run("verify", world / "catalog", "--json") == 0
    assert tiny.parsed(capsys.readouterr().out)["problems"] == []
    rows = catalog.directions().to_pylist()
    assert {(row["space"], row["kind"]) for row in rows} == {("x", "singular"), ("x", "local")}
    assert {row["region"] for row in rows} == set(tiny.REGIONS)
    assert catalog.manifest.provenance.shapes == {"x": LATENTS}
    assert catalog.manifest.provenance.model["latent_shape"] == list(LATENTS)


def test_vectors_and_latents_are_latent_while_pictures_masks_and_effects_are_not(catalog: Catalog) -> None:
    row = catalog.directions().to_pylist()[0]
    key, image = row["direction_id"], row["image_id"]
    assert catalog.vector(key).shape == catalog.latent(image).shape == LATENTS
    assert catalog.effect(key).shape == (3, 16, 16)
    assert catalog.mask(image, row["region"]).shape == catalog.image(image).shape[:2] == PICTURES[1:]
    assert catalog.preview(key).shape == (16, 48, 3)


@pytest.mark.parametrize("shift", [True, False])
def test_a_picture_is_edited_in_pixels_by_a_latent_direction(world: Path, tmp_path: Path, shift: bool) -> None:
    key = tiny.direction_ids(world / "catalog", space="x", kind="local", region="eye")[0]
    size = (40, 40)
    tiny.photograph(9, size).save(tmp_path / "new.png")
    tiny.box(size, (0.5, 0.5, 0.8, 0.8)).save(tmp_path / "new_eye.png")
    written = []
    for strength in (0, 3):
        out = tmp_path / f"out{strength}.png"
        asked = ["edit", world / "catalog", "--image", tmp_path / "new.png", "--direction", f"{key}={strength}"]
        assert tiny.run(*asked, "--out", out, *([] if shift else ["--no-shift"])) == 0
        with Image.open(out) as picture:
            assert picture.size == (16, 16)
            written.append(np.asarray(picture).astype(int))
    assert np.abs(written[1] - written[0]).max() > 0


def test_the_report_shows_pictures(world: Path, tmp_path: Path) -> None:
    assert tiny.run("report", world / "catalog", "--out", tmp_path / "report") == 0
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_conditional_model_is_mined_in_both_spaces(world: Path) -> None:
    one_level = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    denoiser = tiny_latent_denoiser("conditional", **one_level)
    recipe = load_recipe(world / "recipe.yaml")
    images = load_dataset(recipe, PICTURES).images
    report = MiningReport(Path())
    with torch.no_grad():
        chunk = Miner(recipe, denoiser).mine(images[:1], report)
    assert report.failed == {}
    assert frame_of(denoiser).spaces == {"x": LATENTS, "h": (8, 8, 8)}
    shapes = {record.space: record.vector.shape for record in chunk.directions}
    assert shapes == {"x": LATENTS, "h": (8, 8, 8)}
    assert all(record.preview.shape == (16, 48, 3) for record in chunk.directions)
    back = decode(denoiser, torch.from_numpy(chunk.images[0].latent)[None], 18, DecodeSettings(steps=3))
    assert tuple(back.shape[1:]) == PICTURES


def test_the_memory_of_a_worker_counts_the_autoencoders_layers() -> None:
    with_pictures = tiny_latent_denoiser(size=8, vae={"block_out_channels": (16, 16)})
    assert isinstance(with_pictures, LatentDenoiser)
    extra = worker_bytes(with_pictures) - worker_bytes(with_pictures._inner)
    assert extra > 16 * 16 * 16 * 4
