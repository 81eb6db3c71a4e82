"""The local hub: packs published once, never overwritten; pulled with every checksum and row verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from catalog import manifest as manifests
from catalog.card import CardFields, pack_card
from catalog.fs import CARD, LOCK, MANIFEST, STAGING, disk_error, flush_folder, inside, sha256_of, write_flushed
from catalog.manifest import FileEntry, Manifest, PackInfo
from catalog.mirror import opened
from catalog.reader import Catalog
from catalog.transaction import Lock
from catalog.verify import check_content, verify
from pipeline.errors import CatalogError, ConflictError, InputError, NotFoundError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})")
_REVISION = re.compile(r"[0-9a-f]{40}")
_PULLING = ".pull.json"  # of an unfinished pull: the revision it is of
_DRAFT = "pull.tmp"


@dataclass(frozen=True)
class Repository:
    """A dataset repository in a local hub."""

    hub: Path
    organisation: str
    name: str

    @property
    def full_name(self) -> str:
        """`org/name`."""
        return f"{self.organisation}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where its refs, snapshots and blobs lie."""
        return self.hub / "datasets" / self.organisation / self.name


@dataclass(frozen=True)
class Published:
    """What `publish` made: `bytes` of the whole pack, `new_bytes` that the hub did not have yet."""

    repository: str
    version: str
    revision: str
    folder: Path
    bytes: int
    new_bytes: int


def parse_repository(repository: str, hub: str | Path | None = None) -> Repository:
    """`org/name` within `hub`, or `file:///HUB/org/name`, or a path HUB/org/name. Raises InputError."""
    text = repository
    if text.startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise InputError("repository", text[:200], "file:///PATH/HUB/ORG/NAME")
        text = unquote(parts.path)
    elif "://" in text:
        raise InputError("repository", text[:200], "a local hub: a path or file:// address")
    pieces = Path(text).parts
    if hub is not None and len(pieces) != 2:
        raise InputError("repository", text[:200], "ORG/NAME, since the hub is given")
    if hub is None and len(pieces) < 3:
        raise InputError(
            "repository", text[:200], "a path HUB/ORG/NAME or file:///PATH/HUB/ORG/NAME",
            "Name the folder of the local hub before ORG/NAME",
        )  # fmt: skip
    root = Path(hub) if hub is not None else Path(*pieces[:-2])
    for part in pieces[-2:]:
        if not _NAME.fullmatch(part) or ".." in part or "--" in part:
            raise InputError("repository", part[:100], "names of letters, digits, single '-', '_' and '.'")
    return Repository(root, pieces[-2], pieces[-1])


def check_version(version: str) -> str:
    """`version` if it is X.Y.Z in numbers. Raises InputError."""
    if not _VERSION.fullmatch(version):
        raise InputError("version", repr(version)[:60], "a semantic version such as 1.0.0, without a leading v")
    return version


def list_versions(repository: str, hub: str | Path | None = None) -> list[str]:
    """Published versions, oldest number first; empty where nothing was published."""
    tags = parse_repository(repository, hub).folder / "refs" / "tags"
    names = [entry.name[1:] for entry in tags.iterdir() if entry.name[:1] == "v"] if tags.is_dir() else []
    return sorted((n for n in names if _VERSION.fullmatch(n)), key=lambda n: [int(part) for part in n.split(".")])


def publish(
    catalog_folder: str | Path,
    repository: str,
    version: str,
    hub: str | Path | None = None,
    card: CardFields | None = None,
) -> Published:
    """Publish a catalog as `version` of `repository`; visible only when complete, and never changed afterwards.

    Raises CatalogError (the catalog fails verification, or the disk is full), ConflictError (that version exists, or
    another publication is under way), InputError, NotFoundError.
    """
    target = parse_repository(repository, hub)
    check_version(version)
    source = opened(catalog_folder)
    _refuse_published(target, version)
    report = verify(source)
    if not report.ok:
        first = report.problems[0]
        raise CatalogError(
            f"{source}/{first.file}", first.what, "a catalog that passes `rhumb verify`",
            f"{len(report.problems)} problems in all; nothing was published",
        )  # fmt: skip
    manifest, page = _pack_manifest(source, target, version, card or CardFields())
    with _disk_errors(target.folder):
        target.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(target.folder)
        try:
            _refuse_published(target, version)
            return _write_snapshot(source, target, version, manifest, page)
        finally:
            lock.free()


def _pack_manifest(source: Path, target: Repository, version: str, card: CardFields) -> tuple[Manifest, bytes]:
    with Catalog.open(source) as catalog:
        if catalog.manifest.rows("directions") == 0:
            raise CatalogError(str(source), "no directions", "a catalog with directions to publish", "Mine some first")
        page = pack_card(catalog.manifest, catalog.directions().to_pylist(), card, target.full_name, version)
        entry = FileEntry(sha256=hashlib.sha256(page).hexdigest(), bytes=len(page))
        files = {**catalog.manifest.files, CARD: entry}
        pack = PackInfo(repository=target.full_name, version=version)
        return catalog.manifest.model_copy(update={"files": files, "pack": pack}), page


def _refuse_published(target: Repository, version: str) -> None:
    if (target.folder / "refs" / "tags" / f"v{version}").exists():
        raise ConflictError(
            f"{target.full_name} {version}", "a published version", "a version that does not exist yet",
            f"Published versions never change: choose a higher one; there are {', '.join(_near(target))}",
        )  # fmt: skip


def _near(target: Repository) -> list[str]:
    return list_versions(target.full_name, target.hub)[-5:] or ["none"]


def _write_snapshot(source: Path, target: Repository, version: str, manifest: Manifest, page: bytes) -> Published:
    """Blobs, then a hidden snapshot, then its name, then the tag: each step harmless if it is the last one made."""
    data = manifests.dump(manifest)
    revision = hashlib.sha256(data).hexdigest()[:40]
    root = target.folder
    for leftover in root.glob(".staging-*"):  # of a publication that died: this one holds the lock
        shutil.rmtree(leftover)
    staging = root / f".staging-{secrets.token_hex(8)}"
    staging.mkdir()
    new_bytes = 0
    try:
        (root / "blobs").mkdir(exist_ok=True)
        for name, entry in manifest.files.items():
            blob = root / "blobs" / entry.sha256
            if not blob.is_file() or sha256_of(blob) != entry.sha256:
                _copy_blob(page if name == CARD else inside(source, name), blob, entry, staging, name)
                new_bytes += entry.bytes
            path = staging / name
            path.parent.mkdir(exist_ok=True)
            try:
                os.link(blob, path)
            except OSError as error:
                if disk_error(root, error) is not None:
                    raise
                shutil.copyfile(blob, path)  # a file system without hard links
        write_flushed(staging / MANIFEST, data)
        (staging / MANIFEST).chmod(0o444)
        for folder in [root / "blobs", *(p for p in staging.iterdir() if p.is_dir()), staging]:
            flush_folder(folder)
        snapshot = root / "snapshots" / revision
        snapshot.parent.mkdir(exist_ok=True)
        if snapshot.exists():  # of a publication that died before its tag; made anew, since nobody saw it
            shutil.rmtree(snapshot)
        staging.replace(snapshot)
        flush_folder(snapshot.parent)
        _tag(root, version, revision)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    size = sum(entry.bytes for entry in manifest.files.values()) + len(data)
    return Published(target.full_name, version, revision, snapshot, size, new_bytes + len(data))


def _copy_blob(origin: bytes | Path, blob: Path, entry: FileEntry, staging: Path, name: str) -> None:
    """Copy to a staged file, compare with the checksum, and give it the blob's name."""
    draft = staging / "blob.tmp"
    if isinstance(origin, bytes):
        write_flushed(draft, origin)
    else:
        _copy_flushed(origin, draft)
    if sha256_of(draft) != entry.sha256:
        raise CatalogError(name, "bytes that changed while being copied", "the recorded sha256", "Verify the source")
    draft.chmod(0o444)
    draft.replace(blob)


def _copy_flushed(origin: Path, draft: Path) -> None:
    with origin.open("rb") as reading, draft.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 2**20)
        writing.flush()
        os.fsync(writing.fileno())


def _tag(root: Path, version: str, revision: str) -> None:
    """Create the tag unless it exists: a link of a whole file either appears or fails."""
    tags = root / "refs" / "tags"
    tags.mkdir(parents=True, exist_ok=True)
    draft = root / f".staging-{secrets.token_hex(8)}"
    draft.mkdir()
    write_flushed(draft / "tag", revision.encode())
    try:
        os.link(draft / "tag", tags / f"v{version}")
    except FileExistsError as error:
        raise ConflictError(f"version {version}", "a published version", "a new one", "Choose a higher one") from error
    finally:
        shutil.rmtree(draft)
    flush_folder(tags)


def find_snapshot(repository: str, version: str, hub: str | Path | None = None) -> Path:
    """Folder of a published version: a catalog to read in place. Raises NotFoundError naming the others."""
    target = parse_repository(repository, hub)
    check_version(version)
    tag = target.folder / "refs" / "tags" / f"v{version}"
    if not tag.is_file() or tag.is_symlink():
        raise NotFoundError(
            f"{target.full_name} {version}", f"no such version in {target.hub}", f"one of {', '.join(_near(target))}"
        )
    revision = tag.read_text()[:100].strip()
    snapshot = target.folder / "snapshots" / revision
    if not _REVISION.fullmatch(revision) or snapshot.is_symlink() or not snapshot.is_dir():
        raise CatalogError(str(tag), repr(revision)[:60], "the name of a snapshot of the repository")
    return snapshot


def pull(repository: str, version: str, out: str | Path, hub: str | Path | None = None) -> Catalog:
    """Copy a published version to `out` and verify every file, row and index: a catalog like any other.

    An interrupted pull of the same version continues, a finished one changes nothing. Raises ConflictError (`out` has
    other content), NotFoundError, CatalogError (the pack is damaged: no catalog is left in `out`). Cost: reads every
    file twice, as `verify` does.
    """
    snapshot = find_snapshot(repository, version, hub)
    manifest = manifests.load(snapshot)
    data = (snapshot / MANIFEST).read_bytes()
    if hashlib.sha256(data).hexdigest()[:40] != snapshot.name:
        raise CatalogError(str(snapshot / MANIFEST), "other bytes than were published", f"revision {snapshot.name}")
    target = Path(out)
    _refuse_other_content(target, snapshot.name, manifest)
    with _disk_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        lock = Lock(target)
        try:
            _refuse_other_content(target, snapshot.name, manifest)
            _fetch(snapshot, manifest, target)
        finally:
            lock.free()
    return Catalog.open(target)


def _without_retired(manifest: Manifest) -> Manifest:
    """What is worth fetching: not the files that only a former format needed."""
    files = {name: entry for name, entry in manifest.files.items() if name not in manifest.retired}
    return manifest.model_copy(update={"files": files, "retired": ()})


def _refuse_other_content(target: Path, revision: str, manifest: Manifest) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConflictError(str(target), "a file", "a new or empty folder", "Choose another --out")
    if (target / MANIFEST).is_file():
        same = manifests.load(target) == _without_retired(manifest)
    elif (target / _PULLING).is_file():
        same = (target / _PULLING).read_text() == json.dumps({"revision": revision})
    else:
        left = [entry.name for entry in target.iterdir() if entry.name != LOCK]
        same = not left or (left == [STAGING] and {p.name for p in (target / STAGING).iterdir()} <= {_DRAFT})
    if not same:
        raise ConflictError(
            str(target), "a folder with other content", "a new or empty folder, or this very version",
            "Choose another --out; nothing was written",
        )  # fmt: skip


def _missing(target: Path, manifest: Manifest) -> list[str]:
    """Files of `manifest` that `target` does not hold as they should be."""
    return [
        name for name, entry in manifest.files.items()
        if not inside(target, name).is_file() or sha256_of(inside(target, name)) != entry.sha256
    ]  # fmt: skip


def _fetch(snapshot: Path, published: Manifest, target: Path) -> None:
    """Copy what is missing or changed; the manifest goes last, so a cut pull never looks like a catalog."""
    staging = target / STAGING
    if staging.is_symlink():
        raise CatalogError(str(staging), "a symbolic link", "a plain folder")
    finished = (target / MANIFEST).is_file() and not (target / _PULLING).exists()
    if finished and not _missing(target, manifests.load(target)):
        return
    staging.mkdir(exist_ok=True)
    draft = staging / _DRAFT
    wanted = _without_retired(published)
    try:
        write_flushed(draft, json.dumps({"revision": snapshot.name}).encode())
        draft.replace(target / _PULLING)
        for name in _missing(target, wanted):
            origin = inside(snapshot, name)
            if not origin.is_file():
                raise CatalogError(f"{snapshot}/{name}", "missing from the pack", "the published file")
            _copy_flushed(origin, draft)
            if sha256_of(draft) != wanted.files[name].sha256:
                raise CatalogError(f"{snapshot}/{name}", "changed bytes", "the published sha256", "Publish it anew")
            path = inside(target, name)
            path.parent.mkdir(exist_ok=True)
            draft.replace(path)
        for problem in check_content(target, wanted):
            raise CatalogError(
                f"{target}/{problem.file}", problem.what, "a pack that passes `rhumb verify`", "Have it published anew"
            )
        for folder in {inside(target, name).parent for name in wanted.files}:
            flush_folder(folder)
        write_flushed(draft, manifests.dump(wanted))
        draft.replace(target / MANIFEST)
        (target / _PULLING).unlink()
        flush_folder(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _disk_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        clear = disk_error(where, error)
        if clear is None:
            raise
        raise clear from error
