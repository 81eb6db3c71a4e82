"""Truncated SVD against dense truth: exact to tolerance, honest about residuals, seeded, sparing with products."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.operators import Dense, Masked
from pipeline.svd import TruncatedSVD, canonical_sign, masked_svds, truncated_svd
from pipeline.svd_search import Search


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(sigma: torch.Tensor, n_in: int, n_out: int, seed: int = 0) -> Dense:
    """A dense float64 operator of shape (n_out,) x (n_in,) with the given singular values."""
    g = seeded(seed)
    left = torch.linalg.qr(torch.randn(n_out, len(sigma), generator=g, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n_in, len(sigma), generator=g, dtype=torch.float64))[0]
    return Dense((left * sigma.double()) @ right.T, (n_in,), (1, 1, n_out))


def localised(size: int = 12, seed: int = 0) -> tuple[Dense, dict[str, torch.Tensor]]:
    """Global low-rank structure plus weaker local parts under four small disks, and a little noise; float32."""
    g, shape = seeded(seed), (3, size, size)
    n = 3 * size * size
    axis = torch.arange(size) / size
    masks = {
        name: (((axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2) < 0.02).double()
        for name, (y, x) in {"a": (0.3, 0.3), "b": (0.3, 0.7), "c": (0.7, 0.5), "d": (0.5, 0.12)}.items()
    }

    def rows(count: int, weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(count, *shape, generator=g, dtype=torch.float64) * weight
        basis: torch.Tensor = torch.linalg.qr(noise.flatten(1).T)[0]
        return basis.T

    matrix = 5e-3 * torch.randn(n, n, generator=g, dtype=torch.float64) / n**0.5
    parts = [(torch.ones(size, size).double(), 1.0, 60, 0.93), *((m, 0.3, 10, 0.7) for m in masks.values())]
    for mask, size_, count, decay in parts:
        spectrum = size_ * decay ** torch.arange(count, dtype=torch.float64)
        matrix += (rows(count, mask).T * spectrum) @ rows(count, (mask + 0.1).clamp(max=1.0))
    return Dense(matrix.float(), shape, shape), {name: mask.float() for name, mask in masks.items()}


def masked_matrix(op: Dense, mask: torch.Tensor) -> torch.Tensor:
    return op.matrix.double() * mask.double().expand(op.shape_out).flatten()[:, None]


def true_residuals(matrix: torch.Tensor, svd: TruncatedSVD) -> torch.Tensor:
    u, v, sigma = svd.u.flatten(1).double(), svd.v.flatten(1).double(), svd.sigma.double()
    gaps: torch.Tensor = (u @ matrix.double() - sigma[:, None] * v).norm(dim=1)
    return gaps / sigma[0].clamp(min=1e-300)


SPECTRA = {
    "fast decay": 0.4 ** torch.arange(30),
    "slow decay": 0.97 ** torch.arange(60),
    "clustered": torch.tensor([3.0, 3.0, 2.0, 1.001, 1.0, 0.999, *(0.5 * 0.9 ** torch.arange(20)).tolist()]),
    "flat": torch.ones(40),
    "exact low rank": torch.tensor([2.0, 1.5, 1.4999, 1.0, 0.7]),
    "rank deficient": torch.tensor([2.0, 1.0]),
    "zero": torch.zeros(5),
}


def projector_gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest principal angle between two row spaces with orthonormal rows."""
    cosine = torch.linalg.svdvals(a.flatten(1).double() @ b.flatten(1).double().T).min().clamp(max=1.0)
    return float((1.0 - cosine**2).clamp(min=0.0).sqrt())


@settings(max_examples=15, deadline=None)
@given(
    st.integers(3, 40),
    st.integers(3, 40),
    st.integers(1, 6),
    st.floats(0.3, 0.95),
    st.integers(0, 1000),
)
def test_triplets_match_the_dense_svd(n_in: int, n_out: int, rank: int, decay: float, seed: int) -> None:
    rank = min(rank, n_in, n_out)
    op = with_spectrum(3.0 * decay ** torch.arange(min(n_in, n_out)), n_in, n_out, seed)
    svd = truncated_svd(op, rank, generator=seeded(seed), tolerance=1e-5)
    assert bool(svd.converged.all())
    assert bool((true_residuals(op.matrix, svd) <= svd.residuals + 1e-9).all())
    torch.testing.assert_close(svd.sigma, 3.0 * decay ** torch.arange(rank).double(), rtol=1e-4, atol=1e-6)
    for rows in (svd.u.flatten(1), svd.v):
        torch.testing.assert_close(rows @ rows.T, torch.eye(rank).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(svd.v @ op.matrix.T, svd.sigma[:, None] * svd.u.flatten(1), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", SPECTRA)
@settings(max_examples=6, deadline=None)
@given(rank=st.integers(1, 5), tolerance=st.sampled_from([1e-2, 1e-4]), seed=st.integers(0, 999))
def test_every_kind_of_spectrum_is_found_to_its_tolerance(name: str, rank: int, tolerance: float, seed: int) -> None:
    op = with_spectrum(SPECTRA[name], 70, 60, seed)
    truth = torch.cat([SPECTRA[name].double(), torch.zeros(5).double()])
    svd, again = (truncated_svd(op, rank, generator=seeded(seed), tolerance=tolerance) for _ in range(2))
    assert bool(svd.converged.all()) and svd.checked
    assert bool((true_residuals(op.matrix, svd) <= svd.residuals + 1e-9).all())
    assert float((svd.sigma - truth[:rank]).abs().max()) <= tolerance * float(truth[0]) + 1e-7
    assert svd.null.tolist() == (truth[:rank] == 0).tolist()
    torch.testing.assert_close(svd.v @ svd.v.T, torch.eye(rank).double(), atol=1e-6, rtol=0)
    at_least_last = int((truth >= truth[rank - 1] - 2 * tolerance * float(truth[0])).sum())
    span = torch.linalg.svd(op.matrix)[2][:at_least_last]
    if at_least_last < 60 and truth[rank - 1] > 0:  # a cluster cut in two: any part of its span will do
        beyond = float(truth[rank - 1] - truth[at_least_last]) / float(truth[0])
        outside = svd.v - (svd.v @ span.T) @ span
        assert float(torch.linalg.matrix_norm(outside, 2)) <= rank**0.5 * tolerance / beyond
    for found, same in ((svd.u, again.u), (svd.sigma, again.sigma), (svd.v, again.v)):
        assert torch.equal(found, same)


def test_float32_keeps_the_basis_orthonormal_over_a_wide_spectrum() -> None:
    double = with_spectrum(10.0 ** -torch.linspace(0, 5, 60), 200, 150)
    op = Dense(double.matrix.float(), double.shape_in, double.shape_out)
    svd = truncated_svd(op, 20, generator=seeded(), tolerance=1e-4)
    assert svd.sigma.dtype == torch.float32 and bool(svd.converged.all())
    assert float((svd.v @ svd.v.T - torch.eye(20)).abs().max()) < 1e-5
    assert float((svd.u.flatten(1) @ svd.u.flatten(1).T - torch.eye(20)).abs().max()) < 1e-4


def test_leading_subspace_is_found_to_a_small_principal_angle() -> None:
    spectrum = torch.cat([torch.tensor([5.0, 4.0, 3.0]), 0.5 * 0.9 ** torch.arange(50)])
    op = with_spectrum(spectrum, 120, 90)
    truth = torch.linalg.svd(op.matrix)[2][:3]
    svd = truncated_svd(op, 3, generator=seeded(), tolerance=1e-3)
    assert projector_gap(svd.v, truth) < 2e-3


def test_same_seed_gives_the_same_bits_and_other_seeds_the_same_subspace() -> None:
    op = with_spectrum(0.5 ** torch.arange(30), 60, 50)
    first, again, other = (truncated_svd(op, 4, generator=seeded(s), tolerance=1e-6) for s in (3, 3, 4))
    assert torch.equal(first.v, again.v) and torch.equal(first.residuals, again.residuals)
    torch.testing.assert_close(first.v, other.v, atol=1e-4, rtol=0)


def test_products_reported_are_the_products_spent() -> None:
    op = with_spectrum(0.8 ** torch.arange(30), 60, 50)
    svd = truncated_svd(op, 4, generator=seeded())
    assert (svd.products.jvp, svd.products.vjp) == (op.products.jvp, op.products.vjp)


def test_zero_operator_gives_null_triplets_without_nan() -> None:
    svd = truncated_svd(Dense(torch.zeros(20, 10), (10,), (20,)), 3, generator=seeded())
    assert bool(svd.null.all()) and float(svd.sigma.abs().max()) == 0.0 and float(svd.u.abs().max()) == 0.0
    assert bool(torch.isfinite(svd.residuals).all()) and bool(svd.converged.all())
    torch.testing.assert_close(svd.v @ svd.v.T, torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_beyond_the_numerical_rank_is_flagged(dtype: torch.dtype) -> None:
    double = with_spectrum(torch.tensor([2.0, 1.0]), 30, 25)
    op = Dense(double.matrix.to(dtype), double.shape_in, double.shape_out)
    svd = truncated_svd(op, 5, generator=seeded(), tolerance=1e-4)
    assert svd.null.tolist() == [False, False, True, True, True]
    assert bool(torch.isfinite(svd.u).all()) and bool(torch.isfinite(svd.v).all())
    torch.testing.assert_close(svd.v @ svd.v.T, torch.eye(5, dtype=dtype), atol=1e-5, rtol=0)


def test_full_rank_request_is_exact() -> None:
    op = Dense(torch.randn(7, 5, generator=seeded(2), dtype=torch.float64), (5,), (7,))
    svd = truncated_svd(op, 5, generator=seeded(), tolerance=1e-8)
    torch.testing.assert_close(svd.sigma, torch.linalg.svdvals(op.matrix))
    assert bool(svd.converged.all())


def test_spent_budget_is_respected_and_reported_as_not_converged() -> None:
    op = with_spectrum(0.98 ** torch.arange(100), 150, 120)
    svd = truncated_svd(op, 5, generator=seeded(), tolerance=1e-6, max_products=30)
    assert op.products.total <= 30 and not bool(svd.converged.all())
    assert bool((true_residuals(op.matrix, svd) <= svd.residuals + 1e-9).all())


def test_warm_start_needs_fewer_products_and_still_finds_the_answer() -> None:
    op = with_spectrum(0.9 ** torch.arange(60), 150, 120)
    cold = truncated_svd(op, 5, generator=seeded(), tolerance=1e-4)
    warm = truncated_svd(op, 5, generator=seeded(1), tolerance=1e-4, start=cold.v)
    assert bool(warm.converged.all()) and warm.products.total < cold.products.total
    torch.testing.assert_close(warm.sigma, cold.sigma, rtol=1e-5, atol=0)


def test_start_that_misses_the_leading_direction_does_not_hide_it() -> None:
    op = with_spectrum(torch.tensor([3.0, 2.0, 1.0, 0.5]), 40, 30)
    truth = torch.linalg.svd(op.matrix)[2]
    svd = truncated_svd(op, 2, generator=seeded(), tolerance=1e-4, start=truth[2:4])
    torch.testing.assert_close(svd.sigma, torch.tensor([3.0, 2.0]).double(), rtol=1e-4, atol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 99))
def test_canonical_sign_is_idempotent_and_blind_to_the_sign(k: int, n: int, seed: int) -> None:
    v = torch.randn(k, n, generator=seeded(seed))
    fixed = canonical_sign(v)
    assert torch.equal(fixed, canonical_sign(-v))
    peak = fixed.gather(1, fixed.abs().argmax(1, keepdim=True))
    assert bool((peak > 0).all()) and torch.equal(canonical_sign(fixed), fixed)


def test_masked_svds_agree_with_dense_truth_and_report_honest_residuals() -> None:
    op, masks = localised()
    wanted = {**masks, **{f"not {name}": 1 - mask for name, mask in masks.items()}}
    ranks = {name: 12 if name.startswith("not") else 4 for name in wanted}
    tolerance = {name: 3e-2 if name.startswith("not") else 1e-3 for name in wanted}
    found = masked_svds(op, wanted, ranks, generator=seeded(), tolerance=tolerance)
    assert list(found) == list(wanted)
    for name, svd in found.items():
        matrix = masked_matrix(op, wanted[name])
        truth = torch.linalg.svdvals(matrix)[: ranks[name]]
        assert bool(svd.converged.all()) and svd.tolerance == tolerance[name]
        assert bool((true_residuals(matrix, svd) <= svd.residuals + 1e-5).all()), name
        assert float((svd.sigma - truth).abs().max() / truth[0]) < 2 * tolerance[name]
        assert float((svd.u * (1 - wanted[name])).abs().max()) == 0.0


def test_masked_svds_spend_far_fewer_products_than_separate_ones() -> None:
    op, masks = localised()
    wanted = {**masks, **{f"not {name}": 1 - mask for name, mask in masks.items()}}
    ranks = {name: 20 if name.startswith("not") else 5 for name in wanted}
    shared = next(iter(masked_svds(op, wanted, ranks, generator=seeded()).values())).products.total
    assert shared == op.products.total
    separate = sum(
        truncated_svd(Masked(op, mask), ranks[name], generator=seeded()).products.total for name, mask in wanted.items()
    )
    assert shared < 0.6 * separate


def test_restarts_with_a_small_basis_still_converge() -> None:
    op, masks = localised()
    found = masked_svds(
        op, masks, dict.fromkeys(masks, 3), generator=seeded(), tolerance=1e-4, max_basis=30, max_products=2000
    )
    for name, svd in found.items():
        truth = torch.linalg.svdvals(masked_matrix(op, masks[name]))[:3]
        assert bool(svd.converged.all())
        torch.testing.assert_close(svd.sigma.double(), truth, rtol=1e-3, atol=1e-4)


def test_soft_masks_weigh_the_output() -> None:
    op, masks = localised(8)
    soft = masks["a"] * 0.5 + 0.25
    svd = masked_svds(op, {"soft": soft}, {"soft": 3}, generator=seeded(), tolerance=1e-4)["soft"]
    truth = torch.linalg.svdvals(masked_matrix(op, soft))[:3]
    torch.testing.assert_close(svd.sigma.double(), truth, rtol=1e-4, atol=1e-5)
    assert bool((true_residuals(masked_matrix(op, soft), svd) <= svd.residuals + 1e-5).all())


class Watched(Dense):
    """A dense operator that counts a recomputed pass for every three transposed products, as short memory would."""

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        self.products.recomputed += -(-len(u) // 3)
        return super().rmatvec(u)


def test_recomputed_passes_are_part_of_the_count() -> None:
    dense = with_spectrum(0.8 ** torch.arange(30), 60, 50)
    op = Watched(dense.matrix, dense.shape_in, dense.shape_out)
    op.rmatvec(torch.ones(2, 1, 1, 50).double())
    before = op.products.recomputed
    svd = truncated_svd(op, 4, generator=seeded())
    assert svd.products.recomputed == op.products.recomputed - before > 0


@pytest.mark.parametrize("room", [34, 40])
def test_no_basis_ever_outgrows_its_bound(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    op, masks = localised()
    wanted = {**masks, **{f"not {name}": 1 - mask for name, mask in masks.items()}}
    sizes: list[int] = []
    measure = Search._measure

    def measured(self: Search, left: torch.Tensor) -> torch.Tensor:
        sizes.extend((len(self.q), len(self.p), len(self.y), len(self.z)))
        return measure(self, left)

    monkeypatch.setattr(Search, "_measure", measured)
    found = masked_svds(
        op, wanted, dict.fromkeys(wanted, 2), generator=seeded(), tolerance=1e-3, max_basis=room, max_products=3000
    )
    assert room - 10 < max(sizes) <= room  # the bound is felt, and held
    assert all(bool(svd.converged.all()) for svd in found.values())


class Wrong(Dense):
    """An operator whose transposed products are those of another matrix."""

    def __init__(self, op: Dense, other: torch.Tensor) -> None:
        super().__init__(op.matrix, op.shape_in, op.shape_out)
        self.other = other

    def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
        self.products.vjp += len(u)
        return (u.flatten(1) @ self.other).view(len(u), *self.shape_in)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["negated", "scaled", "noisy", "shifted"]), st.integers(1, 4), st.integers(0, 99))
def test_an_adjoint_of_another_operator_is_caught(fault: str, rank: int, seed: int) -> None:
    op = with_spectrum(0.9 ** torch.arange(30), 50, 40, seed)
    wrong = {
        "negated": -op.matrix,
        "scaled": 1.5 * op.matrix,
        "noisy": op.matrix + 0.1 * torch.randn(40, 50, generator=seeded(seed), dtype=torch.float64),
        "shifted": op.matrix.roll(1, 0),
    }[fault]
    with pytest.raises(InputError, match="transpose of matvec"):
        truncated_svd(Wrong(op, wrong), rank, generator=seeded(seed), max_products=400)


@settings(max_examples=8, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 99))
def test_the_order_of_the_regions_changes_nothing_beyond_the_tolerance(order: list[str], seed: int) -> None:
    op, masks = localised(8)
    ranks = dict.fromkeys(masks, 3)
    one = masked_svds(op, masks, ranks, generator=seeded(seed), tolerance=1e-3)
    two = masked_svds(op, {name: masks[name] for name in order}, ranks, generator=seeded(seed), tolerance=1e-3)
    assert list(two) == order
    for name, svd in one.items():
        other = two[name]
        assert float((svd.sigma - other.sigma).abs().max()) <= 2e-3 * float(svd.sigma[0])
        alone = (svd.certificate.first == svd.certificate.last) & (other.certificate.first == other.certificate.last)
        for i in alone.nonzero().flatten().tolist():
            cosine = float((svd.v[i] * other.v[i]).sum().abs())
            bound = float(svd.certificate.angle[i] + other.certificate.angle[i])
            assert math.acos(min(1.0, cosine)) <= bound + 1e-3


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99))
def test_the_batch_size_of_products_changes_nothing_beyond_rounding(block: int, seed: int) -> None:
    whole = with_spectrum(0.85 ** torch.arange(30), 50, 40, seed)

    class InParts(Dense):
        def matvec(self, v: torch.Tensor) -> torch.Tensor:
            return torch.cat([super(InParts, self).matvec(part) for part in torch.split(v, block)])

        def rmatvec(self, u: torch.Tensor) -> torch.Tensor:
            return torch.cat([super(InParts, self).rmatvec(part) for part in torch.split(u, block)])

    parts = InParts(whole.matrix, whole.shape_in, whole.shape_out)
    one, two = (truncated_svd(op, 4, generator=seeded(seed), tolerance=1e-4) for op in (whole, parts))
    torch.testing.assert_close(one.v, two.v, atol=1e-8, rtol=0)
    assert one.products == two.products


def test_an_adjoint_that_drops_part_of_the_operator_is_caught_by_a_random_pair() -> None:
    op = with_spectrum(0.9 ** torch.arange(30), 60, 50)
    deaf = op.matrix.clone()
    deaf[:, :30] = 0  # half of the inputs get no gradient: no product with A^T ever leads there
    caught = 0
    for seed in range(10):
        try:
            truncated_svd(Wrong(op, deaf), 3, generator=seeded(seed))
        except InputError as error:
            assert "transpose of matvec" in str(error)
            caught += 1
    assert caught >= 7  # one pair may agree by chance


def test_products_that_are_off_show_in_the_residuals() -> None:
    op = with_spectrum(0.9 ** torch.arange(30), 60, 50)
    noisy = op.matrix + 2e-3 * torch.randn(50, 60, generator=seeded(), dtype=torch.float64)
    svd = truncated_svd(Wrong(op, noisy), 3, generator=seeded(), tolerance=1e-3, max_products=200)
    exact = op.matrix.T @ svd.u.flatten(1).T - (svd.sigma[:, None] * svd.v).T
    assert float(exact.norm(dim=0).max()) < 20 * float(svd.residuals.max())
    assert not bool(svd.converged.all())


def test_equal_values_are_one_cluster_at_rounding_too() -> None:
    svd = truncated_svd(Dense(2 * torch.eye(6, dtype=torch.float64), (6,), (6,)), 3, generator=seeded())
    assert svd.certificate.first.tolist() == [0, 0, 0]
    assert float(svd.certificate.angle.min()) > 1.5
