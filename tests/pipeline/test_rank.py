"""Rank and norm of operators whose spectrum is known: what is found, and what is only known to be no smaller."""

from __future__ import annotations

import pytest
import torch

from pipeline.operators import Dense
from pipeline.rank import CHUNK, leading_subspace, rank_figures
from pipeline.spectrum import rank_ratio

SIZE = 588  # 3 x 14 x 14


def known(sigma: torch.Tensor, seed: int = 1) -> Dense:
    """A square operator with singular values `sigma` (SIZE,)."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator)).Q for _ in range(2))
    return Dense((u * sigma) @ v.T, (3, 14, 14), (3, 14, 14))


FLAT = torch.ones(SIZE)
STEEP = 0.97 ** torch.arange(float(SIZE))
TAILED = 0.8 ** torch.arange(float(SIZE)) + 0.1  # a few strong directions over a floor that holds most of the rank


def test_where_the_subspace_holds_the_energy_the_rank_ratio_is_that_of_the_spectrum() -> None:
    found = rank_figures(known(STEEP), 300, seed=0)
    assert found.ratio.resolved
    assert abs(found.ratio.ratio - rank_ratio(STEEP, SIZE)) <= 0.01
    assert found.vectors < SIZE / 2


@pytest.mark.parametrize("sigma", [FLAT, TAILED, STEEP], ids=["flat", "tailed", "steep"])
@pytest.mark.parametrize("most", [8, 40])
def test_too_few_vectors_give_a_bound_that_is_never_above_the_rank(sigma: torch.Tensor, most: int) -> None:
    found = rank_figures(known(sigma), most, seed=0)
    assert not found.ratio.resolved
    assert found.ratio.high == 1.0
    assert (most + 1) / SIZE <= found.ratio.ratio <= rank_ratio(sigma, SIZE)


def test_the_bound_is_sharp_for_a_flat_spectrum_which_no_small_subspace_holds() -> None:
    assert rank_figures(known(FLAT), 16, seed=0).ratio.ratio > 0.8


@pytest.mark.parametrize("sigma", [FLAT, TAILED, STEEP], ids=["flat", "tailed", "steep"])
def test_the_sampled_norm_covers_the_true_one(sigma: torch.Tensor) -> None:
    found = rank_figures(known(sigma), 40, seed=0).frobenius
    assert found.low <= float(sigma.norm()) * (1 + 1e-5)
    assert float(sigma.norm()) * (1 - 1e-5) <= found.high
    assert abs(found.estimate / float(sigma.norm()) - 1.0) < 0.02


def test_a_search_without_hope_ends_after_its_first_chunk_and_one_with_hope_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    assert len(leading_subspace(known(FLAT), CHUNK + 60, generator=generator).sigma) == CHUNK
    slow = 0.99 ** torch.arange(float(SIZE))  # 98 % lie in 195 values
    assert len(leading_subspace(known(slow), 2 * CHUNK, generator=generator).sigma) > CHUNK


def test_a_zero_operator_has_no_rank_and_no_norm() -> None:
    found = rank_figures(Dense(torch.zeros(12, 12), (3, 2, 2), (3, 2, 2)), 4, seed=0)
    assert (found.ratio.ratio, found.ratio.resolved, found.frobenius.estimate) == (0.0, True, 0.0)
    assert found.captured.estimate == 1.0


def test_the_products_told_are_those_the_operator_counted() -> None:
    operator = known(TAILED)
    assert rank_figures(operator, 16, seed=0).products == operator.products.total
