"""Whole files or none: what a killed command leaves is the old file or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from catalog.fs import disk_error, write_flushed


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it, and put it in place. A full disk is one clear error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_flushed(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(path, error) or error from error
    finally:
        temporary.unlink(missing_ok=True)
