"""A budget in bytes decides how many vectors a pass carries, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.errors import InputError
from pipeline.jacobian import JacobianKind, JacobianOperator, jacobian
from pipeline.memory import PIXELS, Blocks, Footprint, _Meter, footprint, pictures_at_once
from pipeline.models.unet2d import UNet2DDenoiser
from tests.conformance.operator_suite import OperatorSuite, assert_near, draw
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

T = 25


@cache
def denoiser() -> UNet2DDenoiser:
    return tiny_denoiser()


def operator(kind: JacobianKind = "x0/x", block: int | Blocks = 16, memory: int | None = None) -> JacobianOperator:
    return jacobian(denoiser(), tiny_image(denoiser())[0], T, kind, block=block, memory=memory)


@cache
def taken(checkpoint: bool = False, most: int = 16, kind: JacobianKind = "x0/x") -> Footprint:
    op = operator(kind)
    return footprint(op.function, op.point, most, checkpoint)


def weights() -> int:
    return 4 * denoiser().info.parameters


@cache
def dense(kind: JacobianKind) -> torch.Tensor:
    op = operator(kind)
    unit = torch.eye(int(torch.tensor(op.shape_in).prod())).view(-1, *op.shape_in)
    return op.matvec(unit).flatten(1).T


def short_budget() -> int:
    """Enough for single vectors through a checkpointed graph, too little for a plain one."""
    return weights() + (taken(True).least + taken(False).least) // 2


class TestCheckpointed(OperatorSuite):
    @pytest.fixture(params=["x0/x", "x0/h"])
    def kind(self, request: pytest.FixtureRequest) -> JacobianKind:
        kind: JacobianKind = request.param
        return kind

    @pytest.fixture
    def operator(self, kind: JacobianKind) -> JacobianOperator:
        return operator(kind, Blocks(2, 2, checkpoint=True))

    @pytest.fixture
    def dense(self, kind: JacobianKind) -> torch.Tensor:
        return dense(kind)


@settings(deadline=None, max_examples=12)
@given(jvp=st.integers(1, 9), vjp=st.integers(1, 9), checkpoint=st.booleans(), count=st.integers(1, 9))
def test_answers_do_not_depend_on_block_sizes_or_checkpoints(jvp: int, vjp: int, checkpoint: bool, count: int) -> None:
    whole, parts = operator(), operator(block=Blocks(jvp, vjp, checkpoint))
    v, u = draw(whole, whole.shape_in, count), draw(whole, whole.shape_out, count, seed=1)
    assert_near(parts.matvec(v), whole.matvec(v), 1e-5)
    assert_near(parts.rmatvec(u), whole.rmatvec(u), 1e-5)
    assert parts.products.recomputed == (-(-count // vjp) if checkpoint else 0)


@pytest.mark.parametrize("kind", ["x0/x", "eps/h"])
def test_blocks_fit_the_budget_and_grow_with_it(kind: JacobianKind) -> None:
    found = taken(kind=kind)
    room = [found.least + factor * max(found.jvp[0], found.vjp[0]) for factor in (0, 3, 6)]
    before = Blocks(1, 1)
    for bytes_left in room:
        blocks = operator(kind, memory=weights() + bytes_left).blocks
        assert (blocks.jvp >= before.jvp) and (blocks.vjp >= before.vjp) and not blocks.checkpoint
        jvp, vjp = taken(False, blocks.jvp, kind).jvp[1], taken(False, blocks.vjp, kind).vjp[1]
        assert found.captured + found.kept + max(jvp, vjp) <= bytes_left
        before = blocks
    assert before.jvp > 1 and before.vjp > 1
    assert operator(kind, memory=10**12).blocks == Blocks(16, 16)


def test_a_graph_that_does_not_fit_is_checkpointed() -> None:
    assert taken(True).kept < taken(False).kept
    op, plain = operator(memory=short_budget()), operator()
    assert op.blocks.checkpoint
    u = draw(op, op.shape_out)
    assert_near(op.rmatvec(u), plain.rmatvec(u), 1e-5)
    assert op.products.recomputed > 0 == plain.products.recomputed


def test_a_budget_below_one_vector_says_how_much_is_needed_and_that_is_enough() -> None:
    with pytest.raises(InputError, match="memory") as caught:
        operator(memory=1)
    (need,) = re.findall(r"at least ([\d,]+) bytes", str(caught.value))
    assert min(operator(memory=int(need.replace(",", ""))).blocks.jvp, 1) == 1
    with pytest.raises(InputError, match="memory"):
        operator(memory=int(need.replace(",", "")) - 1)


def test_without_a_budget_large_pictures_go_through_the_network_in_smaller_groups() -> None:
    def at_once(side: int, most: int = 64) -> int:
        model = tiny_denoiser()
        model.info = replace(model.info, image_shape=(3, side, side))
        return pictures_at_once(model, T, most)

    assert [at_once(8), at_once(64), at_once(128), at_once(256), at_once(1024)] == [64, 64, 16, 4, 1]
    assert at_once(64, 32) == 32 and PIXELS == 64 * 64 * 64


def test_a_budget_decides_how_many_pictures_go_through_the_network_and_gradients_take_more() -> None:
    def at_once(spare: int, backward: bool = False) -> int:
        return pictures_at_once(denoiser(), T, 64, weights() + spare, backward=backward)

    spares = [0, 10**6, 3 * 10**6, 10**7, 10**9]
    plain, guided = ([at_once(spare, backward) for spare in spares] for backward in (False, True))
    assert plain == sorted(plain) and guided == sorted(guided)
    assert plain[0] == guided[0] == 1 and plain[-1] == guided[-1] == 64
    assert all(a >= b for a, b in zip(plain, guided, strict=True)) and plain != guided


def test_live_bytes_are_counted_from_the_first_appearance_of_a_storage_to_its_release() -> None:
    with FakeTensorMode(), _Meter() as meter:
        a = torch.empty(1000)
        b = a.view(10, 100) + 1
        assert (meter.now, meter.peak) == (8000, 8000)
        del a
        c = b * 2
        assert (meter.now, meter.peak) == (8000, 8000)
        del b, c
        assert meter.now == 0


def test_a_pass_grows_by_the_same_bytes_with_every_vector() -> None:
    ends = {most: taken(False, most) for most in (2, 4, 8)}
    for name in ("jvp", "vjp"):
        peaks = {most: getattr(found, name)[1] for most, found in ends.items()}
        assert peaks[8] - peaks[4] == pytest.approx(2 * (peaks[4] - peaks[2]), rel=0.05)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, -1)])
def test_a_block_without_vectors_is_an_error(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="block"):
        Blocks(*sizes)
