"""The search package on plain arrays: sketches keep cosines, what is stored reads back, engines find what is there."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog.search import codes, plan
from catalog.search.codes import Codes
from catalog.search.engine import Engine, assemble, map_lists, write_lists
from catalog.search.quantiser import Encoder, Quantiser, dump, empty_index, parse, probes_for, train
from catalog.search.sketch import hadamard, learn_projection, sketch, srht, unit
from catalog.search.spec import IndexSpec, SketchSpec
from pipeline.errors import CatalogError, InputError

N, D, LISTS = 4000, 64, 32
IDENTITY = SketchSpec(kind="identity", dimension=D)
SPECS = {
    "flat": IndexSpec(kind="flat", sketch=IDENTITY, code_size=2 * D),
    "ivf-sq8": IndexSpec(kind="ivf-sq8", sketch=IDENTITY, code_size=D, lists=LISTS, probes=8),
    "ivf-pq": IndexSpec(kind="ivf-pq", sketch=IDENTITY, code_size=D // 4, lists=LISTS, probes=8),
}
KEYS = np.array([f"{i:032x}" for i in range(N)], dtype="S32")


def clustered(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((100, d))
    return unit(centres[generator.integers(0, 100, n)] + 0.8 * generator.standard_normal((n, d)))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered()


@pytest.fixture(scope="module")
def trained(vectors: np.ndarray) -> dict[str, Quantiser]:
    return {kind: train(spec, vectors) for kind, spec in SPECS.items()}


def engine_of(kind: str, trained: dict[str, Quantiser], vectors: np.ndarray, cuts: tuple[int, ...] = ()) -> Engine:
    encode, rows = Encoder(SPECS[kind], trained[kind]), np.arange(N)
    lists, coded = encode(vectors)
    parts = [tuple(np.split(a, cuts)[i] for a in (rows, lists, coded)) for i in range(len(cuts) + 1)]
    return assemble(SPECS[kind], trained[kind], parts[::-1], N)  # type: ignore[arg-type]


# -- sketches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(10))
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_hadamard_transform_is_its_definition(order: int, count: int) -> None:
    rows = np.random.default_rng(order).standard_normal((count, 1 << order)).astype(np.float32)
    i = np.arange(1 << order)
    matrix = (-1.0) ** np.bitwise_count(i[:, None] & i)  # entry (i, j): the parity of the bits that both have
    assert np.allclose(hadamard(rows), rows @ matrix, atol=1e-3)


def test_an_srht_of_all_entries_is_orthogonal() -> None:
    rows = clustered(20, 256)
    whole = srht(rows, 256, 3)
    assert np.allclose(whole @ whole.T, rows @ rows.T, atol=1e-5)


@pytest.mark.parametrize("dimension", [64, 256, 1024])
def test_a_sketch_keeps_cosines_within_its_standard_error(dimension: int) -> None:
    generator = np.random.default_rng(0)
    one, two = unit(generator.standard_normal((60, 5000))), unit(generator.standard_normal((60, 5000)))
    mixed = unit(0.2 * one + np.sqrt(1 - 0.04) * two)
    spec = SketchSpec(kind="srht", dimension=dimension, seed=1)
    errors = (sketch(one, spec) * sketch(mixed, spec)).sum(axis=1) - (one * mixed).sum(axis=1)
    assert np.sqrt((errors**2).mean()) < 1.4 / np.sqrt(dimension)
    assert not np.array_equal(sketch(one, spec), sketch(one, spec.model_copy(update={"seed": 2})))


def test_a_learned_sketch_of_vectors_near_a_subspace_keeps_their_cosines_far_better() -> None:
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((50, 3000))
    rows = unit(generator.standard_normal((900, 50)) @ basis + 0.5 * generator.standard_normal((900, 3000)))
    learned, drawn = SketchSpec(kind="learned", dimension=64), SketchSpec(kind="srht", dimension=64)
    projection = learn_projection(rows[:600], learned)
    assert np.allclose(projection @ projection.T, np.eye(64), atol=1e-4)
    exact = rows[600:] @ rows[600:].T
    errors = []
    for spec, basis_ in ((learned, projection), (drawn, None)):
        small = sketch(rows[600:], spec, basis_)
        errors.append(float(np.abs(small @ small.T - exact).mean()))
        assert np.allclose(sketch(-7 * rows[600:602], spec, basis_), -small[:2], atol=1e-5)  # length does not count
    assert errors[0] < errors[1] / 5


def test_a_sketch_that_does_not_fit_its_vectors_is_refused() -> None:
    rows, learned = clustered(3, 300), SketchSpec(kind="learned", dimension=64)
    for spec, projection in (
        (IDENTITY, None), (learned, None), (learned, np.zeros((64, 300), np.float32)),
        (SketchSpec(kind="srht", dimension=64), np.zeros((64, 512), np.float32)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            sketch(rows, spec, projection)


# -- specs and plans ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"lists": 2**30}, {"probes": 33}, {"code_size": 63}, {"lists": 0}, {"kind": "hnsw"}, {"extra": 1},
     {"candidates": 0}, {"lists": 32.0}, {"lists": True}, {"sketch": {"kind": "srht", "dimension": 32, "seed": 0}},
     {"sketch": {"kind": "srht", "dimension": 1025, "seed": 0}},
     {"sketch": {"kind": "srht", "dimension": 64, "seed": -1}}],
)  # fmt: skip
def test_a_spec_outside_its_bounds_is_refused(wrong: dict[str, object]) -> None:
    good = SPECS["ivf-sq8"].model_dump()
    assert IndexSpec.model_validate(good) == SPECS["ivf-sq8"]
    with pytest.raises(ValidationError):
        IndexSpec.model_validate(good | wrong)


@given(rows=st.integers(0, 2 * 10**8), entries=st.integers(1, 10**6), memory=st.integers(0, 2**40))
def test_every_plan_is_a_valid_spec_under_a_kilobyte_that_serves_fewer_rows_too(
    rows: int, entries: int, memory: int
) -> None:
    spec = plan.choose(rows, entries, memory=memory)
    assert IndexSpec.model_validate(spec.model_dump()) == spec
    assert plan.memory_per_direction(spec.kind, spec.sketch.dimension) < 1024
    assert not plan.outgrown(spec, plan.choose(rows // 2, entries, memory=memory))


def test_types_follow_size_and_memory() -> None:
    kinds = [(plan.choose(n, 12288).kind, plan.choose(n, 12288).sketch.kind) for n in (100, 10**4, 10**6, 10**8)]
    assert kinds == [("flat", "srht"), ("flat", "learned"), ("ivf-sq8", "learned"), ("ivf-pq", "learned")]
    assert plan.choose(10**6, 12288, memory=10**8).kind == "ivf-pq"
    small = plan.choose(10**4, 12288)
    assert plan.outgrown(small, plan.choose(10**6, 12288))
    assert not plan.outgrown(plan.choose(10**6, 12288), plan.choose(2 * 10**6, 12288))
    assert plan.outgrown(plan.choose(10**5, 12288), plan.choose(5 * 10**6, 12288))


# -- quantisers and codes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-pq"])
def test_an_index_made_of_arrays_is_the_one_that_faiss_would_make(
    kind: str, trained: dict[str, Quantiser], vectors: np.ndarray
) -> None:
    theirs = empty_index(SPECS[kind], parse(dump(trained[kind]), SPECS[kind]))
    theirs.add(vectors)
    theirs.nprobe = SPECS[kind].probes
    ours = engine_of(kind, trained, vectors, (1000, 1100))
    for query in vectors[:20]:
        scores, found = theirs.search(np.stack((query, -query)), 5)
        wanted = found.ravel()[np.argsort(-np.abs(scores.ravel()))][:5]
        rows, values = ours.search(query, 5)
        if kind == "ivf-sq8":
            assert np.array_equal(rows, wanted)
            assert np.allclose(np.abs(values), -np.sort(-np.abs(scores.ravel()))[:5], atol=1e-6)
        else:  # fast-scan rounds its look-up tables to 8 bits
            assert len(np.intersect1d(rows, wanted)) >= 3


def test_faiss_trains_the_same_ranges_and_codes_from_its_own_bounds(vectors: np.ndarray) -> None:
    spec = SPECS["ivf-sq8"]
    theirs = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(D), D, LISTS, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    theirs.train(vectors)
    none = np.zeros((0, 0), np.float32)
    bounds = faiss.vector_to_array(theirs.sq.trained).reshape(2, D)
    centroids = theirs.quantizer.reconstruct_n(0, LISTS)
    lists, coded = Encoder(spec, Quantiser(none, centroids, bounds, none))(vectors)
    theirs.add(vectors)
    for number in range(LISTS):
        size = theirs.invlists.list_size(number)
        rows = faiss.rev_swig_ptr(theirs.invlists.get_ids(number), size)
        own = faiss.rev_swig_ptr(theirs.invlists.get_codes(number), size * D).reshape(size, D)
        assert np.array_equal(np.flatnonzero(lists == number), np.sort(rows))
        assert np.array_equal(coded[rows], own)


@pytest.mark.parametrize("kind", ["ivf-sq8", "ivf-pq"])
def test_a_quantiser_reads_back_and_damage_is_named(kind: str, trained: dict[str, Quantiser]) -> None:
    data = dump(trained[kind])
    back = parse(data, SPECS[kind])
    for name, array in trained[kind].arrays().items():
        assert np.array_equal(getattr(back, name), array)
    other = "ivf-pq" if kind == "ivf-sq8" else "ivf-sq8"
    table = pq.read_table(pa.BufferReader(data))
    values = table.column("values").to_pylist()
    values[3] = [float("nan"), *values[3][1:]]
    spoilt = table.set_column(2, table.schema.field(2), pa.array(values, table.schema.field(2).type))
    out = io.BytesIO()
    pq.write_table(spoilt, out)
    for wrong, spec in (
        (data, SPECS[other]),
        (data[:-20], SPECS[kind]),
        (b"", SPECS[kind]),
        (out.getvalue(), SPECS[kind]),
    ):
        with pytest.raises(CatalogError, match="rhumb index"):
            parse(wrong, spec, "q.parquet")


TINY = IndexSpec(kind="ivf-sq8", sketch=SketchSpec(kind="identity", dimension=4), code_size=4, lists=2, probes=1)
TINY_FILE = dump(train(TINY, clustered(20, 4)))


@settings(deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_quantiser_with_a_changed_byte_is_refused_or_sound(place: int, value: int) -> None:
    data = bytearray(TINY_FILE)
    data[place % len(data)] = value
    try:
        quantiser = parse(bytes(data), TINY)
    except CatalogError:
        return
    assert all(np.isfinite(array).all() for array in quantiser.arrays().values())


def test_a_quantiser_that_repeats_long_names_or_long_rows_is_refused_before_it_is_unpacked() -> None:
    table = pq.read_table(pa.BufferReader(TINY_FILE))
    for number, value, what in ((0, "n" * 2**20, "other arrays"), (2, [0.5] * 2**17, "values unpacked")):
        out, bomb = io.BytesIO(), pa.array([value] * len(table), table.schema.field(number).type)
        pq.write_table(table.set_column(number, table.schema.field(number), bomb), out, compression="zstd")
        assert len(out.getvalue()) < 2**13
        tracemalloc.start()
        with pytest.raises(CatalogError, match=what):
            parse(out.getvalue(), TINY)
        assert tracemalloc.get_traced_memory()[1] < 2**22  # one name may be unpacked, not one for each row
        tracemalloc.stop()


@pytest.mark.parametrize("kind", list(SPECS))
def test_codes_read_back_and_hostile_ones_are_refused(
    kind: str, trained: dict[str, Quantiser], vectors: np.ndarray, tmp_path: Path
) -> None:
    spec = SPECS[kind]
    lists, coded = Encoder(spec, trained[kind])(vectors[:50])
    made, path = Codes(KEYS[:50], lists, coded), tmp_path / "codes.parquet"

    def write(some: Codes) -> None:
        with path.open("wb") as stream:
            codes.write(some, spec, stream)

    write(made)
    first = path.read_bytes()
    back = codes.read(path, spec, 50)
    assert all(np.array_equal(getattr(back, name), getattr(made, name)) for name in ("keys", "lists", "codes"))
    write(back)
    assert path.read_bytes() == first
    with pytest.raises(CatalogError, match="51 rows"):
        codes.read(path, spec, 51)
    for bad in (np.full(50, -1), np.full(50, LISTS)):
        write(Codes(made.keys, bad.astype(np.int32), made.codes))
        with pytest.raises(CatalogError, match="list"):
            codes.read(path, spec, 50)
    if kind == "flat":
        write(Codes(made.keys, lists, np.full_like(coded, 255)))  # NaN in float16
        with pytest.raises(CatalogError, match="NaN"):
            codes.read(path, spec, 50)
    path.write_bytes(first[:-30])
    with pytest.raises(CatalogError, match="unreadable"):
        codes.read(path, spec, 50)
    pq.write_table(pa.table({"direction_id": ["a"] * 50}), path)
    with pytest.raises(CatalogError, match="other columns"):
        codes.read(path, spec, 50)


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(SPECS))
def test_the_order_and_number_of_code_files_does_not_change_an_answer(
    kind: str, trained: dict[str, Quantiser], vectors: np.ndarray
) -> None:
    one, many = engine_of(kind, trained, vectors), engine_of(kind, trained, vectors, (5, 17, 2000))
    for query in vectors[:20]:
        for a, b in zip(one.search(query, 20), many.search(query, 20), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", list(SPECS))
def test_a_search_is_sign_blind_and_tells_the_sign(
    kind: str, trained: dict[str, Quantiser], vectors: np.ndarray
) -> None:
    engine = engine_of(kind, trained, vectors)
    for query in vectors[:10]:
        rows, scores = engine.search(query, 15)
        back, opposite = engine.search(-query, 15)
        assert np.array_equal(rows, back)
        assert np.array_equal(scores, -opposite)
        assert len(np.unique(rows)) == 15
        assert (np.diff(np.abs(scores)) <= 0).all()


@pytest.mark.parametrize(("kind", "least"), [("flat", 0.99), ("ivf-sq8", 0.95), ("ivf-pq", 0.5)])
@pytest.mark.parametrize("share", [1.0, 0.2, 0.02, 0.001])
def test_recall_holds_under_filters_however_narrow(
    kind: str, least: float, share: float, trained: dict[str, Quantiser], vectors: np.ndarray
) -> None:
    engine = engine_of(kind, trained, vectors)
    mask = np.random.default_rng(1).random(N) < share
    allowed = np.flatnonzero(mask)
    found = []
    for query in vectors[:40]:
        wanted = allowed[np.argsort(-np.abs(vectors[allowed] @ query))[:10]]
        rows, _ = engine.search(query, 10, None if share == 1 else mask)
        assert len(rows) == min(10, len(allowed))
        assert mask[rows].all()
        found.append(len(np.intersect1d(rows, wanted)) / len(wanted))
    assert np.mean(found) >= least


def test_equal_scores_are_ordered_by_row() -> None:
    spec = IndexSpec(kind="flat", sketch=SketchSpec(kind="identity", dimension=2), code_size=4)
    coded = np.tile(np.array([[1.0, 0.0]], "<f2"), (6, 1)).view(np.uint8)
    none = np.zeros((0, 0), np.float32)
    rows = np.array([11, 3, 7, 0, 5, 9])
    engine = assemble(spec, Quantiser(none, none, none, none), [(rows, np.zeros(6, np.int32), coded)], 12)
    assert engine.search(np.array([1.0, 0.0], np.float32), 4)[0].tolist() == [0, 3, 5, 7]
    mask = np.zeros(12, bool)
    mask[[7, 9, 10]] = True
    assert engine.search(np.array([-1.0, 0.0], np.float32), 4, mask)[0].tolist() == [7, 9]
    with pytest.raises(InputError, match="among"):
        engine.search(np.ones(2, np.float32), 1, mask[:-1])


def test_an_index_mapped_from_disk_answers_as_the_one_in_memory(
    trained: dict[str, Quantiser], vectors: np.ndarray, tmp_path: Path
) -> None:
    spec, path = SPECS["ivf-sq8"], tmp_path / "a" / "lists"
    lists, coded = Encoder(spec, trained["ivf-sq8"])(vectors)
    rows, sizes = np.arange(N), np.bincount(lists, minlength=LISTS)
    parts = [(rows[a:b], lists[a:b], coded[a:b]) for a, b in ((900, N), (0, 900))]
    write_lists(path, spec, sizes, parts)
    mapped, held = map_lists(path, spec, trained["ivf-sq8"], N, N), engine_of("ivf-sq8", trained, vectors)
    mask = np.random.default_rng(0).random(N) < 0.1
    for query in vectors[:20]:
        for among in (None, mask):
            for a, b in zip(mapped.search(query, 9, among), held.search(query, 9, among), strict=True):
                assert np.array_equal(a, b)
    other = tmp_path / "other"
    for size, count in ((path.stat().st_size, N - 1), (path.stat().st_size - 8, N), (10, N)):
        other.write_bytes(path.read_bytes()[:size])
        with pytest.raises(CatalogError, match="rhumb index"):
            map_lists(other, spec, trained["ivf-sq8"], count, N)
    with pytest.raises(CatalogError, match="changed"):
        write_lists(path, spec, sizes, parts[:1])
    assert [p.name for p in path.parent.iterdir()] == ["lists"]


def test_rows_that_a_mapped_file_invents_are_never_answers(
    trained: dict[str, Quantiser], vectors: np.ndarray, tmp_path: Path
) -> None:
    spec = SPECS["ivf-sq8"]
    lists, coded = Encoder(spec, trained["ivf-sq8"])(vectors)
    rows = np.arange(N) + np.where(np.arange(N) % 2, 10**12, 0)
    write_lists(tmp_path / "l", spec, np.bincount(lists, minlength=LISTS), [(rows, lists, coded)])
    engine = map_lists(tmp_path / "l", spec, trained["ivf-sq8"], N, N)
    for among in (None, np.ones(N, bool)):
        found, _ = engine.search(vectors[0], 50, among)
        assert len(found)
        assert (found < N).all()


def test_calibrated_probes_find_what_they_promise(trained: dict[str, Quantiser], vectors: np.ndarray) -> None:
    spec = SPECS["ivf-sq8"]
    probes = probes_for(spec, trained["ivf-sq8"], vectors)
    assert 8 <= probes <= LISTS
    spread = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    assert probes_for(spec, train(spec, unit(spread)), unit(spread)) > probes  # without clusters more is needed
