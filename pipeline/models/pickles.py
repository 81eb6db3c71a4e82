"""Weights in torch's pickles: read without running what they hold; what cannot be read is called what it is."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ModelError
from pipeline.models.files import refuse_stand_in

_NAMED = re.compile(r"(?:GLOBAL|global:?|class) [\s`'\"]*([\w.]+\.[\w.]+)")
_HARMLESS = ("torch.", "collections.")  # what the pickles of tensors name
_LOOKED_AT = 2**24  # bytes of a pickle that are searched for names
_DAMAGE = (
    RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError, OverflowError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
"""What torch's reader and `pickletools` raise at bytes that are no checkpoint."""


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote; large files stay on disk until used.

    Only tensors and plain containers are built (`weights_only`); a file that names code is refused, and none of it is
    run.

    Raises:
        ModelError: a Git-LFS pointer, a web page, a pickle that names code or that torch did not write, a compressed
            archive, or a damaged file.
    """
    refuse_stand_in(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if not (zipped and _compressed(path)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of the protocol of a file that it then refuses or reads
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise _refusal(path, _NAMED.search(str(error))) from error
    except _DAMAGE as error:
        raise (_refusal(path) if "magic number" in str(error) else _damaged(path)) from error
    raise ModelError(str(path), "a compressed archive", "a checkpoint as torch saves it, uncompressed")


def _compressed(path: Path) -> bool:
    """Whether anything in the archive would have to be unpacked; torch never packs, and maps what lies there."""
    with zipfile.ZipFile(path) as archive:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())


def _refusal(path: Path, named: re.Match[str] | None = None) -> ModelError:
    """Why torch's reader of plain data refused a file: code, or a pickle of another making; damage otherwise."""
    content = _pickled(path)
    name = named[1] if named else next((name for name in _names(content) if not name.startswith(_HARMLESS)), None)
    if name is not None:
        return ModelError(
            str(path), f"a pickle that asks for code ({name}); none of it was run",
            "tensors, numbers, text and plain containers only",
            "Ask for a state dict alone, or save one in an environment that you trust.",
        )  # fmt: skip
    if content[:1] != pickle.PROTO:
        return _damaged(path)
    return ModelError(
        str(path), f"a plain Python pickle (protocol {content[1:2].hex()})", "a checkpoint saved by torch",
        "Save its tensors with torch.save and its default protocol.",
    )  # fmt: skip


def _pickled(path: Path) -> bytes:
    """The start of the pickle: of the file itself, or of the one in torch's archive."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(inner) as stream:
                    return stream.read(_LOOKED_AT)
        with path.open("rb") as stream:
            return stream.read(_LOOKED_AT)
    except (*_DAMAGE, OSError, StopIteration):
        return b""


def _names(content: bytes) -> Iterator[str]:
    """Names of code in a pickle, as far as it can be read; nothing is imported or built."""
    texts, stream = ["", ""], io.BytesIO(content)
    try:
        while stream.tell() < len(content):  # torch's older files are several pickles in a row
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(texts)
                elif isinstance(argument, str):
                    texts = [texts[1], argument]
    except _DAMAGE:
        return


def _damaged(path: Path) -> ModelError:
    return ModelError(str(path), "a damaged or unknown file", "a checkpoint saved by torch", "Download it again.")
