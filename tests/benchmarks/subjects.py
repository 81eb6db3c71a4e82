"""What a benchmark measures on: the world of `rhumb evaluate`, with a benchmark's clock, in a folder that goes away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.datasets.contract import SourceImage
from flows.evaluation.points import timestep_of
from flows.evaluation.world import World
from flows.miner import mining_settings
from flows.opening import model_place, open_model
from flows.paths import builtin_recipe
from flows.recipe import Recipe, load_recipe
from pipeline.errors import InputError
from pipeline.methods.contract import Subject
from pipeline.models.counting import CountingDenoiser
from tests.benchmarks.harness import Clock


class Bench(World):
    """Model, images and reader of a run; `settings` are the recipe's in the pipeline's terms, latents lie in `folder`.

    Raises:
        InputError: a recipe of pictures whose attributes nothing reads.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.clock = Clock()
        super().__init__(recipe, folder, CountingDenoiser(open_model(model_place(recipe)), self.clock))
        if self.reader is None:
            raise InputError("recipe", recipe.name, "built-in images, and a model of their size")
        self.settings = mining_settings(recipe, self.denoiser)

    def inverted(
        self, images: Sequence[SourceImage], share: float | None = None, steps: int | None = None
    ) -> list[Subject]:
        """Images with their x_t at a fraction of T, by so many DDIM steps; both are the recipe's where left out."""
        t = self.settings.timestep if share is None else timestep_of(self, share)
        with self.clock.stage("inversion"):
            return self.subjects(images, t, steps or self.recipe.method.inversion_steps)


@contextmanager
def open_bench(recipe: Recipe | None = None, regions: Sequence[str] | None = None) -> Iterator[Bench]:
    """A bench for a recipe, left out the demo's, perhaps with other regions; what it kept is removed in the end."""
    recipe = recipe or load_recipe(builtin_recipe())
    if regions is not None:
        recipe = recipe.model_copy(update={"regions": tuple(regions)})
    with TemporaryDirectory() as folder:
        yield Bench(recipe, Path(folder))
