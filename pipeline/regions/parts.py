"""Regions as unions of the parts that a data set annotates, such as eyes: [l_eye, r_eye]."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pipeline.errors import InputError
from pipeline.regions.masks import Mask, RegionMasks, checked, grown, usable


def united_parts(
    parts: Mapping[str, Mask],
    unions: Mapping[str, Sequence[str]],
    *,
    known: Collection[str] = (),
    grow: float | Mapping[str, float] = 0,
) -> RegionMasks:
    """Regions of one picture from its annotated parts.

    A region is the union of those of its parts that this picture has; parts are often missing (a closed eye, an ear
    under hair). A region none of whose parts is there is skipped, with their names.

    Args:
        parts: part -> bool (H, W), those that this picture has; an empty mask counts as missing.
        unions: region -> names of its parts.
        known: every part that the data set may annotate; where given, any other name in `unions` is an error.
        grow: pixels by which regions are dilated (an exact disc, see `grown`), negative to erode; one for all or by
            region.

    Raises:
        InputError: a region without parts, an unknown part, a dilation of an unknown region, or a mask that is not
            bool (H, W).
    """
    check_unions(unions, known)
    strange = sorted(set(grow) - set(unions)) if isinstance(grow, Mapping) else []
    if strange:
        raise InputError("dilation", strange[0], f"one of the regions {', '.join(unions)}")
    masks, skipped = {}, {}
    for region, names in unions.items():
        there = [checked(parts[name], f"mask of {name}") for name in names if name in parts]
        there = [mask for mask in there if mask.any()]
        if not there:
            skipped[region] = f"none of its parts is annotated: {', '.join(names)}"
            continue
        if len({mask.shape for mask in there}) > 1:
            raise InputError(f"parts of {region}", sorted({mask.shape for mask in there}), "masks of one size (H, W)")
        whole: Mask = np.logical_or.reduce(there)
        masks[region] = grown(whole, grow.get(region, 0) if isinstance(grow, Mapping) else grow)
    return usable(masks, skipped)


def check_unions(unions: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    """Raise InputError for a region without parts, or with a part that is not `known` (any, where that is empty)."""
    for region, names in unions.items():
        if isinstance(names, str) or not names:
            raise InputError(f"region {region}", repr(names), "a list of parts, at least one")
        for name in names if known else ():
            if name not in known:
                near = difflib.get_close_matches(name, list(known), n=1)
                raise InputError(
                    f"region {region}",
                    f"the unknown part {name!r}",
                    f"parts that the data set annotates: {', '.join(sorted(known))}",
                    f"Did you mean {near[0]!r}?" if near else "",
                )
