"""LSUN (Yu et al. 2015): one lmdb of encoded pictures per category and split, or a folder of exported pictures.

The lmdb is a folder such as church_outdoor_train_lmdb/ with data.mdb (lock.mdb is not needed and never written): keys
are 40 hexadecimal digits in ASCII, values WebP or JPEG files. Exported pictures lie flat or in one sub-folder for each
of the first digits of their key, KEY.webp or KEY.jpg.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from flows.datasets.archives import MAX_MEMBER, open_members
from flows.datasets.config import DatasetConfig, Resolve, quiet
from flows.datasets.contract import BrokenImageError, Item, Source
from flows.datasets.listed import FIELD, ListedSource, by_key, no_masks, pictures, wrong_layout
from flows.datasets.pictures import MAX_NAME, image_from_bytes, shown_name
from pipeline.errors import InputError

if TYPE_CHECKING:
    import lmdb

LAYOUT = "an LSUN lmdb, a folder with data.mdb, or a folder of exported pictures, KEY.webp or KEY.jpg"
_SCENES = ("bedroom", "bridge", "church_outdoor", "classroom", "conference_room", "dining_room", "kitchen", "tower")
_ROOMS = ("living_room", "restaurant", "dining_table", "chair", "sofa", "bottle", "potted_plant", "tv-monitor")
_VEHICLES = ("airplane", "bicycle", "boat", "bus", "car", "motorbike", "train")
_LIVING = ("bird", "cat", "cow", "dog", "horse", "person", "sheep")
CATEGORIES = frozenset(_SCENES).union(_ROOMS, _VEHICLES, _LIVING)
"""The ten scenes and twenty objects."""
CITATION = """\
@article{yu15lsun,
  title={LSUN: Construction of a Large-scale Image Dataset using Deep Learning with Humans in the Loop},
  author={Yu, Fisher and Zhang, Yinda and Song, Shuran and Seff, Ari and Xiao, Jianxiong},
  journal={arXiv preprint arXiv:1506.03365},
  year={2015}
}"""
_ORIGINAL = re.compile(r"(?:(?P<category>.+)_)?(?P<split>train|val|test)")
_BATCH = 4096
_MAGIC = struct.pack("=I", 0xBEEFC0DE)


class LsunDataset(DatasetConfig):
    """`path`: the lmdb's folder, or the pictures'. `verify` checks every page of the lmdb before it is used (about
    twenty seconds for a million pictures, and the time to read their first pages): lmdb trusts what it reads, and a
    database made to do harm, or damaged within, may end the program. Truncation is found without it.
    """

    kind: Literal["lsun"]
    path: str = Field(min_length=1)
    verify: bool = quiet(False)

    def open(self, resolve: Resolve) -> Source:
        path = resolve(self.path)
        if path.name == "data.mdb" and path.is_file():
            path = path.parent
        if (path / "data.mdb").exists() or (path / "lock.mdb").exists():
            return LsunLmdb(self, path)
        return LsunPictures(self, path)


def original_name(name: str) -> tuple[str | None, str]:
    """Category and split that a folder's name tells, if it is one of the original names: `church_outdoor_train_lmdb`.

    (None, "all") where it is not; the scenes' test set, `test_lmdb`, has no category, the objects have no split, and
    their `train` cannot be told from a split.
    """
    stem = name.split(".")[0]
    short = stem.removesuffix("_lmdb")
    if short in CATEGORIES and short != "train":
        return short, "all"
    match = _ORIGINAL.fullmatch(short)
    if match is None or (match["category"] not in CATEGORIES and short == stem):
        return None, "all"
    return match["category"], match["split"]


def _name_and_split(config: LsunDataset, path: Path) -> tuple[str, str]:
    category, split = original_name(path.resolve().name)
    return config.name or ("lsun" if category is None else f"lsun-{category}"), split


class LsunPictures(ListedSource):
    """Exported pictures, in a folder or an archive. Keys are their names in it."""

    redistributable = False  # its authors state no licence; the pictures were found by web search
    citation = CITATION

    def __init__(self, config: LsunDataset, path: Path) -> None:
        members = open_members(path)
        names = members.names()
        inner = [name for name in names if PurePosixPath(name).name == "data.mdb"]
        if inner and not path.is_dir():
            raise InputError(
                FIELD,
                f"{path}, an archive of an lmdb",
                "the lmdb's folder",
                "Unpack it: an lmdb is read where it lies.",
            )
        if inner:
            folder = shown_name(str(PurePosixPath(inner[0]).parent))
            raise InputError(FIELD, f"{path}, around {len(inner)} lmdb", "one lmdb's folder", f"Name {path}/{folder}.")
        files = by_key(pictures(names))
        if not files:
            packed = any(name.endswith("_lmdb.zip") for name in names)
            wrong_layout(path, names, LAYOUT, "Unpack the zip: an lmdb is read where it lies." if packed else "")
        name, self.split = _name_and_split(config, path)
        super().__init__(config, name, members, files)


class LsunLmdb(Source):
    """Pictures of an lmdb, by its keys. Nothing is listed in advance and nothing stays open: a database is mapped for
    one picture, or 4,096 keys, at a time (about 0.1 ms), because a process may not open one twice.
    """

    redistributable = False  # as above
    citation = CITATION

    def __init__(self, config: LsunDataset, path: Path) -> None:
        self._path = path
        self._check_file()
        if config.verify:
            self._verify()
        with self._begin() as (environment, _):
            self._count = environment.stat()["entries"]
        if not self._count:
            raise InputError(FIELD, f"{path}, an lmdb without a single entry", "an lmdb of pictures", "Get it again.")
        self._keys_after(None)
        self.name, self.split = _name_and_split(config, path)
        self.licence = config.licence

    def keys(self) -> Iterator[str]:
        last: bytes | None = None
        while batch := self._keys_after(last):
            for key in batch:
                yield key.decode("ascii")
            last = batch[-1]

    def __len__(self) -> int:
        return self._count

    def read(self, key: str, parts: Collection[str]) -> Item:
        import lmdb

        with self._begin() as (_, transaction):
            try:
                value = transaction.get(key.encode("ascii", "replace"))
            except lmdb.Error as error:
                raise BrokenImageError(f"the database cannot give it ({error})") from error
            if value is None:
                raise BrokenImageError(f"the database has no {key}")
            if len(value) > MAX_MEMBER:
                raise BrokenImageError(f"it has {len(value):,} bytes, more than {MAX_MEMBER:,}")
            data = bytes(value)
        return Item(image_from_bytes(data, key), missing=no_masks(self.name, parts))

    def _keys_after(self, last: bytes | None) -> list[bytes]:
        """The next keys. Raises InputError: one is not ASCII text, so the database is not LSUN's."""
        import lmdb

        try:
            with self._begin() as (_, transaction):
                cursor = transaction.cursor()
                if not (cursor.first() if last is None else cursor.set_range(last)):
                    return []
                batch = [bytes(key) for key in islice(cursor.iternext(values=False), _BATCH + 1)]
        except lmdb.Error as error:
            raise InputError(
                FIELD, f"{self._path} ({error})", "a whole lmdb", "It is damaged: get it again."
            ) from error
        batch = [key for key in batch if key != last]
        for key in batch:
            if not (key.isascii() and key.decode("ascii").isprintable() and len(key) <= MAX_NAME):
                raise InputError(FIELD, f"the key {key[:40]!r} in {self._path}", "LSUN's keys, hexadecimal digits")
        return batch

    @contextmanager
    def _begin(self) -> Iterator[tuple[lmdb.Environment, lmdb.Transaction[memoryview]]]:
        """The database and a reading transaction. Raises InputError: it cannot be opened, or is shorter than it says:
        what lies beyond a file's end would end the process when it is read."""
        import lmdb

        try:
            environment = lmdb.open(str(self._path), readonly=True, lock=False, readahead=False, create=False)
        except lmdb.Error as error:
            raise InputError(FIELD, f"{self._path} ({error})", "an lmdb that can be read") from error
        try:
            pages, page = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
            there = self._file.stat().st_size
            if there < pages * page:
                raise InputError(
                    FIELD,
                    f"{self._file} of {there:,} bytes",
                    f"the {pages * page:,} that it says it has",
                    "It is truncated: get it again.",
                )
            with environment.begin(buffers=True) as transaction:
                yield environment, transaction
        finally:
            environment.close()

    @property
    def _file(self) -> Path:
        return self._path / "data.mdb"

    def _check_file(self) -> None:
        """Raise InputError unless the file begins as an lmdb of this machine does: lmdb itself would map anything."""
        if not self._file.is_file():
            raise InputError(FIELD, f"{self._path}, an lmdb without data.mdb", LAYOUT, "Get data.mdb: it is the data.")
        with self._file.open("rb") as file:
            start = file.read(64)
        size = self._file.stat().st_size
        header = next((at for at in (16, 24) if start[at : at + 4] == _MAGIC), None)
        if header is None or len(start) < 64:
            found = "an empty data.mdb" if not size else "a data.mdb that is no lmdb"
            raise InputError(FIELD, f"{found} in {self._path}", "a database written by lmdb", "Get it again.")
        (page,) = struct.unpack_from("=I", start, header + 24)
        if not 256 <= page <= 65536 or size < 2 * page:
            raise InputError(
                FIELD,
                f"{self._file} of {size:,} bytes",
                "at least its two first pages",
                "It is truncated: get it again.",
            )

    def _verify(self) -> None:
        from lmdb import verify

        try:
            problems = verify.verify(str(self._path))
        except verify.VerifyError as error:
            problems = [str(error)]
        if problems:
            more = f" and {len(problems) - 1:,} more problems" if len(problems) > 1 else ""
            raise InputError(FIELD, f"{self._file}: {problems[0]}{more}", "an undamaged lmdb", "Get it again.")
