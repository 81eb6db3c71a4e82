"""Where what came from hubs is kept, even on a machine whose cache can only be read."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from catalog.fs import cache_folder

READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def writable_cache() -> Path:
    """`cache_folder()`; where nothing may be written there, a temporary folder, which is deleted with this process.

    A cache that is wrong in another way, such as one below a file, is left for its user to stumble over and to name.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _temporary(os.getpid()) if error.errno in READ_ONLY else folder
    return folder if os.access(folder, os.W_OK | os.X_OK) else _temporary(os.getpid())


@cache
def _temporary(process: int) -> Path:
    """The temporary folder of a process: one that was forked does not share it, and does not delete it."""
    folder = Path(tempfile.mkdtemp(prefix="rhumb-cache-"))

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
