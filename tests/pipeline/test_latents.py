"""Models on an autoencoder's latents: pictures outside, latents inside, masks and effects in pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, UNet2DConditionModel

from pipeline.editing import DecodeSettings, Edit, apply_edits, decode, invert_image, invert_pictures
from pipeline.errors import InputError, ModelError
from pipeline.inversion import invert, sample
from pipeline.jacobian import JacobianKind, JacobianOperator, jacobian
from pipeline.memory import Blocks, footprint
from pipeline.mined import JiveSettings, LocoSettings, MinedImage, MiningSettings
from pipeline.mining import mine_image
from pipeline.models.latents import LatentDenoiser
from pipeline.models.loading import load_denoiser
from pipeline.registration import registered
from tests.conformance.operator_suite import OperatorSuite
from tests.pipeline.tiny_latents import (
    noise,
    tiny_conditional,
    tiny_conditional_denoiser,
    tiny_dit,
    tiny_dit_denoiser,
    tiny_dit_folder,
    tiny_latent_denoiser,
    tiny_prompt,
    tiny_vae,
)
from tests.pipeline.tiny_models import tiny_scheduler

T = 25
ONE_LEVEL = {
    "block_out_channels": (8,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
SMALL: dict[str, dict[str, Any]] = {"dit": {"size": 4, "num_layers": 1}, "conditional": {"size": 4, **ONE_LEVEL}}
CASES: list[tuple[str, JacobianKind]] = [
    ("dit", "x0/x"),
    ("conditional", "x0/h"),
    ("conditional without autoencoder", "eps/h"),
]


@cache
def model(name: str) -> Any:
    kind = name.split()[0]
    if "without" in name:
        make = tiny_dit_denoiser if kind == "dit" else tiny_conditional_denoiser
        return make(dtype=torch.float64, **SMALL[kind])
    return tiny_latent_denoiser(kind, dtype=torch.float64, vae={"shift_factor": 0.2}, **SMALL[kind])


@cache
def truth(name: str, kind: JacobianKind) -> torch.Tensor:
    """The dense Jacobian by reverse mode through the unmodified networks, row by row."""
    denoiser = model(name)
    x = noise(denoiser.info.x_shape, torch.float64)
    h = None if denoiser.info.bottleneck_shape is None else denoiser.bottleneck(x, T)

    def function(point: torch.Tensor) -> torch.Tensor:
        call = denoiser.predicted_picture if kind.startswith("x0") else denoiser.predict_noise
        return call(point, T) if kind.endswith("/x") else call(x, T, point - h)  # type: ignore[no-any-return]

    point = h if kind.endswith("/h") else x
    assert point is not None
    rows = torch.autograd.functional.jacobian(function, point)  # type: ignore[no-untyped-call]
    assert isinstance(rows, torch.Tensor)
    return rows.reshape(-1, point.numel())


@cache
def operator_of(name: str, kind: JacobianKind) -> JacobianOperator:
    return jacobian(model(name), noise(model(name).info.x_shape, torch.float64)[0], T, kind, block=2)


@pytest.mark.parametrize(("name", "kind"), CASES)
class TestJacobian(OperatorSuite):
    @pytest.fixture
    def operator(self, name: str, kind: JacobianKind) -> JacobianOperator:
        return operator_of(name, kind)

    @pytest.fixture
    def dense(self, name: str, kind: JacobianKind) -> torch.Tensor:
        return truth(name, kind)


@pytest.mark.parametrize("kind", ["x0/x", "x0/h"])
def test_effects_lie_in_pixels_and_directions_in_latents(kind: JacobianKind) -> None:
    denoiser, operator = model("conditional"), operator_of("conditional", kind)
    info = denoiser.info
    assert operator.shape_out == info.image_shape == (3, 8, 8)
    assert operator.shape_in == (info.x_shape if kind == "x0/x" else info.bottleneck_shape)
    assert info.x_shape == info.latent_shape == (4, 4, 4)


@pytest.mark.parametrize("name", ["dit", "conditional"])
def test_a_checkpointed_graph_changes_no_answer(name: str) -> None:
    exact = operator_of(name, "x0/x")
    short = jacobian(model(name), exact.point[0], T, "x0/x", block=Blocks(2, 2, checkpoint=True))
    u = noise(exact.shape_out, torch.float64, 3, 1)
    torch.testing.assert_close(short.rmatvec(u), exact.rmatvec(u))


def test_the_memory_of_products_is_found_without_running_them() -> None:
    operator = operator_of("conditional without autoencoder", "eps/h")
    found = footprint(operator.function, operator.point, 2)
    assert 0 < found.jvp[0] < found.jvp[1]


def test_encoding_is_the_scaled_mode_of_the_posterior_and_decoding_undoes_the_scaling() -> None:
    vae = tiny_vae(shift_factor=0.3)
    denoiser = LatentDenoiser(tiny_dit_denoiser(size=8), vae)
    pictures = noise(denoiser.info.image_shape, count=6)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
        x0 = denoiser.encode(pictures)
        torch.testing.assert_close(x0, (latents - 0.3) * 0.7)
        torch.testing.assert_close(denoiser.decode(x0), vae.decode(latents).sample)
        torch.testing.assert_close(denoiser.differentiable().decode(x0), vae.decode(latents).sample)
        assert torch.equal(denoiser.encode(pictures), x0)


def test_the_way_there_and_back_is_that_of_the_latents_with_pictures_at_both_ends() -> None:
    denoiser = model("dit")
    pictures = noise(denoiser.info.image_shape, torch.float64, 2)
    x_t = invert_pictures(denoiser, pictures, T, 4)
    assert torch.equal(x_t, invert(denoiser, denoiser.encode(pictures), T, 4))
    torch.testing.assert_close(x_t[0], invert_image(denoiser, pictures[0], T, 4))
    back = decode(denoiser, x_t, T, DecodeSettings(steps=4))
    assert torch.equal(back, denoiser.decode(sample(denoiser, x_t, T, 4)))
    assert back.shape == pictures.shape
    assert not back.requires_grad


def test_models_without_autoencoder_encode_and_decode_nothing() -> None:
    denoiser = model("dit without autoencoder")
    x = noise(denoiser.info.image_shape, torch.float64)
    assert denoiser.encode(x) is x
    assert denoiser.decode(x) is x
    assert denoiser.info.latent_shape is None
    assert denoiser.info.x_shape == denoiser.info.image_shape


def masks(shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    left, right = torch.zeros(shape[1:], dtype=torch.bool), torch.zeros(shape[1:], dtype=torch.bool)
    left[1:4, 1:4] = True
    right[4:7, 3:7] = True
    return {"left": left, "right": right}


@pytest.fixture(scope="module")
def mined() -> MinedImage:
    denoiser = model("conditional")
    chosen = MiningSettings(
        T, LocoSettings(rank=1, null_rank=2), JiveSettings(rank=2, joint_rank=1, individual_rank=1),
        DecodeSettings(steps=2), tolerance=1e-2,
    )  # fmt: skip
    with torch.no_grad():
        x_t = noise(denoiser.info.x_shape, torch.float64)[0]
        return mine_image(denoiser, x_t, masks(denoiser.info.image_shape), chosen)


def test_mined_directions_are_latent_and_their_evidence_is_of_pictures(mined: MinedImage) -> None:
    info, dense = model("conditional").info, {"x": truth("conditional", "x0/x"), "h": truth("conditional", "x0/h")}
    assert {d.space for d in mined.directions} == {"x", "h"}
    for d in mined.directions:
        assert tuple(d.vector.shape) == (info.latent_shape if d.space == "x" else info.bottleneck_shape)
        effect = (dense[d.space] @ d.vector.flatten()).view(info.image_shape)
        torch.testing.assert_close(d.effect, effect)
        mask = masks(info.image_shape)[d.region]
        assert d.gain == pytest.approx(float((effect * mask).norm()))
        assert d.leakage == pytest.approx(float((effect * ~mask).norm()))
        if d.kind == "singular" and d.rank == 0:
            rows = dense[d.space] * mask.expand(info.image_shape).reshape(-1, 1)
            assert d.sigma == pytest.approx(float(torch.linalg.matrix_norm(rows, 2)), rel=1e-2)


def test_a_mask_of_the_latents_size_is_refused() -> None:
    denoiser = model("conditional")
    x_t = noise(denoiser.info.x_shape, torch.float64)[0]
    small = {"left": torch.eye(4, dtype=torch.bool)}
    with pytest.raises(InputError, match=r"mask of left.*\(4, 4\).*\(8, 8\)"):
        mine_image(denoiser, x_t, small, MiningSettings(T))


def test_an_edit_gives_a_picture_and_strength_zero_the_reconstruction() -> None:
    denoiser, chosen = model("conditional"), DecodeSettings(steps=2)
    x_t = noise(denoiser.info.x_shape, torch.float64)[0]
    latent, h = noise(denoiser.info.x_shape, torch.float64)[0], noise(denoiser.info.bottleneck_shape, torch.float64)[0]
    plain = apply_edits(denoiser, x_t, T, [], chosen)
    assert tuple(plain.shape) == denoiser.info.image_shape
    still = apply_edits(denoiser, x_t, T, [Edit("x", latent, 0.0), Edit("h", h, 0.0)], chosen)
    torch.testing.assert_close(still, plain)
    assert not torch.allclose(apply_edits(denoiser, x_t, T, [Edit("x", latent, 1.0)], chosen), plain)
    with pytest.raises(InputError, match="x-space direction"):
        apply_edits(denoiser, x_t, T, [Edit("x", noise(denoiser.info.image_shape)[0], 1.0)], chosen)


def test_a_latent_direction_moves_by_the_pixels_shift_on_its_own_grid() -> None:
    vector = torch.zeros(4, 8, 8)
    vector[:, 2:4, 2:4] = noise((4, 2, 2))[0]
    vector /= vector.norm()
    home, there = torch.zeros(64, 64, dtype=torch.bool), torch.zeros(64, 64, dtype=torch.bool)
    home[16:32, 16:32] = True
    there[24:40, 32:48] = True  # 8 pixels down and 16 right: one and two latents
    torch.testing.assert_close(registered(vector, home, there), vector.roll((1, 2), (1, 2)), atol=1e-5, rtol=0)


def test_the_autoencoder_is_part_of_the_fingerprint() -> None:
    one, two, three = (tiny_latent_denoiser(vae=vae) for vae in ({}, {"seed": 5}, {"scaling_factor": 0.5}))
    assert len({d.info.fingerprint for d in (one, two, three, tiny_dit_denoiser())}) == 4
    assert one.info == tiny_latent_denoiser().info
    assert one.info.parameters > tiny_dit_denoiser().info.parameters


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"latent_channels": 3}, "latent_channels: found 3"),
        ({"in_channels": 1}, "out_channels: found 3"),
        ({"scaling_factor": 0}, "scaling_factor: found 0"),
        ({"scaling_factor": None}, "scaling_factor: found None"),
        ({"scaling_factor": float("nan")}, "scaling_factor: found nan"),
        ({"scaling_factor": "0.2"}, "scaling_factor: found '0.2'"),
        ({"shift_factor": float("inf")}, "shift_factor: found inf"),
        ({"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}, "latents_mean"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        tiny_latent_denoiser(vae=options)


def test_pictures_of_another_size_are_refused() -> None:
    denoiser = tiny_latent_denoiser()
    with pytest.raises(InputError, match=r"pictures: found \(1, 3, 8, 8\); expected \(B, 3, 16, 16\)"):
        denoiser.encode(torch.zeros(1, 3, 8, 8))


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_dit_pipeline_folder_gives_the_model_that_was_saved(tmp_path: Path) -> None:
    denoiser, saved = load_denoiser(tiny_dit_folder(tmp_path), device="cpu"), tiny_latent_denoiser()
    assert denoiser.info == saved.info
    x = noise(saved.info.x_shape)
    torch.testing.assert_close(denoiser.predicted_picture(x, 7), saved.predicted_picture(x, 7))
    assert denoiser.origin is not None
    assert {name.split("/")[0] for name in denoiser.origin.files} >= {"transformer", "vae", "scheduler"}


def test_a_bare_dit_folder_is_a_model_of_pixels(tmp_path: Path) -> None:
    tiny_dit(channels=3).save_pretrained(tmp_path)
    tiny_scheduler("epsilon").save_pretrained(tmp_path)
    denoiser = load_denoiser(tmp_path, device="cpu", class_label=3)
    assert denoiser.info == tiny_dit_denoiser(channels=3, class_label=3).info


def stable_folder(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL) -> Path:
    """A folder of the parts that a Stable Diffusion pipeline has, but for its text encoder."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    tiny_scheduler("epsilon").save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDPMScheduler"}
    listed = ", ".join(f'"{part}": ["diffusers", "{name}"]' for part, name in parts.items())
    text = '"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]'
    unused = '"safety_checker": [null, null], "feature_extractor": ["transformers", "CLIPImageProcessor"]'
    (folder / "model_index.json").write_text(
        f'{{"_class_name": "StableDiffusionPipeline", {listed}, {text}, {unused}, "requires_safety_checker": true}}'
    )
    return folder


def test_a_stable_diffusion_folder_with_a_prompt_gives_a_latent_model(tmp_path: Path) -> None:
    folder = stable_folder(tmp_path, tiny_conditional(), tiny_vae())
    denoiser = load_denoiser(folder, device="cpu", prompt=tiny_prompt())
    assert denoiser.info == tiny_latent_denoiser("conditional").info
    assert denoiser.info.bottleneck_shape == (16, 4, 4)
    with pytest.raises(ModelError, match=r"no text_encoder and tokenizer"):
        load_denoiser(folder)


def test_a_stable_diffusion_folder_embeds_the_empty_prompt_itself(tmp_path: Path) -> None:
    from tests.pipeline.test_conditional import text_folder

    folder = stable_folder(text_folder(tmp_path), tiny_conditional(), tiny_vae())
    denoiser = load_denoiser(folder, device="cpu")
    assert denoiser.info.family == "diffusers UNet2DConditionModel on latents of AutoencoderKL"
    assert denoiser.origin is not None
    assert {"text_encoder/model.safetensors", "tokenizer/vocab.json"} <= denoiser.origin.files.keys()


def test_a_bare_conditional_folder_takes_a_prompt(tmp_path: Path) -> None:
    tiny_conditional().save_pretrained(tmp_path)
    tiny_scheduler("epsilon").save_pretrained(tmp_path)
    assert load_denoiser(tmp_path, device="cpu", prompt=tiny_prompt()).info == tiny_conditional_denoiser().info
    with pytest.raises(ModelError, match="Pass the embedding"):
        load_denoiser(tmp_path)


def test_an_autoencoder_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = tiny_dit_folder(tmp_path)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    with pytest.raises(ModelError, match="AutoencoderTiny"):
        load_denoiser(folder)


def test_an_autoencoder_that_is_named_and_missing_is_an_error_not_a_model_of_pixels(tmp_path: Path) -> None:
    folder = tiny_dit_folder(tmp_path)
    (folder / "vae/config.json").unlink()
    with pytest.raises(ModelError, match=r"vae.config.json: found no such file"):
        load_denoiser(folder)


def test_the_folder_is_what_diffusers_itself_saves_and_reads(tmp_path: Path) -> None:
    pipeline: Any = DiTPipeline.from_pretrained(tiny_dit_folder(tmp_path))
    x, null = noise((4, 8, 8)), torch.tensor([10])
    with torch.no_grad():
        own = pipeline.transformer(x, timestep=torch.tensor([7]), class_labels=null).sample[:, :4]
    torch.testing.assert_close(load_denoiser(tmp_path, device="cpu").predict_noise(x, 7), own)
