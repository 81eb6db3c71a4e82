"""What a recipe will cost: network passes, time on a named GPU, bytes in the catalog. Nothing is run for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from catalog.search.plan import DIMENSION
from catalog.search.spec import FLAT_BYTES
from flows.known_models import Outline
from flows.miner import EFFECT_SIZE, mining_settings
from flows.recipe import Recipe
from flows.regions import GeneratedRegions
from pipeline.costs import Amount, Work, direction_counts, mining_work, total
from pipeline.models.contract import Denoiser, DenoiserInfo
from pipeline.regions.segments import SegmentSettings

PER = 1000  # images that totals are told for where nobody says how many there are
ROW = 700  # bytes of a direction besides vectors and pictures
CODE_ROW = 20  # bytes of a direction in an index besides its code
# Shares of their raw size that lists of floats (zstd) and pictures (PNG) keep: least, likely, most.
FLOATS, PICTURES = (0.75, 0.9, 1.0), (0.2, 0.5, 0.9)
VECTORS = (0.2, 0.36, 0.6)  # bytes of an entry; measured on the built-in model: 0.31 in x-space, 0.41 in h-space
_ZOOM = 4  # of a stored effect's picture
# Multiply-adds of Segment Anything's encoder, and of one prompt; tests count them on the networks' configurations.
MASK_MODELS = {
    "facebook/sam-vit-base": (486_038_667_264, 1_812_351_488),
    "facebook/sam-vit-large": (1_492_840_153_088, 1_812_351_488),
    "facebook/sam-vit-huge": (2_980_541_415_424, 1_812_351_488),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU by its peak, in floating-point operations a second, and the share of it that this work is said to reach."""

    name: str
    peak: float
    kind: str
    share: float

    def seconds(self, multiply_adds: float) -> float:
        return 2.0 * multiply_adds / (self.peak * self.share)

    def __str__(self) -> str:
        return f"{self.name} at {self.share:.0%} of its {self.peak / 1e12:.0f} TFLOP/s in {self.kind}"


H100 = Gpu("H100 SXM", 67e12, "FP32", 0.3)  # products use no tensor cores; see `pipeline.jacobian`


@dataclass(frozen=True)
class Estimate:
    """The cost of one image, and of `images` of them where their number is known.

    `work` by kind; `multiply_adds` of one pass; `passes` of the network in all; `seconds` on `gpu`, computed and not
    measured; `pass_seconds` of one pass on this machine, where it was timed; `bytes` in the catalog, indexes included.
    `left_out` is what could not be reckoned.
    """

    network: str
    regions: int
    directions: int
    work: tuple[Work, ...]
    multiply_adds: int
    passes: Amount
    gpu: str
    seconds: Amount
    bytes: Amount
    images: int | None = None
    pass_seconds: float | None = None
    left_out: str = ""

    @property
    def comment(self) -> str:
        """The two lines of cost that the built-in recipes carry."""
        passes, each = f"{self.passes.likely:,.0f}", f"{self.multiply_adds / 1e9:.0f} G multiply-adds"
        gpu = f"one {H100.name} (at {H100.share:.0%} of its {H100.kind} peak)"
        return (
            f"# Cost, computed by `rhumb plan`: {passes} network passes an image, within a factor of 2, of {each}\n"
            f"# each; {PER:,} images: {hours(self.seconds.likely * PER)} on {gpu} and "
            f"{size(self.bytes.likely * PER)} of disk.\n"
        )


def estimate(
    recipe: Recipe, outline: Outline, images: int | None = None, pass_seconds: float | None = None
) -> Estimate:
    """The cost of a recipe with a model of this outline, `images` in number; None where nobody knows."""
    settings = mining_settings(recipe, cast(Denoiser, outline))
    count, made = len(recipe.region_names), recipe.regions if isinstance(recipe.regions, GeneratedRegions) else None
    segments = SegmentSettings(rank=made.rank) if made is not None and made.provider == "segments" else None
    work = mining_work(settings, recipe.method.inversion_steps, count, outline.cost, segments)
    left_out = ""
    if made is not None and segments is None:
        if made.model in MASK_MODELS:
            work.insert(2, _masks(made, outline))
        else:
            left_out = f"the masks of {made.model}, whose size is not known here"
    passes = total(step.passes for step in work)
    counts = direction_counts(settings, count)
    gpu = [H100.seconds(outline.cost.full * n) for n in (passes.low, passes.likely, passes.high)]
    return Estimate(
        network=outline.known_by,
        regions=count,
        directions=round(total(n for own in counts.values() for n in own.values()).likely),
        work=tuple(work),
        multiply_adds=outline.cost.full,
        passes=passes,
        gpu=str(H100),
        seconds=Amount(*gpu),
        bytes=image_bytes(outline.info, {space: total(own.values()) for space, own in counts.items()}, count),
        images=images,
        pass_seconds=pass_seconds,
        left_out=left_out,
    )


def _masks(made: GeneratedRegions, outline: Outline) -> Work:
    encoder, prompt = MASK_MODELS[made.model]
    worth = (encoder + made.points_per_side**2 * prompt) / outline.cost.full
    return Work("mask generation", "picture", Amount.exactly(1), worth)


def image_bytes(info: DenoiserInfo, directions: Mapping[str, Amount], regions: int) -> Amount:
    """Bytes of one image in a catalog, with the default codecs: `directions` by space, `regions` masks."""
    spaces: dict[str, tuple[int, ...]] = {"x": info.x_shape}
    if info.bottleneck_shape is not None:
        spaces["h"] = info.bottleneck_shape
    channels, height, width = info.image_shape
    effect = channels * EFFECT_SIZE**2
    floats, vectors, picture = Amount(*FLOATS), Amount(*VECTORS), Amount(*PICTURES)
    shown = 3 * height * width * channels + (_ZOOM * EFFECT_SIZE) ** 2 * channels  # a preview of three, and the effect
    found = picture * (height * width * channels) + floats * (4 * math.prod(info.x_shape))  # the image, and its latent
    found += picture * (regions * height * width / 8)
    for space, count in directions.items():
        indexed = 2 * CODE_ROW + FLAT_BYTES * (min(DIMENSION, math.prod(spaces[space])) + min(DIMENSION, effect))
        each = vectors * math.prod(spaces[space]) + floats * (2 * effect) + picture * shown
        each += Amount.exactly(ROW + indexed)
        found += Amount(each.low * count.low, each.likely * count.likely, each.high * count.high)
    return found


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def hours(seconds: float) -> str:
    """A time for people."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"
