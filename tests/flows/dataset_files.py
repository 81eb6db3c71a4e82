"""What the tests of data sets write: small pictures, and files laid out in folders and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.datasets.config import DatasetConfig
from flows.datasets.contract import Source


def pixels(seed: int, size: tuple[int, int] = (12, 8)) -> np.ndarray:
    """A random picture (H, W, 3) of `size` (width, height)."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(seed: int, form: str = "PNG", size: tuple[int, int] = (12, 8)) -> bytes:
    """`pixels(seed, size)` as a file; WebP without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, size)).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def in_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def in_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def in_tar(path: Path, files: Mapping[str, bytes], compression: str = "gz") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


PACKERS = {"folder": in_folder, "zip": in_zip, "tar": in_tar}


def opened(config: type[DatasetConfig], kind: str, path: Path, **keys: Any) -> Source:
    """The source of a recipe that lies beside `path`."""
    recipe = config.model_validate({"kind": kind, "path": path.name, **keys})
    return recipe.open(lambda text: path.parent / text)
