from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.errors import InputError
from pipeline.methods.subspace_iteration import ROUNDS, Iterated, Round, rounds, subspace_iteration
from pipeline.operators import Dense


def operator(decay: float = 0.5) -> Dense:
    """A matrix with singular values 1, decay, decay^2, ... and random singular vectors."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(48, 20, generator=g, dtype=torch.float64))[0] for _ in range(2))
    sigma = decay ** torch.arange(20, dtype=torch.float64)
    return Dense(u * sigma @ v.T, (3, 4, 4), (3, 4, 4))


def run(op: Dense, rank: int = 3, most: int = ROUNDS[1]) -> Iterated:
    return subspace_iteration(op, rank, generator=torch.Generator().manual_seed(1), most=most)


def test_it_stops_at_the_leading_triplets_of_the_dense_matrix() -> None:
    op = operator()
    found = run(op)
    _, sigma, vh = torch.linalg.svd(op.matrix)
    assert found.stopped
    assert ROUNDS[0] <= found.rounds < ROUNDS[1]
    torch.testing.assert_close(found.sigma, sigma[:3], rtol=1e-3, atol=0)
    overlap = (found.v.flatten(1) @ vh[:3].T).abs()
    torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-2)
    assert float(found.residuals.max()) < 1e-2


def test_images_belong_to_their_vectors_and_signs_are_canonical() -> None:
    op = operator()
    found = run(op, most=4)
    torch.testing.assert_close(found.images, op.matvec(found.v))
    assert bool((found.v.flatten(1).gather(1, found.v.flatten(1).abs().argmax(1)[:, None]) > 0).all())
    assert found.sigma.tolist() == sorted(found.sigma.tolist(), reverse=True)


def test_residuals_are_those_of_the_definition() -> None:
    op = operator(0.9)
    found = run(op, most=3)
    back = op.rmatvec(found.images).flatten(1) / found.sigma[:, None]
    truth = (back - found.sigma[:, None] * found.v.flatten(1)).norm(dim=1) / found.sigma[0]
    torch.testing.assert_close(found.residuals, truth)
    assert not found.stopped


def test_a_change_of_sign_alone_is_a_movement_to_the_public_rule_only() -> None:
    v = torch.eye(4)[:2]
    for turned, public, ours in ((v, True, True), (-v, False, True), (torch.eye(4)[2:], False, False)):
        last = Round(v, v, v, turned)
        assert (last.settled(signed=True), last.settled(signed=False)) == (public, ours)


def test_every_round_costs_one_product_each_way_for_each_vector() -> None:
    op = operator()
    list(itertools.islice(rounds(op, 3, generator=torch.Generator().manual_seed(1)), 5))
    assert (op.products.jvp, op.products.vjp) == (15, 15)


def test_it_ends_after_as_many_rounds_as_it_is_given_and_depends_on_its_generator_only() -> None:
    one, two = run(operator(), most=5), run(operator(), most=5)
    assert one.rounds == 5
    assert torch.equal(one.v, two.v)


@pytest.mark.parametrize(("rank", "most", "field"), [(0, 5, "rank"), (49, 5, "rank"), (2, 0, "rounds")])
def test_ranks_and_rounds_that_do_not_fit_are_input_errors(rank: int, most: int, field: str) -> None:
    with pytest.raises(InputError, match=field):
        run(operator(), rank, most)
