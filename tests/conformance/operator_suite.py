"""What every `LinearOperator` must satisfy. Inherit `OperatorSuite` and give it two fixtures, `operator` and `dense`.

After the operator test cases of PyLops and linear_operator: dense truth, adjoint identity, composition.
"""

from __future__ import annotations

import math

import torch

from pipeline.operators import LinearOperator, Masked, Projected

VECTORS = 3


def draw(operator: LinearOperator, shape: tuple[int, ...], count: int = VECTORS, seed: int = 0) -> torch.Tensor:
    """(count, *shape) standard normal in the operator's dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn((count, *shape), generator=generator, dtype=torch.float64)
    return vectors.to(device=operator.device, dtype=operator.dtype)


def tolerance(operator: LinearOperator) -> float:
    """Relative error allowed in the operator's dtype."""
    return 1e-10 if operator.dtype == torch.float64 else 2e-4


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """||found - expected|| <= relative * ||expected||, in double precision, same shape."""
    assert found.shape == expected.shape
    difference = (found.double() - expected.double()).norm()
    assert difference <= relative * expected.double().norm(), f"relative error {difference / expected.double().norm()}"


class OperatorSuite:
    """Inheritable conformance suite.

    Fixtures of the subclass: `operator`, the operator under test, and `dense`, its matrix (prod(shape_out),
    prod(shape_in)) obtained some other way.
    """

    def test_the_adjoint_identity_holds(self, operator: LinearOperator) -> None:
        v, u = draw(operator, operator.shape_in), draw(operator, operator.shape_out, seed=1)
        product = operator.matvec(v).flatten(1).double()
        forward = product @ u.flatten(1).double().T
        backward = v.flatten(1).double() @ operator.rmatvec(u).flatten(1).double().T
        assert (forward - backward).norm() <= tolerance(operator) * product.norm() * u.double().norm()

    def test_products_agree_with_the_dense_matrix(self, operator: LinearOperator, dense: torch.Tensor) -> None:
        v = draw(operator, operator.shape_in)
        assert_near(operator.matvec(v).flatten(1), v.flatten(1) @ dense.T, tolerance(operator))

    def test_transposed_products_agree_with_the_dense_matrix(
        self, operator: LinearOperator, dense: torch.Tensor
    ) -> None:
        u = draw(operator, operator.shape_out)
        assert_near(operator.rmatvec(u).flatten(1), u.flatten(1) @ dense, tolerance(operator))

    def test_both_products_are_linear(self, operator: LinearOperator) -> None:
        for product, shape in ((operator.matvec, operator.shape_in), (operator.rmatvec, operator.shape_out)):
            a, b = draw(operator, shape), draw(operator, shape, seed=1)
            assert_near(product(2.0 * a - 0.5 * b), 2.0 * product(a) - 0.5 * product(b), tolerance(operator))

    def test_shape_dtype_and_device_are_those_declared(self, operator: LinearOperator) -> None:
        forward = operator.matvec(draw(operator, operator.shape_in))
        backward = operator.rmatvec(draw(operator, operator.shape_out))
        assert forward.shape == (VECTORS, *operator.shape_out)
        assert backward.shape == (VECTORS, *operator.shape_in)
        for result in (forward, backward):
            assert (result.dtype, result.device.type) == (operator.dtype, operator.device.type)
            assert not result.requires_grad

    def test_the_size_of_a_block_does_not_change_its_answers(self, operator: LinearOperator) -> None:
        for product, shape in ((operator.matvec, operator.shape_in), (operator.rmatvec, operator.shape_out)):
            block = draw(operator, shape)
            singly = torch.cat([product(vector[None]) for vector in block])
            assert_near(product(block), singly, tolerance(operator))
            assert len(product(block[:0])) == 0

    def test_a_mask_composes(self, operator: LinearOperator, dense: torch.Tensor) -> None:
        mask = (torch.arange(math.prod(operator.shape_out[-2:])) % 3 == 0).view(operator.shape_out[-2:])
        masked = Masked(operator, mask)
        rows = dense * mask.to(dense).expand(operator.shape_out).reshape(-1, 1)
        v, u = draw(operator, operator.shape_in), draw(operator, operator.shape_out)
        assert_near(masked.matvec(v).flatten(1), v.flatten(1) @ rows.T, tolerance(operator))
        assert_near(masked.rmatvec(u).flatten(1), u.flatten(1) @ rows, tolerance(operator))

    def test_a_null_space_composes(self, operator: LinearOperator, dense: torch.Tensor) -> None:
        basis = torch.linalg.qr(draw(operator, operator.shape_in, 2).flatten(1).T).Q.T
        projected = Projected(operator, basis.reshape(2, *operator.shape_in))
        restricted = dense - (dense @ basis.T) @ basis
        v, u = draw(operator, operator.shape_in, seed=1), draw(operator, operator.shape_out)
        assert_near(projected.matvec(v).flatten(1), v.flatten(1) @ restricted.T, tolerance(operator))
        assert_near(projected.rmatvec(u).flatten(1), u.flatten(1) @ restricted, tolerance(operator))

    def test_every_product_is_counted(self, operator: LinearOperator) -> None:
        jvp, vjp = operator.products.jvp, operator.products.vjp
        operator.matvec(draw(operator, operator.shape_in))
        operator.rmatvec(draw(operator, operator.shape_out, 2))
        Masked(operator, torch.ones(operator.shape_out[-2:])).matvec(draw(operator, operator.shape_in, 1))
        assert (operator.products.jvp - jvp, operator.products.vjp - vjp) == (VECTORS + 1, 2)
