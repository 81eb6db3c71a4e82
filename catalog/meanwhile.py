"""What writers do to a catalog while it is read: readers take no lock, and must not mistake a commit for damage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from catalog import manifest as manifests
from catalog.manifest import Manifest
from catalog.mirror import Mirror
from catalog.transaction import pending
from pipeline.errors import RhumbError


def unexplained(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of some files seen in a catalog that are not its own: the manifest that stands does not list them, no
    commit under way or cut off put them there or takes them away, and they are still there."""
    mirror = Mirror.at(folder)
    explained = pending(folder) if mirror is None else mirror.pending()
    explained |= _standing(folder).files.keys()  # read last: what a commit puts there, it lists before it is over
    return [name for name in names if name not in explained and (mirror is not None or os.path.lexists(folder / name))]


def replaced(folder: Path, manifest: Manifest) -> bool:
    """Whether a commit since `manifest` was read did away with files that it lists."""
    try:
        return not manifest.files.keys() <= _standing(folder).files.keys()
    except (RhumbError, OSError):
        return False


def _standing(folder: Path) -> Manifest:
    mirror = Mirror.at(folder)
    return (mirror.refresh() if mirror is not None else None) or manifests.load(folder)
