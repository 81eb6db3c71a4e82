from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import InputError, ModelError
from pipeline.jacobian import KINDS, JacobianKind, JacobianOperator, jacobian
from pipeline.models.contract import Denoiser
from pipeline.models.forward_mode import forward_mode_copy
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.operators import Dense, LinearOperator
from tests.conformance.operator_suite import OperatorSuite
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_scheduler, tiny_unet

T = 25
MODELS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "v": ("v_prediction", torch.float64, {"size": 6}),
    "epsilon-down-attention-non-square-grey": (
        "epsilon",
        torch.float32,
        {"size": (6, 10), "channels": 1, "down_attention": True},
    ),
    "sample-resampling-blocks": (
        "sample",
        torch.float64,
        {
            "size": (8, 4),
            "channels": 1,
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 2,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
    ),
    "v-learned-variance": ("v_prediction", torch.float32, {"size": 6, "channels": 2, "out_channels": 4}),
}
# All five kinds in both dtypes; the other architectures in one kind per space.
CASES: list[tuple[str, JacobianKind]] = [
    *((name, kind) for name in ("v", "epsilon-down-attention-non-square-grey") for kind in KINDS),
    *((name, kind) for name in ("sample-resampling-blocks", "v-learned-variance") for kind in ("x0/x", "eps/h")),
]


@cache
def model(name: str) -> UNet2DDenoiser:
    prediction, dtype, options = MODELS[name]
    return tiny_denoiser(prediction, dtype=dtype, **options)


@cache
def truth(name: str, kind: JacobianKind) -> torch.Tensor:
    """The dense Jacobian by reverse mode through the unmodified network, row by row."""
    denoiser = model(name)
    x = tiny_image(denoiser)
    h = denoiser.bottleneck(x, T)

    def function(point: torch.Tensor) -> torch.Tensor:
        if kind == "h/x":
            return denoiser.bottleneck(point, T)
        if kind.endswith("/x"):
            return (denoiser.posterior_mean if kind == "x0/x" else denoiser.predict_noise)(point, T)
        return (denoiser.posterior_mean if kind == "x0/h" else denoiser.predict_noise)(x, T, point - h)

    point = x if kind.endswith("/x") else h
    rows = torch.autograd.functional.jacobian(function, point)  # type: ignore[no-untyped-call]
    assert isinstance(rows, torch.Tensor)
    return rows.reshape(-1, point.numel())


@cache
def operator_of(name: str, kind: JacobianKind) -> JacobianOperator:
    return jacobian(model(name), tiny_image(model(name))[0], T, kind, block=2)


@pytest.mark.parametrize(("name", "kind"), CASES)
class TestJacobian(OperatorSuite):
    @pytest.fixture
    def operator(self, name: str, kind: JacobianKind) -> JacobianOperator:
        return operator_of(name, kind)

    @pytest.fixture
    def dense(self, name: str, kind: JacobianKind) -> torch.Tensor:
        return truth(name, kind)


class TestDense(OperatorSuite):
    @pytest.fixture
    def dense(self) -> torch.Tensor:
        return torch.randn(24, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @pytest.fixture
    def operator(self, dense: torch.Tensor) -> LinearOperator:
        return Dense(dense, (3, 2, 2), (2, 3, 4))


@dataclass
class WrongAdjoint(Dense):
    """A dense operator whose transposed product is slightly off."""

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        return super().rmatvec(u).roll(1, 0) if len(u) > 1 else 1.001 * super().rmatvec(u)


@dataclass
class Uncounted(Dense):
    """A dense operator that hides what it spends."""

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        result = super().matvec(v)
        self.products.jvp -= len(v)
        return result


def test_the_suite_catches_a_wrong_adjoint() -> None:
    matrix = torch.randn(12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong, suite = WrongAdjoint(matrix, (2, 2, 2), (3, 2, 2)), OperatorSuite()
    with pytest.raises(AssertionError):
        suite.test_the_adjoint_identity_holds(wrong)
    with pytest.raises(AssertionError):
        suite.test_transposed_products_agree_with_the_dense_matrix(wrong, matrix)
    suite.test_products_agree_with_the_dense_matrix(wrong, matrix)


def test_the_suite_catches_a_small_error_in_the_adjoint() -> None:
    matrix = torch.randn(12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = Dense(matrix, (2, 2, 2), (3, 2, 2))
    right = operator.rmatvec
    operator.rmatvec = lambda u: (1 + 1e-6) * right(u)  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        OperatorSuite().test_the_adjoint_identity_holds(operator)


def test_the_suite_catches_products_that_are_not_counted() -> None:
    with pytest.raises(AssertionError):
        OperatorSuite().test_every_product_is_counted(Uncounted(torch.eye(4), (1, 2, 2), (1, 2, 2)))


def test_the_two_h_space_jacobians_differ_by_minus_sigma_over_alpha() -> None:
    denoiser = model("v")
    alpha, sigma = denoiser.alpha_sigma(T)
    x = tiny_image(denoiser)[0]
    mean, noise = jacobian(denoiser, x, T, "x0/h"), jacobian(denoiser, x, T, "eps/h")
    v = torch.randn(2, *mean.shape_in, dtype=denoiser.dtype)
    torch.testing.assert_close(mean.matvec(v), -sigma / alpha * noise.matvec(v))


def test_the_value_at_the_point_is_the_prediction() -> None:
    denoiser = model("v")
    x = tiny_image(denoiser)
    torch.testing.assert_close(jacobian(denoiser, x[0], T, "x0/h").value, denoiser.posterior_mean(x, T)[0])
    torch.testing.assert_close(jacobian(denoiser, x[0], T, "h/x").value, denoiser.bottleneck(x, T)[0])


def test_products_agree_with_finite_differences() -> None:
    denoiser = model("v")
    x = tiny_image(denoiser)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=denoiser.dtype)
    step = 1e-6
    slope = (denoiser.posterior_mean(x + step * v, T) - denoiser.posterior_mean(x - step * v, T)) / (2 * step)
    torch.testing.assert_close(jacobian(denoiser, x[0], T, "x0/x").matvec(v), slope, rtol=1e-5, atol=1e-7)


def test_products_work_whatever_the_grad_mode() -> None:
    denoiser = model("v")
    operator = jacobian(denoiser, tiny_image(denoiser)[0].requires_grad_(), T, "x0/x")
    with torch.no_grad():
        inside = operator.rmatvec(torch.ones(1, *operator.shape_out, dtype=operator.dtype))
    assert torch.equal(inside, operator.rmatvec(torch.ones(1, *operator.shape_out, dtype=operator.dtype)))
    assert not inside.requires_grad


@pytest.mark.parametrize("kind", ["f/x", "x0", ""])
def test_an_unknown_kind_is_an_error(kind: str) -> None:
    with pytest.raises(InputError, match="x0/x"):
        jacobian(model("v"), tiny_image(model("v"))[0], T, kind)  # type: ignore[arg-type]


def test_vectors_and_images_of_another_shape_are_errors() -> None:
    denoiser = model("v")
    operator = jacobian(denoiser, tiny_image(denoiser)[0], T, "x0/x")
    with pytest.raises(InputError, match="v: found"):
        operator.matvec(torch.zeros(3, 6, 6))
    with pytest.raises(InputError, match="u: found"):
        operator.rmatvec(torch.zeros(1, 3, 6, 7))
    with pytest.raises(InputError, match="one image"):
        jacobian(denoiser, tiny_image(denoiser), T, "x0/x")
    with pytest.raises(InputError, match="block"):
        jacobian(denoiser, tiny_image(denoiser)[0], T, "x0/x", block=0)


def test_an_h_space_jacobian_of_a_model_without_bottleneck_is_an_error() -> None:
    denoiser = UNet2DDenoiser(tiny_unet(mid_block_type=None), tiny_scheduler())
    assert jacobian(denoiser, tiny_image(denoiser)[0], T, "x0/x").shape_in == (3, 8, 8)
    kinds: tuple[JacobianKind, ...] = ("h/x", "x0/h", "eps/h")
    for kind in kinds:
        with pytest.raises(ModelError, match="bottleneck"):
            jacobian(denoiser, tiny_image(denoiser)[0], T, kind)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_h_reaches_the_posterior_mean_where_no_signal_is_left(prediction: str) -> None:
    scheduler = tiny_scheduler(prediction, rescale_betas_zero_snr=True)
    denoiser = UNet2DDenoiser(tiny_unet(), scheduler, dtype=torch.float64)
    assert denoiser.alpha_sigma(49)[0] == 0.0
    x = tiny_image(denoiser)
    operator = jacobian(denoiser, x[0], 49, "x0/h")
    torch.testing.assert_close(operator.value[None], denoiser.posterior_mean(x, 49))
    v = torch.randn(operator.point.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    above, below = (denoiser.posterior_mean(x, 49, step * v) for step in (1e-5, -1e-5))
    torch.testing.assert_close(operator.matvec(v), (above - below) / 2e-5, rtol=1e-5, atol=1e-7)


def test_the_posterior_mean_behind_h_is_by_default_that_of_the_noise() -> None:
    denoiser = model("v")
    x = tiny_image(denoiser)
    h = denoiser.bottleneck(x, T) + 0.1
    plain = Denoiser.posterior_mean_from_bottleneck(denoiser, x, T)
    torch.testing.assert_close(plain(h), denoiser.posterior_mean_from_bottleneck(x, T)(h))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-2, 1.5e4), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_group_norm_and_its_derivatives_stay_finite_at_any_size(
    scale: float, dtype: torch.dtype
) -> None:
    norm, exact = nn.GroupNorm(2, 4).to(dtype), forward_mode_copy(nn.Sequential(nn.GroupNorm(2, 4).double()))
    drawn = torch.Generator().manual_seed(0)
    x, v = (torch.randn((2, 4, 3, 3), generator=drawn).to(dtype) for _ in range(2))
    x = x * scale
    safe = forward_mode_copy(nn.Sequential(norm))
    coarse = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(safe(x), norm(x), **coarse)
    y, dy = torch.func.jvp(safe, (x,), (v * scale,))
    truth = torch.func.jvp(exact, (x.double(),), ((v * scale).double(),))[1]
    assert (y.dtype, dy.dtype) == (dtype, dtype)
    torch.testing.assert_close(dy.double(), truth, rtol=0, atol=float(8 * torch.finfo(dtype).eps * truth.abs().max()))
