"""Which deposits a catalog takes in, and what it then holds: the rules of a commit, for many chunks at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from catalog.chunks import Masks, failed_after
from catalog.deposits import Deposit, Target
from catalog.manifest import ChunkEntry, FailedImage, Manifest
from catalog.places import Known
from catalog.schema import TABLES


@dataclass(frozen=True)
class Adopted:
    """The deposits that are in the catalog now, and why others are not, by work id."""

    adopted: tuple[Deposit, ...]
    dropped: dict[str, str]


class Intake:
    """The catalog as it will be with the deposits taken so far."""

    def __init__(self, manifest: Manifest, known: Mapping[str, Known]) -> None:
        self.catalog = Target.of(manifest).catalog
        self.chunks: dict[str, ChunkEntry] = dict(manifest.chunks)
        self.failed: dict[str, FailedImage] = dict(manifest.failed_images)
        self.ids: dict[str, set[str]] = {table: set() for table in TABLES}
        self.masks: Masks = {}
        self._known = {table: known[table].with_those(self.ids[table]) for table in TABLES}

    def clash(self, deposit: Deposit) -> str | None:
        """Why a deposit cannot be taken; None where it can."""
        if deposit.catalog != self.catalog:
            return "mined for another catalog"
        standing = [self.chunks[name] for name in (deposit.chunk_id, deposit.digest) if name in self.chunks]
        if any(entry.digest == deposit.digest for entry in standing):
            return "in the catalog already"
        for table, keys in deposit.ids:
            for key in keys:
                if key in self._known[table]:
                    return f"{key} of {table} is in the catalog already"
        return None

    def take(self, deposit: Deposit) -> None:
        """Count a deposit in; only after `clash` found nothing."""
        name, failed = deposit.chunk_id, deposit.failed
        if name in self.chunks:  # an earlier run of this work failed at images that this one has mined
            name = deposit.digest
            failed = {image: entry.model_copy(update={"chunk": name}) for image, entry in failed.items()}
        self.chunks[name] = deposit.entry
        for table, keys in deposit.ids:
            self.ids[table].update(keys)
        self.masks |= deposit.region_ids
        self.failed = failed_after(self.failed, deposit.images, failed, self._known["images"])
