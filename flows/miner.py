"""One model bound to one recipe: images in, records out. Writes nothing; `flows.mining` is the job around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from catalog.records import Chunk, DirectionRecord, ImageRecord, RegionRecord, content_id
from catalog.tables import Frame, check_records
from flows.datasets.contract import Failure, SourceImage, region_ids
from flows.edit_settings import edit_settings
from flows.finding import Finder
from flows.image_errors import ImageErrors
from flows.neighbours import Neighbours
from flows.pictures import as_picture
from flows.ranks import check_ranks
from flows.recipe import Recipe
from flows.regions import GeneratedRegions
from flows.time_limit import BrokenOffError, limited
from flows.transient import patiently
from pipeline.editing import DecodeSettings, decode, invert_pictures
from pipeline.images import as_tensor
from pipeline.inversion import round_trip_psnr
from pipeline.jacobian import jacobian
from pipeline.mined import Direction, JiveSettings, LocoSettings, MinedImage, MiningSettings
from pipeline.mining import mine_image
from pipeline.models.contract import Denoiser
from pipeline.strengths import linear_strength

PREVIEWS = 16  # directions previewed in one pass
BEST_PSNR = 200.0  # dB; an exact round trip has no finite one, and evidence is a number
METHOD_VERSION = 4  # raised when the same recipe gives other numbers; part of every id
EFFECT_SIZE = 16
EVIDENCE = ("strength", "strength_reached", "strength_limited", "gain", "leakage", "sigma", "residual", "converged",
            "checked", "gap", "angle", "cluster_first", "cluster_last", "iterations", "change", "joint_rank",
            "individual_rank", "rank_rule", "kept_share", "roir_before", "roir")  # fmt: skip

Records = tuple[ImageRecord, Sequence[RegionRecord], Sequence[DirectionRecord]]
"""Those of one image, of which a failed one has no regions and directions."""


def method_fingerprint(recipe: Recipe) -> str:
    """32 hex digits over what a recipe's directions depend on, how this version finds them included."""
    return content_id("recipe", METHOD_VERSION, recipe.fingerprint())


@dataclass
class MiningReport:
    """What one run did: images and directions added, what failed, seconds and products spent.

    `skipped` names regions that an image was mined without, `refused` counts directions that were only noise.
    """

    catalog: Path
    images: int = 0
    directions: int = 0
    already_done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    seconds: float = 0.0
    products: dict[str, int] = field(default_factory=lambda: {"jvp": 0, "vjp": 0})


def mining_settings(recipe: Recipe, denoiser: Denoiser) -> MiningSettings:
    """The recipe's method in the pipeline's terms; fractions of T become timestep indices."""
    method, own = recipe.method, edit_settings(recipe, denoiser.info.train_timesteps)
    return MiningSettings(
        timestep=own.timestep,
        loco=LocoSettings(**dict(method.loco)),
        jive=JiveSettings(**dict(method.jive)) if denoiser.info.bottleneck_shape else None,
        decode=own.decode,
        strength=method.edit.strength,
        tolerance=method.tolerance,
        seed=recipe.seed,
        memory=method.memory,
    )


def frame_of(denoiser: Denoiser) -> Frame:
    """What the records of a catalog of this model's directions must fit."""
    info = denoiser.info
    spaces: dict[str, tuple[int, ...]] = {"x": info.x_shape}
    if info.bottleneck_shape is not None:
        spaces["h"] = info.bottleneck_shape
    return Frame(info.fingerprint, spaces, (info.image_shape[0], EFFECT_SIZE, EFFECT_SIZE))


class Miner:
    """One model bound to one recipe: turns source images into chunks of records.

    `catalog` is where they are committed, which is read where the recipe asks for warm starts.
    """

    def __init__(self, recipe: Recipe, denoiser: Denoiser, catalog: Path | None = None) -> None:
        self.recipe, self.denoiser = recipe, denoiser
        self.neighbours = None if catalog is None or not recipe.method.warm_start else Neighbours(catalog)
        self.settings = mining_settings(recipe, denoiser)
        self.errors = ImageErrors(denoiser.device)
        self.finder = None
        if isinstance(recipe.regions, GeneratedRegions):
            self.finder = Finder(recipe, recipe.regions, denoiser, self.settings.timestep)
        if recipe.method.memory is not None:  # a budget too small is one error here, not one for every image
            x_t = torch.zeros(denoiser.info.x_shape)
            jacobian(denoiser, x_t, self.settings.timestep, "x0/x", memory=recipe.method.memory)

    def mine(
        self,
        items: Sequence[SourceImage | Failure],
        report: MiningReport,
        stopping: Callable[[], bool] = lambda: False,
        image_timeout: float | None = None,
    ) -> Chunk:
        """Invert a chunk in one batch and mine each image; failures become records with their reason.

        Images that have not been begun when `stopping` says so are left out, and so is one that goes on for long after.
        One that takes longer than `image_timeout` seconds, or whose part of the inversion does, has failed.

        Raises what is wrong with no single image, as `ImageErrors` has it.
        """
        if self.neighbours is not None:
            self.neighbours.refresh()
        images = [item for item in items if isinstance(item, SourceImage)]
        unread = [item for item in items if isinstance(item, Failure)]
        done: list[Records] = [(unreadable(item), (), ()) for item in unread]
        limit = partial(limited, stopping=stopping)
        try:
            for image, inverted in zip(images, self._inverted(images, image_timeout, limit), strict=True):
                if stopping():
                    break
                done.append(self._outcome(image, inverted, report, partial(limit, image_timeout)))
        except BrokenOffError:  # what is done counts
            pass
        records = [record for record, _, _ in done]
        regions = [region for _, own, _ in done for region in own]
        directions = [direction for _, _, found in done for direction in found]
        mined_images = [record.image_id for record in records if record.failure is None]
        report.failed.update({record.source: record.failure for record in records if record.failure is not None})
        report.images += len(mined_images)
        report.directions += len(directions)
        # Named by what it holds, so that a retry that succeeds is a new chunk and one that fails again is the old one.
        failures = [[r.image_id, r.failure] for r in records if r.failure is not None]
        name = content_id("chunk", mined_images, failures)
        return Chunk(name, tuple(records), tuple(regions), tuple(directions))

    def _outcome(
        self,
        image: SourceImage,
        inverted: tuple[torch.Tensor, float] | Exception,
        report: MiningReport,
        limit: Callable[[], AbstractContextManager[None]],
    ) -> Records:
        """What mining one image came to, its failure included. Raises what is not its own."""
        try:
            if isinstance(inverted, Exception):
                raise inverted
            with limit():
                records = patiently(lambda: self._records(image, *inverted, report))
        except BrokenOffError:
            raise
        except Exception as error:
            return self._image_record(image, failure=self.errors.reason(image.image_id, error)), (), ()
        self.errors.none()
        return records

    def _inverted(
        self,
        images: Sequence[SourceImage],
        image_timeout: float | None,
        limit: Callable[[float | None], AbstractContextManager[None]],
    ) -> list[tuple[torch.Tensor, float] | Exception]:
        """`_invert` of all images together; where that fails, of each by itself, with the error of those that fail."""
        if not images:
            return []
        try:
            with limit(None if image_timeout is None else image_timeout * len(images)):
                return list(self._invert(images))
        except BrokenOffError:
            raise
        except Exception as error:
            if len(images) == 1:
                return [error]
        return [self._inverted([image], image_timeout, limit)[0] for image in images]

    def _invert(self, images: Sequence[SourceImage]) -> list[tuple[torch.Tensor, float]]:
        """x_t (*x_shape) and round-trip PSNR of each image, inverted as one batch."""
        pictures = torch.stack([as_tensor(image.image) for image in images])
        steps = self.recipe.method.inversion_steps
        x_t = invert_pictures(self.denoiser, pictures, self.settings.timestep, steps)
        back = decode(self.denoiser, x_t, self.settings.timestep, DecodeSettings(steps=steps))
        return list(zip(x_t, round_trip_psnr(pictures, back).tolist(), strict=True))

    def _records(self, image: SourceImage, x_t: torch.Tensor, psnr: float, report: MiningReport) -> Records:
        """Mine one inverted image: its records, as a catalog will accept them."""
        if not (bool(torch.isfinite(x_t).all()) and psnr > -math.inf):
            raise ArithmeticError("DDIM inversion and the way back gave values that are not finite")
        if self.finder is not None:
            image, spent = self.finder.masked(image, x_t)
            report.skipped |= {image.source: "; ".join(image.skipped.values())} if image.skipped else {}
            report.products["jvp"] += spent.jvp
            report.products["vjp"] += spent.vjp
        check_ranks(self.recipe, self.denoiser, image)
        mined = self._mine_one(image, x_t)
        report.refused += len(mined.refused)
        report.products["jvp"] += mined.products.jvp
        report.products["vjp"] += mined.products.vjp
        record = self._image_record(image, x_t, min(psnr, BEST_PSNR))
        regions = self._region_records(image)
        directions = self._direction_records(image, mined, x_t, regions)
        check_records(record, regions.values(), directions, frame_of(self.denoiser))
        return record, list(regions.values()), directions

    def _mine_one(self, image: SourceImage, x_t: torch.Tensor) -> MinedImage:
        masks = {name: torch.from_numpy(mask) for name, mask in image.masks.items()}
        start = {} if self.neighbours is None else self.neighbours.start(image)
        mined = mine_image(self.denoiser, x_t, masks, self.settings, start)
        for d in mined.directions:
            if not (math.isfinite(d.strength) and math.isfinite(d.gain) and math.isfinite(d.leakage)):
                raise ArithmeticError(f"evidence that is not finite for {d.region} {d.space} {d.kind} {d.rank}")
        return mined

    def _image_record(
        self,
        image: SourceImage,
        x_t: torch.Tensor | None = None,
        psnr: float = math.nan,
        failure: str | None = None,
    ) -> ImageRecord:
        return ImageRecord(
            image_id=image.image_id,
            dataset=image.dataset,
            split=image.split,
            source=image.source,
            image=image.image,
            timestep=self.settings.timestep,
            latent=np.zeros((0,), np.float32) if x_t is None else x_t.cpu().to(torch.float32).numpy(),
            round_trip_psnr=psnr,
            factors=dict(image.factors),
            failure=failure,
        )

    def _region_records(self, image: SourceImage) -> dict[str, RegionRecord]:
        return {
            name: RegionRecord(region_id, image.image_id, name, image.masks[name])
            for name, region_id in region_ids(image.image_id, image.masks).items()
        }

    def _id(self, image: SourceImage, regions: Mapping[str, RegionRecord], *key: object) -> str:
        """A direction's id: from what determines it, never from vector bytes or the code's commit."""
        return content_id(
            "direction",
            METHOD_VERSION,
            image.image_id,
            self.denoiser.info.fingerprint,
            self.recipe.numerical(),
            sorted(region.region_id for region in regions.values()),
            self.settings.timestep,
            list(key),
        )

    def _direction_records(
        self, image: SourceImage, mined: MinedImage, x_t: torch.Tensor, regions: Mapping[str, RegionRecord]
    ) -> list[DirectionRecord]:
        previews = self._previews(mined.directions, x_t, image)
        records = []
        for direction, preview in zip(mined.directions, previews, strict=True):
            d = direction
            parents = tuple(self._id(image, regions, d.region, d.space, "singular", rank) for rank in d.parents)
            records.append(
                DirectionRecord(
                    direction_id=self._id(image, regions, d.region, d.space, d.kind, d.rank),
                    image_id=image.image_id,
                    dataset=image.dataset,
                    model=self.denoiser.info.fingerprint,
                    region=d.region,
                    space=d.space,
                    kind=d.kind,
                    rank=d.rank,
                    timestep=self.settings.timestep,
                    vector=d.vector.cpu().to(torch.float32).numpy(),
                    effect=small_effect(d.effect),
                    preview=preview,
                    spectrum=d.spectrum.cpu().to(torch.float32).numpy(),
                    parents=parents,
                    **{name: getattr(d, name) for name in EVIDENCE},
                )
            )
        return records

    def _previews(self, directions: Sequence[Direction], x_t: torch.Tensor, image: SourceImage) -> list[np.ndarray]:
        """One-step previews: the predicted picture at -strength, 0 and +strength, side by side. Two passes each."""
        t = self.settings.timestep
        centre = as_picture(self.denoiser.predicted_picture(x_t[None], t)[0])
        previews: dict[int, np.ndarray] = {}
        for space in ("x", "h"):
            own = [i for i, d in enumerate(directions) if d.space == space]
            for start in range(0, len(own), PREVIEWS):
                part = own[start : start + PREVIEWS]
                shifts = [self._preview_shift(directions[i], image) for i in part]
                shift = torch.cat([-torch.stack(shifts), torch.stack(shifts)])
                if space == "x":
                    sides = self.denoiser.predicted_picture(x_t[None] + shift, t)
                else:
                    sides = self.denoiser.predicted_picture(x_t[None].expand(len(shift), *x_t.shape), t, shift)
                for i, minus, plus in zip(part, sides[: len(part)], sides[len(part) :], strict=True):
                    previews[i] = np.concatenate([as_picture(minus), centre, as_picture(plus)], axis=1)
        return [previews[i] for i in range(len(directions))]

    def _preview_shift(self, direction: Direction, image: SourceImage) -> torch.Tensor:
        mask = torch.from_numpy(image.masks[direction.region])
        return linear_strength(direction, mask) * direction.vector


def unreadable(item: Failure) -> ImageRecord:
    """The record of an item that could not become an image, so that `rhumb status` shows it."""
    return ImageRecord(
        image_id=item.image_id,
        dataset=item.dataset,
        split=item.split,
        source=item.source,
        image=np.zeros((0, 0, 3), np.uint8),
        timestep=0,
        latent=np.zeros((0,), np.float32),
        round_trip_psnr=math.nan,
        failure=item.reason,
    )


def small_effect(effect: torch.Tensor) -> np.ndarray:
    """An effect (C, H, W) averaged down to (C, 16, 16) and scaled to unit norm: what lookup by effect compares."""
    small = torch.nn.functional.adaptive_avg_pool2d(effect[None].to(torch.float32), EFFECT_SIZE)[0]
    return (small / small.norm().clamp(min=1e-12)).cpu().numpy()
