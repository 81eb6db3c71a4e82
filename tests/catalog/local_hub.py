"""Publishing to a local hub and pulling from it, in a line; what lies in it, looked up as the format says."""

from __future__ import annotations

from pathlib import Path

from catalog.card import CardFields
from catalog.hub import publishing, pulling
from catalog.hub.names import PackName, Version
from catalog.hub.opening import open_hub
from catalog.hub.publishing import Published
from catalog.reader import Catalog

CARD = CardFields(licence="cc0-1.0")


def _named(repository: str | Path, hub: Path | None = None, wanted: str = "") -> PackName:
    return PackName.parse(str(repository), wanted, hub=str(hub) if hub is not None else None)


def publish(catalog: str | Path, repository: str, version: str, hub: Path, card: CardFields = CARD) -> Published:
    """A catalog as a version of `org/name`."""
    name = _named(repository, hub)
    with Catalog.open(catalog) as source:
        return publishing.publish(source, name, version, open_hub(name), card)


def pull(repository: str, version: str, out: Path, hub: Path) -> Catalog:
    """A whole version, opened."""
    return Catalog.open(pulling.pull(_named(repository, hub, version), out).folder)


def versions(repository: str | Path, hub: Path | None = None) -> list[str]:
    """Published versions of HUB/ORG/NAME, or of ORG/NAME in a hub; oldest number first."""
    name = _named(repository, hub)
    return [str(version) for version in sorted(open_hub(name).versions(name.repository))]


def snapshot(repository: str | Path, version: str, hub: Path | None = None) -> Path:
    """The folder of a published version."""
    name = _named(repository, hub)
    revision = open_hub(name).versions(name.repository)[Version.parse(version)]
    return Path(str(name.hub)) / "datasets" / name.repository / "snapshots" / revision
