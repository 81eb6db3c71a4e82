"""Which type of index a number of directions calls for, when a catalog has outgrown its own, and what one costs."""

from __future__ import annotations

from math import log2, sqrt

from catalog.search.spec import FLAT_BYTES, IndexKind, IndexSpec, SketchSpec

DIMENSION = 256  # 100 candidates of a learned sketch held all of the 10 nearest in 99.9 % of lookups of real directions
LEARNED_FROM = 512  # fewer directions than this do not span what is to be learned
PROJECTION_SAMPLE = 8192
FLAT_UP_TO = 30_000  # exact search of that many takes a few milliseconds
MEMORY = 8 * 2**30  # bytes that an index may take where nothing else is said
_ID_BYTES = 8
_SAMPLE_PER_LIST = 32
_OUTGROWN = 4  # lists may become that many times longer than planned before they are made anew


def lists_for(rows: int) -> int:
    """About 3 sqrt(rows), a power of two: choosing lists then costs about as much as looking into them."""
    return int(min(2 ** round(log2(max(16.0, 3 * sqrt(rows)))), 2 ** int(log2(max(1, rows)))))


def sample_for(spec: IndexSpec) -> int:
    """How many directions a quantiser is trained on, at most."""
    return max(PROJECTION_SAMPLE, _SAMPLE_PER_LIST * spec.lists)


def code_size(kind: IndexKind, dimension: int) -> int:
    """Bytes of a code: float16, a byte an entry, or 4 bits for every two entries (more where these do not divide)."""
    if kind == "flat":
        return FLAT_BYTES * dimension
    if kind == "ivf-sq8":
        return dimension
    return max(size for size in range(1, max(1, dimension // 4) + 1) if dimension % (2 * size) == 0 or size == 1)


def memory_per_direction(kind: IndexKind, dimension: int) -> int:
    """Bytes of memory for a direction: its code and its row number."""
    return code_size(kind, dimension) + _ID_BYTES


def choose(rows: int, entries: int, seed: int = 0, memory: int = MEMORY) -> IndexSpec:
    """The index for `rows` vectors of `entries` entries within `memory` bytes; `probes` are calibrated when trained."""
    if entries <= DIMENSION:
        sketch = SketchSpec(kind="identity", dimension=entries, seed=seed)
    else:
        sketch = SketchSpec(kind="srht" if rows < LEARNED_FROM else "learned", dimension=DIMENSION, seed=seed)
    size, kind = sketch.dimension, "flat"
    if rows > FLAT_UP_TO:
        fits = rows * memory_per_direction("ivf-sq8", size) <= memory or size % 2
        kind = "ivf-sq8" if fits else "ivf-pq"
    if kind == "flat":
        return IndexSpec(kind="flat", sketch=sketch, code_size=code_size("flat", size))
    lists = lists_for(rows)
    which: IndexKind = "ivf-sq8" if kind == "ivf-sq8" else "ivf-pq"
    return IndexSpec(
        kind=which, sketch=sketch, code_size=code_size(which, size), lists=lists, probes=max(1, lists // 32)
    )  # fmt: skip


def outgrown(spec: IndexSpec, wanted: IndexSpec) -> bool:
    """Whether a catalog that calls for `wanted` is no longer served by `spec`: another type, or far too few lists.

    A catalog never grows back into a simpler type, since an index of a type above serves it as well.
    """
    order = ("flat", "ivf-sq8", "ivf-pq")
    return (
        order.index(wanted.kind) > order.index(spec.kind)
        or (wanted.sketch.kind == "learned" and spec.sketch.kind != "learned")
        or wanted.lists >= _OUTGROWN * max(1, spec.lists)
    )
