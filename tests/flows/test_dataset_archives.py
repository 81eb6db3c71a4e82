"""Archives read in place: what was put in comes out, and nothing that an archive says is taken on trust."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.datasets import archives
from flows.datasets.archives import open_members
from flows.datasets.contract import BrokenImageError
from pipeline.errors import InputError
from tests.flows.dataset_files import in_folder, in_tar, in_zip

Maker = Callable[[Path, Mapping[str, bytes]], Path]
FILES = {"b/two.bin": b"2" * 1500, "a/one.bin": b"1" * 700, "top.txt": b"", "c/d/e/deep.bin": bytes(range(256)) * 9}


def tarred(compression: str) -> Maker:
    return lambda path, files: in_tar(path, files, compression)


MAKERS = {
    "folder": in_folder,
    "zip": in_zip,
    "tar": tarred(""),
    "gz": tarred("gz"),
    "bz2": tarred("bz2"),
    "xz": tarred("xz"),
}
ARCHIVES = {name: maker for name, maker in MAKERS.items() if name != "folder"}


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture(params=ARCHIVES)
def packer(request: pytest.FixtureRequest) -> Maker:
    return ARCHIVES[request.param]


def test_every_file_is_listed_and_reads_as_it_was_written_in_any_order(tmp_path: Path, maker: Maker) -> None:
    with open_members(maker(tmp_path / "data", FILES)) as members:
        names = members.names()
        assert sorted(names) == sorted(FILES)
        for name in [*names, *reversed(names)]:
            assert members.read(name) == FILES[name]
            assert members.size(name) == len(FILES[name])


def test_an_archive_is_told_by_its_content_whatever_its_suffix(tmp_path: Path, packer: Maker) -> None:
    with open_members(packer(tmp_path / "wrong.jpg", FILES)) as members:
        assert set(members.names()) == set(FILES)


@settings(max_examples=20, deadline=None)
@given(
    data=st.binary(max_size=2000),
    start=st.integers(0, 2100),
    length=st.integers(0, 2100),
    kind=st.sampled_from([*MAKERS]),
)
def test_a_part_of_a_file_is_that_slice_of_it_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: int, length: int, kind: str
) -> None:
    path = MAKERS[kind](tmp_path_factory.mktemp("part") / "data", {"before": b"x" * 600, "file": data, "after": b"y"})
    with open_members(path) as members:
        if start + length <= len(data) or length == 0:
            assert members.part("file", start, length) == data[start : start + length]
        else:
            with pytest.raises(BrokenImageError, match="ends after"):
                members.part("file", start, length)


@pytest.mark.parametrize(
    "name",
    ["../out.png", "/etc/passwd", "a/../../out.png", "..\\out.png", "C:\\out.png", "\\\\host\\share.png", "..", "C:x"],
)
def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path: Path, packer: Maker, name: str) -> None:
    with pytest.raises(InputError, match="leads out of the archive"):
        open_members(packer(tmp_path / "data", {"good.png": b"1", name: b"2"}))


def test_dots_within_a_name_are_no_way_out(tmp_path: Path, packer: Maker) -> None:
    with open_members(packer(tmp_path / "data", {"./a/b..png": b"1", "c...d": b"2"})) as members:
        assert members.names() == ["a/b..png", "c...d"]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("twin", ["a.png", "./a.png"])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, packer: Maker, twin: str) -> None:
    path = packer(tmp_path / "data", {"a.png": b"1", "./a.png": b"2"})
    if twin == "a.png" and packer is in_zip:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", b"1")
            archive.writestr("a.png", b"2")
    with pytest.raises(InputError, match="twice"):
        open_members(path)


def test_files_that_operating_systems_leave_behind_are_not_listed(tmp_path: Path, maker: Maker) -> None:
    litter = {"a.png": b"1", "__MACOSX/a.png": b"2", "._a.png": b"3", "x/.DS_Store": b"4", ".git/a.png": b"5"}
    with open_members(maker(tmp_path / "data", litter)) as members:
        assert members.names() == ["a.png"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.75])
def test_a_truncated_archive_is_told_when_it_is_opened(tmp_path: Path, packer: Maker, share: float) -> None:
    noise = {f"{i}.bin": os.urandom(3000) for i in range(5)}
    path = packer(tmp_path / "data", noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"dataset\.path: found"):
        open_members(path)


def test_a_tar_cut_between_two_members_is_told_by_its_missing_end(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "data.tar", {"a": b"1" * 512, "b": b"2" * 512}, "")
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(InputError, match="no end mark"):
        open_members(path)


def test_garbage_within_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = in_tar(tmp_path / "data.tar", {"a": b"1" * 512, "b": b"2" * 512}, "")
    data = bytearray(path.read_bytes())
    data[1024:1536] = b"\xa5" * 512
    path.write_bytes(data)
    with pytest.raises(InputError, match="no end mark"):
        open_members(path)


def test_a_damaged_member_of_a_zip_is_broken_and_the_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.bin", b"A" * 999)
        archive.writestr("b.bin", b"B" * 999)
    path.write_bytes(path.read_bytes().replace(b"A" * 999, b"A" * 500 + b"!" * 499))
    with open_members(path) as members:
        with pytest.raises(BrokenImageError, match="CRC"):
            members.read("a.bin")
        assert members.read("b.bin") == b"B" * 999


def test_a_zip_of_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = in_zip(tmp_path / "data.zip", {"a.bin": b"A"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be listed .*version"):
        open_members(path)


@pytest.mark.parametrize("said", [10, 2**31])
def test_a_zip_member_of_another_size_than_its_header_says_is_broken(tmp_path: Path, said: int) -> None:
    path = in_zip(tmp_path / "bomb.zip", {"bomb.bin": bytes(5_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace((5_000_000).to_bytes(4, "little"), said.to_bytes(4, "little")))
    with open_members(path) as members, pytest.raises(BrokenImageError):
        members.read("bomb.bin")


def test_a_member_beyond_the_limit_is_broken_before_anything_is_unpacked(tmp_path: Path, maker: Maker) -> None:
    with open_members(maker(tmp_path / "data", {"bomb.bin": bytes(100_000), "good.bin": b"1"})) as members:
        with pytest.raises(BrokenImageError, match="100,000 bytes, more than 99,999"):
            members.read("bomb.bin", limit=99_999)
        assert members.read("good.bin", limit=99_999) == b"1"


def test_a_compressed_tar_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_GROWTH", 1000)
    path = in_tar(tmp_path / "bomb.tar.gz", {"bomb.bin": bytes(5_000_000)})
    assert path.stat().st_size * archives.MAX_GROWTH < 5_000_000
    with pytest.raises(InputError, match="would unpack to more than"):
        open_members(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_header_of_gigabytes_is_never_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 2**33
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    with pytest.raises(InputError, match="header of"):
        open_members(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w:") as archive:
        info = tarfile.TarInfo("odd.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match=r"odd\.png.*(link|no plain file)"):
        open_members(path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("odd.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        open_members(path)


def test_an_encrypted_zip_is_told_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"secret")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        open_members(path)


def test_links_in_a_folder_are_followed_and_names_that_lead_out_of_it_are_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(b"elsewhere")
    in_folder(tmp_path / "more", {"a.png": b"1"})
    root = in_folder(tmp_path / "root", {"real.png": b"real"})
    (root / "out.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "train").symlink_to(tmp_path / "more")
    with open_members(root) as members:
        assert members.names() == ["gone.png", "out.png", "real.png", "train/a.png"]
        assert (members.read("out.png"), members.read("train/a.png")) == (b"elsewhere", b"1")
        with pytest.raises(BrokenImageError, match="is not there"):
            members.read("gone.png")
        for name in ("../elsewhere.png", str(tmp_path / "elsewhere.png"), "train/../real.png"):
            with pytest.raises(BrokenImageError, match="leads out"):
                members.read(name)


def test_folders_that_go_round_in_a_circle_are_refused(tmp_path: Path) -> None:
    root = in_folder(tmp_path / "root", {"inner/b.png": b"2"})
    (root / "inner" / "again").symlink_to(root)
    with pytest.raises(InputError, match="inner/again, a link to a folder that it lies in"):
        open_members(root)


def test_what_a_folder_lists_but_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    root = in_folder(tmp_path / "root", {"a.png": b"1"})
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to(root / "pipe.png")
    with open_members(root) as members:
        assert "pipe.png" not in members.names()
        with pytest.raises(BrokenImageError, match="no plain file"):
            members.read("link.png")


@pytest.mark.parametrize(("content", "found"), [(b"", "empty"), (b"no archive", "no archive"), (None, "nothing at")])
def test_what_is_no_archive_is_told_as_what_it_is(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "data.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=found):
        open_members(path)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from([*ARCHIVES]), at=st.integers(0, 10**6), byte=st.integers(0, 255), count=st.integers(1, 40))
def test_damage_anywhere_is_an_error_of_ours_or_no_harm(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: int, byte: int, count: int
) -> None:
    path = ARCHIVES[kind](tmp_path_factory.mktemp("damage") / "data", FILES)
    data = bytearray(path.read_bytes())
    start = at % len(data)
    data[start : start + count] = bytes([byte]) * min(count, len(data) - start)
    path.write_bytes(data)
    try:
        with open_members(path) as members:
            for name in members.names():
                members.read(name)
    except (InputError, BrokenImageError):
        pass
