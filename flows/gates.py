"""Quality gates: what a direction must reach to be given to others.

A rejected direction stays in the catalog, as evidence; it is counted, explained and left out of packs. Gates decide
nothing about mining: with other gates a catalog is judged anew, and nothing is mined again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from catalog.manifest import Provenance
from catalog.places import packed_ids
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.writer import CatalogWriter
from flows.datasets.config import Part
from flows.recipe_errors import first_error

PARENT = "derived from a rejected direction"
_UNKNOWN = -1


class Gates(Part):
    """What directions of packs must reach; None is no gate.

    `psnr`: dB of an image's round trip, at least; below it all directions of the image are rejected.
    `residual`: of a singular triplet over sigma_1, at most; derived directions have none, and go with their parents.
    `leakage`: change outside the region over change inside per unit step, at most.
    `roir`: the same of the decoded edit, at most, where it was measured.

    What is derived from a rejected direction is rejected too. `leakage` and `roir`, which say how local an edit is, do
    not judge a direction that kept ones were derived from: it is in the pack to trace those.
    """

    psnr: Annotated[float, Field(allow_inf_nan=False)] | None = None
    residual: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    leakage: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    roir: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a direction may be rejected, most basic first; empty without gates."""
        words = {
            "psnr": "round trip below {:g} dB",
            "residual": "residual above {:g}",
            "leakage": "leakage / gain above {:g}",
            "roir": "ROIR above {:g}",
        }
        known = {name: getattr(self, name) for name in words}
        told = tuple(words[name].format(value) for name, value in known.items() if value is not None)
        return (*told, PARENT) if told else ()


@dataclass(frozen=True)
class Evidence:
    """What gates look at, by row of directions sorted by id.

    `ids` (n,) "S32"; `psnr` of the image, `residual`, `ratio` (leakage over gain) and `roir` (n,) float64, NaN where
    nothing was measured; `children`, `parents` (m,) int64: rows of each pair.
    """

    ids: np.ndarray
    psnr: np.ndarray
    residual: np.ndarray
    ratio: np.ndarray
    roir: np.ndarray
    children: np.ndarray
    parents: np.ndarray


@dataclass(frozen=True)
class Rejections:
    """Which directions are rejected: `codes` (n,) int8 by row, the place of the reason in `reasons`, or -1.

    `spared` counts directions that fail a gate of locality only and are kept because kept ones derive from them.
    """

    ids: np.ndarray
    codes: np.ndarray
    reasons: tuple[str, ...]
    spared: int = 0

    @property
    def keep(self) -> np.ndarray:
        """(n,) bool: the rows that are not rejected."""
        return np.asarray(self.codes < 0)

    @property
    def counts(self) -> dict[str, int]:
        """Rejected directions by reason, without reasons of none."""
        found = np.bincount(self.codes[self.codes >= 0], minlength=len(self.reasons))
        return {reason: int(count) for reason, count in zip(self.reasons, found, strict=True) if count}

    def __len__(self) -> int:
        return int(np.count_nonzero(self.codes >= 0))

    def items(self) -> Iterator[tuple[str, str]]:
        """(direction id, reason) of each rejected direction, by id."""
        for row in np.flatnonzero(self.codes >= 0):
            yield self.ids[row].decode(), self.reasons[self.codes[row]]

    def reason(self, direction_id: str) -> str | None:
        """Why a direction is rejected; None where it is not, or not there."""
        row = int(np.searchsorted(self.ids, np.bytes_(direction_id)))
        there = row < len(self.ids) and self.ids[row] == np.bytes_(direction_id)
        return self.reasons[self.codes[row]] if there and self.codes[row] >= 0 else None


def rejections(catalog: Catalog, gates: Gates) -> Rejections:
    """What gates reject of a catalog. Reads metadata only; some 200 bytes a direction while it runs."""
    return judge(_of_catalog(catalog), gates)


def rejected_of(chunk: Chunk, gates: Gates) -> dict[str, int]:
    """How many directions of a chunk are rejected, by reason."""
    return judge(_of_chunk(chunk), gates).counts


def judge(evidence: Evidence, gates: Gates) -> Rejections:
    """What gates reject of directions with this evidence. Arithmetic on arrays only."""
    reasons = gates.reasons
    codes = np.full(len(evidence.ids), _UNKNOWN, dtype=np.int8)
    with np.errstate(invalid="ignore"):  # NaN, not measured, fails no gate
        basic = [] if gates.psnr is None else [evidence.psnr < gates.psnr]
        basic += [] if gates.residual is None else [evidence.residual > gates.residual]
        local = [] if gates.leakage is None else [evidence.ratio > gates.leakage]
        local += [] if gates.roir is None else [evidence.roir > gates.roir]
    for code, failing in enumerate(basic):
        codes[failing & (codes < 0)] = code
    _spread(codes, evidence, len(reasons) - 1)
    sound = codes < 0
    for code, failing in enumerate(local, start=len(basic)):
        codes[failing & (codes < 0)] = code
    spared = _ancestors(codes < 0, evidence) & sound & (codes >= 0)
    codes[spared] = _UNKNOWN
    return Rejections(evidence.ids, codes, reasons, int(spared.sum()))


def _spread(codes: np.ndarray, evidence: Evidence, code: int) -> None:
    """Reject what is derived from rejected directions, at any remove."""
    while True:
        lost = evidence.children[(codes[evidence.parents] >= 0) & (codes[evidence.children] < 0)]
        if not len(lost):
            return
        codes[lost] = code


def _ancestors(kept: np.ndarray, evidence: Evidence) -> np.ndarray:
    """(n,) bool: the directions that kept ones are derived from, at any remove, and those kept."""
    needed = kept.copy()
    while True:
        more = evidence.parents[needed[evidence.children] & ~needed[evidence.parents]]
        if not len(more):
            return needed
        needed[more] = True


def _of_catalog(catalog: Catalog) -> Evidence:
    images, rows = catalog.images().select(["image_id", "round_trip_psnr"]), catalog.directions()
    known, own = (packed_ids(table.column("image_id"), str(catalog.folder)) for table in (images, rows))
    psnr = numbers_of(images.column("round_trip_psnr"))
    at = np.searchsorted(known, own)
    lists = rows.column("parents").combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    parents = packed_ids(pa.chunked_array([lists.flatten()]), str(catalog.folder))
    return _joined(
        catalog.ids(), psnr[np.minimum(at, max(0, len(known) - 1))] if len(known) else np.zeros(len(own)),
        {name: numbers_of(rows.column(name)) for name in ("residual", "gain", "leakage", "roir")},
        np.repeat(np.arange(len(own)), lengths), parents,
    )  # fmt: skip


def _of_chunk(chunk: Chunk) -> Evidence:
    directions = sorted(chunk.directions, key=lambda d: d.direction_id)
    psnr = {image.image_id: image.round_trip_psnr for image in chunk.images}
    ids = np.array([d.direction_id for d in directions], dtype="S32")
    pairs = [(row, parent) for row, d in enumerate(directions) for parent in d.parents]
    names = ("residual", "gain", "leakage", "roir")
    return _joined(
        ids, np.array([psnr.get(d.image_id, np.nan) for d in directions], dtype=np.float64),
        {name: np.array([getattr(d, name) for d in directions], dtype=np.float64) for name in names},
        np.array([row for row, _ in pairs], dtype=np.int64), np.array([parent for _, parent in pairs], dtype="S32"),
    )  # fmt: skip


def _joined(
    ids: np.ndarray, psnr: np.ndarray, numbers: Mapping[str, np.ndarray], children: np.ndarray, parents: np.ndarray
) -> Evidence:
    """Evidence with parents as rows; those that are elsewhere are left out."""
    ratio = leakage_ratio(numbers["leakage"], numbers["gain"])
    place = np.searchsorted(ids, parents)
    there = place < len(ids)
    there[there] = ids[place[there]] == parents[there]
    return Evidence(ids, psnr, numbers["residual"], ratio, numbers["roir"], children[there], place[there])


def leakage_ratio(leakage: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Leakage over gain; infinite where there is leakage only, NaN where there is neither."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(leakage / gain)


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64, nulls as NaN."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


# -- the gates of a catalog ------------------------------------------------------------------------------------------


def gates_of(provenance: Provenance) -> Gates:
    """The gates of the recipe of a catalog; none in one that was begun before there were any. Raises InputError."""
    try:
        return Gates.model_validate(provenance.recipe.get("gates") or {})
    except ValidationError as error:
        raise first_error(error, Gates) from error


def adopt_gates(writer: CatalogWriter, gates: Gates) -> bool:
    """Note other gates than the catalog was begun with in its recipe, by a commit; whether they were others."""
    standing = writer.manifest.provenance
    if standing.recipe.get("gates", Gates().model_dump(mode="json")) == gates.model_dump(mode="json"):
        return False
    recipe = {**standing.recipe, "gates": gates.model_dump(mode="json")}
    provenance = standing.model_copy(update={"recipe": recipe})
    with writer.transaction() as transaction:
        writer.finish(transaction, writer.manifest, {"provenance": provenance})
    return True


def explained(found: Rejections) -> list[str]:
    """Sentences about what gates left out, for reports and cards."""
    told = [f"left out: {count} {_noun(count)}, {reason}" for reason, count in found.counts.items()]
    if found.spared:
        local = "less local than the gates ask, kept because kept ones are derived from them"
        told.append(f"{found.spared} {_noun(found.spared)} {local}")
    return told


def _noun(count: int) -> str:
    return "direction" if count == 1 else "directions"


def as_document(found: Rejections) -> dict[str, Any]:
    """What was rejected, for JSON."""
    return {"directions": len(found), "reasons": found.counts, "kept_as_parents": found.spared}
