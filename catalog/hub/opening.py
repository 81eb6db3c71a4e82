"""From the name of a pack to the hub it is in."""

from __future__ import annotations

from pathlib import Path

from catalog.hub.contract import Hub
from catalog.hub.names import BUILTIN, PackName
from catalog.hub.stores import StoreHub
from pipeline.errors import NotFoundError


def open_hub(name: PackName, *, private: bool | None = None) -> Hub:
    """The hub that a name speaks of. `private`: what a repository is that has yet to be made, where hubs know that.

    Raises InputError (a URL that cannot be one), NotFoundError (the hub of the project is not installed).
    """
    if name.hub is None:
        from catalog.hub.hugging_face import HuggingFaceHub

        return HuggingFaceHub(private=private)
    return StoreHub(builtin_hub() if name.hub == BUILTIN else name.hub)


def builtin_hub() -> Path:
    """The folder of the hub that comes with the project: that of a checkout's `data/`, else of the installed copy.

    Raises NotFoundError.
    """
    repository = Path(__file__).resolve().parents[2]
    for folder in (repository / "data", repository / "flows" / "_data"):
        if (folder / "builtin" / "hub").is_dir():
            return folder / "builtin" / "hub"
    found = f"nothing below {repository}"
    raise NotFoundError("built-in hub", found, "the folder builtin/hub", "Install the package again")
