"""`DirectionEditPipeline`: a pipeline like those of diffusers, with the pixels of `DirectionPack.apply`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiTPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

from catalog.concept_building import build_concepts
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.direction_pack import DirectionPack
from flows.edit_pipeline import DirectionEditPipeline
from flows.edit_settings import edit_settings, recipe_of
from pipeline.errors import InputError, ModelError
from pipeline.models.loading import load_denoiser
from tests.flows import tiny
from tests.pipeline.tiny_latents import tiny_dit_folder
from tests.pipeline.tiny_models import tiny_unet

SIZES = ((40, 32), (16, 16), (23, 37))


@pytest.fixture(scope="module")
def pack(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> DirectionPack:
    copy = Path(shutil.copytree(mined / "catalog", tmp_path_factory.mktemp("pack") / "catalog"))
    with CatalogWriter.open(copy) as writer, Catalog(copy, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))
    return DirectionPack.from_pretrained(copy)


@pytest.fixture(scope="module")
def editor(tiny_model: Path) -> Iterator[Any]:
    """The pack's model as a pipeline; not to be changed."""
    diffusers_logging.disable_progress_bar()
    made = DirectionEditPipeline.from_pipe(DDPMPipeline.from_pretrained(tiny_model))
    made.set_progress_bar_config(disable=True)
    yield made
    diffusers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def faces() -> list[Image.Image]:
    return [tiny.photograph(seed, size) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def chosen(pack: DirectionPack) -> dict[str, float]:
    """A prototype of one space, and a direction of the other, of two regions."""
    x = pack.search(space="x", region="eye")[0]
    h = next(e for e in pack.entries(space="h", region="mouth") if e.what == "direction")
    return {x.id: 2.0, h.id: -3.0}


def pixels(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_batch_gives_the_pixels_of_apply_one_by_one(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    masks = [{"eye": tiny.box(size, (0.5, 0.5, 0.9, 0.9))} for size in SIZES]
    batch = editor(faces, chosen, pack=pack, mask=[*masks[:2], None]).images
    singles = [pack.apply(editor, face, chosen, mask) for face, mask in zip(faces, [*masks[:2], None], strict=True)]
    assert pixels(batch).shape == (3, 16, 16, 3)
    assert np.abs(pixels(batch).astype(int) - pixels(singles)).max() <= 1  # sums of batches may round otherwise
    assert np.array_equal(pixels(editor(faces[0], chosen, pack=pack, mask=masks[0]).images), pixels(singles[:1]))


def test_what_was_saved_and_loaded_edits_alike_and_is_a_model_to_mine_with(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float], tmp_path: Path
) -> None:
    editor.save_pretrained(tmp_path)
    loaded: Any = DirectionEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    again = loaded(faces[0], chosen, pack=pack).images
    assert np.array_equal(pixels(again), pixels(editor(faces[0], chosen, pack=pack).images))
    assert load_denoiser(tmp_path, device="cpu").info == pack.check(editor).info


@pytest.mark.parametrize("kind", ["tensors", "arrays"])
def test_vectors_with_strengths_are_directions_without_a_pack(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float], kind: str
) -> None:
    vectors: list[Any] = [pack.vector(key) for key in chosen]
    spaces = [pack.entry(key).space for key in chosen]
    if kind == "tensors":
        vectors = [torch.from_numpy(np.array(vector)) for vector in vectors]
    settings = edit_settings(recipe_of(pack.catalog), pack.check(editor).info.train_timesteps)
    steps = {"num_inversion_steps": settings.inversion_steps, "num_inference_steps": settings.decode.steps}
    given = {"timestep": settings.timestep, **steps}
    truth = pixels(editor(faces[0], chosen, pack=pack).images)
    mine = editor(faces[0], vectors, strengths=list(chosen.values()), space=spaces, **given).images
    assert np.array_equal(pixels(mine), truth)
    one = editor(faces[0], vectors[0], strengths=2.0, space=spaces[0], **given).images
    assert np.array_equal(pixels(one), pixels(editor(faces[0], dict(list(chosen.items())[:1]), pack=pack).images))


def test_pictures_come_as_they_are_wanted(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    pil = pixels(editor(faces[1], chosen, pack=pack).images)
    numbers = editor(faces[1], chosen, pack=pack, output_type="np").images
    tensor = editor(faces[1], chosen, pack=pack, output_type="pt").images
    assert numbers.shape == (1, 16, 16, 3)
    assert np.array_equal((numbers * 255).round().astype(np.uint8), pil)
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), numbers)
    (alone,) = editor(faces[1], chosen, pack=pack, return_dict=False)
    assert np.array_equal(pixels(alone), pil)


def test_a_picture_may_be_a_tensor_or_a_batch_of_pixels(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    truth = pixels(editor(faces[1], chosen, pack=pack).images)
    array = np.asarray(faces[1])
    tensor = torch.from_numpy(np.array(array)).permute(2, 0, 1) / 255
    for image in (array, array[None], tensor, tensor[None], [array], tensor.double()):
        assert np.array_equal(pixels(editor(image, chosen, pack=pack).images), truth)


def test_a_pipe_along_ddim_edits_as_one_along_ddpm(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    other = DirectionEditPipeline(editor.unet, DDIMScheduler.from_config(editor.scheduler.config))
    other.set_progress_bar_config(disable=True)
    truth = pixels(editor(faces[0], chosen, pack=pack).images)
    assert np.array_equal(pixels(other(faces[0], chosen, pack=pack).images), truth)


def test_noise_comes_from_the_generator_or_the_packs_own_seed(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    def edit(**more: Any) -> np.ndarray:
        return pixels(editor(faces[:2], chosen, pack=pack, num_inference_steps=10, **more).images)

    def seeded(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    plain, own = edit(), edit(eta=1.0)
    assert np.array_equal(plain, edit(generator=seeded(1)))
    assert np.array_equal(own, edit(eta=1.0))
    assert np.array_equal(own, edit(eta=1.0, generator=seeded(0)))  # the seed of the recipe
    assert np.array_equal(edit(eta=1.0, generator=seeded(1)), edit(eta=1.0, generator=seeded(1)))
    assert not np.array_equal(own, plain)
    assert not np.array_equal(own, edit(eta=1.0, generator=seeded(1)))
    with pytest.raises(InputError, match="generator: found None"):
        editor(faces[0], pack.vector(next(iter(chosen))), strengths=1.0, timestep=18, eta=0.5)


def test_progress_is_shown_by_the_bar_of_diffusers(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float], capsys: Any
) -> None:
    own: Any = DirectionEditPipeline.from_pipe(editor)
    own.set_progress_bar_config(disable=False)
    own(faces[0], chosen, pack=pack, num_inversion_steps=4, num_inference_steps=3)
    assert "7/7" in capsys.readouterr().err
    own.set_progress_bar_config(disable=True)
    own(faces[0], chosen, pack=pack)
    assert capsys.readouterr().err == ""


def test_another_timestep_is_an_edit_from_there(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    h = {key: value for key, value in chosen.items() if pack.entry(key).space == "h"}
    plain = pixels(editor(faces[0], dict.fromkeys(h, 0.0), pack=pack, timestep=30).images)
    assert not np.array_equal(plain, pixels(editor(faces[0], h, pack=pack, timestep=30).images))


def test_another_model_is_refused_as_by_the_pack(
    pack: DirectionPack, editor: Any, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    one_level = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    other = DirectionEditPipeline(tiny_unet(size=16, seed=3, **one_level), editor.scheduler)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(ModelError, match="other weights"):
        other(faces[0], chosen, pack=pack)
    with pytest.warns(UserWarning, match="another model"):
        other(faces[0], chosen, pack=pack, other_model=True)


def test_a_transformer_with_an_autoencoder_edits_in_latents(tmp_path: Path, faces: list[Image.Image]) -> None:
    own: Any = DirectionEditPipeline.from_pipe(DiTPipeline.from_pretrained(tiny_dit_folder(tmp_path / "dit")))
    own.set_progress_bar_config(disable=True)
    own.save_pretrained(tmp_path / "saved")
    loaded: Any = DirectionEditPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    given = {"timestep": 18, "num_inversion_steps": 3, "num_inference_steps": 3, "class_label": 3}
    vector = np.full((4, 8, 8), 1 / 16, np.float32)
    plain, edited = (pixels(own(faces[0], vector, strengths=s, **given).images) for s in (0.0, 5.0))
    assert plain.shape == (1, 16, 16, 3)
    assert not np.array_equal(plain, edited)
    assert np.array_equal(pixels(loaded(faces[0], vector, strengths=5.0, **given).images), edited)
    with pytest.raises(ModelError, match="Only x-space exists"):
        own(faces[0], vector, strengths=1.0, space="h", **given)


VECTOR = np.full((3, 16, 16), 1 / (16 * 3**0.5), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": {"abcdef": 1.0}}, "pack: found None"),
        ({"timestep": None}, "timestep: found None"),
        ({"timestep": 50}, r"an index in \[0, 50\)"),
        ({"timestep": -3}, "timestep"),
        ({"strengths": None}, "strengths: found None"),
        ({"strengths": [1.0, 2.0]}, "one for all, or 1"),
        ({"strengths": float("inf")}, "finite"),
        ({"space": "y"}, "x | h"),
        ({"space": "h"}, r"h-space direction: found shape \(3, 16, 16\)"),
        ({"directions": VECTOR[:2]}, r"x-space direction: found shape \(2, 16, 16\)"),
        ({"directions": VECTOR * np.nan}, "finite floats"),
        ({"directions": VECTOR.astype(int)}, "finite floats"),
        ({"image": []}, "image: found none"),
        ({"image": torch.zeros(3, 8, 8)}, r"a tensor \(3, 8, 8\)"),
        ({"image": torch.full((3, 16, 16), 2.0)}, r"outside \[0, 1\]"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8)}, r"outside \[0, 1\]"),
        ({"mask": np.ones((16, 16), bool)}, "one without a pack"),
        ({"output_type": "latent"}, "pil | np | pt"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"eta": 2.0, "generator": torch.Generator()}, r"eta: found 2.0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    editor: Any, faces: list[Image.Image], changes: dict[str, Any], message: str
) -> None:
    asked = {"image": faces[1], "directions": VECTOR, "strengths": 1.0, "timestep": 18, "num_inversion_steps": 2}
    with pytest.raises(InputError, match=message):
        editor(**{**asked, **changes})


def test_masks_are_one_for_all_or_one_for_each(
    editor: Any, pack: DirectionPack, faces: list[Image.Image], chosen: dict[str, float]
) -> None:
    with pytest.raises(InputError, match="1 masks; expected one for all, or 3"):
        editor(faces, chosen, pack=pack, mask=[None])
    with pytest.raises(InputError, match="strengths by id"):
        editor(faces, VECTOR, pack=pack)
