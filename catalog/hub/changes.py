"""What a version of a pack changes: told from the manifests of both, and the figures that their cards keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from catalog.card import shown
from catalog.hub.figures import Group, Key
from catalog.hub.parts import part_name, part_of
from catalog.manifest import Manifest
from catalog.schema import TABLES

_LISTED = 40
_NOTED = 0.05  # share of a figure that it must differ by
_NAMES = {
    "gain": "gain", "leakage_ratio": "leakage / gain", "residual": "residual", "converged": "converged",
    "kept_share": "kept share", "roir": "ROIR",
}  # fmt: skip


def changes(former: Manifest, now: Manifest, groups: Sequence[Group], before: Mapping[Key, Group] | None) -> list[str]:
    """Lines of Markdown: counts, regions that came and went, and medians that differ by more than a twentieth."""
    version = former.pack.version if former.pack is not None else "the one before"
    lines = [f"Compared with {version}:", "", *(f"- {line}" for line in _counts(former, now))]
    lines += [f"- {line}" for line in _regions(former, now, groups)]
    if before is None:
        return lines
    figures = list(_figures(groups, before))
    if figures:
        lines += ["", "| group | figure | before | now |", "|---|---|---|---|", *figures[:_LISTED]]
        if len(figures) > _LISTED:
            lines += ["", f"and {len(figures) - _LISTED} more figures."]
    else:
        lines.append(f"- no median differs by more than {100 * _NOTED:.0f} %")
    return lines


def _counts(former: Manifest, now: Manifest) -> Iterator[str]:
    for table in TABLES:
        added = dropped = 0
        for name in former.chunks.keys() | now.chunks.keys():
            one, two = (chunks[name].rows if name in chunks else {} for chunks in (former.chunks, now.chunks))
            more = two.get(table, 0) - one.get(table, 0)  # type: ignore[call-overload]
            added, dropped = added + max(0, more), dropped + max(0, -more)
        what = "masks of regions" if table == "regions" else table
        yield f"{what}: {now.rows(table):,}; {added:,} added, {dropped:,} dropped"
    before, after = (manifest.concepts.rows if manifest.concepts is not None else 0 for manifest in (former, now))
    if before != after:
        yield f"prototypes: {after:,}, before {before:,}"


def _rows_by_part(manifest: Manifest) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for path in manifest.shards("directions"):
        part = part_of(path)
        if part is not None:
            found[part] += manifest.files[path].rows or 0
    return found


def _regions(former: Manifest, now: Manifest, groups: Sequence[Group]) -> Iterator[str]:
    """Regions of a data set that are new, gone, or have more or fewer directions."""
    one, two = _rows_by_part(former), _rows_by_part(now)
    names = {part_name(g.dataset, g.region): f"{shown(g.region)} ({shown(g.dataset)})" for g in groups}
    parts = [part for part in sorted(one.keys() | two.keys()) if one.get(part) != two.get(part)]
    for part in parts[:_LISTED]:
        name = names.get(part, shown(part))
        if part not in one:
            yield f"{name}: new, {two[part]:,} directions"
        elif part not in two:
            yield f"{name}: dropped, with {one[part]:,} directions"
        else:
            yield f"{name}: {two[part]:,} directions, before {one[part]:,}"
    if len(parts) > _LISTED:
        yield f"and {len(parts) - _LISTED} more regions"


def _figures(groups: Sequence[Group], before: Mapping[Key, Group]) -> Iterator[str]:
    for group in groups:
        if (former := before.get(group.key)) is None:
            continue
        for name, label in _NAMES.items():
            one, two = former.measured[name], group.measured[name]
            known = one is not None and two is not None
            if one != two and (not known or abs(two - one) > _NOTED * max(abs(one), abs(two))):  # type: ignore[operator,arg-type]
                cells = [f"{shown(group.region)} {group.space} {group.kind} ({shown(group.dataset)})", label]
                yield "| " + " | ".join([*cells, *("-" if v is None else f"{v:.3g}" for v in (one, two))]) + " |"
