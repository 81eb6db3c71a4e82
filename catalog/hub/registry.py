"""Which packs there are, and whether what was pulled is still the newest of its kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from catalog.hub.contract import Hub
from catalog.hub.names import PackName, Version
from catalog.hub.opening import open_hub
from catalog.hub.pieces import patiently
from catalog.hub.pulled import PulledFrom, pulled_from
from pipeline.errors import NotFoundError


@dataclass(frozen=True)
class Standing:
    """A pulled catalog: its version, the newest of its repository, and the place of the hub. `newest` is None where the
    repository holds no version any more."""

    folder: Path
    repository: str
    place: str
    version: Version
    newest: Version | None

    @property
    def is_outdated(self) -> bool:
        """Whether there is a newer version."""
        return self.newest is not None and self.newest > self.version


def standings(folders: Iterable[Path], hub: Hub | None = None) -> list[Standing]:
    """How each pulled catalog stands, in order; a folder that was not pulled but holds some counts for those.

    Asks each repository once. Raises NotFoundError: nothing pulled in a folder; StoreError, InputError.
    """
    found: list[Standing] = []
    newest: dict[tuple[str | None, str], Version | None] = {}
    for folder in folders:
        records = _records(folder)
        if not records:
            raise NotFoundError(
                str(folder), "no pulled catalog", "a folder that `rhumb pull` has filled, or one of those"
            )
        for path, record in records:
            key = record.hub, record.repository
            if key not in newest:
                newest[key] = _newest(record, hub)
            version = Version.parse(record.version)
            found.append(Standing(path, record.repository, record.place, version, newest[key]))
    return found


def _records(folder: Path) -> list[tuple[Path, PulledFrom]]:
    """What a folder, or else those within it, were pulled from."""
    candidates = [folder] if pulled_from(folder) is not None else sorted(folder.iterdir()) if folder.is_dir() else []
    known = ((path, pulled_from(path)) for path in candidates if path.is_dir())
    return [(path, record) for path, record in known if record is not None]


def _newest(record: PulledFrom, hub: Hub | None) -> Version | None:
    organisation, name = record.repository.split("/")
    asked = hub if hub is not None else open_hub(PackName(record.hub, organisation, name))
    return max(patiently(lambda: asked.versions(record.repository)), default=None)
