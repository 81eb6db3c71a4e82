"""How good a catalog is, in figures that two versions can be compared by, and which of them have become worse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from catalog.reader import Catalog
from catalog.records import Chunk
from flows.gates import Gates, leakage_ratio, numbers_of, rejected_of
from flows.watching.snapshots import Spread

LEAST = 8  # rows that a median is compared from
ERRORS = 3.0  # standard errors of the two medians by which they must differ besides: dozens are compared
WORSE = {"residual": (0.25, 1e-3), "leakage_ratio": (0.10, 0.02), "roir": (0.10, 0.02)}
"""By what share of the median before, and by how much more, a figure may grow."""
PSNR = 1.0  # dB that the median round trip may lose
CONVERGED = 0.05  # share of directions that may no longer converge
FEWER = 0.10  # share of the directions per image that may be missing
_NAMES = {"residual": "residual", "leakage_ratio": "leakage / gain", "roir": "ROIR"}
KEYS = ("region", "space", "kind")


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Group(_Figures):
    """The directions of one region, space and kind. `figures`: quartiles of WORSE's keys, where anything was measured.

    `converged`: share of those that say so; None where none does.
    """

    region: str
    space: str
    kind: str
    directions: int
    converged: float | None = None
    figures: dict[str, Spread] = {}

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.region} {self.space} {self.kind}"


class Quality(_Figures):
    """A catalog, or what is kept of it: images mined, directions, round-trip PSNR in dB, and every group."""

    images: int
    directions: int
    psnr: Spread | None = None
    groups: tuple[Group, ...] = ()

    @property
    def per_image(self) -> float | None:
        """Directions of an image on average."""
        return self.directions / self.images if self.images else None


def quality_of(catalog: Catalog, keep: np.ndarray | None = None) -> Quality:
    """The figures of a catalog, or of the directions whose rows `keep` (n,) bool. Reads metadata only."""
    rows = catalog.directions()
    chosen = np.ones(rows.num_rows, dtype=bool) if keep is None else keep
    gain, leakage = numbers_of(rows.column("gain")), numbers_of(rows.column("leakage"))
    figures = {
        "residual": numbers_of(rows.column("residual")),
        "leakage_ratio": leakage_ratio(leakage, gain),
        "roir": numbers_of(rows.column("roir")),
    }
    converged = numbers_of(rows.column("converged").cast(pa.int8()))
    groups = []
    for key, own in groups_of(rows, chosen):
        known = converged[own][np.isfinite(converged[own])]
        spreads = {name: spread(values[own]) for name, values in figures.items()}
        groups.append(
            Group(
                **dict(zip(KEYS, key, strict=True)),
                directions=len(own),
                converged=float(known.mean()) if len(known) else None,
                figures={name: found for name, found in spreads.items() if found is not None},
            )
        )
    images = catalog.images()
    return Quality(
        images=images.num_rows,
        directions=int(chosen.sum()),
        psnr=spread(numbers_of(images.column("round_trip_psnr"))),
        groups=tuple(groups),
    )


def groups_of(rows: pa.Table, chosen: np.ndarray | None = None) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """(region, space, kind) and the rows of each group that has any, sorted; of those `chosen` (n,) bool."""
    columns = [rows.column(name).combine_chunks().dictionary_encode() for name in KEYS]
    codes, names = np.zeros(rows.num_rows, dtype=np.int64), [c.dictionary.to_pylist() for c in columns]
    for column, known in zip(columns, names, strict=True):
        codes = codes * len(known) + column.indices.to_numpy(zero_copy_only=False)
    if chosen is not None:
        codes[~chosen] = -1
    order = np.flatnonzero(codes >= 0)
    order = order[np.argsort(codes[order], kind="stable")]
    values, starts = np.unique(codes[order], return_index=True)
    found = []
    for value, own in zip(values.tolist(), np.split(order, starts)[1:], strict=True):
        key: list[str] = []
        for known in reversed(names):
            value, at = divmod(value, len(known))
            key.insert(0, known[at])
        found.append((tuple(key), own))
    yield from sorted(found, key=lambda item: item[0])


def spread(values: np.ndarray) -> Spread | None:
    """Quartiles of the finite values; None where there are none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
    return Spread(count=len(known), low=low, median=middle, high=high)


def evidence_of(chunk: Chunk, gates: Gates) -> dict[str, Any]:
    """What the note of a deposit says of a chunk's quality: `psnr`, `residual`, `leakage_ratio` and `rejected`.

    One number an image; None for an image that has none.
    """
    mined = [image for image in chunk.images if image.failure is None]
    residual: dict[str, list[float]] = {image.image_id: [] for image in mined}
    ratio: dict[str, list[float]] = {image.image_id: [] for image in mined}
    for d in chunk.directions:
        if d.residual is not None:
            residual[d.image_id].append(d.residual)
        if d.gain > 0:
            ratio[d.image_id].append(d.leakage / d.gain)
    return {
        "psnr": [_finite(image.round_trip_psnr) for image in mined],
        "residual": [_median(residual[image.image_id]) for image in mined],
        "leakage_ratio": [_median(ratio[image.image_id]) for image in mined],
        "rejected": rejected_of(chunk, gates),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _median(values: list[float]) -> float | None:
    return _finite(float(np.median(values))) if values else None


# -- against a former version ----------------------------------------------------------------------------------------


def regression(now: Quality, before: Quality) -> list[str]:
    """What has become worse: one sentence each, with the figure now and before; empty where nothing has.

    Medians of a group are compared where both have at least LEAST rows. One is worse where it differs by more than
    WORSE, PSNR, CONVERGED or FEWER allow, and by more than ERRORS standard errors, so that another choice of images
    alone is none.
    """
    found = list(_counts(now, before))
    if now.psnr and before.psnr and _lost(before.psnr, now.psnr, PSNR):
        found.append(_told("round-trip PSNR", now.psnr, before.psnr, "images", " dB"))
    standing = {group.name: group for group in now.groups}
    for former in before.groups:
        group = standing.get(former.name)
        if group is None:
            if former.directions >= LEAST and now.images >= LEAST:
                found.append(f"{former.name}: no directions now, {former.directions} before")
            continue
        found += _worse(group, former)
    return found


def _counts(now: Quality, before: Quality) -> Iterator[str]:
    one, two = now.per_image, before.per_image
    if one is None or two is None or min(now.images, before.images) < LEAST:
        return
    if one < (1 - FEWER) * two:
        yield f"directions per image: {one:.3g} now, {two:.3g} before ({now.images} and {before.images} images)"


def _worse(now: Group, before: Group) -> Iterator[str]:
    for name, (share, least) in WORSE.items():
        one, two = now.figures.get(name), before.figures.get(name)
        if one and two and _lost(one, two, share * abs(two.median) + least):
            yield _told(f"{_NAMES[name]} of {now.name}", one, two, "directions")
    one_share, two_share = now.converged, before.converged
    if one_share is None or two_share is None or min(now.directions, before.directions) < LEAST:
        return
    pooled = (one_share + two_share) / 2
    error = math.sqrt(pooled * (1 - pooled) * (1 / now.directions + 1 / before.directions))
    if two_share - one_share > max(CONVERGED, ERRORS * error):
        yield f"converged of {now.name}: {100 * one_share:.0f} % now, {100 * two_share:.0f} % before"


def _lost(larger: Spread, smaller: Spread, allowed: float) -> bool:
    """Whether one median is above the other by more than allowed, and by more than chance makes likely."""
    if min(larger.count, smaller.count) < LEAST:
        return False
    error = math.hypot(*((s.high - s.low) / 1.349 * 1.2533 / math.sqrt(s.count) for s in (larger, smaller)))
    return larger.median - smaller.median > max(allowed, ERRORS * error)


def _told(what: str, now: Spread, before: Spread, rows: str, unit: str = "") -> str:
    medians = f"median {now.median:.3g}{unit} now, {before.median:.3g}{unit} before"
    return f"{what}: {medians} ({now.count} and {before.count} {rows})"
