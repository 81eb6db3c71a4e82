"""What the SVDs take and what they refuse: ranks, masks, budgets, starts and products, each with one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.operators import Dense
from pipeline.svd import masked_svds, truncated_svd
from tests.pipeline.test_svd import Wrong, localised, seeded, with_spectrum


@pytest.mark.parametrize("integer", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_ranks_and_budgets_of_any_integer_type_are_taken(integer: Any) -> None:
    op, masks = localised(8)
    one = masked_svds(op, masks, dict.fromkeys(masks, 3), generator=seeded())
    two = masked_svds(
        op,
        masks,
        dict.fromkeys(masks, integer),
        generator=seeded(),
        max_products=np.int64(600),  # type: ignore[arg-type]
    )
    assert all(torch.equal(one[name].v, two[name].v) for name in masks)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float32, ">f8"])
def test_masks_may_be_arrays_of_any_real_type(dtype: Any) -> None:
    op, masks = localised(8)
    hard = {name: mask.bool() for name, mask in masks.items()}
    arrays = {name: np.flip(np.flip(mask.numpy().astype(dtype))) for name, mask in hard.items()}
    for array in arrays.values():
        array.flags.writeable = False
    one, two = (masked_svds(op, m, dict.fromkeys(m, 2), generator=seeded()) for m in (hard, arrays))
    assert all(torch.equal(one[name].v, two[name].v) for name in masks)


def test_a_mask_of_everything_is_the_operator_itself() -> None:
    op, _ = localised(8)
    full = masked_svds(op, {"all": np.ones((8, 8), bool)}, {"all": 3}, generator=seeded(), tolerance=1e-4)["all"]
    alone = truncated_svd(op, 3, generator=seeded(1), tolerance=1e-4)
    torch.testing.assert_close(full.sigma, alone.sigma, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rank", [2.0, True, np.float64(2), np.True_, torch.tensor(True), "2", None, float("nan")])
def test_ranks_that_are_no_whole_numbers_are_input_errors(rank: object) -> None:
    op, masks = localised(8)
    with pytest.raises(InputError, match="rank: .* a whole number"):
        truncated_svd(op, rank, generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank of a: .* a whole number"):
        masked_svds(op, masks, {"a": rank}, generator=seeded())  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": -1}, "rank"),
        ({"tolerance": "fine"}, "tolerance"),
        ({"tolerance": True}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"max_products": 1e3}, "max_products"),
        ({"block": 1.5}, "block"),
        ({"probes": False}, "probes"),
        ({"generator": 3}, "generator"),
        ({"start": "warm"}, "start"),
        ({"start": 1.0}, "start"),
        ({"start": torch.full((2, 20), float("nan"))}, "start"),
        ({"start": torch.zeros(2, 20, dtype=torch.complex64)}, "start"),
        ({"rank": 21}, "rank"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_products": 3}, "max_products"),
        ({"block": 0}, "block"),
        ({"probes": -1}, "probes"),
        ({"start": torch.zeros(2, 9)}, "start"),
    ],
)
def test_bad_arguments_are_input_errors(change: dict[str, object], message: str) -> None:
    op = with_spectrum(torch.ones(20), 20, 30)
    arguments: dict[str, object] = {"rank": 2, "generator": seeded(), **change}
    with pytest.raises(InputError, match=message):
        truncated_svd(op, arguments.pop("rank"), **arguments)  # type: ignore[arg-type]


def test_bad_masks_are_input_errors() -> None:
    op, masks = localised(8)
    ranks = dict.fromkeys(masks, 2)
    with pytest.raises(InputError, match="empty mask"):
        masked_svds(op, {"a": torch.zeros(8, 8)}, {"a": 1}, generator=seeded())
    for shape in ((4, 4), (3, 8, 8), (64,), ()):
        with pytest.raises(InputError, match="mask a: found shape"):
            masked_svds(op, {"a": torch.ones(shape)}, {"a": 1}, generator=seeded())
    for mask in ("eye", None, [[1, 0], [1]], np.full((8, 8), "x"), np.ones((8, 8), complex), torch.ones(8, 8) * 1j):
        with pytest.raises(InputError, match=r"mask a: .* real numbers"):
            masked_svds(op, {"a": mask}, {"a": 1}, generator=seeded())  # type: ignore[dict-item]
    with pytest.raises(InputError, match="masks: found list"):
        masked_svds(op, [masks["a"]], ranks, generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ranks: found int"):
        masked_svds(op, masks, 3, generator=seeded())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank of a"):
        masked_svds(op, masks, {**ranks, "a": 500}, generator=seeded())
    with pytest.raises(InputError, match="ranks"):
        masked_svds(op, masks, {"a": 1, "elsewhere": 1}, generator=seeded())
    with pytest.raises(InputError, match="tolerance of b"):
        masked_svds(op, masks, ranks, generator=seeded(), tolerance={"a": 0.1})


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["everywhere", "one entry", "transposed only"])
def test_non_finite_products_are_refused(entry: float, where: str) -> None:
    dense = with_spectrum(0.5 ** torch.arange(4), 6, 5)
    broken = torch.full_like(dense.matrix, entry) if where == "everywhere" else dense.matrix.clone()
    broken[2, 3] = entry
    op = Dense(broken, (6,), (1, 1, 5)) if where != "transposed only" else Wrong(dense, broken)
    with pytest.raises(InputError, match="NaN or infinite"):
        truncated_svd(op, 1, generator=seeded())
    with pytest.raises(InputError, match="NaN or infinite"):
        masked_svds(op, {"all": torch.ones(1, 5)}, {"all": 1}, generator=seeded())


def test_products_of_another_shape_are_refused() -> None:
    op = Dense(torch.ones(5, 4), (4,), (5,))
    op.matrix = torch.ones(6, 4)
    op.matvec = lambda v: v @ op.matrix.T  # type: ignore[method-assign]
    with pytest.raises(InputError, match="operator: found products"):
        truncated_svd(op, 1, generator=seeded())


@pytest.mark.parametrize("weight", [float("nan"), -0.5, 255.0])
def test_weights_that_are_no_mask_are_refused(weight: float) -> None:
    op, masks = localised(8)
    bad = masks["a"].clone()
    bad[0, 0] = weight
    with pytest.raises(InputError, match="mask a"):
        masked_svds(op, {"a": bad}, {"a": 1}, generator=seeded())


def test_a_basis_without_room_is_refused() -> None:
    op, masks = localised(8)
    with pytest.raises(InputError, match="max_basis"):
        masked_svds(op, masks, dict.fromkeys(masks, 5), generator=seeded(), max_basis=20)
