"""Cheaper products are measured, never assumed; exact ones stay the default."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from pipeline import jacobian as jacobian_module
from pipeline.errors import InputError
from pipeline.jacobian import JacobianKind, JacobianOperator, fastest_blocks, jacobian
from pipeline.memory import Blocks
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.routes import Difference, Scheme, measured_routes
from tests.conformance.operator_suite import assert_near, draw
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

T = 25


@cache
def denoiser(dtype: torch.dtype = torch.float32) -> UNet2DDenoiser:
    return tiny_denoiser(dtype=dtype, size=6)


def exact(kind: JacobianKind = "x0/x", dtype: torch.dtype = torch.float32) -> JacobianOperator:
    return jacobian(denoiser(dtype), tiny_image(denoiser(dtype))[0], T, kind, block=3)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("kind", ["x0/x", "h/x", "x0/h"])
@pytest.mark.parametrize(("scheme", "tolerance"), [("central", 1e-7), ("forward", 1e-4)])
def test_differences_are_as_near_as_their_measured_error_says(
    kind: JacobianKind, scheme: Scheme, tolerance: float
) -> None:
    op = exact(kind, torch.float64)
    route = Difference(op, tolerance, generator=seeded(), scheme=scheme)
    v, u = draw(op, op.shape_in, 4, seed=9), draw(op, op.shape_out, 4)
    assert 0 < route.error <= tolerance
    assert_near(route.matvec(v), op.matvec(v), 3 * route.error)
    assert torch.equal(route.rmatvec(u), op.rmatvec(u))


def test_a_difference_scales_with_its_vector_and_is_zero_for_none() -> None:
    route = Difference(exact(), 1e-2, generator=seeded())
    v = draw(route, route.shape_in)
    assert_near(route.matvec(1e3 * v), 1e3 * route.matvec(v), 1e-3)
    assert not route.matvec(torch.zeros_like(v)).any()
    assert route.matvec(v[:0]).shape == (0, *route.shape_out)


def test_differences_are_counted_with_the_products_they_stand_for() -> None:
    op = exact()
    route = Difference(op, 1e-2, generator=seeded())
    before = op.products.total
    route.matvec(draw(op, op.shape_in, 5))
    route.rmatvec(draw(op, op.shape_out, 2))
    assert op.products.total - before == 7


@pytest.mark.parametrize(("tolerance", "step"), [(1e-9, None), (1e-3, 3.0), (math.nan, None)])
def test_a_measured_error_over_the_tolerance_is_refused(tolerance: float, step: float | None) -> None:
    with pytest.raises(InputError, match="measured error"):
        Difference(exact(), tolerance, generator=seeded(), step=step)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan])
def test_a_step_that_is_not_positive_is_an_error(step: float) -> None:
    with pytest.raises(InputError, match="step"):
        Difference(exact(), 1e-2, generator=seeded(), step=step)


def test_every_route_is_measured_at_every_size_and_the_operator_left_as_it_was() -> None:
    op = exact()
    found = measured_routes(op, generator=seeded(), sizes=(1, 2))
    assert [(r.name, r.block) for r in found] == [
        (name, size) for name in ("JVP", "VJP", "central difference", "forward difference") for size in (1, 2)
    ]
    assert all(r.seconds > 0 for r in found)
    assert all((r.error == 0) == (r.name in ("JVP", "VJP")) for r in found)
    assert op.blocks == Blocks(3, 3)


def test_the_fastest_blocks_are_those_that_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {1: 4.0, 2: 2.0, 4: 1.0, 8: 0.99, 16: 0.1}  # 8 is not worth it: 16 is never tried
    monkeypatch.setattr(jacobian_module, "seconds_per_vector", lambda product, vectors: cost[len(vectors)])
    op = jacobian(denoiser(), tiny_image(denoiser())[0], T, "x0/x", block=Blocks(16, 2, checkpoint=True))
    assert fastest_blocks(op) == Blocks(4, 2, checkpoint=True)
    assert op.blocks == Blocks(16, 2, checkpoint=True)


def test_blocks_are_measured_once_per_model_shape_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobian_module, "_chosen", {})
    calls = []
    monkeypatch.setattr(jacobian_module, "fastest_blocks", lambda op: calls.append(op) or Blocks(2, 3))
    image = tiny_image(denoiser())[0]
    kinds: tuple[JacobianKind, ...] = ("x0/x", "x0/x", "x0/h", "x0/x")
    for kind in kinds:
        assert jacobian(denoiser(), image, T, kind, block="measure").blocks == Blocks(2, 3)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["x0/x", "x0/h"])
def test_bfloat16_products_come_near_in_the_models_own_dtype(kind: JacobianKind) -> None:
    op, low = exact(kind), jacobian(denoiser(), tiny_image(denoiser())[0], T, kind, precision="bfloat16")
    v, u = draw(op, op.shape_in, 8), draw(op, op.shape_out, 8)
    for found, truth in ((low.matvec(v), op.matvec(v)), (low.rmatvec(u), op.rmatvec(u))):
        assert found.dtype == torch.float32
        assert 1e-4 < float((found - truth).norm() / truth.norm()) < 3e-2


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_a_precision_that_the_device_does_not_have_is_an_error(precision: str) -> None:
    with pytest.raises(InputError, match="precision"):
        jacobian(denoiser(), tiny_image(denoiser())[0], T, "x0/x", precision=precision)  # type: ignore[arg-type]
