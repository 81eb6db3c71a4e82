"""Properties every operator keeps: the adjoint identity, linearity, agreement with the dense matrix, counting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.operators import Dense, LinearOperator, Masked, Projected

SHAPE_IN, SHAPE_OUT = (2, 3, 5), (3, 4, 6)


def dense(dtype: torch.dtype = torch.float64, seed: int = 0) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    return Dense(torch.randn(72, 30, generator=generator, dtype=torch.float64).to(dtype), SHAPE_IN, SHAPE_OUT)


def null_rows(count: int = 4) -> torch.Tensor:
    noise = torch.randn(30, count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows: torch.Tensor = torch.linalg.qr(noise)[0].T
    return rows.reshape(count, *SHAPE_IN)


def mask() -> torch.Tensor:
    return (torch.arange(24).view(4, 6) % 3 == 0).double()


def adjoint_gap(op: LinearOperator) -> float:
    """Relative gap of <A v, u> = <v, A^T u> over three random pairs."""
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(3, *op.shape_in, generator=generator, dtype=op.dtype)
    u = torch.randn(3, *op.shape_out, generator=generator, dtype=op.dtype)
    left, right = (op.matvec(v) * u).flatten(1).sum(1), (v * op.rmatvec(u)).flatten(1).sum(1)
    return float(((left - right).abs() / left.abs()).max())


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "dense": dense,
    "masked": lambda: Masked(dense(), mask()),
    "projected": lambda: Projected(dense(), null_rows()),
    "masked projected": lambda: Projected(Masked(dense(), mask()), null_rows()),
}


class WrongAdjoint(Dense):
    """A deliberately broken operator: its adjoint is off by one part in a hundred."""

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        return 1.01 * super().rmatvec(u)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_identity_holds(name: str) -> None:
    assert adjoint_gap(OPERATORS[name]()) < 1e-10


def test_adjoint_check_catches_a_wrong_adjoint() -> None:
    assert adjoint_gap(WrongAdjoint(dense().matrix, SHAPE_IN, SHAPE_OUT)) > 1e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_products_are_linear_and_counted_per_vector(name: str) -> None:
    op = OPERATORS[name]()
    v = torch.randn(2, *SHAPE_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(op.matvec(2 * v[:1] - 3 * v[1:]), 2 * op.matvec(v[:1]) - 3 * op.matvec(v[1:]))
    op.rmatvec(torch.ones(4, *SHAPE_OUT, dtype=torch.float64))
    assert (op.products.jvp, op.products.vjp, op.products.total) == (3, 4, 7)


def test_masked_operator_is_zero_outside_its_mask_and_equals_the_masked_matrix() -> None:
    base, m = dense(), mask()
    v = torch.randn(2, *SHAPE_IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out = Masked(base, m).matvec(v)
    assert float((out * (1 - m)).abs().max()) == 0.0
    rows = m.expand(SHAPE_OUT).flatten()[:, None] * base.matrix
    torch.testing.assert_close(out.flatten(1), v.flatten(1) @ rows.T)


def test_projected_operator_annihilates_the_null_rows_and_returns_nothing_in_their_span() -> None:
    null = null_rows()
    op = Projected(dense(), null)
    assert float(op.matvec(null).abs().max()) < 1e-12
    back = op.rmatvec(torch.ones(1, *SHAPE_OUT, dtype=torch.float64))
    assert float((back.flatten(1) @ null.flatten(1).T).abs().max()) < 1e-12


def test_operators_keep_dtype_and_shape() -> None:
    op = Masked(dense(torch.float32), mask())
    out = op.matvec(torch.zeros(0, *SHAPE_IN))
    assert out.shape == (0, *SHAPE_OUT) and out.dtype == op.dtype == torch.float32
