"""Bounds on the angle of singular vectors: never broken by the truth, open where nothing can be told apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.certificate import certify
from pipeline.errors import InputError
from pipeline.svd import truncated_svd
from tests.pipeline.test_svd import seeded, with_spectrum


def span_angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest principal angle between the spans of orthonormal rows (k, n)."""
    outside = a - (a @ b.T) @ b
    return math.asin(min(1.0, float(torch.linalg.matrix_norm(outside, 2))))


SPECTRA = {
    "fast decay": 0.4 ** torch.arange(30),
    "slow decay": 0.97 ** torch.arange(60),
    "clusters": torch.tensor([3.0, 3.0, 3.0, 2.0, 2.0, 1.001, 1.0, 0.999, *(0.5 * 0.9 ** torch.arange(20)).tolist()]),
    "exact low rank": torch.tensor([2.0, 1.5, 1.4999, 1.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@settings(max_examples=12, deadline=None)
@given(rank=st.integers(1, 4), tolerance=st.sampled_from([1e-1, 1e-2, 1e-4]), seed=st.integers(0, 999))
def test_true_angles_stay_under_their_bounds(name: str, rank: int, tolerance: float, seed: int) -> None:
    op = with_spectrum(SPECTRA[name], 90, 70, seed)
    svd = truncated_svd(op, rank, generator=seeded(seed), tolerance=tolerance)
    truth = torch.linalg.svd(op.matrix)[2]
    found, certificate = svd.v.flatten(1), svd.certificate
    for i in range(rank):
        first, last = int(certificate.first[i]), int(certificate.last[i])
        assert first <= i <= last
        if last < rank:
            angle = span_angle(found[first : last + 1], truth[first : last + 1])
            assert angle <= float(certificate.angle[i]) + 1e-6
        else:
            assert float(certificate.angle[i]) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("copies", [2, 3, 4, 6])
def test_no_bound_is_beyond_a_right_angle_however_little_is_proven_of_a_cluster(copies: int) -> None:
    sigma = torch.tensor([*[1.0] * copies, 0.0], dtype=torch.float64)
    for error in torch.linspace(0.0, 1.0, 500).tolist():
        certificate = certify(sigma, torch.full_like(sigma, error), copies)
        assert float(certificate.angle.min()) >= 0 and float(certificate.angle.max()) <= math.pi / 2


@pytest.mark.parametrize("copies", [2, 3, 4, 6, 8])
def test_every_copy_of_a_multiple_value_is_found_and_the_cluster_said(copies: int) -> None:
    spectrum = torch.cat([torch.ones(copies), 0.8 * 0.95 ** torch.arange(40)])
    for seed in range(5):
        svd = truncated_svd(with_spectrum(spectrum, 120, 100, seed), copies, generator=seeded(seed), tolerance=1e-2)
        assert svd.checked and bool(svd.converged.all())
        assert float(svd.sigma[-1]) > 1 - 1e-2
        assert svd.certificate.first.tolist() == [0] * copies
        assert set(svd.certificate.last.tolist()) <= {copies - 1, copies}  # what follows may not be known well


def test_without_fresh_vectors_nothing_is_called_checked() -> None:
    op = with_spectrum(0.5 ** torch.arange(20), 40, 30)
    unchecked = truncated_svd(op, 2, generator=seeded(), probes=0)
    assert bool(unchecked.converged.all()) and not unchecked.checked
    spent = op.products.total
    assert truncated_svd(op, 2, generator=seeded()).checked
    assert op.products.total - spent == spent + 8  # two vectors, each twice through A^T and A


def test_a_search_without_budget_for_the_check_says_so() -> None:
    op = with_spectrum(0.5 ** torch.arange(20), 40, 30)
    needed = truncated_svd(op, 2, generator=seeded(), probes=0).products.total
    assert not truncated_svd(op, 2, generator=seeded(), max_products=needed + 1).checked


def test_well_separated_values_have_small_angles_and_ties_have_none() -> None:
    far = certify(torch.tensor([4.0, 2.0, 1.0]), torch.tensor([4e-2, 4e-2, 4e-2]), 2)
    assert far.first.tolist() == far.last.tolist() == [0, 1]
    assert 0.01 < float(far.angle[0]) < 0.03 and 0.48 < float(far.gap[0]) < 0.5
    near = certify(torch.tensor([4.0, 3.99, 1.0]), torch.tensor([4e-2, 4e-2, 4e-2]), 2)
    assert near.first.tolist() == [0, 0] and near.last.tolist() == [1, 1]
    assert float(near.angle[0]) == float(near.angle[1]) < 0.05
    cut = certify(torch.tensor([4.0, 2.0, 1.99]), torch.tensor([4e-2, 4e-2, 4e-2]), 2)
    assert cut.last.tolist() == [0, 2] and float(cut.angle[1]) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize(
    ("sigma", "residuals", "wanted"),
    [([1.0, 2.0], [0.1, 0.1], 1), ([1.0], [-0.1], 1), ([1.0], [0.1], 2), ([1.0, 0.5], [0.1], 1)],
)
def test_what_is_no_spectrum_is_refused(sigma: list[float], residuals: list[float], wanted: int) -> None:
    with pytest.raises(InputError, match="sigma, residuals"):
        certify(torch.tensor(sigma), torch.tensor(residuals), wanted)
