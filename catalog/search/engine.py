"""A search index in memory or mapped from disk: assembled from codes, searched sign-blind, filtered within FAISS."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np

from catalog.search.quantiser import REBUILD, Quantiser, empty_index
from catalog.search.spec import IndexSpec
from pipeline.errors import CatalogError, InputError

_ID = np.dtype("<i8")
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows (n,) int64, lists (n,) int32, codes (n, code_size) uint8


class Engine:
    """Directions known by their row numbers, below `bound`. Not for use by several threads at once."""

    def __init__(self, spec: IndexSpec, index: faiss.Index, bound: int, labels: np.ndarray | None = None) -> None:
        """`labels` (n,) int64: the row of each entry of a flat index; inverted lists hold rows themselves."""
        self.spec, self.bound = spec, bound
        self._index, self._labels = index, labels

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, sketch: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The rows (<= k,) int64 of largest |inner product| with `sketch` (dimension,), and the signed products.

        `among` bool (bound,): a filter. Best first, ties by row. The fewer rows pass a filter, the more lists are
        looked into, in the end all of them, so that as many candidates are weighed as without it. Raises InputError.
        """
        count = len(self)
        if among is not None:
            if among.shape != (self.bound,) or among.dtype != np.bool_:
                raise InputError("among", f"{among.dtype} {among.shape}", f"bool ({self.bound},)")
            count = min(count, int(np.count_nonzero(among)))
        k = min(k, count)
        if k < 1:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        both = np.stack((sketch, -sketch)).astype(np.float32)
        selector = None if among is None else self._selector(among)
        probes = min(self.spec.lists, -(-self.spec.probes * len(self) // count))
        rows, values = self._signed(both, k, selector, probes)
        if len(rows) < k and probes < self.spec.lists:  # too few in the lists looked into
            rows, values = self._signed(both, k, selector, self.spec.lists)
        return rows, values

    def _selector(self, among: np.ndarray) -> faiss.IDSelectorBitmap:
        mask = among if self._labels is None else among[self._labels]
        return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))

    def _signed(
        self, both: np.ndarray, k: int, selector: faiss.IDSelectorBitmap | None, probes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` for a query and its opposite (2, dimension) in one call of FAISS, merged."""
        chosen = {} if selector is None else {"sel": selector}
        if self.spec.kind == "flat":
            parameters = faiss.SearchParameters(**chosen)
        else:
            parameters = faiss.SearchParametersIVF(nprobe=probes, **chosen)
        scores, found = self._index.search(both, k, params=parameters)
        scores[1] *= -1
        scores, found = scores.ravel(), found.ravel()
        if self._labels is not None:
            found = np.where(found >= 0, self._labels[found], -1)
        # a list mapped from disk is not read before it is searched, so rows are checked here
        kept = (found >= 0) & (found < self.bound) & np.isfinite(scores)
        scores, found = scores[kept], found[kept]
        order = np.lexsort((found, -np.abs(scores)))
        _, first = np.unique(found[order], return_index=True)  # of a row found with both signs, the larger
        best = order[np.sort(first)][:k]
        return found[best], scores[best]


def assemble(spec: IndexSpec, quantiser: Quantiser, parts: Iterable[Part], bound: int) -> Engine:
    """An index in memory from codes in any order. Cost: one pass; code_size + 8 bytes a direction."""
    index = empty_index(spec, quantiser)
    if spec.kind == "flat":
        pieces = [(number, codes) for number, _, codes in parts]
        labels = np.concatenate([number for number, _ in pieces]) if pieces else np.zeros(0, np.int64)
        order = np.argsort(labels)
        if len(order):
            index.add_sa_codes(np.concatenate([codes for _, codes in pieces])[order])
        return Engine(spec, index, bound, labels[order])
    inverted, count = index.invlists, 0
    for number, lists, codes in parts:
        count += len(number)
        for which, chosen in _runs(lists, number):
            some, ids = np.ascontiguousarray(codes[chosen]), np.ascontiguousarray(number[chosen], dtype=np.int64)
            inverted.add_entries(which, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(some))
    index.ntotal = count
    return Engine(spec, _packed(index) if spec.kind == "ivf-pq" else index, bound)


def _packed(index: faiss.IndexIVFPQ) -> faiss.IndexIVFPQFastScan:
    """4-bit codes in blocks of 32, as registers look them up; `index` keeps the coarse quantiser but no codes."""
    packed = faiss.IndexIVFPQFastScan(index)
    index.reset()
    return packed


def _runs(lists: np.ndarray, rows: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """(list, positions of its entries by row), for the lists that occur."""
    order = np.lexsort((rows, lists))
    starts = np.flatnonzero(np.r_[True, np.diff(lists[order]) != 0]) if len(lists) else np.zeros(0, np.int64)
    for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        yield int(lists[order[begin]]), order[begin:end]


def write_lists(path: Path, spec: IndexSpec, sizes: np.ndarray, parts: Iterable[Part]) -> None:
    """Merge codes into one file of inverted lists, to be mapped: sizes (lists,) int64, then each list's codes and rows.

    Atomic: the file appears under `path` when it is whole. Holds one part at a time in memory.
    """
    if spec.kind != "ivf-sq8":
        raise InputError("kind", spec.kind, "ivf-sq8: others are not searched from a mapped file")
    offsets = _offsets(spec, sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.truncate(int(offsets[-1]))
        memory = np.memmap(temporary, np.uint8, "r+", shape=(int(offsets[-1]),))
        memory[: _ID.itemsize * spec.lists] = sizes.astype(_ID).view(np.uint8)
        filled = np.zeros(spec.lists, np.int64)
        for number, lists, part in parts:
            for which, chosen in _runs(lists, number):
                begin = int(offsets[which]) + int(filled[which]) * spec.code_size
                codes = part[chosen].ravel()
                memory[begin : begin + len(codes)] = codes
                begin = int(offsets[which]) + int(sizes[which]) * spec.code_size + int(filled[which]) * _ID.itemsize
                ids = number[chosen].astype(_ID).view(np.uint8)
                memory[begin : begin + len(ids)] = ids
                filled[which] += len(chosen)
        if not np.array_equal(filled, sizes):
            raise CatalogError(str(path), "codes that changed while they were merged", "the same ones twice", REBUILD)
        memory.flush()
        del memory
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _offsets(spec: IndexSpec, sizes: np.ndarray) -> np.ndarray:
    """(lists + 1,) int64: where each list begins in the file, and the length of the file."""
    return np.asarray(_ID.itemsize * spec.lists + np.r_[0, np.cumsum(sizes * (spec.code_size + _ID.itemsize))])


def map_lists(path: Path, spec: IndexSpec, quantiser: Quantiser, rows: int, bound: int) -> Engine:
    """An index of `rows` entries on a file of `write_lists`: only lists looked into are read. Raises CatalogError."""
    size = path.stat().st_size
    head = np.fromfile(path, _ID, spec.lists)
    fits = len(head) == spec.lists and bool((head >= 0).all()) and bool((head <= rows).all()) and head.sum() == rows
    offsets = _offsets(spec, head) if fits else None
    if offsets is None or offsets[-1] != size:
        raise CatalogError(str(path), f"{size} bytes or other lists", f"{rows} codes in {spec.lists} lists", REBUILD)
    index = empty_index(spec, quantiser)
    inverted = faiss.OnDiskInvertedLists(spec.lists, spec.code_size, str(path))
    inverted.lists.clear()
    for count, offset in zip(head.tolist(), offsets[:-1].tolist(), strict=True):
        one = faiss.OnDiskOneList()
        one.size, one.capacity, one.offset = count, count, offset
        inverted.lists.push_back(one)
    inverted.totsize, inverted.read_only = size, True
    inverted.do_mmap()
    index.replace_invlists(inverted, True)
    inverted.this.disown()
    index.ntotal = rows
    return Engine(spec, index, bound)
