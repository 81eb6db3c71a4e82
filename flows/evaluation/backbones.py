"""Where `rhumb evaluate` looks for perceptual backbones: `--backbones FOLDER`, else the folder $RHUMB_BACKBONES.

What lies there under which names says `pipeline/perception/backbones.py`. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.perception.backbones import Backbones

VARIABLE = "RHUMB_BACKBONES"


def backbones_folder(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder as it was given, else as the environment names it (empty is not at all), else None.

    Raises:
        InputError: it is no folder.
    """
    named = environment.get(VARIABLE, "")
    folder = given if given is not None else Path(named) if named else None
    if folder is None:
        return None
    folder = folder.expanduser()
    if not folder.is_dir():
        field = "--backbones" if given is not None else VARIABLE
        raise InputError(field, folder, "a folder with weights", "Create it, or leave the option out.")
    return folder


def look_for_backbones(given: Path | None = None) -> Backbones:
    """The backbones that are there, of those whose figures the tables show, and which of these figures are absent; see
    `found_backbones`.

    Raises:
        InputError: no such folder.
        ModelError: a file that is there and cannot be used.
    """
    folder = backbones_folder(given)
    from pipeline.perception.backbones import DISTRIBUTIONS, IDENTITY, LPIPS_ALEX, found_backbones  # seconds to import

    found = found_backbones(folder)
    shown = {LPIPS_ALEX: LPIPS_ALEX, IDENTITY: IDENTITY, DISTRIBUTIONS: "KID (Inception)"}
    absent = {title: found.absent[figure] for figure, title in shown.items() if figure in found.absent}
    return replace(found, vgg=None, absent=absent)


def for_pictures(found: Backbones, shape: Sequence[int]) -> Backbones:
    """Those that can judge pictures of a shape (C, H, W); figures of the others become absent."""
    from pipeline.perception.lpips import SMALLEST

    height, width = shape[-2:]
    if found.alex is None or min(height, width) >= SMALLEST:
        return found
    reason = f"pictures here are {height} x {width} pixels, and it needs at least {SMALLEST} x {SMALLEST}"
    return replace(found, alex=None, absent={found.alex.name: reason, **found.absent})
