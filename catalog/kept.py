"""Which ids a catalog holds; in a distant store by the receipts of deposits, so that no shard has to be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def keep_receipts(store: Store, deposits: Iterable[Deposit]) -> None:
    """Copy receipts to where `known_rows` looks for them; in a folder, whose shards are at hand, nothing is kept."""
    if not isinstance(store, LocalStore):
        store.copy((receipt_name(one.job_id, one.work_id), _kept_name(one.digest)) for one in deposits)


def known_rows(folder: Path, manifest: Manifest) -> tuple[dict[str, Known], Masks]:
    """The ids of each table, and the committed region id of each (image id, region).

    Cost: the id columns of all shards, in a mirror only those of chunks without a receipt; or a small file for a chunk.
    """
    receipts = _receipts(folder, manifest)
    rest = {name: entry for name, entry in manifest.chunks.items() if entry.digest not in receipts}
    needed = {path for entry in rest.values() for path in entry.paths}
    files = {path: entry for path, entry in manifest.files.items() if path in needed}
    with Catalog(folder, manifest.model_copy(update={"chunks": rest, "files": files})) as catalog:
        masks = masks_of(catalog.regions())
        known = {table: Known(catalog.ids(table)) for table in TABLES}
    for receipt in receipts.values():
        for table, ids in receipt.ids:
            known[table].add(ids)
        masks |= receipt.region_ids
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
