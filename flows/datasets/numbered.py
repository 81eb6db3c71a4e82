"""What data sets of numbered files have in common: which items there should be, and reading them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from PIL import Image

from flows.datasets.contract import BrokenImageError
from flows.datasets.pictures import open_image, shown_name
from pipeline.errors import InputError

SHOWN = 4


def numbers(folder: Path, pattern: re.Pattern[str]) -> set[int]:
    """The number, `pattern`'s first group, in every name in `folder` that `pattern` matches whole.

    Raises:
        InputError: a folder that may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            matches = [pattern.fullmatch(entry.name) for entry in entries]
    except OSError as error:
        raise InputError("dataset.path", f"{folder} ({error.strerror})", "a folder that may be read") from error
    return {int(match[1]) for match in matches if match}


def expected(images: Collection[int], annotated: Collection[int]) -> list[int]:
    """The numbers that should have an image, ascending: `images` that are there, `annotated` ones, and gaps.

    A gap between two images counts where more than half of the numbers are there. Where fewer are, somebody has chosen
    some of the images, and the others are not missed.
    """
    every = set(images) | set(annotated)
    if images:
        span = range(min(images), max(images) + 1)
        if 2 * len(images) > len(span):
            every.update(span)
    return sorted(every)


def folder_with(inner: str, path: Path, name: str, wrong: Callable[[str], InputError]) -> Path:
    """The folder that holds the folder `inner`: `path`, or `name` in it, as archives unpack.

    Raises:
        InputError: neither does; `wrong` makes it of what is there.
    """
    for folder in (path, path / name):
        if (folder / inner).is_dir():
            return folder
    raise wrong(glimpse(path))


def open_in(folder: Path, name: str) -> Image.Image:
    """The decoded picture, upright, of the file `name` in `folder`. Links that the user made there are followed.

    Raises:
        BrokenImageError: no such file, a link to nowhere, or not an image.
    """
    if not (folder / name).is_file():
        raise BrokenImageError(f"{name} is not there")
    return open_image(folder / name)


def glimpse(folder: Path) -> str:
    """What an error says is in a folder: its first few names."""
    if not folder.is_dir():
        return f"{folder}, which is not a folder"
    names = sorted(shown_name(entry.name) for entry in folder.iterdir())
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{folder}, which holds {', '.join(names[:SHOWN]) + more if names else 'nothing'}"


def lies_within(file: Path, folder: Path) -> bool:
    """Whether `file`, once links are followed, is `folder` or in it: for paths that come out of files."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that go round in a circle
        return False
