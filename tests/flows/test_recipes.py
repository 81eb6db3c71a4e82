"""The built-in recipes: every one is read, tells its true cost, and mines a picture of its own data set's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from catalog.reader import Catalog
from flows.estimating import MASK_MODELS, estimate
from flows.known_models import HUB, known_outline, preset_of
from flows.named_recipes import open_recipe, recipe_file, recipe_names
from pipeline.costs import counted
from pipeline.errors import InputError
from pipeline.models.guided_presets import PRESETS
from tests.benchmarks.products import LARGE_PARAMETERS
from tests.flows import tiny
from tests.flows.dataset_files import encoded
from tests.pipeline.guided_reference import guided_settings, random_state, reduced_p2
from tests.pipeline.tiny_models import tiny_pipeline_folder

SIZE = 16
NAMES = [name for name in recipe_names() if name != "faces64-demo"]
QUICK = {
    "timestep": 0.6,
    "inversion_steps": 2,
    "tolerance": 0.9,
    "loco": {"rank": 1, "null_rank": 1},
    "jive": {"rank": 1, "joint_rank": 1, "individual_rank": 1},
    "edit": {"strength": 1.0, "steps": 1},
}


# --- tiny data sets in their original layouts ---------------------------------------------------------------------


def celeba(place: Path) -> None:
    """One face with masks of every part that the recipe names."""
    (place / "CelebA-HQ-img").mkdir(parents=True)
    masks = place / "CelebAMask-HQ-mask-anno" / "0"
    masks.mkdir(parents=True)
    tiny.photograph(0, (64, 64)).save(place / "CelebA-HQ-img" / "0.jpg", quality=95)
    parts = ("l_eye", "r_eye", "l_brow", "r_brow", "nose", "mouth", "u_lip", "l_lip", "hair", "skin")
    for index, part in enumerate(parts):
        left, top = index % 4 / 4, index // 4 / 4
        tiny.box((32, 32), (left, top, left + 0.2, top + 0.2)).convert("RGB").save(masks / f"00000_{part}.png")


def lsun(place: Path) -> None:
    place.mkdir(parents=True)
    with lmdb.open(str(place), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0" * 40, encoded(0, "WEBP", (24, 20)))


def metfaces(place: Path) -> None:
    (place / "images").mkdir(parents=True)
    (place / "images" / "11713-00.png").write_bytes(encoded(0, size=(32, 32)))
    entry = {"obj_id": "11713", "face_idx": 0, "image_path": "images/11713-00.png"}
    (place / "metfaces.json").write_text(json.dumps([entry]))


def ffhq(place: Path) -> None:
    folder = place / "thumbnails128x128" / "00000"
    folder.mkdir(parents=True)
    (folder / "00000.png").write_bytes(encoded(0, size=(32, 32)))


def afhq(place: Path) -> None:
    (place / "train" / "dog").mkdir(parents=True)
    (place / "train" / "dog" / "flickr_dog_000002.jpg").write_bytes(encoded(0, "JPEG", (32, 32)))


def flowers(place: Path) -> None:
    for folder, name in (("jpg", "image"), ("segmim", "segmim")):
        (place / folder).mkdir(parents=True)
        picture = np.full((48, 48, 3), (0, 0, 254), np.uint8)
        picture[12:36, 12:36] = (250, 220, 20)
        Image.fromarray(picture).save(place / folder / f"{name}_00001.jpg", quality=95)


DATA: dict[str, Callable[[Path], None]] = {
    "celebahq": celeba, "lsun-church": lsun, "lsun-bedroom": lsun, "metfaces": metfaces, "ffhq": ffhq,
    "afhq-dog": afhq, "flowers": flowers,
}  # fmt: skip


# --- tiny models of their architectures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DDPM's kind of network: no padding on the way down, one attention, noise prediction."""
    level = {"block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    odd: dict[str, Any] = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, **level}
    return tiny_pipeline_folder(tmp_path_factory.mktemp("ddpm") / "model", "epsilon", size=SIZE, **odd)


@pytest.fixture(scope="module")
def p2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P2's kind of network, as `rhumb convert` makes it of a checkpoint in the original format."""
    folder = tmp_path_factory.mktemp("p2")
    torch.save(random_state(reduced_p2()), folder / "tiny_p2.pt")
    flags = [f"--set={key}={value}" for key, value in guided_settings(reduced_p2(), SIZE).items()]
    assert tiny.run("convert", folder / "tiny_p2.pt", "--preset", "custom", *flags, "--out", folder / "model") == 0
    return folder / "model"


def sure_sam(folder: Path) -> None:
    """A random Segment Anything model that is sure of masks with sharp edges."""
    pytest.importorskip("transformers")
    from tests.pipeline.tiny_sam import small_sam

    file = small_sam(folder) / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if name.startswith("mask_decoder.iou_prediction_head.proj_out"):
            weights[name] = torch.full_like(weights[name], 0.95 if name.endswith("bias") else 0.0)
        if name.startswith("mask_decoder.upscale_conv2"):
            weights[name] = 1e4 * weights[name]
    save_file(weights, file, {"format": "pt"})


# --- the recipes --------------------------------------------------------------------------------------------------


def test_there_is_a_recipe_for_every_data_set_of_the_papers() -> None:
    assert set(NAMES) == set(DATA)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_tells_its_true_cost(name: str) -> None:
    recipe = open_recipe(Path(name))
    outline = known_outline(recipe.model.reference)
    assert outline is not None and outline.info.image_shape == (3, 256, 256)
    comment = estimate(recipe, outline).comment
    text = recipe_file(Path(name)).read_text(encoding="utf-8")
    assert recipe.name == name
    assert comment in text, f"the cost is now:\n{comment}"
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_tells_to_convert_is_what_its_preset_is_made_of(name: str) -> None:
    recipe = open_recipe(Path(name))
    preset = preset_of(recipe.model.reference)
    if preset is None:
        assert recipe.model.reference in HUB
    else:
        command = f"rhumb convert {PRESETS[preset].file} --preset {preset} --out {recipe.model.reference}\n"
        assert command in recipe_file(Path(name)).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_mines_a_picture_of_its_own_layout(
    name: str, ddpm: Path, p2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(recipe_file(Path(name)).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    DATA[name](tmp_path / content["dataset"]["path"])
    family = p2 if preset_of(content["model"]) else ddpm
    shutil.copytree(family, tmp_path / content["model"])
    if content["regions"] and "model" in content["regions"]:
        sure_sam(tmp_path / content["regions"]["model"])
    written = tmp_path / "recipe.yaml"
    written.write_text(yaml.safe_dump({**content, "method": QUICK}))
    assert tiny.run("plan", written, "--no-measure", "--out", tmp_path / "catalog") == 0
    assert tiny.run("mine", written, "--out", tmp_path / "catalog") == 0
    with Catalog.open(tmp_path / "catalog") as catalog:
        rows = catalog.directions().to_pylist()
        (image,) = catalog.images().to_pylist()
    assert {(row["space"], row["kind"]) for row in rows} >= {("x", "local"), ("h", "individual")}
    assert {row["region"] for row in rows} <= set(open_recipe(Path(name)).region_names)
    assert image["timestep"] > 0


# --- what is known in advance -------------------------------------------------------------------------------------


def test_the_architectures_have_the_parameters_of_the_published_networks() -> None:
    expected = {"google/ddpm-celebahq-256": LARGE_PARAMETERS, "google/ddpm-cifar10-32": 35_746_307}
    for name, parameters in {**expected, "metfaces-p2": 93_563_910}.items():
        outline = known_outline(name)
        assert outline is not None and outline.info.parameters == parameters
    assert known_outline("google/ddpm-ema-church-256@main") == known_outline("google/ddpm-ema-church-256")
    assert known_outline("owner/other") is None and known_outline("a-folder") is None


def test_the_cost_of_segment_anything_is_that_of_its_networks() -> None:
    transformers = pytest.importorskip("transformers")
    for size, width, layers, heads in (("base", 768, 12, 12), ("large", 1024, 24, 16)):
        step = layers // 4
        vision = transformers.SamVisionConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, mlp_dim=4 * width,
            global_attn_indexes=list(range(step - 1, layers, step)),
        )  # fmt: skip
        with torch.device("meta"):
            network = transformers.SamModel(transformers.SamConfig(vision_config=vision.to_dict()))
            network = network.eval().requires_grad_(False)
            picture, found = torch.empty(1, 3, 1024, 1024), torch.empty(1, 256, 64, 64)
            point, label = torch.empty(1, 1, 1, 2), torch.ones(1, 1, 1, dtype=torch.long)
            encoder = counted(lambda n=network, p=picture: n.get_image_embeddings(p))  # type: ignore[misc]
            prompt = counted(
                lambda n=network, f=found, p=point, q=label: n(image_embeddings=f, input_points=p, input_labels=q)  # type: ignore[misc]
            )
        assert MASK_MODELS[f"facebook/sam-vit-{size}"] == (encoder, prompt)


# --- names --------------------------------------------------------------------------------------------------------


def test_a_recipe_given_by_name_has_its_paths_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = open_recipe(Path("celebahq"))
    assert named.resolve("CelebAMask-HQ").absolute() == tmp_path / "CelebAMask-HQ"
    file = recipe_file(Path("celebahq"))
    assert open_recipe(file).resolve("x") == file.parent / "x"
    assert named.fingerprint() == open_recipe(file).fingerprint()


def test_a_file_of_that_name_comes_before_the_built_in_recipe_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "celebahq").mkdir()
    assert open_recipe(Path("celebahq")).name == "celebahq"
    (tmp_path / "flowers").write_text("name: mine\ndataset: {kind: builtin}\nregions: [hair]\n")
    assert open_recipe(Path("flowers")).name == "mine"


@pytest.mark.parametrize("given", ["celeba", "celebahq.yaml", "data/celebahq", "../celebahq", ""])
def test_what_is_neither_a_file_nor_a_name_is_an_error(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="recipe"):
        open_recipe(Path(given))
