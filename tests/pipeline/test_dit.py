"""Diffusion transformers behind the denoiser contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.editing import DecodeSettings, Edit, apply_edits
from pipeline.errors import InputError, ModelError
from pipeline.jacobian import KINDS, jacobian
from pipeline.mined import JiveSettings, LocoSettings, MiningSettings
from pipeline.mining import mine_image
from pipeline.models import unet2d
from pipeline.models.dit import DiTDenoiser
from tests.pipeline.tiny_latents import CLASSES, noise, tiny_conditional_denoiser, tiny_dit, tiny_dit_denoiser
from tests.pipeline.tiny_models import tiny_scheduler

DENOISER = tiny_dit_denoiser(dtype=torch.float64)
SHAPE = DENOISER.info.image_shape


@settings(max_examples=15, deadline=None)
@given(t=st.integers(0, 49), label=st.integers(0, CLASSES), batch=st.integers(1, 3))
def test_the_noise_is_the_networks_own_without_its_variance(t: int, label: int, batch: int) -> None:
    network = tiny_dit()
    denoiser = DiTDenoiser(network, tiny_scheduler("epsilon"), class_label=label)
    x = noise(SHAPE, count=batch, seed=t)
    with torch.no_grad():
        own = network(x, timestep=torch.full((batch,), t), class_labels=torch.full((batch,), label)).sample
    assert own.shape[1] == 2 * SHAPE[0]
    assert torch.equal(denoiser.predict_noise(x, t), own[:, : SHAPE[0]])
    torch.testing.assert_close(denoiser.differentiable().predict_noise(x, t), own[:, : SHAPE[0]])


def test_no_class_is_the_null_class_and_every_class_is_another_model() -> None:
    null, named = tiny_dit_denoiser(class_label=CLASSES), tiny_dit_denoiser(class_label=3)
    assert tiny_dit_denoiser().info == null.info
    assert named.info.fingerprint != null.info.fingerprint
    x = noise(SHAPE)
    assert not torch.allclose(named.predict_noise(x, 20), null.predict_noise(x, 20))


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_a_class_that_does_not_exist_is_refused(label: int) -> None:
    with pytest.raises(ModelError, match=rf"class_label: found {label}.*\[0, 10\), or 10 for none"):
        tiny_dit_denoiser(class_label=label)


def test_h_space_is_refused_by_the_name_of_the_model_wherever_it_is_asked_for() -> None:
    x, h = noise(SHAPE, torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:5, 2:5] = True
    asked = [
        lambda: DENOISER.bottleneck(x, 20),
        lambda: DENOISER.noise_from_bottleneck(x, 20),
        lambda: DENOISER.predict_noise(x, 20, h),
        lambda: apply_edits(DENOISER, x[0], 20, [Edit("h", h[0], 1.0)], DecodeSettings(steps=2)),
        lambda: mine_image(DENOISER, x[0], {"eye": mask}, MiningSettings(20, loco=None, jive=JiveSettings(rank=1))),
        *(lambda kind=kind: jacobian(DENOISER, x[0], 20, kind) for kind in KINDS if "h" in kind),
    ]
    assert DENOISER.info.bottleneck_shape is None
    for ask in asked:
        with pytest.raises(ModelError, match=r"none in diffusers DiTTransformer2DModel.*Only x-space exists"):
            ask()


def test_x_space_is_mined() -> None:
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:5, 2:5] = True
    chosen = MiningSettings(20, LocoSettings(rank=2, null_rank=2), None, DecodeSettings(steps=2), tolerance=1e-4)
    with torch.no_grad():
        mined = mine_image(DENOISER, noise(SHAPE, torch.float64)[0], {"eye": mask}, chosen)
    assert {(d.space, d.kind) for d in mined.directions} == {("x", "singular"), ("x", "local")}
    assert all(d.converged for d in mined.directions if d.kind == "singular")


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="x: found"):
        DENOISER.predict_noise(noise((4, 8, 6), torch.float64), 20)
    with pytest.raises(InputError, match="timestep"):
        DENOISER.predict_noise(noise(SHAPE, torch.float64), 50)


def test_output_channels_that_are_not_named_are_those_of_the_input() -> None:
    network = tiny_dit(out_channels=None)
    denoiser, x = DiTDenoiser(network, tiny_scheduler("epsilon"), class_label=3), noise(SHAPE)
    with torch.no_grad():
        own = network(x, timestep=torch.tensor([20]), class_labels=torch.tensor([3])).sample
    assert denoiser.info.image_shape == SHAPE
    assert torch.equal(denoiser.predict_noise(x, 20), own)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"sample_size: found \(7, 7\), which comes out as \(6, 6\)"):
        tiny_dit_denoiser(size=7)


@pytest.mark.parametrize("make", [tiny_dit_denoiser, tiny_conditional_denoiser])
def test_the_weights_are_hashed_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    own = unet2d.fingerprint
    monkeypatch.setattr(unet2d, "fingerprint", lambda *given: hashed.append(own(*given)) or hashed[-1])
    denoiser = make()
    assert hashed == [denoiser.info.fingerprint]
