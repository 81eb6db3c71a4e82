"""Names of packs and of their versions: `org/name`, `HUB/org/name`, with `@1.2.0` or `@>=1.2,<2` behind it.

Two parts name a repository of the Hugging Face Hub; a path or URL with more parts a local hub and a repository in it.
`builtin/name` is of the hub that comes with the project.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import total_ordering
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from catalog.store import as_url
from catalog.store_calls import without_secrets
from pipeline.errors import InputError, NotFoundError

BUILTIN = "builtin"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_VERSION = re.compile(r"v?(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)
_SHOWN = 5


@total_ordering
@dataclass(frozen=True)
class Version:
    """A semantic version in three numbers; its tag has a v before them."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """Of `1.2.0`. Raises InputError."""
        found = _VERSION.fullmatch(text)
        if found is None or text.startswith("v"):
            raise InputError("version", repr(text)[:60], "a semantic version such as 1.0.0, without a leading v")
        return cls(*map(int, found.groups()))

    @classmethod
    def of_tag(cls, tag: str) -> Version | None:
        """Of `v1.2.0`; None for tags that name no version."""
        found = _VERSION.fullmatch(tag)
        return cls(*map(int, found.groups())) if found is not None and tag.startswith("v") else None

    @property
    def tag(self) -> str:
        """Its name among the tags of a repository."""
        return f"v{self}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    def __lt__(self, other: Version) -> bool:
        return (self.major, self.minor, self.patch) < (other.major, other.minor, other.patch)


@dataclass(frozen=True)
class PackName:
    """A repository in a hub, and which of its versions is meant.

    `hub`: None for the Hugging Face Hub, `builtin`, or the folder or URL of a local hub. `wanted`: a version, a range
    of them such as `>=1.2,<2`, or "" for the newest.
    """

    hub: str | None
    organisation: str
    name: str
    wanted: str = ""

    @property
    def repository(self) -> str:
        """`org/name`."""
        return f"{self.organisation}/{self.name}"

    def __str__(self) -> str:
        return self.repository if self.hub in (None, BUILTIN) else f"{str(self.hub).rstrip('/')}/{self.repository}"

    @property
    def in_folder(self) -> bool:
        """Whether its hub is a folder that was named, which may mean another one in another working directory."""
        return self.hub not in (None, BUILTIN) and as_url(str(self.hub)) is None

    @property
    def absolute(self) -> PackName:
        """The same wherever it is asked from."""
        return replace(self, hub=str(Path(str(self.hub)).expanduser().absolute())) if self.in_folder else self

    @classmethod
    def parse(cls, text: str, wanted: str = "", hub: str | None = None) -> PackName:
        """Of what a user gives. `wanted` as behind an @; `hub` where it is named apart, and `text` is `org/name`.

        Raises InputError: too few parts, names that no repository may have, or a version given twice or misspelt.
        """
        head, slash, tail = text.rpartition("/")
        tail, _, behind = tail.partition("@")
        if behind and wanted:
            raise InputError("version", f"{behind} and {wanted}", "one version or range")
        place, *parts = _split(head + slash + tail)
        for part in parts:
            if not is_name(part):
                raise InputError("repository", part[:100], "names of letters, digits, single '-', '_' and '.'")
        if hub is not None and place:
            raise InputError("repository", text[:200], "ORG/NAME, since the hub is given")
        chosen = hub or place or (BUILTIN if parts[0] == BUILTIN else None)
        return cls(chosen, parts[0], parts[1], check_wanted(behind or wanted))


def is_name(part: str) -> bool:
    """Whether an organisation or a repository may have this name."""
    return _NAME.fullmatch(part) is not None and ".." not in part and "--" not in part


def _split(text: str) -> tuple[str, str, str]:
    """(hub, organisation, name); hub "" where only two parts are given."""
    expected = "ORG/NAME for the Hugging Face Hub, or HUB/ORG/NAME with the folder or URL of a local hub"
    place = text
    if text.startswith("file:"):
        address = urlsplit(text)
        if address.netloc not in ("", "localhost") or not address.path.startswith("/"):
            raise InputError("repository", text[:200], "file:///PATH/HUB/ORG/NAME")
        place = unquote(address.path)
    url = as_url(place)
    if url is not None:
        hub, organisation, name = ["", "", *url.rsplit("/", 2)][-3:]
        if "://" not in hub or hub.endswith("/"):
            raise InputError("repository", without_secrets(text)[:200], expected)
        return hub, organisation, name
    parts = Path(place).expanduser().parts
    if "://" in place or len(parts) < 2:
        raise InputError("repository", without_secrets(text)[:200], expected)
    local = len(parts) > 2 or place.startswith((".", "~"))
    return str(Path(*parts[:-2])) if local else "", parts[-2], parts[-1]


def check_wanted(wanted: str) -> str:
    """`wanted` if it is a version, a range of versions or "". Raises InputError."""
    if wanted and not _is_exact(wanted):
        try:
            SpecifierSet(wanted)
        except InvalidSpecifier:
            raise InputError("version", repr(wanted)[:60], "X.Y.Z, or a range such as >=1.2,<2") from None
    return wanted


def _is_exact(wanted: str) -> bool:
    return _VERSION.fullmatch(wanted) is not None


def chosen_version(versions: Iterable[Version], wanted: str, name: str) -> Version:
    """The newest version that is meant by `wanted`. Raises NotFoundError naming those there are."""
    known = sorted(versions)
    if _is_exact(wanted):
        fitting = [version for version in known if version == Version.parse(wanted.removeprefix("v"))]
    else:
        ranges = SpecifierSet(check_wanted(wanted))
        fitting = [version for version in known if ranges.contains(str(version))]
    if not fitting:
        there = ", ".join(map(str, known[-_SHOWN:])) or "none"
        raise NotFoundError(f"{name} {wanted}".rstrip(), "no such version", f"one of those published: {there}")
    return fitting[-1]
