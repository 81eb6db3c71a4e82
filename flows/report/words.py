"""The sentences and tables of the report, drawn from a catalog's own numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from catalog.reader import Catalog
from flows.paths import data_folder
from flows.report.page import RegionSection, number, plain_name
from flows.summary import failures_of

GLOSSARY: list[tuple[str, str]] = [
    ("direction", "a unit vector that, added to the noisy image or to the network's middle layer, edits the picture"),
    ("region", "the part of the picture a direction was mined for, given by a mask"),
    ("x-space", "the space of noisy images x_t; a direction is added once (LOCO Edit)"),
    ("h-space", "the space of the network's bottleneck; a direction is added at every step of a window"),
    ("singular", "a top right singular vector of the masked Jacobian, before anything is done about the rest"),
    ("local", "a singular direction with the null space of everything outside the region projected out"),
    ("joint, individual", "what regions share, and what belongs to one region only, as JIVE splits them"),
    ("gain, leakage", "change of the predicted picture per unit strength, inside and outside the region"),
    ("kept share", "how much of a direction's length survived the projection"),
    ("ROIR", "change outside the region over change inside, on the finished picture; smaller is more local"),
    ("visible strength", "the strength at which the finished change reaches 0.15 root-mean-square inside the region"),
    ("round-trip PSNR", "how well the image survives inversion and back; a badly inverted image is no evidence"),
    ("transfer", "a direction on another image, shifted from the centre of its home mask to that of the other's mask"),
    ("homogeneity", "how alike a region's directions are on different images"),
]


def headline(catalog: Catalog, sections: Sequence[RegionSection]) -> str:
    """One sentence: what was mined and how local it is."""
    names = ", ".join(plain_name(section.region) for section in sections)
    roirs = [
        row["roir"]
        for row in catalog.directions(kind=["local", "individual"]).to_pylist()
        if row["roir"] is not None and np.isfinite(row["roir"])
    ]
    middle = (
        f"; the median first edit changes {np.median(roirs):.2f} as much outside its region as inside" if roirs else ""
    )
    images = catalog.manifest.rows("images")
    return f"{catalog.manifest.rows('directions')} directions on {images} images edit {names}{middle}."


def facts(catalog: Catalog) -> list[tuple[str, str]]:
    """What was mined, most telling first."""
    provenance = catalog.manifest.provenance
    method = provenance.recipe["method"]
    return [
        (
            "data set",
            f"{provenance.data['name']} ({provenance.data['split']}), {catalog.manifest.rows('images')} images",
        ),
        ("model", f"{provenance.model['family']}, {provenance.model['parameters'] / 1e6:.1f} M parameters"),
        ("timestep", f"{method['timestep']} T, {method['inversion_steps']} inversion steps"),
        ("x-space", f"rank {method['loco']['rank']}, null space of rank {method['loco']['null_rank']}"),
        (
            "h-space",
            f"rank {method['jive']['rank']}, joint {method['jive']['joint_rank']}, "
            f"individual {method['jive']['individual_rank']}",
        ),
        ("failed images", str(len(failures_of(catalog)))),
    ]


def quality(catalog: Catalog, table: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Quality figures with what they mean."""
    psnr = [row["round_trip_psnr"] for row in catalog.images().to_pylist()]
    singular = catalog.directions(kind="singular").to_pylist()
    residual = max((row["residual"] for row in singular), default=None)
    converged = sum(bool(row["converged"]) for row in singular)
    splits = {row["image_id"]: bool(row["converged"]) for row in catalog.directions(kind="individual").to_pylist()}
    rows = [
        ("median round-trip PSNR", f"{np.median(psnr):.1f} dB", "inversion and back; 42 dB is hard to see"),
        ("largest residual", number(residual), "of the singular triplets, relative to the largest one"),
        ("converged", f"{converged} of {len(singular)}", "singular triplets within the recipe's tolerance"),
        ("JIVE converged", f"{sum(splits.values())} of {len(splits)}", "images whose split has settled"),
    ]
    for space, plain, ours in (("x", "singular", "local"), ("h", "singular", "individual")):
        before = [row["roir"] for row in table if (row["space"], row["kind"]) == (space, plain) and row["roir"]]
        after = [row["roir"] for row in table if (row["space"], row["kind"]) == (space, ours) and row["roir"]]
        if before and after:
            rows.append(
                (
                    f"{space}-space median ROIR",
                    f"{np.median(before):.2f} -> {np.median(after):.2f}",
                    f"{plain} against {ours} first directions, decoded at visible strength",
                )
            )
    return rows


def settings_tried(catalog: Catalog) -> list[Mapping[str, object]]:
    """The settings that were tried on `mine` images before the recipe was fixed, where it has such a record."""
    path = data_folder() / "recipes" / f"{catalog.manifest.provenance.recipe['name']}.tuning.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_text())
    return [dict(row) for row in rows]


def provenance_rows(catalog: Catalog) -> list[tuple[str, str]]:
    """Where everything came from."""
    provenance = catalog.manifest.provenance
    rows = [
        ("recipe", provenance.recipe_fingerprint),
        ("model", provenance.model["fingerprint"]),
        ("data", provenance.data["fingerprint"]),
        ("code", provenance.code_version),
        ("seed", str(provenance.recipe["seed"])),
        ("packages", ", ".join(f"{name} {version}" for name, version in sorted(provenance.packages.items()))),
    ]
    if catalog.manifest.pack is not None:
        rows.insert(0, ("pack", f"{catalog.manifest.pack.repository} {catalog.manifest.pack.version}"))
    return rows
