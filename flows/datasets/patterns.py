"""The files of a data set that comes in several: one file, a folder, a pattern with wildcards, or a range."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from flows.datasets.listed import FIELD, by_key
from pipeline.errors import InputError

MAX_FILES = 1_000_000
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def find_files(path: Path, suffix: str) -> tuple[Path, dict[str, Path]]:
    """The folder of a data set and its files by name in it, in the order of their names.

    `path` is a file; a folder, of which the files that end in `suffix` are taken, those of its folders too; a pattern
    such as `shards/*.tar`; or a range such as `shards/train-{000..012}.tar`, of which every file has to be there.

    Raises:
        InputError: nothing there, or a gap in a range.
    """
    if path.is_file():
        return path.parent, {path.name: path}
    if not path.is_dir() and _RANGE.search(str(path)):
        files = _in_range(path)
        root = Path(os.path.commonpath([file.parent for file in files]))
    else:
        root, files = _matching(path, suffix)
    names = {file.relative_to(root).as_posix(): file for file in files}
    return root, {key: names[name] for key, name in by_key(names).items()}


def _matching(path: Path, suffix: str) -> tuple[Path, list[Path]]:
    expected = f"a {suffix} file, a folder of them, a pattern such as *{suffix}, or a range such as {{00..12}}{suffix}"
    root = path
    if path.is_dir():
        found: Iterator[Path] = path.rglob(f"*{suffix}")
    elif glob.has_magic(str(path)):
        while glob.has_magic(str(root)):
            root = root.parent
        found = root.glob(str(path.relative_to(root)))
    else:
        raise InputError(FIELD, f"nothing at {path}", expected)
    try:
        files = sorted(file for file in found if file.is_file())
    except (OSError, ValueError) as error:  # a folder that may not be read, a pattern that is none
        raise InputError(FIELD, f"{path} ({error})", expected) from error
    if not files:
        raise InputError(FIELD, f"no {suffix} file at {path}", expected)
    return root, files


def _in_range(path: Path) -> list[Path]:
    lengths = [max(int(last) - int(first) + 1, 0) for first, last in _RANGE.findall(str(path))]
    if not 0 < math.prod(lengths) <= MAX_FILES:
        raise InputError(FIELD, f"{path}, a range of {math.prod(lengths):,} files", f"1 to {MAX_FILES:,} files")
    files = [Path(name) for name in _expanded(str(path))]
    for file in files:
        if not file.is_file():
            raise InputError(
                FIELD, f"no {file.name} in {file.parent}", f"every file of {path.name}", "Get it, or narrow the range."
            )
    return files


def _expanded(path: str) -> Iterator[str]:
    match = _RANGE.search(path)
    if match is None:
        yield path
        return
    width = len(match[1]) if match[1].startswith("0") else 1
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _expanded(f"{path[: match.start()]}{number:0{width}d}{path[match.end() :]}")
