"""What JIVE is given: matrices of either kind that share their columns, and ranks that are whole numbers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import InputError

_LARGEST = 1e100  # squares of larger entries, and of smaller ones than its inverse, leave the range of float64


def read_blocks(blocks: Iterable[torch.Tensor | np.ndarray]) -> tuple[list[torch.Tensor], bool]:
    """Blocks (r_i, D) as tensors of one dtype and whether no block was a tensor, so that arrays are to come back.

    float64 where any block has it or holds integers, else float32. What is read is never written to.

    Raises:
        InputError: fewer than two blocks, shapes that do not fit, entries that are no finite real numbers, a zero
            block, entries beyond 1e100 or all below 1e-100, devices that differ.
    """
    try:
        given: list[Any] = list(blocks)
    except TypeError:
        raise InputError("blocks", type(blocks).__name__, "a list of matrices") from None
    if len(given) < 2:
        raise InputError("blocks", len(given), "at least two: with one there is nothing to be joint with")
    rows = [_tensor(block, place) for place, block in enumerate(given)]
    _check_shapes(rows)
    devices = sorted({str(block.device) for block in rows})
    if len(devices) > 1:
        raise InputError("blocks", f"blocks on {', '.join(devices)}", "one device for all", "Move them together.")
    for place, block in enumerate(rows):
        _check_entries(block, place)
    widest = torch.float64 if any(block.dtype == torch.float64 for block in rows) else torch.float32
    return [block.to(widest) for block in rows], not any(isinstance(block, torch.Tensor) for block in given)


def _tensor(block: Any, place: int) -> torch.Tensor:
    """A block as a floating tensor: the caller's own where it is one, a copy of anything else."""
    field = f"block {place}"
    if isinstance(block, torch.Tensor):
        if block.layout != torch.strided:
            raise InputError(field, f"a tensor of layout {block.layout}", "a dense matrix", "Call to_dense() on it.")
        if block.is_complex() or block.dtype == torch.bool:
            raise InputError(field, block.dtype, "real numbers")
        return block.detach() if block.is_floating_point() else block.double()
    if np.ma.is_masked(block):
        raise InputError(field, "masked entries", "a number in every entry", "Fill them, or drop their columns.")
    try:
        array = np.asarray(block)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(field, type(block).__name__, "a matrix: rows of one length") from None
    if array.dtype.kind not in "iuf":
        raise InputError(field, f"entries of type {array.dtype}", "real numbers")
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite and is named as such
        return torch.from_numpy(array.astype(np.float32 if narrow else np.float64, order="C"))


def _check_shapes(rows: Sequence[torch.Tensor]) -> None:
    shapes = sorted({tuple(block.shape) for block in rows})
    if any(block.ndim != 2 for block in rows) or len({block.shape[-1] for block in rows}) != 1:
        raise InputError("blocks", f"shapes {shapes}", "matrices (r_i, D) of one width D")
    for place, block in enumerate(rows):
        if not block.numel():
            raise InputError(f"block {place}", f"shape {tuple(block.shape)}", "at least one row and one column")


def _check_entries(block: torch.Tensor, place: int) -> None:
    field = f"block {place}"
    if not bool(torch.isfinite(block).all()):
        raise InputError(field, "NaN or infinite entries", "finite numbers", "Drop or fill what is missing.")
    largest = float(block.abs().max())
    if largest == 0.0:
        raise InputError(field, "only zeros", "at least one non-zero entry", "Leave this region out.")
    if not 1 / _LARGEST < largest < _LARGEST:
        raise InputError(field, f"a largest entry of {largest:.0e}", "1e-100 to 1e100", "Give it in other units.")


def centred(rows: Sequence[torch.Tensor], null_level: float) -> list[torch.Tensor]:
    """Rows less their means. Raises InputError where nothing but rounding is left of a block."""
    found = [block - block.mean(dim=1, keepdim=True) for block in rows]
    for place, (before, after) in enumerate(zip(rows, found, strict=True)):
        if not float(after.norm()) > null_level * float(before.norm()):
            action = "Leave it out, or do not centre."
            raise InputError(f"block {place}", "rows that are constant", "rows that vary", action)
    return found


def whole(field: str, value: Any, least: int = 0) -> int:
    """A whole number of any integer type, at least `least`; truth values and floats are none. Raises InputError."""
    dtype = getattr(value, "dtype", None)
    truth = isinstance(value, bool) or dtype in (torch.bool, np.dtype(bool))
    try:
        number = least - 1 if truth else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(field, repr(value), f"a whole number, at least {least}")
    return number


def whole_ranks(field: str, values: Any, blocks: int, least: int = 0) -> tuple[int, ...]:
    """One whole number for each block. Raises InputError."""
    expected = f"one rank for each of {blocks} blocks"
    if isinstance(values, (str, bytes, dict, set, frozenset)):
        raise InputError(field, repr(values), expected)
    try:
        ranks = list(values)
    except TypeError:
        raise InputError(field, repr(values), expected) from None
    if len(ranks) != blocks:
        raise InputError(field, len(ranks), expected)
    return tuple(whole(f"{field}[{place}]", rank, least) for place, rank in enumerate(ranks))
