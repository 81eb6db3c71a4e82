"""Directions for the index benchmark: real ones, and as many synthetic ones as wanted with their spectrum and clusters.

How one is drawn: a real direction r of a random region; a Gaussian mixture z of all real directions of that region, so
that z has the region's measured spectrum; a share w of the energy from r, the rest from z; then white noise under the
region's mean energy in every entry, with the share of energy that real directions were measured to have outside the
span of other images' directions. w is uniform between a bound and 1; the bound is fitted so that nearest neighbours are
as near as those of real directions on other images. Sign at random, unit length. A block of rows depends on its number
and the seed alone, so that no vector need be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from catalog.reader import Catalog
from catalog.records import Chunk, content_id
from catalog.search.sketch import unit
from catalog.writer import CatalogWriter
from pipeline.jacobian import jacobian
from pipeline.svd import masked_svds
from tests.benchmarks.harness import Clock
from tests.benchmarks.subjects import open_bench
from tests.catalog.samples import direction_record, image_record, provenance, region_record

BLOCK = 2048


@dataclass(frozen=True)
class Real:
    """Real directions of one space: `vectors` (n, D) float32 of unit length, image and region of each (n,) str."""

    vectors: np.ndarray
    images: np.ndarray
    regions: np.ndarray

    def split(self) -> tuple[Real, Real]:
        """Two halves that share no image."""
        first = np.isin(self.images, np.unique(self.images)[::2])
        return tuple(Real(self.vectors[m], self.images[m], self.regions[m]) for m in (first, ~first))  # type: ignore[return-value]


@dataclass(frozen=True)
class Likeness:
    """Medians of the |cos| of a direction to its nearest, 5th and 20th nearest on other images; shares of energy in the
    leading 16, 64 and 256 singular directions of the whole set."""

    nearest: tuple[float, float, float]
    energy: tuple[float, float, float]


def likeness(vectors: np.ndarray, images: np.ndarray) -> Likeness:
    """Of (n, D) float32 unit vectors; both are compared over equally many."""
    scores = np.abs(vectors @ vectors.T)
    scores[images[:, None] == images[None]] = 0
    ranked = -np.sort(-scores, axis=1)
    squares = np.linalg.eigvalsh(vectors @ vectors.T)[::-1].astype(np.float64)
    shares = np.cumsum(squares) / squares.sum()
    nearest = tuple(float(np.median(ranked[:, min(k, ranked.shape[1] - 1)])) for k in (0, 4, 19))
    return Likeness(nearest, tuple(float(shares[min(k, len(shares)) - 1]) for k in (16, 64, 256)))  # type: ignore[arg-type]


def tail_share(real: Real) -> float:
    """Mean share of energy of one half's directions outside the span of the other half's."""
    one, two = real.split()
    basis = np.linalg.qr(two.vectors.T)[0]
    return float(1 - ((one.vectors @ basis) ** 2).sum(axis=1).mean())


class Synthetic:
    """Draws directions; see the module. Block i holds rows i * BLOCK to (i + 1) * BLOCK."""

    def __init__(self, real: Real, least: float, tail: float, seed: int = 0) -> None:
        self.least, self.tail, self.seed = least, tail, seed
        self.entries = real.vectors.shape[1]
        self.members = [np.flatnonzero(real.regions == region) for region in np.unique(real.regions)]
        own = [real.vectors[m] for m in self.members]
        self.envelopes = [np.sqrt((v**2).mean(axis=0)) for v in own]
        self.roots = [np.linalg.cholesky(v @ v.T + 1e-5 * np.eye(len(v), dtype=np.float32)) for v in own]

    def draw(self, block: int, images: np.ndarray, whole: bool = True) -> np.ndarray:
        """(BLOCK, d) float32 rows of a block. `images` (n, d): the real directions (`whole`: rows come out at unit
        length), or their images under a linear map to d entries that keeps lengths about as they are; noise is then
        white, with the energy that such a map leaves of noise in all entries.
        """
        generator = np.random.default_rng([self.seed, block])
        which = generator.integers(0, len(self.members), BLOCK)
        share = generator.uniform(self.least, 1, BLOCK).astype(np.float32)
        values = np.empty((BLOCK, images.shape[1]), dtype=np.float32)
        noise = generator.standard_normal(values.shape, dtype=np.float32)
        noise *= np.float32(np.sqrt(self.tail / self.entries))
        for number, members in enumerate(self.members):
            rows = np.flatnonzero(which == number)
            mixed = generator.standard_normal((len(rows), len(members)), dtype=np.float32)
            mixed *= np.sqrt(1 - share[rows, None]) / np.linalg.norm(mixed @ self.roots[number], axis=1, keepdims=True)
            chosen = generator.integers(0, len(members), len(rows))
            signs = generator.choice([-1, 1], len(rows)).astype(np.float32)
            mixed[np.arange(len(rows)), chosen] += np.sqrt(share[rows]) * signs
            mixed *= np.sqrt(1 - self.tail) / np.linalg.norm(mixed @ self.roots[number], axis=1, keepdims=True)
            if whole:
                noise[rows] *= self.envelopes[number] * np.float32(np.sqrt(self.entries))
            values[rows] = mixed @ images[members]
        values += noise
        if whole:
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        return values

    def blocks(self, rows: int, images: np.ndarray, whole: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows of a block) up to `rows` rows."""
        for block in range(-(-rows // BLOCK)):
            yield block * BLOCK, self.draw(block, images, whole)[: rows - block * BLOCK]


def fitted(real: Real, seed: int = 0) -> tuple[Synthetic, Likeness, Likeness]:
    """Synthetic directions whose nearest neighbours are as near as those of real ones; what is real, what came out."""
    wanted, tail = likeness(real.vectors, real.images), tail_share(real)
    values, turn = np.linalg.eigh(real.vectors @ real.vectors.T)
    small = turn * np.sqrt(np.maximum(values, 0))  # the same directions in as many entries as there are of them
    count = min(BLOCK, len(real.vectors))
    best: tuple[float, Synthetic, Likeness] | None = None
    for least in np.linspace(0, 0.9, 10):
        made = Synthetic(real, float(least), tail, seed)
        rows = made.draw(0, small, whole=False)[:count]
        found = likeness(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.arange(count))
        error = float(np.abs(np.array(found.nearest) - wanted.nearest).sum())
        if best is None or error < best[0]:
            best = (error, made, found)
    assert best is not None
    return best[1], wanted, best[2]


# -- where real ones come from, and where synthetic ones are kept ------------------------------------------------------


def of_catalog(folder: Path) -> Real:
    """The x-space directions of a catalog."""
    with Catalog.open(folder) as catalog:
        rows = catalog.directions(space="x")
        ids = rows.column("direction_id").to_pylist()
        vectors = unit(catalog.vectors(ids, "x"))
        return Real(vectors, np.array(rows.column("image_id")), np.array(rows.column("region")))


def mined(count: int, clock: Clock) -> Real:
    """Leading singular directions of the regions of `count` built-in images, at the demo's timestep, to a residual of
    0.1: without the null space, the hours of which change neither spectrum nor clusters much."""
    vectors, images, names = [], [], []
    with open_bench() as bench:
        for subject in bench.inverted(bench.images("mine", count), steps=15):
            found = masked_svds(
                jacobian(bench.denoiser, subject.x_t, bench.settings.timestep, "x0/x"), subject.masks,
                dict.fromkeys(subject.masks, 5), generator=torch.Generator().manual_seed(0), tolerance=0.1,
            )  # fmt: skip
            for region, svd in found.items():
                vectors.append(svd.v.flatten(1).numpy())
                images += [subject.name] * len(svd.v)
                names += [region] * len(svd.v)
        clock.passes += bench.clock.passes
    return Real(unit(np.concatenate(vectors)), np.array(images), np.array(names))


def stored(
    folder: Path, synthetic: Synthetic, real: Real, rows: int, asked: np.ndarray, advance: Callable[..., None]
) -> tuple[list[str], np.ndarray]:
    """A catalog of synthetic x-space directions, a chunk for each block; ids by row, and exact cosines (q, rows)."""
    shape = (3, 64, 64)
    generator = np.random.default_rng(0)
    keys, cosines = [], np.empty((len(asked), rows), np.float32)
    with CatalogWriter.create(folder, provenance(spaces={"x": shape})) as writer:
        for start, block in synthetic.blocks(rows, real.vectors):
            image = image_record(f"image-{start}", 64)
            region = region_record(image, "mouth")
            template = direction_record(image, "mouth", "x", "singular", 0)
            records = []
            for i, vector in enumerate(block):
                effect = generator.standard_normal(template.effect.shape, dtype=np.float32)
                records.append(
                    replace(template, direction_id=content_id(start + i), rank=0, vector=vector.reshape(shape),
                            effect=effect / np.linalg.norm(effect))
                )  # fmt: skip
            writer.commit(Chunk(f"block-{start}", (image,), (region,), tuple(records)))
            keys += [record.direction_id for record in records]
            cosines[:, start : start + len(block)] = asked @ block.T
            advance(len(block), "")
    return keys, cosines
