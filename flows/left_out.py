"""What is said where a pack was published, or pulled, without columns that an answer would have shown or used."""

from __future__ import annotations

from collections.abc import Sequence

from catalog.manifest import Manifest
from catalog.reader import Catalog


def remark(catalog: Catalog, columns: Sequence[str], instead: str) -> tuple[str, ...]:
    """One line where any of these columns is left out, with what is done `instead`; none where all are there."""
    missing = [f"{column}s" for column in columns if catalog.lacks(column)]
    return (f"{' and '.join(missing)} are left out of this pack: {instead}",) if missing else ()


def remark_on_members(catalog: Catalog) -> tuple[str, ...]:
    """One line where the catalog is a part of a pack, so that members of its concepts may be missing."""
    if catalog.manifest.part is None:
        return ()
    return (f"{of_pack(catalog.manifest)}: members may be missing, and then it is not told which images disagree",)


def of_pack(manifest: Manifest) -> str | None:
    """The published version that a catalog is, or is a part of, in words; None for one that is of its own."""
    if manifest.part is not None:
        return f"a part of {manifest.part.repository} {manifest.part.version}"
    return f"{manifest.pack.repository} {manifest.pack.version}" if manifest.pack is not None else None
