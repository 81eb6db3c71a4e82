"""How small a direction can be stored, and whether an edit still is the same edit.

`python -m tests.benchmarks.vectors [--quick] [--json] [--save FILE] [--examples CATALOG] [--only PART ...]`. Parts:

- `x64`, `h64`: directions of held-out built-in faces, mined as the demo does: x-space of 12,288 entries and h-space of
  24,576 (the built-in model's; a published 256-pixel model has 32,768). All ways to store them at one cosine; the
  spectrum; edits of every kind with the stored vector against the original, decoded both.
- `x256`: x-space of 196,608 entries. There is no trained 256-pixel model here: it is the built-in 64-pixel network,
  which is convolutional, applied to its faces at 256 pixels, with a few masked directions from a search cut short.
- `access`: shards of 100,000 directions on this disk, one row at random and all in order.

`--examples`: a catalog of other images, from which the shared basis is learned; otherwise half of the directions are.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from catalog.codecs import DctSpec, codec_for, default_codec
from catalog.reader import Catalog
from flows.console import stage
from flows.datasets.dataset import load_builtin
from pipeline.editing import DecodeSettings, Edit, compose, decode, invert_pictures
from pipeline.images import as_tensor
from pipeline.jacobian import jacobian
from pipeline.mining import mine_image
from pipeline.models.contract import Denoiser
from pipeline.strengths import VISIBLE_RMS
from pipeline.svd import masked_svds
from tests.benchmarks import vector_storage
from tests.benchmarks.harness import Options, Target, at_least, at_most, document, finish, options, table
from tests.benchmarks.subjects import Bench, open_bench
from tests.benchmarks.vector_codecs import compare, medians, shared_basis, spectrum

PARTS = ("x64", "h64", "x256", "access")
IMAGES, QUICK_IMAGES = 2, 1
EDITS, QUICK_EDITS = 8, 2  # of each space and kind
ROWS, QUICK_ROWS = 100_000, 8_192
LARGE, LARGE_REGIONS = (3, 256, 256), ("mouth", "left_eye")
LARGE_PRODUCTS, LARGE_STEPS = 20, 3
LARGE_NOTE = "the built-in 64-pixel network applied at 256 pixels: no trained 256-pixel model is available here"
SMALLER = {"x": 8.0, "h": 6.0}
COSINE, EDIT = 0.999, 0.01
EXAMPLES = 480  # directions a shared basis is learned from, at most

Part = tuple[list[Target], dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """One direction of an image: `vector` float32 (D,), `strength` of its visible edit, `x_t` it is applied to."""

    image: int
    space: str
    kind: str
    vector: np.ndarray
    strength: float
    x_t: torch.Tensor


def mine(bench: Bench, images: int) -> list[Found]:
    """All directions of the first held-out faces, with the demo's settings."""
    subjects, found = bench.inverted(bench.images("holdout", images)), []
    with bench.clock.stage("mining"), stage("mining", images) as advance:
        for i, subject in enumerate(subjects):
            mined = mine_image(bench.denoiser, subject.x_t, subject.masks, bench.settings)
            found += [Found(i, d.space, d.kind, _flat(d.vector), d.strength, subject.x_t) for d in mined.directions]
            advance(1, "")
    return found


def _flat(vector: torch.Tensor) -> np.ndarray:
    values = vector.flatten().double()
    return np.asarray((values / values.norm()).float().numpy())


def edit_errors(
    denoiser: Denoiser, t: int, settings: DecodeSettings, found: Sequence[Found], shape: tuple[int, ...]
) -> list[float]:
    """||edit(stored) - edit(original)|| / ||edit(original) - plain|| of each direction, at its strength."""
    errors = []
    with stage("edits", len(found)) as advance:
        for d in found:
            codec = codec_for(default_codec(d.space, shape), shape)
            stored = codec.decode(codec.encode(d.vector[None], "vector"))[0]
            pictures = []
            for vector, strength in ((d.vector, 0.0), (d.vector, d.strength), (stored, d.strength)):
                edit = Edit("x" if d.space == "x" else "h", torch.from_numpy(vector.reshape(shape)), strength)
                latent, shift = compose(denoiser, d.x_t, [edit])
                pictures.append(decode(denoiser, latent[None], t, settings, None if shift is None else shift[None]))
            plain, original, again = pictures
            errors.append(float((again - original).norm() / (original - plain).norm()))
            advance(1, f"{errors[-1]:.4f}")
    return errors


def examples(catalog: Path | None, space: str, found: Sequence[Found]) -> tuple[np.ndarray, list[Found]]:
    """Vectors to learn a basis from, and the directions it is tried on: never the same ones."""
    own = [d for d in found if d.space == space]
    if catalog is None:
        half = max(d.image for d in own) // 2 + 1
        learned = [d for d in own if d.image < half] if own[-1].image else own[::2]
        return np.stack([d.vector for d in learned]), [d for d in own if all(d is not other for other in learned)]
    with Catalog.open(catalog) as opened:
        ids = opened.ids()[opened.select(space=space)].astype(str)
        chosen = np.random.default_rng(0).permutation(len(ids))[:EXAMPLES]
        return opened.vectors([str(i) for i in ids[np.sort(chosen)]], space), own


def small(bench: Bench, given: Options, space: str, found: Sequence[Found]) -> Part:
    """One space of the built-in model: sizes, spectrum and edits."""
    shape = bench.denoiser.info.x_shape if space == "x" else bench.denoiser.need_bottleneck()
    learned, own = examples(given.extra.examples, space, found)
    with bench.clock.stage(f"{space}: storing"):
        details = stored(np.stack([d.vector for d in own]), space, shape, shared_basis(learned))
    picked: dict[str, list[Found]] = {}
    count = QUICK_EDITS if given.quick else EDITS
    for kind in sorted({d.kind for d in own}):
        of_kind = [d for d in own if d.kind == kind]
        order = np.random.default_rng(0).permutation(len(of_kind))[:count]
        picked[kind] = [of_kind[i] for i in order]
    settings = bench.settings
    with bench.clock.stage(f"{space}: edits"):
        errors = {
            kind: edit_errors(bench.denoiser, settings.timestep, settings.decode, ds, shape)
            for kind, ds in picked.items()
        }
    details["edits"] = {kind: medians(values) for kind, values in errors.items()}
    return targets(f"{space}, {details['entries']:,} entries", space, details), details


def stored(vectors: np.ndarray, space: str, shape: tuple[int, ...], basis: np.ndarray | None) -> dict[str, Any]:
    """Every way to store vectors (n, D) at the default's cosine, and the spectrum."""
    spec = default_codec(space, shape)
    assert isinstance(spec, DctSpec)
    rows = compare(vectors, shape, spec.cosine, basis)
    return {
        "entries": vectors.shape[1], "shape": list(shape), "directions": len(vectors), "codec": spec.model_dump(),
        "way": way_of(spec), "ways": rows, "spectrum": spectrum(vectors, shape, spec.cosine),
    }  # fmt: skip


def way_of(spec: DctSpec) -> str:
    """What `compare` calls a spec."""
    name = f"cosines, blocks of {spec.block}" if spec.block > 1 else "whole numbers, no transform"
    return name + (", channels mixed" if spec.channels else "")


def targets(name: str, space: str, details: dict[str, Any]) -> list[Target]:
    """What the default codec must keep."""
    (row,) = [row for row in details["ways"] if row.way == details["way"]]
    worst = max(edits["max"] for edits in details["edits"].values())
    return [
        at_least(f"{name}: times smaller than float32", row.smaller, SMALLER[space]),
        at_least(f"{name}: least cosine to float32", row.cosine_min, COSINE),
        at_most(f"{name}: largest difference of an edit, over its size", worst, EDIT),
    ]


# --- 256 pixels ---------------------------------------------------------------------------------------------------


def large(bench: Bench, given: Options) -> Part:
    """x-space of 256 pixels; see `LARGE_NOTE`."""
    denoiser, t = copy.copy(bench.denoiser), bench.settings.timestep
    denoiser.info = replace(denoiser.info, image_shape=LARGE)
    products, steps = (8, 1) if given.quick else (LARGE_PRODUCTS, LARGE_STEPS)
    (image,) = load_builtin("holdout", LARGE_REGIONS, 1, LARGE).images
    with bench.clock.stage("x256: mining"), stage("256 pixels: inversion, search", 2) as advance:
        x_t = invert_pictures(denoiser, as_tensor(image.image)[None], t, 2 * steps)[0]
        advance(1, "inverted")
        masks = {name: torch.from_numpy(image.masks[name]) for name in LARGE_REGIONS}
        svds = masked_svds(
            jacobian(denoiser, x_t, t, "x0/x"), masks, dict.fromkeys(masks, 2), probes=0, max_products=products,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        advance(1, f"{products} products")
    found = []
    for name, svd in svds.items():
        pixels = float(masks[name].sum()) * LARGE[0]
        for sigma, vector in zip(svd.sigma.tolist(), svd.v, strict=True):
            found.append(Found(0, "x", "singular", _flat(vector), VISIBLE_RMS * pixels**0.5 / sigma, x_t))
    details = stored(np.stack([d.vector for d in found]), "x", LARGE, None)
    details["note"] = LARGE_NOTE
    details["residuals"] = {name: svd.residuals.tolist() for name, svd in svds.items()}
    with bench.clock.stage("x256: edits"):
        errors = edit_errors(denoiser, t, DecodeSettings(steps=steps), found[:2] if given.quick else found, LARGE)
    details["edits"] = {"singular": medians(errors)}
    return targets(f"x, {details['entries']:,} entries", "x", details), details


# --- reading ------------------------------------------------------------------------------------------------------


def access(bench: Bench, given: Options, found: Sequence[Found]) -> Part:
    """A catalog's shards on this disk."""
    shape, rows = bench.denoiser.info.x_shape, QUICK_ROWS if given.quick else ROWS
    spec = default_codec("x", shape)
    vectors = np.stack([d.vector for d in found if d.space == "x"])
    with tempfile.TemporaryDirectory(dir=given.extra.folder) as folder:
        with bench.clock.stage("access: writing"):
            paths = vector_storage.write(Path(folder), vectors, shape, spec, rows)
        with bench.clock.stage("access: reading"):
            result = vector_storage.measure(paths, shape, spec, rows)
    name = f"one direction of {rows:,}"
    return [
        at_most(f"{name}: ms, footers kept, files not cached (median)", result.kept_ms[0], 5.0),
        at_most(f"{name}: ms, its footer read too (median)", result.first_ms[0], 5.0),
        at_least("all in order: float32 rate over the disk's own for a plain file", result.float32_rate
                 / result.raw_rate, 0.8),
    ], {"rows": rows, "measured": result}  # fmt: skip


# --- the command --------------------------------------------------------------------------------------------------


def run(bench: Bench, given: Options) -> Part:
    """The parts asked for: their targets and details."""
    parts: Sequence[str] = given.extra.only
    found = [] if set(parts) == {"x256"} else mine(bench, QUICK_IMAGES if given.quick else IMAGES)
    every = {
        "x64": lambda: small(bench, given, "x", found), "h64": lambda: small(bench, given, "h", found),
        "x256": lambda: large(bench, given), "access": lambda: access(bench, given, found),
    }  # fmt: skip
    reached: list[Target] = []
    details: dict[str, Any] = {}
    for part in PARTS:
        if part in parts:
            more, details[part] = every[part]()
            reached += more
    return reached, details


def show(details: dict[str, Any]) -> None:
    """The tables for people."""
    for part, found in details.items():
        if part == "access":
            table("reading", ("what", "value"), [(k, str(v)) for k, v in vars(found["measured"]).items()])
            continue
        title = f"{part}: {found['directions']} directions of {found['entries']:,} entries"
        header = ("stored as", "bytes", "x smaller", "cosine min", "median", "decode ms")
        table(f"{title}; {found['note']}" if "note" in found else title, header, [
            (r.way, f"{r.bytes:.0f}", f"{r.smaller:.2f}", f"{r.cosine_min:.6f}", f"{r.cosine_median:.6f}", r.decode_ms)
            for r in found["ways"]
        ])  # fmt: skip
        shares = found["spectrum"]["energy_by_eighth_of_frequency"]
        table(f"{part}: energy by frequency, eighths", list("12345678"), [[f"{share:.3f}" for share in shares]])
        bits = found["spectrum"]["bits_an_entry"] | {"were it white": found["spectrum"]["bits_an_entry_if_white"]}
        table(f"{part}: bits an entry needed, by basis", ("basis", "bits"), list(bits.items()))
        rows = [(kind, e["median"], e["max"], e["count"]) for kind, e in found["edits"].items()]
        table(f"{part}: edits that differ by", ("kind", "median", "max", "edits"), rows)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=Path, metavar="CATALOG", help="learn the shared basis from this catalog")
    parser.add_argument("--folder", type=Path, help="where the shards are written and read; default the temporary one")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run; default all")


def main(argv: Sequence[str] | None = None) -> int:
    given = options("vectors", __doc__ or "", argv, _options)
    with open_bench() as bench:
        reached, details = run(bench, given)
    content = document("vectors", given.quick, reached, details, bench.clock)
    return finish(content, given, lambda: show(details))


if __name__ == "__main__":
    sys.exit(main())
