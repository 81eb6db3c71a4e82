"""`regions` in a recipe: which masks every image gets, and which provider of `pipeline.regions` makes them.

A list names parts of the data set. A mapping names regions and says how each is made: parts to be united, labels of a
label map, a box, a polygon or a template. A mapping with `provider` leaves masks to a mask-generation model or to the
denoiser's own Jacobian, image by image.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import numpy as np
from pydantic import Discriminator, Field, Strict, Tag, model_validator

from flows.datasets.config import Part, Resolve, quiet
from flows.datasets.contract import BrokenImageError
from flows.datasets.pictures import grey_mask, mask_picture, open_image
from pipeline.errors import InputError

if TYPE_CHECKING:
    from flows.datasets.contract import Source
    from pipeline.regions.masks import RegionMasks

RegionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
WAYS = ("parts", "labels", "box", "polygon", "template")


class RegionSpec(Part):
    """How one region is made: by exactly one of

    `parts`: the union of these parts of the data set, those that an image has; `labels`: of these labels, names or
    values, of its label map; `box`: [left, top, right, bottom] and `polygon`: [[x, y], ...] in shares of the picture as
    it is mined; `template`: a built-in template for aligned faces, or a PNG beside the recipe, the same for all images.
    Then `dilate` grows it by a disc of that many pixels of the mined size, or shrinks it where negative.
    """

    parts: tuple[str, ...] = quiet(())
    labels: tuple[str | Annotated[int, Strict()], ...] = quiet(())
    box: tuple[float, float, float, float] | None = quiet(None)
    polygon: tuple[tuple[float, float], ...] | None = quiet(None)
    template: str | None = quiet(None, min_length=1)
    dilate: int = quiet(0, ge=-1000, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _parts_alone(cls, value: object) -> object:
        return (
            {"parts": value}
            if isinstance(value, list | tuple)
            else {"parts": [value]}
            if isinstance(value, str)
            else value
        )

    @model_validator(mode="after")
    def _one_way(self) -> RegionSpec:
        given = [way for way in WAYS if getattr(self, way) not in ((), None)]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(WAYS)}, not {' and '.join(given) or 'none'}")
        return self


class GeneratedRegions(Part):
    """Regions that no data set names: `count` masks an image, called segment-1, segment-2, ...

    `provider` "mask-generation": a mask-generation model of transformers (`model`: folder or Hub id, `revision`), such
    as the papers' facebook/sam-vit-large. "segments": pixels that move together under the leading directions of the
    denoiser's own Jacobian, from `rank` singular triplets. `min_share` and `max_share` of the picture bound their size;
    `points_per_side` is the grid of prompts of a mask-generation model, `min_score` and `min_stability` what it must
    think of a mask.
    """

    provider: Literal["mask-generation", "segments"]
    count: int = Field(default=12, ge=1, le=100)
    model: str = quiet("facebook/sam-vit-large", min_length=1)
    revision: str | None = quiet(None, min_length=1)
    rank: int = quiet(32, ge=1)
    points_per_side: int = quiet(32, ge=1, le=128)
    min_score: float = quiet(0.88)
    min_stability: float = quiet(0.95, ge=0.0, le=1.0)
    min_share: float = quiet(0.002, gt=0.0, lt=1.0)
    max_share: float = quiet(0.5, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _shares_in_order(self) -> GeneratedRegions:
        if self.min_share >= self.max_share:
            raise ValueError(f"min_share below max_share, {self.max_share}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What the regions are called."""
        return tuple(f"segment-{index + 1}" for index in range(self.count))


TAGS = ("named", "generated", "made")


def _tag(value: object) -> str:
    if isinstance(value, GeneratedRegions) or (isinstance(value, Mapping) and "provider" in value):
        return TAGS[1]
    return TAGS[2] if isinstance(value, Mapping) else TAGS[0]


Choice = tuple[str, ...] | GeneratedRegions | dict[str, RegionSpec]
RegionChoice = Annotated[
    Annotated[tuple[RegionName, ...], Field(min_length=1), Tag(TAGS[0])]
    | Annotated[GeneratedRegions, Tag(TAGS[1])]
    | Annotated[dict[RegionName, RegionSpec], Field(min_length=1), Tag(TAGS[2])],
    Discriminator(_tag),
]
"""The `regions` of a recipe."""


def region_names(choice: Choice) -> tuple[str, ...]:
    """The names of a recipe's regions, in its order."""
    return choice.names if isinstance(choice, GeneratedRegions) else tuple(choice)


@dataclass(frozen=True)
class Parts:
    """An image's annotated parts at the mined size: masks bool (H, W), none empty; reasons for those that are missing,
    and which of these are broken rather than not annotated."""

    masks: Mapping[str, np.ndarray]
    missing: Mapping[str, str] = field(default_factory=dict)
    broken: Collection[str] = ()


@dataclass(frozen=True)
class Regions:
    """A recipe's regions, ready to make an image's masks. `specs` by name; `pictures`: templates that were files, bool
    (h, w) by region. `generated` ones are made while an image is mined."""

    names: tuple[str, ...]
    specs: Mapping[str, RegionSpec] = field(default_factory=dict)
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    generated: GeneratedRegions | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are to be asked of the data set."""
        return tuple(dict.fromkeys(part for spec in self.specs.values() for part in spec.parts))

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise InputError for a template that does not fit pictures of `size` (H, W)."""
        from pipeline.regions.templates import template_masks

        template_masks(self.pictures, size)

    def masks(
        self, parts: Parts, labels: np.ndarray | None, label_names: Mapping[str, int], size: tuple[int, int]
    ) -> RegionMasks:
        """The masks of an image, bool (H, W) of `size` (H, W), by region, and the regions it has none of, with reasons.

        `labels`: its label map (H, W), integers, with the values of `label_names`.

        Raises:
            InputError: masks that are no masks, or a template of another aspect.
        """
        from pipeline.regions.masks import RegionMasks, grown, usable

        masks: dict[str, np.ndarray] = {}
        skipped: dict[str, str] = {}
        for region, spec in self.specs.items():
            if spec.labels:
                made = _labelled(region, spec, labels, label_names)
            else:
                made = _united(region, spec, parts) if spec.parts else self._drawn(region, spec, size)
            skipped |= made.skipped
            masks |= {name: grown(mask, spec.dilate) for name, mask in made.masks.items()}
        whole = usable(masks, skipped)
        order = [region for region in self.specs if region in whole.masks]
        return RegionMasks({region: whole.masks[region] for region in order}, whole.skipped)

    def _drawn(self, region: str, spec: RegionSpec, size: tuple[int, int]) -> RegionMasks:
        """A region that is the same on every image."""
        from pipeline.regions.shapes import Box, Polygon, shape_masks
        from pipeline.regions.templates import ALIGNED_FACE, template_masks

        if spec.box is not None:
            return shape_masks({region: Box(*spec.box)}, size)
        if spec.polygon is not None:
            return shape_masks({region: Polygon(spec.polygon)}, size)
        if region in self.pictures:
            return template_masks({region: self.pictures[region]}, size)
        return shape_masks({region: ALIGNED_FACE[str(spec.template)]}, size)


def _united(region: str, spec: RegionSpec, parts: Parts) -> RegionMasks:
    """The union of the parts that are there; none at all where one that is there cannot be read."""
    from pipeline.regions.masks import RegionMasks
    from pipeline.regions.parts import united_parts

    absent = [part for part in spec.parts if part not in parts.masks]
    broken = [part for part in absent if part in parts.broken]
    if broken or len(absent) == len(spec.parts):
        reasons = dict.fromkeys(parts.missing.get(part, f"no mask of {part}") for part in broken or absent)
        return RegionMasks({}, {region: "; ".join(reasons)})
    return united_parts(parts.masks, {region: spec.parts})


def _labelled(region: str, spec: RegionSpec, labels: np.ndarray | None, names: Mapping[str, int]) -> RegionMasks:
    from pipeline.regions.labels import label_masks
    from pipeline.regions.masks import RegionMasks

    if labels is None:
        return RegionMasks({}, {region: "no label map"})
    return label_masks(labels, {_label(value, names): region for value in spec.labels})


def _label(value: str | int, names: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else names[value]


def open_regions(choice: Choice, resolve: Resolve) -> Regions:
    """A recipe's regions, ready to make masks. Shapes and templates are checked now.

    Raises:
        InputError: a shape that is none, or a template that is neither built in nor a picture.
    """
    from pipeline.regions.shapes import Box, Polygon, check_shape

    if isinstance(choice, GeneratedRegions):
        return Regions(choice.names, generated=choice)
    specs = choice if isinstance(choice, dict) else {name: RegionSpec(parts=(name,)) for name in choice}
    pictures: dict[str, np.ndarray] = {}
    for region, spec in specs.items():
        if spec.box is not None:
            check_shape(Box(*spec.box), field=f"regions.{region}.box")
        if spec.polygon is not None:
            check_shape(Polygon(spec.polygon), field=f"regions.{region}.polygon")
        if spec.template is not None:
            picture = _template(region, spec.template, resolve)
            pictures |= {} if picture is None else {region: picture}
    return Regions(tuple(specs), specs, pictures)


def _template(region: str, template: str, resolve: Resolve) -> np.ndarray | None:
    """The mask of a template that is a picture, bool (h, w); None for one that is built in."""
    from pipeline.regions.templates import ALIGNED_FACE

    if template in ALIGNED_FACE:
        return None
    field, kind = f"regions.{region}.template", "mask pictures beside the recipe, or built-in templates"
    if not resolve(template).is_file():
        _refuse(field, template, kind, list(ALIGNED_FACE))
    try:
        return grey_mask(mask_picture(open_image(resolve(template))))
    except BrokenImageError as error:
        raise InputError(field, f"{template}, which {error}", "a mask picture") from error


def check_regions(regions: Regions, source: Source) -> None:
    """Raise InputError for a part or a label that no image of the data set can have."""
    for region, spec in regions.specs.items():
        if spec.parts and not source.parts and source.without_parts:
            raise InputError("regions", region, "regions that need no masks", source.without_parts)
        if spec.labels and not source.has_labels:
            raise InputError(f"regions.{region}.labels", "no label map", "a data set with one, by its own keys")
        for part in spec.parts:
            if part not in source.parts:
                _refuse("regions" if part == region else f"regions.{region}", part, "regions with masks", source.parts)
        for label in spec.labels:
            if isinstance(label, str) and label not in source.labels:
                _refuse(f"regions.{region}.labels", label, "data set's labels", list(source.labels))


def _refuse(field: str, found: str, kind: str, known: Sequence[str]) -> NoReturn:
    near = difflib.get_close_matches(found, known, n=1)
    action = f"Did you mean {near[0]!r}?" if near else ""
    raise InputError(field, found, f"one of the {kind}: {', '.join(known) or 'none'}", action)
