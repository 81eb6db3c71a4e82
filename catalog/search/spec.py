"""What a manifest says of a search index: how vectors are sketched, quantised and searched. Hostile until parsed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SMALLEST_SKETCH, LARGEST_SKETCH = 64, 1024
FLAT_BYTES = 2  # a flat index holds its sketches as float16

SketchKind = Literal["identity", "srht", "learned"]
IndexKind = Literal["flat", "ivf-sq8", "ivf-pq"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SketchSpec(_Strict):
    """How search vectors are made from stored ones; see format.md and `catalog.search.sketch`.

    `identity`: the vector itself. `srht`: a subsampled randomised Hadamard transform, which needs no stored matrix.
    `learned`: an SRHT to at most 4,096 entries, then a projection that is stored in the index's quantiser.
    """

    kind: SketchKind
    dimension: Annotated[int, Field(ge=1, le=LARGEST_SKETCH)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> SketchSpec:
        if self.kind != "identity" and self.dimension < SMALLEST_SKETCH:
            raise ValueError("a sketch has 64 to 1,024 dimensions")
        return self


class IndexSpec(_Strict):
    """Type and sizes of an index. `code_size` is bytes per direction; `lists`, `probes` are 0 for a flat index.

    `candidates`: how many of the best by code are ranked again by stored vectors.
    """

    kind: IndexKind
    sketch: SketchSpec
    code_size: Annotated[int, Field(ge=1, le=FLAT_BYTES * LARGEST_SKETCH)]
    lists: Annotated[int, Field(ge=0, le=2**20)] = 0
    probes: Annotated[int, Field(ge=0, le=2**16)] = 0
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 100

    @model_validator(mode="after")
    def _consistent(self) -> IndexSpec:
        dimension = self.sketch.dimension
        if self.kind == "flat":
            sizes, inverted = {FLAT_BYTES * dimension}, False
        elif self.kind == "ivf-sq8":
            sizes, inverted = {dimension}, True
        else:  # 4 bits for each of 2 * code_size parts of equal length
            sizes = {size for size in range(1, dimension // 2 + 1) if dimension % (2 * size) == 0}
            inverted = True
        if self.code_size not in sizes:
            raise ValueError(f"code_size does not fit {self.kind} codes of {dimension} dimensions")
        if inverted != (self.lists > 0) or inverted != (self.probes > 0) or self.probes > self.lists:
            raise ValueError("lists and probes are positive for inverted indexes, 0 for flat ones; probes <= lists")
        return self
