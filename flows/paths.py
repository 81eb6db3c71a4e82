"""Where the data that travels with the package lies: in an installed copy, or in the repository."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import NotFoundError


def data_folder() -> Path:
    """The folder that holds `recipes/` and `builtin/`.

    In a checkout (and an editable installation) the repository's `data/`; else the copy inside the wheel.

    Raises:
        NotFoundError: neither is there: a broken installation.
    """
    package = Path(__file__).resolve().parent
    repository = package.parent
    candidates = (repository / "data", package / "_data") if _is_checkout(repository) else (package / "_data",)
    for folder in candidates:
        if (folder / "recipes").is_dir():
            return folder
    raise NotFoundError("built-in data", f"nothing in {package}", "the folder _data", "Install the package again.")


def builtin_folder() -> Path:
    """The folder of the built-in model (`denoiser/`), attribute reader (`reader/`) and images (`faces64/`, ...)."""
    return data_folder() / "builtin"


def training_folder() -> Path:
    """Where trainings put their results unless told otherwise: the repository's `data/builtin` in a checkout.

    In an installed copy a folder `builtin` in the working directory: what was installed is not to be overwritten.
    """
    return builtin_folder() if _is_checkout(Path(__file__).resolve().parent.parent) else Path("builtin")


def builtin_recipe(name: str = "faces64-demo") -> Path:
    """The YAML file of a recipe that travels with the package.

    Raises:
        NotFoundError: no recipe of that name.
    """
    folder = data_folder() / "recipes"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise NotFoundError("recipe", name, f"one of {', '.join(names)}")
    return folder / f"{name}.yaml"


def _is_checkout(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "data").is_dir()
