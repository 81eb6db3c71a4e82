"""Answers as pictures: what the directions found do, one row each, all turned the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from catalog.concepts import Concept
from catalog.lookup import DirectionHomogeneity, Homogeneity, SimilarPage
from catalog.pictures import effect_picture
from catalog.reader import Catalog
from flows.pictures import PAPER, Picture, png, shrink, strip, to_rgb, upscale

_TILE = 128  # height of a picture in pixels; smaller ones are enlarged by whole factors
_GAP, _WORDS, _TEXT, _LINE = 8, 300, 13, 18
_EXAMPLES = 4
_INK = (28, 28, 26)
Row = tuple[Sequence[Picture], Sequence[str]]
"""Pictures side by side, and the lines beside them."""


def similar_sheet(catalog: Catalog, direction_id: str, page: SimilarPage) -> bytes:
    """PNG: the direction asked about, then those found, best first; previews at -strength, 0 and +strength, effect."""
    rows: list[Row] = [(_tiles(catalog, direction_id, 1), ["asked about", direction_id[:12]])]
    for s in page.found:
        lines = [f"cosine {s.sign * s.score:+.3f}", s.direction_id[:12], f"{s.region}, {s.space}, {s.kind} {s.rank}"]
        lines += [f"image {s.image_id[:12]}", f"{len(s.others)} more of this image"]
        rows.append((_tiles(catalog, s.direction_id, s.sign), lines))
    return sheet(rows)


def nearest_sheet(catalog: Catalog, found: DirectionHomogeneity) -> bytes:
    """PNG: the direction asked about, the images that agree most, and those that agree least."""
    rows: list[Row] = [(_tiles(catalog, found.direction_id, 1), ["asked about", found.direction_id[:12]])]
    shown = found.nearest if len(found.nearest) <= 2 * _EXAMPLES else (
        *found.nearest[:_EXAMPLES], *found.nearest[-_EXAMPLES:])  # fmt: skip
    for n in shown:
        word = "disagrees" if n.image_id in found.disagreeing else "agrees"
        lines = [f"{word}: {n.score:.3f}", n.direction_id[:12], f"image {n.image_id[:12]}", f"effect {n.effect:+.3f}"]
        rows.append((_tiles(catalog, n.direction_id, n.sign), lines))
    return sheet(rows)


def region_sheet(catalog: Catalog, found: Sequence[Homogeneity]) -> bytes:
    """PNG: per space and kind, first directions on the images that agree most with the others, and least."""
    rows: list[Row] = []
    for h in found:
        ranked = sorted(h.of_image, key=lambda image: (-h.of_image[image], image))
        ends = ranked if len(ranked) <= 2 * _EXAMPLES else [*ranked[:_EXAMPLES], *ranked[-_EXAMPLES:]]
        first = min(h.of_rank)
        table = catalog.directions(region=h.region, space=h.space, kind=h.kind, rank=first, image_id=ends)
        columns = (table.column(name).to_pylist() for name in ("image_id", "direction_id"))
        ids = dict(zip(*columns, strict=True))
        for image in ends:
            lines = [f"{h.region}, {h.space}, {h.kind} {first}", f"image {image[:12]}"]
            lines += [f"mean |cos| to the others {h.of_image[image]:.3f}"]
            lines += ["disagrees"] if image in h.disagreeing else []
            if image in ids:
                rows.append((_tiles(catalog, ids[image], 1), lines))
    return sheet(rows)


def concepts_sheet(catalog: Catalog, concepts: Sequence[Concept]) -> bytes:
    """PNG: per concept, the medoid and the members nearest to it on other images, all turned the concept's way."""
    rows: list[Row] = []
    for concept in concepts:
        lines = [concept.concept_id[:12], f"{concept.region}, {concept.space}, {concept.kind}"]
        lines += [f"{len(concept.members)} members, {concept.images} of {concept.of_images} images"]
        lines += [f"|cos| {concept.spread[1]:.2f}, effects {concept.effect_agreement:+.2f}"]
        signs = dict(zip(concept.members, concept.signs, strict=True))
        pictures = [_sized(effect_picture(concept.effect))]
        if not catalog.lacks("preview"):
            pictures.append(_sized(concept.pictures()))
            pictures += [_sized(_turned(catalog.preview(key), signs[key])) for key in examples(catalog, concept)]
        rows.append((pictures, lines))
    return sheet(rows)


def examples(catalog: Catalog, concept: Concept, count: int = _EXAMPLES - 1) -> list[str]:
    """Ids of the members nearest to the others, one per image, without the medoid and its image."""
    order = sorted(zip(concept.cosines, concept.members, strict=True), key=lambda pair: (-pair[0], pair[1]))
    likely = [key for _, key in order[: 8 * (count + 1)] if catalog.holds(key)]  # a part of a pack may lack some
    chosen: dict[str, str] = {}
    for row in catalog.rows(likely, ["direction_id", "image_id"]):
        chosen.setdefault(row["image_id"], row["direction_id"])
    chosen.pop(concept.image_id, None)
    return list(chosen.values())[:count]


def sheet(rows: Sequence[Row]) -> bytes:
    """PNG of rows of pictures with lines of text beside them; one sentence where there are none."""
    drawn = [strip([_words(lines), *pictures], _GAP) for pictures, lines in rows] or [_words(["Nothing was found."])]
    width = max(row.shape[1] for row in drawn) + 2 * _GAP
    return png(np.concatenate([_padded(row, width) for row in drawn]))


def _padded(row: Picture, width: int) -> Picture:
    canvas = np.empty((row.shape[0] + 2 * _GAP, width, 3), dtype=np.uint8)
    canvas[:] = PAPER
    canvas[_GAP:-_GAP, _GAP : _GAP + row.shape[1]] = row
    return canvas


def _words(lines: Sequence[str]) -> Picture:
    canvas = Image.new("RGB", (_WORDS, _LINE * len(lines)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        # The built-in font knows ASCII only.
        plain = line.encode("ascii", errors="replace").decode()
        pen.text((0, number * _LINE), plain, fill=_INK, font=ImageFont.load_default(_TEXT))
    return np.asarray(canvas, dtype=np.uint8)


def _tiles(catalog: Catalog, direction_id: str, sign: int) -> list[Picture]:
    """What a direction does, turned by `sign`: its preview, where the catalog has any, and its effect."""
    effect = _sized(effect_picture(sign * catalog.effect(direction_id)))
    return [effect] if catalog.lacks("preview") else [_sized(_turned(catalog.preview(direction_id), sign)), effect]


def _turned(preview: np.ndarray, sign: int) -> np.ndarray:
    return preview if sign > 0 else np.concatenate(np.split(preview, 3, axis=1)[::-1], axis=1)


def _sized(picture: np.ndarray) -> Picture:
    """About as high as a tile: shrunk, or enlarged by a whole factor so that pixels stay pixels."""
    rgb = to_rgb(picture)
    if rgb.shape[0] > _TILE:
        return shrink(rgb, round(_TILE * max(rgb.shape[:2]) / rgb.shape[0]))
    return upscale(rgb, _TILE // rgb.shape[0])
