"""Which ids and masks a catalog holds, in little memory; in a distant store by the receipts of deposits, so that no
shard has to be fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog.chunks import Masks, masks_of
from catalog.deposits import Deposit, parse_receipt, receipt_name
from catalog.fs import RECEIPTS
from catalog.manifest import Manifest
from catalog.mirror import store_of
from catalog.places import Known
from catalog.reader import Catalog
from catalog.schema import TABLES
from catalog.store import LocalStore, Store
from pipeline.errors import CatalogError, NotFoundError

_ABREAST = 8
_IMAGE = re.compile("[0-9a-f]{32}")
_AWAITING = 1024  # masks that were added and take some 300 bytes each, until they join the others
_SLICE = 8192  # rows of regions that are Python values at once


class KnownMasks(Mapping[tuple[str, str], str]):
    """The region id of each (image id, region): 36 bytes a mask, and those added since, which join them now and then.

    Of images whose id is none, which nobody can ask for, nothing is kept.
    """

    def __init__(self) -> None:
        self._pairs = np.zeros(0, dtype="S20")  # sorted: the bytes of an image's id, and the number of a region
        self._ids = np.zeros(0, dtype="S16")
        self._regions: dict[str, int] = {}
        self._added: Masks = {}

    @classmethod
    def of(cls, regions: pa.Table) -> KnownMasks:
        """Those of a table of regions."""
        known = cls()
        for start in range(0, regions.num_rows, _SLICE):
            known.add(masks_of(regions.slice(start, _SLICE)))
        return known

    def add(self, masks: Mapping[tuple[str, str], str]) -> None:
        """Know these too, in the place of others of the same image and region."""
        self._added.update((pair, mask) for pair, mask in masks.items() if _IMAGE.fullmatch(pair[0]))
        if len(self._added) >= max(_AWAITING, len(self._ids) // 64):
            self._join()

    def _join(self) -> None:
        for _, region in self._added:
            self._regions.setdefault(region, len(self._regions))
        added = sorted((self._packed(*pair), bytes.fromhex(mask)) for pair, mask in self._added.items())
        pairs, ids = (np.array([row[part] for row in added], dtype=kind) for part, kind in ((0, "S20"), (1, "S16")))
        new = ~np.isin(pairs, self._pairs)
        self._ids[np.searchsorted(self._pairs, pairs[~new])] = ids[~new]
        places = np.searchsorted(self._pairs, pairs[new])
        self._ids = np.insert(self._ids, places, ids[new])
        self._pairs = np.insert(self._pairs, places, pairs[new])
        self._added = {}

    def _packed(self, image: str, region: str) -> bytes:
        return bytes.fromhex(image) + self._regions[region].to_bytes(4, "big")

    def __getitem__(self, pair: tuple[str, str]) -> str:
        if pair in self._added:
            return self._added[pair]
        image, region = pair
        if region in self._regions and _IMAGE.fullmatch(image):
            wanted = self._packed(image, region).rstrip(b"\0")  # as numpy gives it, which takes zeros for padding
            row = int(np.searchsorted(self._pairs, np.bytes_(wanted)))
            if row < len(self._pairs) and self._pairs[row] == wanted:
                return _text(self._ids[row])
        raise KeyError(pair)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        names = list(self._regions)
        for pair in self._pairs:
            whole = bytes(pair).ljust(20, b"\0")
            found = whole[:16].hex(), names[int.from_bytes(whole[16:], "big")]
            if found not in self._added:
                yield found
        yield from self._added

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _text(packed: bytes) -> str:
    return bytes(packed).ljust(16, b"\0").hex()


def keep_receipts(store: Store, deposits: Iterable[Deposit]) -> None:
    """Copy receipts to where `known_rows` looks for them; in a folder, whose shards are at hand, nothing is kept."""
    if not isinstance(store, LocalStore):
        store.copy((receipt_name(one.job_id, one.work_id), _kept_name(one.digest)) for one in deposits)


def known_rows(folder: Path, manifest: Manifest) -> tuple[dict[str, Known], KnownMasks]:
    """The ids of each table, and the committed region id of each (image id, region).

    Cost: the id columns of all shards, in a mirror only those of chunks without a receipt; or a small file for a chunk.
    """
    receipts = _receipts(folder, manifest)
    rest = {name: entry for name, entry in manifest.chunks.items() if entry.digest not in receipts}
    needed = {path for entry in rest.values() for path in entry.paths}
    files = {path: entry for path, entry in manifest.files.items() if path in needed}
    with Catalog(folder, manifest.model_copy(update={"chunks": rest, "files": files})) as catalog:
        masks = KnownMasks.of(catalog.regions())
        known = {table: Known(catalog.ids(table)) for table in TABLES}
    for receipt in receipts.values():
        for table, ids in receipt.ids:
            known[table].add(ids)
        masks.add(receipt.region_ids)
    return known, masks


def _receipts(folder: Path, manifest: Manifest) -> dict[str, Deposit]:
    """The receipts that were kept of chunks of a catalog in a distant store, by digest."""
    store = store_of(folder)
    if isinstance(store, LocalStore):
        return {}
    digests = {entry.digest for entry in manifest.chunks.values()}
    digests &= {name.split("/")[1].removesuffix(".json") for name in store.list(RECEIPTS)}
    with ThreadPoolExecutor(_ABREAST) as pool:
        found = pool.map(lambda digest: _receipt(store, folder, digest), sorted(digests))
        return {receipt.digest: receipt for receipt in found if receipt is not None}


def _receipt(store: Store, folder: Path, digest: str) -> Deposit | None:
    """A receipt from the mirror, or from the store; None where neither has a whole one of these ids."""
    path = folder / _kept_name(digest)
    try:
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            store.fetch(_kept_name(digest), path)
        receipt = parse_receipt(path.read_bytes(), str(path))
    except NotFoundError:
        return None
    except CatalogError:  # its shards will tell
        path.unlink(missing_ok=True)
        return None
    return receipt if receipt.digest == digest else None


def _kept_name(digest: str) -> str:
    return f"{RECEIPTS}/{digest}.json"
