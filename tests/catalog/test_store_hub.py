"""Hubs in folders and at URLs: versions appear whole, are never overwritten, and survive whoever is killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog import local_store
from catalog.fs import CARD, MANIFEST
from catalog.hub.contract import Hub
from catalog.hub.names import Version
from catalog.hub.opening import builtin_hub, open_hub
from catalog.hub.stores import StoreHub, revision_of
from catalog.store import UrlStore
from catalog.transaction import Lock
from pipeline.errors import BusyError, CatalogError, ConflictError, InputError, NotFoundError
from tests.catalog import drafts
from tests.catalog.drafts import REPOSITORY, card, draft, quiet, shard

ROOT = Path(__file__).parents[2]
FIRST, SECOND = Version(1, 0, 0), Version(1, 1, 0)


def files(folder: Path) -> dict[str, bytes]:
    listed = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".probe"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in listed}


@pytest.fixture(params=["folder", "memory", "faulty"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    from tests.catalog import faulty  # noqa: F401  its filesystem is registered

    places = {"folder": f"{tmp_path}/hub", "memory": f"memory://{uuid.uuid4().hex}/hub"}
    yield places.get(request.param, f"faulty://{tmp_path}/hub")


def holds(hub: Hub, version: Version, numbers: tuple[int, ...], tmp_path: Path) -> None:
    """Assert that a version gives every file it should, whole and in pieces."""
    snapshot = hub.snapshot(REPOSITORY, version, hub.versions(REPOSITORY)[version])
    told = json.loads(snapshot.manifest())
    assert told["pack"]["version"] == str(version)
    for name, data in map(shard, numbers):
        target = tmp_path / uuid.uuid4().hex
        snapshot.fetch(name, drafts.entry(data), target)
        assert target.read_bytes() == data
        assert snapshot.read(name, drafts.entry(data), 100, 50) == data[100:150]
    snapshot.fetch(CARD, drafts.entry(card(str(version))), tmp_path / uuid.uuid4().hex)


def test_a_published_version_reads_back_and_the_next_shares_its_files(place: str, tmp_path: Path) -> None:
    hub = StoreHub(place)
    assert hub.versions(REPOSITORY) == {}
    told: list[tuple[str, int, int]] = []
    revision = hub.publish(draft(tmp_path, "1.0.0"), lambda *line: told.append(line))
    assert [line[1] for line in told] == sorted(line[1] for line in told)
    second = hub.publish(draft(tmp_path, "1.1.0", (1, 3), held=(1,), former=revision), quiet)
    assert hub.versions(REPOSITORY) == {FIRST: revision, SECOND: second}
    holds(hub, FIRST, (1, 2), tmp_path)
    holds(hub, SECOND, (1, 3), tmp_path)
    snapshot = hub.snapshot(REPOSITORY, SECOND, second)
    missing = drafts.entry(shard(2)[1]).model_copy(update={"sha256": "0" * 64})
    with pytest.raises(NotFoundError, match="missing from the pack"):
        snapshot.read(shard(2)[0], missing, 0, 4)
    with pytest.raises(CatalogError, match="expected 50 bytes"):
        snapshot.read(shard(1)[0], drafts.entry(shard(1)[1]), 2990, 50)
    with pytest.raises(CatalogError, match="file name"):
        snapshot.fetch("../../secret", missing, tmp_path / "out")


def test_a_version_is_never_overwritten_nor_made_after_another_than_it_says(place: str, tmp_path: Path) -> None:
    hub = StoreHub(place)
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    with pytest.raises(ConflictError, match="never change"):
        hub.publish(draft(tmp_path / "other", "1.0.0", (4,)), quiet)
    hub.publish(draft(tmp_path, "1.2.0", (1, 3), held=(1,), former=revision), quiet)
    with pytest.raises(ConflictError, match=r"1\.2\.0, which was published since"):
        hub.publish(draft(tmp_path, "1.3.0", (1, 5), held=(1,), former=revision), quiet)
    with pytest.raises(ConflictError, match="no longer the version it was made after"):
        hub.publish(draft(tmp_path, "1.3.0", (1, 5), held=(1,), former="0" * 40), quiet)
    hub.publish(draft(tmp_path, "1.1.0", (1, 6), held=(1,), former=revision), quiet)
    assert [str(version) for version in sorted(hub.versions(REPOSITORY))] == ["1.0.0", "1.1.0", "1.2.0"]
    assert hub.versions(REPOSITORY)[FIRST] == revision


def test_a_snapshot_in_a_folder_is_read_only_and_takes_no_space_twice(tmp_path: Path) -> None:
    hub = StoreHub(tmp_path / "hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    root = tmp_path / "hub/datasets" / REPOSITORY
    snapshot = root / "snapshots" / revision
    manifest = snapshot.joinpath(MANIFEST).read_bytes()
    assert files(snapshot) == {**dict(map(shard, (1, 2))), CARD: card("1.0.0"), MANIFEST: manifest}
    for name, data in map(shard, (1, 2)):
        assert (snapshot / name).samefile(root / "blobs" / drafts.entry(data).sha256)
    assert {stat.S_IMODE(path.stat().st_mode) for path in snapshot.rglob("*") if path.is_file()} == {0o444}


def test_a_distant_snapshot_holds_no_shard_twice(tmp_path: Path) -> None:
    hub = StoreHub(f"memory://{uuid.uuid4().hex}/hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    names = hub._store.list(f"datasets/{REPOSITORY}/snapshots/{revision}")
    assert [name.rsplit("/", 1)[-1] for name in names] == [CARD, MANIFEST]


def test_a_folder_without_hard_links_holds_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("os.link", refuse)
    hub = StoreHub(tmp_path / "hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    holds(hub, FIRST, (1, 2), tmp_path)
    path = tmp_path / "hub/datasets" / REPOSITORY / "snapshots" / revision / shard(1)[0]
    assert path.stat().st_nlink == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_of_two_who_publish_one_version_at_once_one_is_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other comes between the first one's last look and its tag, as from another machine on a shared disk."""
    hub, rival = StoreHub(place), draft(tmp_path / "rival", "1.0.0", (7,))
    real = StoreHub._name

    def overtaken(self: StoreHub, mine: Any, revision: str) -> None:
        real(self, mine, revision)
        if mine is not rival:
            with monkeypatch.context() as patch:
                patch.setattr("catalog.hub.stores.Lock", lambda folder: type("Held", (), {"free": lambda self: None})())
                StoreHub(place).publish(rival, quiet)

    monkeypatch.setattr(StoreHub, "_name", overtaken)
    with pytest.raises(ConflictError, match="never change"):
        hub.publish(draft(tmp_path, "1.0.0"), quiet)
    assert hub.versions(REPOSITORY) == {FIRST: revision_of(rival.manifest)}
    holds(hub, FIRST, (7,), tmp_path)


def test_a_second_publisher_in_a_folder_waits_its_turn(tmp_path: Path) -> None:
    root = tmp_path / "hub/datasets" / REPOSITORY
    root.mkdir(parents=True)
    lock = Lock(root)
    with pytest.raises(BusyError, match="another writer"):
        StoreHub(tmp_path / "hub").publish(draft(tmp_path, "1.0.0"), quiet)
    lock.free()
    StoreHub(tmp_path / "hub").publish(draft(tmp_path, "1.0.0"), quiet)


def test_a_file_that_changed_since_the_draft_is_not_published(place: str, tmp_path: Path) -> None:
    mine = draft(tmp_path, "1.0.0")
    name = shard(2)[0]
    mine.places[name].write_bytes(b"x" * 3000)
    with pytest.raises(CatalogError, match=f"{Path(name).name}.*changed"):
        StoreHub(place).publish(mine, quiet)
    assert StoreHub(place).versions(REPOSITORY) == {}


def test_a_damaged_blob_is_put_again_or_told(tmp_path: Path) -> None:
    hub = StoreHub(tmp_path / "hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    root = tmp_path / "hub/datasets" / REPOSITORY
    blob = root / "blobs" / drafts.entry(shard(1)[1]).sha256
    data = shard(1)[1][:-1] + b"?"
    blob.unlink()
    blob.write_bytes(data)  # the snapshot's name is of the undamaged file still
    hub.publish(draft(tmp_path, "1.1.0", (1, 3), held=(1,), former=revision), quiet)
    holds(hub, SECOND, (1, 3), tmp_path)
    blob.chmod(0o644)
    blob.write_bytes(data)  # both names of it
    (root / "snapshots" / hub.versions(REPOSITORY)[SECOND] / shard(1)[0]).chmod(0o644)
    (root / "snapshots" / hub.versions(REPOSITORY)[SECOND] / shard(1)[0]).write_bytes(data)
    with pytest.raises(CatalogError, match="missing or damaged"):
        hub.publish(
            draft(tmp_path, "1.2.0", (1, 4), held=(1,), former=hub.versions(REPOSITORY)[SECOND]), quiet
        )  # fmt: skip
    hub.publish(draft(tmp_path, "1.2.0", (1, 4)), quiet)
    holds(hub, Version(1, 2, 0), (1, 4), tmp_path)


@pytest.mark.parametrize("when", ["keep", "link"])
def test_a_full_disk_publishes_nothing_and_a_rerun_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*((local_store, "_copy_flushed", full) if when == "keep" else (os, "link", full)))
        with pytest.raises(CatalogError, match="no space left"):
            StoreHub(tmp_path / "hub").publish(draft(tmp_path, "1.0.0"), quiet)
    assert StoreHub(tmp_path / "hub").versions(REPOSITORY) == {}
    StoreHub(tmp_path / "hub").publish(draft(tmp_path, "1.0.0"), quiet)
    holds(StoreHub(tmp_path / "hub"), FIRST, (1, 2), tmp_path)


def test_links_in_a_hub_are_refused(tmp_path: Path) -> None:
    hub = StoreHub(tmp_path / "hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    root = tmp_path / "hub/datasets" / REPOSITORY
    secret = tmp_path / "secret"
    secret.write_bytes(shard(1)[1])
    snapshot = hub.snapshot(REPOSITORY, FIRST, revision)
    for path in (root / "snapshots" / revision / shard(1)[0], root / "snapshots" / revision / MANIFEST):
        path.unlink()
        path.symlink_to(secret)
    with pytest.raises(CatalogError, match="symbolic link"):
        snapshot.fetch(shard(1)[0], drafts.entry(shard(1)[1]), tmp_path / "out")
    with pytest.raises(CatalogError, match="symbolic link"):
        snapshot.manifest()
    (root / "refs/tags/v2.0.0").symlink_to(secret)
    with pytest.raises(CatalogError, match="symbolic link"):
        hub.versions(REPOSITORY)
    (root / "refs/tags/v2.0.0").unlink()
    shutil.move(root, tmp_path / "elsewhere")
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="symbolic link"):
        hub.publish(draft(tmp_path, "1.1.0", (9,)), quiet)
    assert not (tmp_path / "elsewhere/blobs" / drafts.entry(shard(9)[1]).sha256).exists()


def test_a_tag_or_manifest_that_was_changed_is_refused(place: str, tmp_path: Path) -> None:
    hub = StoreHub(place)
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    hub._store.replace(f"datasets/{REPOSITORY}/snapshots/{revision}/{MANIFEST}", b"{}")
    with pytest.raises(CatalogError, match=f"revision {revision}"):
        hub.snapshot(REPOSITORY, FIRST, revision).manifest()
    hub._store.replace(f"datasets/{REPOSITORY}/refs/tags/v1.0.0", b"../../../../secret")
    with pytest.raises(CatalogError, match="the name of a snapshot"):
        hub.snapshot(REPOSITORY, FIRST, hub.versions(REPOSITORY)[FIRST])


def test_tags_that_name_no_version_are_left_out(place: str, tmp_path: Path) -> None:
    hub = StoreHub(place)
    hub.publish(draft(tmp_path, "1.0.0"), quiet)
    for name in ("latest", "1.0.1", "v1.0", "v1.0.0-rc1"):
        hub._store.replace(f"datasets/{REPOSITORY}/refs/tags/{name}", b"0" * 40)
    assert list(hub.versions(REPOSITORY)) == [FIRST]


def test_a_search_reads_the_newest_cards_and_trusts_none(place: str, tmp_path: Path) -> None:
    hub = StoreHub(place)
    revision = hub.publish(draft(tmp_path, "1.0.0", page=card("1.0.0", "Frowns")), quiet)
    hub.publish(draft(tmp_path, "1.1.0", (1, 3), held=(1,), former=revision), quiet)
    (found,) = hub.find(["SMILE", "celeba", "org/"])
    assert (found.repository, found.title, found.versions) == (REPOSITORY, "Smiles", (FIRST, SECOND))
    assert found.tags == ("rhumb", "celeba", "mouth")
    assert list(hub.find(["frown"])) == []
    assert list(hub.find(["smile", "hair"])) == []
    assert len(list(hub.find([]))) == 1


@pytest.mark.parametrize(
    "page",
    [
        b"---\npretty_name: !!python/object/apply:os.system {exit: 1}\n---\n",
        b"---\npretty_name: [[[[\n---\n",
        b"---\n" + b"[" * 200_000 + b"\n---\n",
        b"---\na: &a [x, x]\nb: &b [*a, *a]\npretty_name: {deep: *b}\ntags: {x: 1}\n---\n",
        b"---\n- a list\n---\n",
        b"---\n? [pretty_name]\n: x\n? {tags: [x]}\n: [y]\n---\n",
        b"---\n? a: &x [" + b"*x, " * 50_000 + b"]\n---\n",
        b"\xff\xfe---\n---\n",
        b"---\npretty_name: no end\n",
        b"x" * 3_000_000,
        b"<script>alert(1)</script>",
    ],
)  # fmt: skip
def test_a_hostile_card_is_found_by_its_repository_alone(tmp_path: Path, page: bytes) -> None:
    hub = StoreHub(tmp_path / "hub")
    hub.publish(draft(tmp_path, "1.0.0", page=page), quiet)
    (found,) = hub.find(["pack"])
    assert (found.title, found.tags) == ("", ())


def test_what_a_terminal_would_obey_is_taken_out_of_a_title(tmp_path: Path) -> None:
    hub = StoreHub(tmp_path / "hub")
    page = card("1.0.0", "Smiles\x1b[2J\u202e\r\nand more" + "!" * 999, ("a\x07b", "c" * 999))
    hub.publish(draft(tmp_path, "1.0.0", page=page), quiet)
    (found,) = hub.find([])
    assert found.title.startswith("Smiles[2J and more!")
    assert len(found.title) == len(found.tags[1]) == 200
    assert found.tags[0] == "ab"


def test_a_stray_folder_or_a_broken_repository_does_not_hide_the_others(tmp_path: Path) -> None:
    hub = StoreHub(tmp_path / "hub")
    hub.publish(draft(tmp_path, "1.0.0"), quiet)
    for stray in ("datasets/org/with spaces", "datasets/--", "datasets/org/empty", "datasets/org/broken/refs/tags"):
        (tmp_path / "hub" / stray).mkdir(parents=True)
    (tmp_path / "hub/datasets/org/broken/refs/tags/v1.0.0").symlink_to(tmp_path / "nowhere")
    assert [found.repository for found in hub.find([])] == [REPOSITORY]


def test_a_pack_that_the_former_layout_left_is_read_and_completed(tmp_path: Path) -> None:
    """Snapshots were built under a hidden name, as they are in hubs that lie about; the layout is the same."""
    hub = StoreHub(tmp_path / "hub")
    revision = hub.publish(draft(tmp_path, "1.0.0"), quiet)
    root = tmp_path / "hub/datasets" / REPOSITORY
    shutil.copytree(root / "snapshots" / revision, root / ".staging-0123456789abcdef")
    (root / "blobs/.0123456789abcdef.tmp").write_bytes(b"half")
    shutil.rmtree(root / "blobs")  # as in the hub that comes with the project
    holds(hub, FIRST, (1, 2), tmp_path)
    hub.publish(draft(tmp_path, "1.1.0", (1, 3), held=(1,), former=revision), quiet)
    holds(hub, SECOND, (1, 3), tmp_path)
    assert not list(root.rglob(".[!l]*"))


def killed_everywhere(job: str, start: Path, tmp_path: Path) -> list[Path]:
    """Folders in which `job` was killed before each of its changes to the disk; the last one finished."""
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "tests.catalog.hub_crash", job, str(start), str(work)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    endings = json.loads(done.stdout or "[]")
    assert endings[-1:] == [0], done.stderr
    assert len(endings) > 8
    return sorted(work.iterdir(), key=lambda folder: int(folder.name))


@pytest.mark.parametrize("job", ["publish_local", "publish_distant"])
def test_a_killed_publication_is_invisible_and_a_rerun_finishes_it(tmp_path: Path, job: str) -> None:
    from tests.catalog.hub_crash import hub_in, next_draft

    start = tmp_path / "start"
    start.mkdir()
    revision = hub_in(start, job).publish(draft(start, "1.0.0"), quiet)
    seen = set()
    for folder in killed_everywhere(job, start, tmp_path):
        hub = hub_in(folder, job)
        versions = hub.versions(REPOSITORY)
        assert versions[FIRST] == revision
        holds(hub, FIRST, (1, 2), tmp_path)
        seen.add(SECOND in versions)
        if SECOND not in versions:
            hub.publish(next_draft(folder, revision), quiet)
            assert not list((folder / "hub").rglob("*.tmp"))
        holds(hub, SECOND, (1, 3), tmp_path)
    assert seen == {True, False}


def test_a_hub_is_opened_by_the_name_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catalog.hub import opening
    from catalog.hub.names import PackName

    hub = open_hub(PackName.parse(f"{tmp_path}/hub/org/pack"))
    assert isinstance(hub, StoreHub)
    assert hub.place == f"{tmp_path}/hub"
    assert isinstance(open_hub(PackName.parse("memory://bucket/hub/org/pack"))._store, UrlStore)  # type: ignore[attr-defined]
    monkeypatch.setattr(opening, "__file__", str(tmp_path / "catalog/hub/opening.py"))
    with pytest.raises(NotFoundError, match="built-in hub"):
        builtin_hub()
    (tmp_path / "flows/_data/builtin/hub").mkdir(parents=True)
    assert open_hub(PackName.parse("builtin/faces64")).place == str(tmp_path / "flows/_data/builtin/hub")
    with pytest.raises(InputError, match="credentials"):
        open_hub(PackName("s3://key:secret@bucket/hub", "org", "pack"))


def test_a_hub_in_s3_publishes_and_reads_back_by_pieces(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from tests.catalog.s3 import BUCKET, SECRET, serving

    with serving():
        place = f"s3://{BUCKET}/hub"
        revision = StoreHub(place).publish(draft(tmp_path, "1.0.0"), quiet)
        StoreHub(place).publish(draft(tmp_path, "1.1.0", (1, 3), held=(1,), former=revision), quiet)
        holds(StoreHub(place), SECOND, (1, 3), tmp_path)
        with pytest.raises(ConflictError, match="never change"):
            StoreHub(place).publish(draft(tmp_path / "other", "1.1.0", (4,)), quiet)
        (found,) = StoreHub(place).find(["mouth"])
        assert found.versions == (FIRST, SECOND)
        with pytest.raises(InputError, match="no such bucket") as caught:
            StoreHub("s3://nowhere/hub").publish(draft(tmp_path, "1.0.0"), quiet)
        assert SECRET not in str(caught.value)
