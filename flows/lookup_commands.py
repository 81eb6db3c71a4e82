"""`rhumb similar`, `homogeneity` and `concepts`: what a catalog answers, as text, JSON and pictures."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.concept_building import build_concepts
from catalog.concept_files import stored_table
from catalog.concepts import Concept, disagreeing_images, load_concepts
from catalog.lookup import Filters, Homogeneity
from catalog.lookup import homogeneity as measure_homogeneity
from catalog.lookup import homogeneity_of as measure_direction
from catalog.lookup import similar_page as find_similar
from catalog.lookup.ask import known_values
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.console import answer, say, table
from flows.files import write_whole
from flows.left_out import remark, remark_on_members
from flows.plain import plain
from pipeline.errors import CatalogError, InputError

KINDS = (("x", "local"), ("h", "individual"))  # what `homogeneity` of a region looks at
_SHOWN = 12


def _picture_path(path: Path | None) -> Path | None:
    if path is not None and (path.is_dir() or not path.parent.is_dir() or path.suffix.lower() != ".png"):
        raise InputError("--picture", path, "a file ending in .png in a folder that exists")
    return path


def _check_region(catalog: Catalog, region: str) -> None:
    known = known_values(catalog, "region")
    if region not in known:
        raise InputError("--region", region, f"one of {', '.join(known)}")


def similar(arguments: Namespace) -> None:
    """`rhumb similar CATALOG ID`."""
    picture = _picture_path(arguments.picture)
    filters = Filters(**{field.name: tuple(getattr(arguments, field.name)) for field in dataclasses.fields(Filters)})
    with Catalog.open(arguments.catalog) as catalog:
        key = catalog.resolve(arguments.id)
        page = find_similar(
            catalog, key, arguments.k, arguments.by, not arguments.same_image, offset=arguments.offset, filters=filters
        )
        if picture is not None:
            from flows.lookup_pictures import similar_sheet

            write_whole(picture, similar_sheet(catalog, key, page))
        remarks = _of_sheet(catalog, picture)
    document = {"direction": key, "by": arguments.by, "offset": page.offset, "among": page.among, "more": page.more}
    document |= {"similar": plain(page.found)} | _written(picture, remarks)
    rows = [
        (f"{s.sign * s.score:+.3f}", s.direction_id, s.image_id[:12], s.region, s.space, s.kind, s.rank, len(s.others))
        for s in page.found
    ]
    header = ("cosine", "direction", "image", "region", "space", "kind", "rank", "more of the image")
    where = "" if arguments.same_image else " on other images"
    title = f"like {key[:12]} by {arguments.by}{where}, among {page.among} directions"

    def text() -> None:
        table(title, header, rows)
        if page.more:
            say(f"more: --offset {page.offset + len(page.found)}")
        _say_written(picture, remarks)

    answer(document, arguments.json, text)


def _of_sheet(catalog: Catalog, picture: Path | None) -> tuple[str, ...]:
    """What a contact sheet goes without."""
    return () if picture is None else remark(catalog, ["preview"], "the contact sheet shows effects alone")


def _written(picture: Path | None, remarks: tuple[str, ...]) -> dict[str, Any]:
    return ({} if picture is None else {"picture": str(picture)}) | ({"remarks": list(remarks)} if remarks else {})


def _say_written(picture: Path | None, remarks: tuple[str, ...]) -> None:
    for told in remarks:
        say(told)
    if picture is not None:
        say(f"wrote {picture}")


def homogeneity(arguments: Namespace) -> None:
    """`rhumb homogeneity CATALOG --region R` or `--direction ID`."""
    picture = _picture_path(arguments.picture)
    if (arguments.region is None) == (arguments.direction is None):
        raise InputError("--region, --direction", "both or neither", "one of the two")
    with Catalog.open(arguments.catalog) as catalog:
        if arguments.direction is not None:
            _of_direction(catalog, arguments, picture)
        else:
            _of_region(catalog, arguments, picture)


def _of_direction(catalog: Catalog, arguments: Namespace, picture: Path | None) -> None:
    found = measure_direction(catalog, arguments.direction, by=arguments.by)
    if picture is not None:
        from flows.lookup_pictures import nearest_sheet

        write_whole(picture, nearest_sheet(catalog, found))
    remarks = remark(catalog, ["mask"], "directions are compared where they lie") + _of_sheet(catalog, picture)
    rows = [(f"{n.sign * n.score:+.3f}", n.image_id, n.direction_id, n.rank, n.effect) for n in found.nearest]

    def text() -> None:
        title = f"nearest to {found.direction_id[:12]} on other images ({found.region}, by {found.by})"
        header = ("cosine", "image", "direction", "rank", "cosine of effects")
        hidden = len(rows) - 2 * _SHOWN
        table(title, header, rows if hidden <= 0 else [*rows[:_SHOWN], *rows[-_SHOWN:]])
        if hidden > 0:
            say(f"{hidden} images between are not shown; --json has them all")
        say(
            f"{found.agreement:.0%} of {found.used} images agree (|cos| of at least 0.5); median {found.q50:.2f}, "
            f"at random {found.random[1]:.2f}; mean cosine of effects {found.effect_agreement:+.2f}"
        )
        _say_written(picture, remarks)

    answer({"homogeneity": plain(found)} | _written(picture, remarks), arguments.json, text)


def _of_region(catalog: Catalog, arguments: Namespace, picture: Path | None) -> None:
    region = arguments.region
    _check_region(catalog, region)
    there = [(space, kind) for space, kind in KINDS if catalog.select(region=region, space=space, kind=kind).any()]
    if not there:
        raise InputError("--region", region, "one with local or individual directions")
    found = [measure_homogeneity(catalog, region, space, kind, by=arguments.by) for space, kind in there]
    try:
        concepts = [c for c in load_concepts(catalog) if c.region == region and (c.space, c.kind) in there]
    except CatalogError as error:
        concepts, hint = [], f"no concepts: {error.found}. {error.action}"
    else:
        hint = ""
    listed = [_listed(catalog, concept) for concept in concepts]
    if picture is not None:
        from flows.lookup_pictures import region_sheet

        write_whole(picture, region_sheet(catalog, found))
    remarks = (remark_on_members(catalog) if concepts else ()) + _of_sheet(catalog, picture)

    def text() -> None:
        _show_region(region, arguments.by, found)
        if concepts:
            _show_concepts(listed)
        else:
            say(hint or "no concepts of this region")
        _say_written(picture, remarks)

    document = {"homogeneity": plain(found), "concepts": plain(listed)} | _written(picture, remarks)
    answer(document, arguments.json, text)


def _show_region(region: str, by: str, found: list[Homogeneity]) -> None:
    rows = [
        (h.space, h.kind, rank, s.n, s.q10, s.q50, s.q90, s.random[1])
        for h in found
        for rank, s in sorted(h.of_rank.items())
    ]
    header = ("space", "kind", "rank", "images", "10 %", "50 %", "90 %", "random 50 %")
    table(f"|cos| between {region} directions of different images (by {by})", header, rows)
    for h in found:
        some = ", ".join(image[:12] for image in h.disagreeing[:_SHOWN]) or "none"
        say(f"{h.space} {h.kind}: {len(h.disagreeing)} of {h.used} images disagree with the others: {some}")


def _listed(catalog: Catalog, concept: Concept) -> dict[str, Any]:
    """A concept as the commands show it: all but its vectors and pictures, with the images that disagree."""
    hidden = ("vector", "effect", "catalog")
    shown = {f.name: getattr(concept, f.name) for f in dataclasses.fields(concept) if f.name not in hidden}
    return {**shown, "disagreeing": disagreeing_images(catalog, concept)}


def _show_concepts(listed: list[dict[str, Any]]) -> None:
    names = ("concept", "region", "space", "kind", "members", "images", "|cos| 50 %", "effects", "gain", "strength")
    rows = [
        (c["concept_id"], c["region"], c["space"], c["kind"], len(c["members"]), f"{c['images']} of {c['of_images']}",
         c["spread"][1], f"{c['effect_agreement']:+.2f}", c["gain"], c["strength"])
        for c in listed
    ]  # fmt: skip
    table("concepts", names, rows)


def concepts(arguments: Namespace) -> None:
    """`rhumb concepts CATALOG`."""
    picture = _picture_path(arguments.picture)
    for name, least in (("k", 1), ("offset", 0), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name}".replace("--k", "-k"), getattr(arguments, name), f"at least {least}")
    with Catalog.open(arguments.catalog) as catalog:
        if arguments.region is not None:
            _check_region(catalog, arguments.region)
    if arguments.build:
        _build(arguments.catalog, arguments.region, arguments.seed)
    with Catalog.open(arguments.catalog) as catalog:
        found = [c for c in load_concepts(catalog) if arguments.region in (None, c.region)]
        found.sort(key=lambda c: (c.region, c.space, c.kind, -c.images, c.concept_id))
        shown = found[arguments.offset : arguments.offset + arguments.k]
        listed = [_listed(catalog, concept) for concept in shown]
        if picture is not None:
            from flows.lookup_pictures import concepts_sheet

            write_whole(picture, concepts_sheet(catalog, shown))
        remarks = remark(catalog, ["mask"], "directions were compared where they lie") if arguments.build else ()
        remarks += remark_on_members(catalog) + _of_sheet(catalog, picture)

    def text() -> None:
        _show_concepts(listed)
        if arguments.offset + len(shown) < len(found):
            say(f"{len(found)} concepts; more: --offset {arguments.offset + len(shown)}")
        _say_written(picture, remarks)

    document = {"total": len(found), "offset": arguments.offset, "concepts": plain(listed)} | _written(picture, remarks)
    answer(document, arguments.json, text)


def _build(folder: Path, region: str | None, seed: int) -> None:
    """Build and commit concepts: of one region, if those of the others are of the directions there are now."""
    with CatalogWriter.open(folder) as writer, Catalog(writer.folder, writer.manifest) as catalog:
        entry, now = catalog.manifest.concepts, catalog.manifest.directions_fingerprint
        current = entry is not None and entry.directions_fingerprint == now
        regions = [region] if region is not None and current else None
        writer.replace_concepts(build_concepts(catalog, seed, _former(catalog), regions))


def _former(catalog: Catalog) -> pa.Table | None:
    """The concepts there were, to keep their ids; a damaged table is built anew without them."""
    try:
        return stored_table(catalog)
    except CatalogError:
        return None
