"""Regions from a label map: one integer per pixel says what the pixel shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.regions.masks import RegionMasks, usable


def label_masks(
    labels: NDArray[Any], names: Mapping[int, str] | None = None, *, ignored: Collection[int] = (0,)
) -> RegionMasks:
    """Masks of a label map.

    Args:
        labels: integers (H, W).
        names: label -> region; two labels of one name are united, a named label that no pixel has is skipped, and
            labels without a name are left out. None takes every label that is there, as label-VALUE, in rising order.
        ignored: labels left out where there are no names; by default 0, which commonly stands for no object.

    Raises:
        InputError: a map that is not of integers (H, W), or no names in `names`.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise InputError(
            "label map",
            f"{labels.dtype} {labels.shape}",
            "integers (H, W)",
            "A map painted in colours has to be turned into numbers first." if labels.ndim == 3 else "",
        )
    if names is None:
        found = [int(value) for value in np.unique(labels) if int(value) not in ignored]
        return usable({f"label-{value}": labels == value for value in found})
    if not names:
        raise InputError("label names", "none", "at least one label with its region")
    values: dict[str, list[int]] = {}
    for value, region in names.items():
        values.setdefault(region, []).append(value)
    there = {int(value) for value in np.unique(labels)}
    skipped = {
        region: f"no pixel has the label {' or '.join(map(str, own))}"
        for region, own in values.items()
        if not there.intersection(own)
    }
    return usable({region: np.isin(labels, own) for region, own in values.items() if region not in skipped}, skipped)
