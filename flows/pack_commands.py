"""The commands about packs: publish, pull, search, outdated, diff."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catalog.hub.contract import Hub, Progress
from catalog.hub.listing import listed
from catalog.hub.names import BUILTIN, PackName
from catalog.hub.opening import open_hub
from catalog.hub.parts import Part
from catalog.hub.pulling import Pulled
from catalog.hub.pulling import pull as pull_pack
from catalog.hub.registry import standings
from catalog.reader import Catalog
from catalog.schema import TABLES
from catalog.store import StoreError
from flows.catalog_commands import show_difference
from flows.console import answer, complain, say, stage, table
from flows.plain import plain
from pipeline.errors import InputError


@contextmanager
def _shown(title: str) -> Iterator[Progress]:
    """A `Progress` on the terminal, in megabytes, from the moment on that there is any."""
    done = 0
    with stage(f"{title} (kB)", None) as advance:

        def show(what: str, so_far: int, total: int) -> None:
            nonlocal done
            advance(max(0, so_far // 1000 - done), f"of {total // 1000:,}, {what}" if total else what)
            done = max(done, so_far // 1000)

        yield show


def publish(arguments: Namespace) -> None:
    """`rhumb publish CATALOG PACK --version X.Y.Z`."""
    from flows.publishing import publish_catalog

    with _shown("publishing") as progress:
        done = publish_catalog(
            arguments.catalog, arguments.repo, arguments.version, arguments.licence, arguments.override,
            dry_run=arguments.dry_run, private=arguments.private, left_out=arguments.without, progress=progress,
        )  # fmt: skip
    pack = done.published

    def text() -> None:
        for reason, count in done.rejected.items():
            say(f"left out: {count} directions, {reason}")
        for figure in done.overridden:
            say(f"published although worse: {figure}")
        if pack.left_out:
            say(f"left out of every row: {', '.join(pack.left_out)}")
        sent = f"{pack.new_files} files of {_size(pack.new_bytes)}"
        what = f"{pack.repository} {pack.version} ({_size(pack.bytes)})"
        if pack.revision is None:
            say(f"would publish {what}: {sent} to send, {pack.reused} files as in the version before; nothing was sent")
        else:
            say(f"published {what}: {sent} sent, {pack.reused} files as in the version before")

    answer(plain(pack) | plain({"rejected": done.rejected, "overridden": done.overridden}), arguments.json, text)


def pull(arguments: Namespace) -> None:
    """`rhumb pull PACK`."""
    name = PackName.parse(arguments.repo, arguments.version)
    if arguments.list:
        _list(name, arguments)
        return
    part = Part(
        tuple(arguments.region), tuple(arguments.dataset), tuple(arguments.kind), tuple(arguments.space),
        arguments.prototypes, tuple(arguments.without),
    )  # fmt: skip
    out = arguments.out if arguments.out is not None else Path(name.name)
    with _shown(f"pulling {name}") as progress:
        done = pull_pack(name, out, part, progress=progress)
    with Catalog.open(done.folder) as catalog:
        manifest = catalog.manifest
        rows = {table: manifest.rows(table) for table in TABLES}
        concepts = manifest.concepts.rows if manifest.concepts is not None else 0
    found = {**plain(done), "rows": rows, "concepts": concepts}
    answer(found, arguments.json, lambda: _say_pulled(done, rows, concepts))


def _say_pulled(done: Pulled, rows: dict[str, int], concepts: int) -> None:
    held = ", ".join(f"{count} {what}" for what, count in (*rows.items(), ("concepts", concepts)))
    say(f"pulled {done.repository} {done.version}: {held} -> {done.folder}")
    say(f"{_size(done.bytes)}, of which {_size(done.new_bytes)} came now")


def _list(name: PackName, arguments: Namespace) -> None:
    """What there is to pull."""
    found = listed(name)

    def text() -> None:
        versions = ", ".join(map(str, found.versions))
        say(f"{found.repository} {found.version} ({_size(found.bytes)}); versions: {versions}")
        rows = [(s.dataset, s.region, s.space, s.kind, s.rows, _size(s.bytes)) for s in found.shares]
        table("directions", ("data set", "region", "space", "kind", "directions", "size"), rows)
        say(", ".join(f"{count} {what}" for what, count in (*found.rows.items(), ("concepts", found.concepts))))
        if found.left_out:
            say(f"left out of every row: {', '.join(found.left_out)}")

    answer({**plain(found), "versions": [str(version) for version in found.versions]}, arguments.json, text)


def search(arguments: Namespace) -> None:
    """`rhumb search WORD...`."""
    words = [part for word in arguments.words for part in word.split()]
    rows = []
    for place, hub in _hubs(arguments.hub):
        try:
            found = [(place, one) for one in hub.find(words)]
        except (StoreError, InputError) as error:
            if arguments.hub:
                raise
            complain(f"rhumb search: {error}")  # what lies on this machine can be told without a network, or a login
            found = []
        rows += found

    def text() -> None:
        shown = []
        for place, one in rows:
            newest = str(one.versions[-1]) if one.versions else "-"
            shown.append((PackName(place, *one.repository.split("/")), newest, one.title, ", ".join(one.tags[:8])))
        table("packs", ("pack", "newest", "title", "tags"), shown)

    told = [{"hub": place, **plain(one), "versions": [str(v) for v in one.versions]} for place, one in rows]
    answer({"packs": told}, arguments.json, text)


def _hubs(places: list[str]) -> Iterator[tuple[str | None, Hub]]:
    """(place as in a `PackName`, hub) of those that are to be searched."""
    asked: list[str | None] = [*places] or [BUILTIN, None]
    for place in asked:
        yield place, open_hub(PackName(place, "org", "name"))


def outdated(arguments: Namespace) -> int:
    """`rhumb outdated [FOLDER...]`."""
    found = standings(arguments.folders)

    def text() -> None:
        rows = [(one.folder, one.repository, one.version, one.newest or "none any more", one.place) for one in found]
        table("pulled catalogs", ("folder", "pack", "version", "newest", "hub"), rows)

    told = [
        {**plain(one), "version": str(one.version), "newest": str(one.newest) if one.newest is not None else None,
         "outdated": one.is_outdated}
        for one in found
    ]  # fmt: skip
    answer({"catalogs": told}, arguments.json, text)
    return 1 if any(one.is_outdated for one in found) else 0


def diff(arguments: Namespace) -> int:
    """`rhumb diff A B`."""
    for option, place in (("A", arguments.former), ("B", arguments.later)):
        if "@" not in place.name and not place.exists():
            raise InputError(option, str(place), "PACK@X.Y.Z, or a catalog folder")
    return show_difference(str(arguments.former), str(arguments.later), arguments.json)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
