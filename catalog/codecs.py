"""How the unit vectors of a space are stored: as float16, or as whole numbers of steps in a basis that suits them.

The second ("dct") is transform coding as pictures are coded, with a stated cosine in place of a quality setting:
orthonormal cosine transforms of square blocks, one rounding step for all coefficients of a vector, and zstd as the
entropy coder. A direction's length says nothing, so that the step is not stored: what is read is scaled to unit length.
Blocks follow each other whole, for local directions leave most of them empty. A row is one binary value, which Parquet
hands over at once, where a list of numbers is put together entry by entry. Each is compressed by itself: that costs 1 %
of its size, and to read one, the rest of its row group need not be unpacked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.errors import CatalogError

NORM_TOLERANCE = 1e-3
LARGEST = 2**22  # entries of a vector: an RGB picture of 1,182 pixels a side
BLOCKS = (8, 4, 2, 1)
MIXED_CHANNELS = 4  # colours and latents are mixed by the transform; channels of a bottleneck have no order to use
# Rounding steps to choose from, largest first, an eighth of an octave apart: one vector gets the same one everywhere.
STEPS = tuple(2.0 ** (-k / 8) for k in range(18 * 8 + 1))
ROUNDING = 0.4  # added before truncation: rounding towards zero a little costs less in cosine than it saves in bytes
_MOST = 2**15 - 1  # largest whole number stored, by magnitude
_MARGIN = 1e-6  # of the cosine: decoding is in float32
_NOTHING = 1e-6  # of a vector's length: what is smaller than this is rounding of float32
_ZSTD = pa.Codec("zstd", compression_level=1)  # higher levels take longer and save nothing
_SLICE = 2**17  # entries decoded together: they stay in a core's cache


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _block(value: int) -> int:
    if value not in BLOCKS:
        raise ValueError("1, 2, 4 or 8")
    return value


class Float16Spec(_Spec):
    """Every entry rounded to float16."""

    kind: Literal["float16"] = "float16"


class DctSpec(_Spec):
    """Cosine transforms and rounding.

    `block`: pixels a side of the squares transformed, 1 for none. `channels`: whether the channels of a pixel are
    transformed too. `cosine`: least cosine between a vector and what is read back.
    """

    kind: Literal["dct"] = "dct"
    block: Annotated[int, AfterValidator(_block)]
    channels: bool
    cosine: Annotated[float, Field(ge=0.9, le=0.99999)]


CodecSpec = Annotated[Float16Spec | DctSpec, Field(discriminator="kind")]


class Codec(ABC):
    """Vectors of one shape to columns of a table and back."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.size = shape, prod(shape)

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """Most bytes that one vector takes in a column before compression: what a reader should expect at most."""

    @abstractmethod
    def fields(self, column: str, nullable: bool) -> list[pa.Field]:
        """The Arrow fields that hold the vectors; the first is called `column`."""

    @abstractmethod
    def encode(self, vectors: np.ndarray, column: str) -> dict[str, np.ndarray]:
        """float32 (n, D) of unit norm to the values of `fields(column, ...)` by name. No randomness.

        Raises CatalogError naming `column`: wrong shape, NaN, infinity, norms off by over 1e-3.
        """

    @abstractmethod
    def decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """What `encode` returned to float32 (n, D) of unit norm within 1e-3.

        Raises CatalogError naming the column whose values no writer would have stored.
        """

    @property
    @abstractmethod
    def packed(self) -> bool:
        """Whether values are compressed already, so that Parquet should leave them as they are."""

    @property
    def usual_bytes(self) -> int:
        """About what one vector takes in a column, for choosing how many are read together."""
        return self.row_bytes // 4 if self.packed else self.row_bytes

    def _checked(self, vectors: np.ndarray, column: str) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise CatalogError(column, f"shape {vectors.shape}", f"(n, {self.size}), of vectors of shape {self.shape}")
        if not np.isfinite(vectors).all():
            raise CatalogError(column, "NaN or infinity", "finite values of a unit vector")
        return _of_unit_norm(vectors, column)


def _of_unit_norm(vectors: np.ndarray, column: str) -> np.ndarray:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    for norm in norms[~(np.abs(norms - 1.0) <= NORM_TOLERANCE)][:1]:
        raise CatalogError(column, f"norm {norm:.6g}", f"unit norm within {NORM_TOLERANCE:g}")
    return vectors


class Float16Codec(Codec):
    """A list of D numbers in float16: a seventh of a percent of noise, readable by every tool."""

    @property
    def row_bytes(self) -> int:
        return 2 * self.size

    def fields(self, column: str, nullable: bool) -> list[pa.Field]:
        item = pa.field("element", pa.float16(), nullable=False)
        return [pa.field(column, pa.list_(item, self.size), nullable=nullable)]

    def encode(self, vectors: np.ndarray, column: str) -> dict[str, np.ndarray]:
        rounded = self._checked(vectors, column).astype(np.float16)
        self._checked(rounded, column)
        return {column: rounded}

    def decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        ((column, values),) = columns.items()
        with np.errstate(invalid="ignore"):  # NaN is refused below, of whatever kind
            return self._checked(values.astype(np.float32), column)

    @property
    def packed(self) -> bool:
        return False


class DctCodec(Codec):
    """One binary value a vector: a byte, 1 or 2, and one zstd frame of so many planes of D bytes: the low bytes of D
    whole numbers, then the high ones where any is not zero.

    A whole number k is stored as 2 k, or -2 k - 1 where it is negative. Order: rows of blocks, blocks of a row,
    channels, coefficients of a block by rising frequency (i^2 + j^2, then i).

    The same vector gives the same bytes on every machine with IEEE arithmetic, but for rounding in the sums by which a
    step is chosen, which would have to fall within 1e-15 of the bound. Cost on one core, per million entries: about
    0.2 s to encode.
    """

    def __init__(self, spec: DctSpec, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        fits = len(shape) == 3 and shape[1] % spec.block == 0 and shape[2] % spec.block == 0
        if not fits or not 1 <= self.size <= LARGEST:
            expected = f"(C, H, W), at most {LARGEST} entries, H and W multiples of {spec.block}"
            raise CatalogError("codec: shape", shape, expected, "Store these vectors as float16")
        self.spec = spec

    @property
    def row_bytes(self) -> int:
        return 2 * self.size + self.size // 64 + 64  # numbers that zstd can do nothing with

    def fields(self, column: str, nullable: bool) -> list[pa.Field]:
        return [pa.field(column, pa.binary(), nullable=nullable)]

    @property
    def packed(self) -> bool:
        return True

    def encode(self, vectors: np.ndarray, column: str) -> dict[str, np.ndarray]:
        """As `Codec.encode`; the cosine of every vector to what will be read is at least the spec's.

        Vectors that were read give the bytes they were read from, if one of their numbers was 1 or -1, as it nearly
        always is: nothing is lost by copying.

        Raises CatalogError too where whole numbers up to 32,767 do not reach that: one entry that outweighs hundreds of
        thousands of others.
        """
        encoded = np.empty(len(vectors), dtype=object)
        for row, vector in enumerate(self._checked(vectors, column)):
            coefficients = self.coefficients(vector.astype(np.float64))
            numbers = _whole_already(coefficients)
            if numbers is not None and not self._near(numbers, coefficients):
                numbers = None
            encoded[row] = _packed(self._rounded(coefficients, column) if numbers is None else numbers)
        return {column: encoded}

    def decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        ((column, values),) = columns.items()
        vectors = np.empty((len(values), self.size), dtype=np.float32)
        rows = max(1, _SLICE // self.size)
        for start in range(0, len(values), rows):
            part = slice(start, start + rows)
            vectors[part] = self._vectors(np.stack([self._unpacked(value, column) for value in values[part]]), column)
        return vectors

    def coefficients(self, vector: np.ndarray) -> np.ndarray:
        """The transform of a vector: float64 (D,) to float64 (D,), in the order of storage, of the same norm."""
        blocks = vector.reshape(self._grid)
        mixing, waves = self._bases
        for axis, basis in ((0, mixing), (2, waves), (4, waves)):
            blocks = _transformed(blocks, basis, axis)
        ordered = blocks.transpose(1, 3, 0, 2, 4).reshape(-1, len(self._order))[:, self._order]
        return np.asarray(ordered.ravel())

    def _rounded(self, coefficients: np.ndarray, column: str) -> np.ndarray:
        """Whole numbers (D,) int64 by the largest step that keeps the cosine."""
        magnitudes = np.abs(coefficients)
        peak = float(magnitudes.max())

        def wholes(step: float) -> np.ndarray:
            return np.asarray(np.floor(magnitudes / step + ROUNDING))

        def near(step: float) -> bool:
            return self._near(wholes(step), magnitudes)

        low, high = 0, len(STEPS) - 1  # the answer lies in [low, high] where cosines fall as steps grow
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if near(STEPS[middle]) else (middle + 1, high)
        while low < len(STEPS) - 1 and not near(STEPS[low]):
            low += 1
        if not near(STEPS[low]) or peak / STEPS[low] + ROUNDING >= _MOST:
            raise CatalogError(
                column, f"a vector whose largest coefficient is {peak:.3g}",
                f"one that whole numbers up to {_MOST} hold at a cosine of {self.spec.cosine}",
                "Store the vectors of this space as float16",
            )  # fmt: skip
        return np.asarray(np.sign(coefficients) * wholes(STEPS[low]), dtype=np.int64)

    def _near(self, numbers: np.ndarray, coefficients: np.ndarray) -> bool:
        """Whether whole numbers (D,) keep the promised cosine to coefficients (D,)."""
        wide = np.asarray(numbers, dtype=np.float64)
        lengths = math.sqrt(float(wide @ wide)) * math.sqrt(float(coefficients @ coefficients))
        return lengths > 0 and float(wide @ coefficients) >= (self.spec.cosine + _MARGIN) * lengths

    def _unpacked(self, value: Any, column: str) -> np.ndarray:
        """The stored numbers, uint16 (D,), of one row."""
        if not isinstance(value, bytes) or value[:1] not in (b"\1", b"\2"):
            found = f"{len(value)} bytes, {value[:1]!r} first" if isinstance(value, bytes) else type(value).__name__
            raise CatalogError(column, found, "the number of planes, 1 or 2, and a zstd frame")
        size = value[0] * self.size
        try:
            unpacked = _ZSTD.decompress(memoryview(value)[1:], size)
        except (OSError, ValueError) as error:
            found = f"another frame ({str(error)[:80]})"
            raise CatalogError(column, found, f"{size} bytes as one zstd frame") from error
        planes = np.frombuffer(unpacked, dtype=np.uint8).reshape(-1, self.size).astype(np.uint16)
        if len(planes) == 2 and not planes[1].any():
            raise CatalogError(column, "high bytes that are all zero", "none, where the low bytes say all")
        return np.asarray(planes[0] if len(planes) == 1 else planes[0] | planes[1] << 8)

    def _vectors(self, stored: np.ndarray, column: str) -> np.ndarray:
        """float32 (n, D) of stored numbers uint16 (n, D)."""
        numbers = ((stored >> 1) ^ -(stored & 1)).view(np.int16).astype(np.float32)
        norms = np.sqrt(numbers[:, None] @ numbers[:, :, None])[:, 0]
        if not norms.all():
            raise CatalogError(column, "a vector of zeros", "a unit vector")
        numbers /= norms
        channels, down, block, across, _ = self._grid
        mixing, _ = self._bases
        if block > 1:
            numbers = numbers.reshape(-1, block * block) @ self._patterns
        blocks = numbers.reshape(-1, down, across, channels, block, block)
        pictures = blocks.transpose(0, 3, 1, 4, 2, 5).reshape(len(stored), channels, -1)
        if len(mixing) > 1:
            pictures = mixing.T.astype(np.float32) @ pictures
        return np.asarray(pictures.reshape(len(stored), self.size))

    @cached_property
    def _grid(self) -> tuple[int, int, int, int, int]:
        """Channels, blocks down, rows of a block, blocks across, columns of a block."""
        channels, height, width = self.shape
        block = self.spec.block
        return channels, height // block, block, width // block, block

    @cached_property
    def _bases(self) -> tuple[np.ndarray, np.ndarray]:
        """The transforms of channels and of a block's side."""
        channels = self.shape[0]
        return cosines(channels) if self.spec.channels else np.eye(1), cosines(self.spec.block)

    @cached_property
    def _patterns(self) -> np.ndarray:
        """The block of pixels that each coefficient stands for, float32 (block^2, block^2), in the order of storage."""
        _, waves = self._bases
        return np.asarray(np.kron(waves, waves)[self._order], dtype=np.float32)

    @cached_property
    def _order(self) -> np.ndarray:
        """Which coefficient of a block, in C order, is stored at which place."""
        rows, columns = np.indices((self.spec.block, self.spec.block)).reshape(2, -1)
        return np.lexsort((rows, rows**2 + columns**2))


def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II matrix (size, size): one row a frequency. Rounded past where libraries may differ."""
    k, i = np.indices((size, size))
    scale = np.where(k == 0, 1.0, math.sqrt(2.0)) / math.sqrt(size)
    return np.round(scale * np.cos(math.pi * (i + 0.5) * k / size), 13)


def _transformed(values: np.ndarray, basis: np.ndarray, axis: int) -> np.ndarray:
    """`basis` times `values` along an axis, by sums in one order whatever the machine, which BLAS does not promise."""
    if len(basis) == 1:
        return values
    moved = np.moveaxis(values, axis, 0)
    columns = basis.T.reshape(len(basis), len(basis), *[1] * (values.ndim - 1))
    total = columns[0] * moved[0]
    for column, value in zip(columns[1:], moved[1:], strict=True):
        total = total + column * value
    return np.moveaxis(total, 0, axis)


def _whole_already(coefficients: np.ndarray) -> np.ndarray | None:
    """The whole numbers, int64, that float64 coefficients (D,) are multiples of one step of; None where they are not.

    The step is guessed from the smallest coefficient that float32 tells from zero: some number is 1 or -1, nearly
    always.
    """
    magnitudes = np.abs(coefficients)
    step = float(np.min(magnitudes, where=magnitudes > _NOTHING, initial=math.inf))
    if magnitudes.max() > _MOST * step:
        return None
    for most in (8, 64, 512, 4096, _MOST):  # the larger the multiple, the better it tells the step, if it is known well
        near = coefficients[magnitudes < (most + 0.5) * step]
        numbers = np.rint(near / step)
        step = float(near @ numbers) / float(numbers @ numbers)
    numbers = np.rint(coefficients / step)
    if np.abs(numbers).max() > _MOST:
        return None
    rest = np.abs(coefficients - step * numbers).max()
    return numbers.astype(np.int64) if rest < step / 64 else None  # chance leaves half a step


def _packed(numbers: np.ndarray) -> bytes:
    """Whole numbers int64 (D,) as bytes."""
    stored = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    low, high = (stored & 255).astype(np.uint8), (stored >> 8).astype(np.uint8)
    planes = (low, high) if high.any() else (low,)
    frame: bytes = _ZSTD.compress(b"".join(plane.tobytes() for plane in planes), asbytes=True)
    return bytes([len(planes)]) + frame


def codec_for(spec: CodecSpec, shape: tuple[int, ...]) -> Codec:
    """The codec of a spec for vectors of `shape`. Raises CatalogError for a shape that does not fit."""
    return DctCodec(spec, shape) if isinstance(spec, DctSpec) else Float16Codec(shape)


def default_codec(space: str, shape: tuple[int, ...]) -> CodecSpec:
    """What measurement favours: blocks of cosines in x-space, none in h-space, which is not smooth.

    The cosines are those at which decoded edits differ by clearly less than 1 % of their own size, see
    `tests.benchmarks.vectors`. Shapes that the transforms do not fit are stored as float16.
    """
    if len(shape) != 3 or prod(shape) > LARGEST:
        return Float16Spec()
    if space != "x":
        return DctSpec(block=1, channels=False, cosine=0.9998)
    block = next(size for size in BLOCKS if shape[1] % size == 0 and shape[2] % size == 0)
    return DctSpec(block=block, channels=1 < shape[0] <= MIXED_CHANNELS, cosine=0.9999)


def effect_codec(shape: tuple[int, ...]) -> CodecSpec:
    """The codec of the effects of concepts: that of x-space, since an effect is a small picture.

    On 267 effects of 3 x 16 x 16 it takes 562 bytes at a cosine of 0.9999, where float16 takes 1,465.
    """
    return default_codec("x", shape)
