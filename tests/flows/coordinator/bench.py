"""What the tests of the coordinator share: a recipe to be mined again and again, and what a catalog must hold then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flows.miner
from catalog.deposits import whole_deposits
from catalog.reader import Catalog
from catalog.store import LocalStore
from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.datasets.dataset import Dataset, load_dataset
from flows.miner import MiningReport
from flows.mining import mine
from flows.recipe import Recipe, load_recipe
from flows.runners.contract import Runner, run_here
from flows.work import Desk, Work
from pipeline.models.contract import Denoiser

IMAGES = 5


class Bench:
    """A recipe with its model and data open, to be mined again and again."""

    def __init__(self, folder: Path, denoiser: Denoiser) -> None:
        self.folder, self.denoiser = folder, denoiser
        self.recipe: Recipe = load_recipe(folder / "recipe.yaml")

    @property
    def data(self) -> Dataset:
        return load_dataset(self.recipe, self.denoiser.info.image_shape)

    def mine(self, out: Path | str, runner: Runner = run_here, **settings: Any) -> MiningReport:
        return mine(self.recipe, out, self.denoiser, self.data, runner, **settings)


def content(folder: Path) -> dict[str, bytes]:
    """Every direction's vector by id, and every image's and region's id."""
    with Catalog.open(folder) as catalog:
        found = {key.decode(): catalog.vector(key.decode()).astype(np.float16).tobytes() for key in catalog.ids()}
        return found | {key.decode(): b"" for table in ("images", "regions") for key in catalog.ids(table)}


def count(folder: Path) -> int:
    with Catalog.open(folder) as catalog:
        return catalog.images().num_rows


def leftovers(folder: Path) -> list[str]:
    """What a run that ended must not leave in a catalog; in a distant store there are no folders."""
    paths = (path for path in folder.rglob("*") if path.is_file() or folder.name != "store")
    names = [str(path.relative_to(folder)) for path in paths]
    return [name for name in names if name.startswith((".incoming", ".staging")) or name.endswith(".tmp")]


def check(folder: Path, expected: dict[str, bytes]) -> None:
    assert content(folder) == expected
    assert verify(folder).problems == ()
    assert leftovers(folder) == []


def deposited(folder: Path) -> int:
    """Images in deposits that no catalog holds."""
    incoming = folder / ".incoming"
    jobs = [path.name for path in incoming.iterdir()] if incoming.is_dir() else []
    held = LocalStore(folder)
    with Catalog.open(folder) as catalog:
        done = {key.decode() for key in catalog.ids("images")}
    return len({image for job in jobs for one in whole_deposits(held, job) for image in one.images} - done)


def mine_with(bench: Bench, out: Path, number: int, happen: Callable[[], None], **settings: Any) -> MiningReport:
    """Mine, and let something happen when the `number`-th image is being mined."""
    with pytest.MonkeyPatch.context() as patch:
        at_image(patch, number, happen)
        return bench.mine(out, **settings)


def at_image(patch: pytest.MonkeyPatch, number: int, happen: Callable[[], None]) -> None:
    real, left = flows.miner.mine_image, number

    def call(*asked: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            happen()
        return real(*asked)

    patch.setattr(flows.miner, "mine_image", call)


def raising(error: Exception) -> Callable[[], None]:
    def happen() -> None:
        raise error

    return happen


def all_before_the_first_beat(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
    """A runner that comes back only when everything is done."""
    for work in list(works):
        desk.do(work)
    yield


def all_at_once(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
    """A runner that never beats."""
    for work in list(works):
        desk.do(work)
    yield from ()


def leave_deposits(bench: Bench, out: Path) -> None:
    """A catalog without images whose deposits all wait, as when the coordinator is killed before its first commit."""

    def killed(self: CatalogWriter, *_: Any) -> Any:
        raise SystemExit("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CatalogWriter, "adopt", killed)
        with pytest.raises(SystemExit):
            bench.mine(out, all_before_the_first_beat)
    assert (count(out), deposited(out)) == (0, IMAGES)
