"""What breaks a rule of format.md under right checksums is a problem with its file, and never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.alignment import mask_centres
from catalog.concepts import load_concepts
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.verify import verify
from catalog.writer import CatalogWriter
from flows.summary import direction_table
from pipeline.errors import CatalogError
from tests.catalog.forging import Change, no_text, put, rewritten
from tests.catalog.former_concepts import made_former
from tests.catalog.samples import SIZE, chunk_of, image_record, provenance, region_record
from tests.catalog.test_concepts import built, chunks_of_truth, written

NAN, INFINITE = float("nan"), float("inf")
ESCAPE = "\x1b]0;pwned\x07"


def shown(*shape: int, value: int = 0) -> dict[str, Any]:
    return {"bytes": encode_png(np.full(shape, value, np.uint8)), "path": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "c"
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk_of("one", 2, ("mouth",)))
    assert verify(folder).ok
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c"))


def with_path(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "path": "/etc/passwd"}


def own_parent(table: pa.Table) -> pa.Table:
    row = table.column("kind").to_pylist().index("local")
    return put("parents", row, [table.column("direction_id")[row].as_py()])(table)


ROWS: dict[str, tuple[str, Change, str]] = {
    "escape in a data set": ("directions", put("dataset", 1, ESCAPE), "dataset"),
    "no data set": ("directions", put("dataset", 1, ""), "dataset"),
    "escape in a region": ("directions", put("region", 1, ESCAPE), "region"),
    "unknown space": ("directions", put("space", 1, "y"), "space"),
    "negative rank": ("directions", put("rank", 0, -3), "rank"),
    "negative timestep": ("directions", put("timestep", 2, -1), "timestep"),
    "roir NaN": ("directions", put("roir", 0, NAN), "roir"),
    "roir infinite": ("directions", put("roir", 0, INFINITE), "roir"),
    "roir before NaN": ("directions", put("roir_before", 0, NAN), "roir_before"),
    "its own parent": ("directions", own_parent, "itself"),
    "a parent that is null": ("directions", put("parents", 1, [None]), "parents"),
    "a singular value that is null": ("directions", put("spectrum", 0, [None]), "spectrum"),
    "preview of another size": ("directions", put("preview", 0, shown(SIZE, SIZE, 3)), "preview"),
    "preview from a path": ("directions", put("preview", 0, with_path), "path"),
    "no effect picture": ("directions", put("effect", 0, None), "effect"),
    "negative time of an image": ("images", put("timestep", 0, -5), "timestep"),
    "escape in a source": ("images", put("source", 0, ESCAPE), "source"),
    "no round trip": ("images", put("round_trip_psnr", 1, NAN), "round_trip_psnr"),
    "factor NaN": ("images", put("factors", 0, [{"name": "a", "value": NAN}]), "factors"),
    "factor without a name": ("images", put("factors", 0, [{"name": None, "value": 1.0}]), "factors"),
    "images of two sizes": ("images", put("image", 1, shown(2, 2, 3)), "one size"),
    "image from a path": ("images", put("image", 0, with_path), "path"),
    "area below none": ("regions", put("area", 0, -5), "area"),
    "area of others": ("regions", put("area", 0, lambda area: area + 1), "area"),
    "mask in colours": ("regions", put("mask", 0, shown(SIZE, SIZE, 3, value=255)), "one channel"),
    "mask of greys": ("regions", put("mask", 0, shown(SIZE, SIZE, value=200)), "0 or 255"),
    "empty mask": ("regions", put("mask", 0, shown(SIZE, SIZE)), "area"),
    "mask of another size": ("regions", put("mask", 0, shown(2, 2, value=255)), "one size"),
    "name of a region": ("regions", put("region", 0, "\x1bmouth"), "region"),
    "text that is none": ("directions", no_text("region", 1), "region"),
    "data set that is no text": ("directions", no_text("dataset", 1), "dataset"),
    "id that is no text": ("directions", no_text("direction_id", 1), "direction_id"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_breaks_a_rule_is_a_problem_of_its_shard(copy: Path, name: str) -> None:
    table, change, words = ROWS[name]
    path = rewritten(copy, table, change)
    problems = verify(copy).problems
    assert any(problem.file == path and words in problem.what for problem in problems), problems


def test_a_second_mask_of_a_region_is_found(tmp_path: Path) -> None:
    chunk = chunk_of("one", 2, ("mouth",))
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(chunk)
    first, second = (image.image_id for image in chunk.images)
    rewritten(tmp_path / "c", "regions", put("image_id", 0, lambda now: second if now == first else first))
    assert any("two masks of one region" in problem.what for problem in verify(tmp_path / "c").problems)


@pytest.mark.parametrize("column", ["region", "dataset"])
def test_a_summary_of_what_is_no_text_is_refused(copy: Path, column: str) -> None:
    rewritten(copy, "directions", no_text(column, 0))
    with Catalog.open(copy) as catalog, pytest.raises(CatalogError):
        direction_table(catalog)


@pytest.mark.parametrize("mask", [shown(SIZE, SIZE, 3, value=255), shown(SIZE, SIZE)])
def test_a_mask_without_a_centre_is_refused(copy: Path, mask: dict[str, Any]) -> None:
    rewritten(copy, "regions", put("mask", 0, mask))
    rewritten(copy, "regions", put("mask", 1, mask))
    with Catalog.open(copy) as catalog, pytest.raises(CatalogError, match="mask"):
        mask_centres(catalog, [key.decode() for key in catalog.ids("images")], "mouth")


def test_problems_of_one_file_are_counted_and_not_listed_without_end(tmp_path: Path) -> None:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(chunk_of("one", 21, ("mouth",)))
    rewritten(tmp_path / "c", "directions", lambda t: put("model", 0, "x")(_all(t, "dataset", "")))
    problems = verify(tmp_path / "c").problems
    assert len(problems) == 101
    assert "more than 100" in problems[-1].what


def _all(table: pa.Table, column: str, value: str) -> pa.Table:
    number, field = table.schema.get_field_index(column), table.schema.field(column)
    return table.set_column(number, field, pa.array([value] * table.num_rows, field.type))


VALUES = st.one_of(
    st.text(max_size=40), st.floats(), st.integers(-(2**31), 2**31 - 1), st.booleans(), st.none(),
    st.lists(st.one_of(st.floats(width=32), st.none()), max_size=3),
)  # fmt: skip
COLUMNS = (
    "direction_id", "image_id", "region_id", "dataset", "space", "kind", "rank", "timestep", "strength", "gain",
    "sigma", "converged", "gap", "cluster_first", "iterations", "change", "rank_rule", "parents", "kept_share", "roir",
    "strength_reached", "spectrum",
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(column=st.sampled_from(COLUMNS), row=st.integers(0, 9), value=VALUES)
def test_whatever_a_row_holds_there_is_a_report(whole: Path, tmp_path: Path, column: str, row: int, value: Any) -> None:
    folder = tmp_path / "c"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    try:
        rewritten(folder, "directions", put(column, row, value))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # no value of this column
    report = verify(folder)
    assert all(problem.file.startswith("directions/") for problem in report.problems)


# -- concepts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conceived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = written(tmp_path_factory.mktemp("conceived") / "c", chunks_of_truth(4))
    table, _ = built(folder)
    with CatalogWriter.open(folder) as writer:
        writer.replace_concepts(table)
    assert verify(folder).ok
    return folder


def twice(values: list[Any]) -> list[Any]:
    return [values[0], *values[:-1]]


CONCEPTS: dict[str, tuple[str, Any]] = {
    "timestep": ("timestep", -1),
    "cosines beyond 1": ("cosines", lambda v: [7.0] * len(v)),
    "a cosine that is null": ("cosines", lambda v: [None] * len(v)),
    "effects' cosines": ("effect_cosines", lambda v: [-1.5] * len(v)),
    "signs that are null": ("signs", lambda v: [None] * len(v)),
    "spread": ("spread_q50", 5.0),
    "spread out of order": ("spread_q10", 1.0),
    "agreement": ("agreement", 0.123),
    "gain below its quantile": ("gain_q10", 1e6),
    "strength": ("strength", NAN),
    "members twice": ("members", twice),
    "members in another order": ("members", lambda v: v[::-1]),
    "kind": ("kind", "other"),
    "no data set": ("datasets", []),
    "data set": ("datasets", [ESCAPE]),
    "more images than members": ("images", lambda v: v + 1000),
    "no effect picture": ("effect", None),
    "an effect from a path": ("effect", with_path),
    "no coded effect": ("effect_vector", b""),
    "an effect of other bytes": ("effect_vector", lambda v: v[:1] + v[2:]),
    "a vector of one byte": ("x_vector", b"\1"),
    "a vector cut off": ("x_vector", lambda v: v[:-3]),
    "a vector of the other space": ("h_vector", b"\1"),
}
FORMERLY: dict[str, tuple[str, Any]] = {
    "no parents": ("parents", []),
    "preview from a path": ("preview", with_path),
    "a vector of zeros": ("x_vector", lambda v: [0.0] * len(v)),
    "an effect that is not finite": ("effect_vector", lambda v: [NAN] * len(v)),
    "timestep": ("timestep", -1),
}


@pytest.mark.parametrize(
    ("form", "column", "value"),
    [(form, *case) for form, cases in (("now", CONCEPTS), ("formerly", FORMERLY)) for case in cases.values()],
    ids=[*CONCEPTS, *(f"formerly {name}" for name in FORMERLY)],
)
def test_a_concept_that_breaks_a_rule_is_refused_and_found(
    conceived: Path, tmp_path: Path, form: str, column: str, value: Any
) -> None:
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))
    if form == "formerly":
        made_former(folder)
    path = rewritten(folder, "concepts", put(column, 0, value))
    assert [problem.file for problem in verify(folder).problems] == [path]
    with Catalog.open(folder) as catalog, pytest.raises(CatalogError, match=column.removesuffix("_q10")):
        load_concepts(catalog)


@pytest.mark.parametrize("column", ["members", "cosines", "images", "datasets", "effect_vector", "timestep"])
def test_concepts_whose_columns_may_be_null_are_refused(conceived: Path, tmp_path: Path, column: str) -> None:
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))

    def change(table: pa.Table) -> pa.Table:
        number, field = table.schema.get_field_index(column), table.schema.field(column)
        return table.set_column(number, field.with_nullable(True), pa.nulls(table.num_rows, field.type))

    path = rewritten(folder, "concepts", change)
    assert [problem.file for problem in verify(folder).problems] == [path]
    with Catalog.open(folder) as catalog, pytest.raises(CatalogError, match=Path(path).name):
        load_concepts(catalog)


JOINS: dict[str, tuple[str, Any, str]] = {
    "region": ("region", "hair", "not that of its members"),
    "data sets": ("datasets", ["other"], "datasets are not"),
    "images": ("images", 1, "agreement"),
    "image": ("image_id", "f" * 32, "medoid"),
    "region id": ("region_id", None, "medoid"),
    "effect": ("effect", {"bytes": b"GIF89a", "path": None}, "no readable PNG"),
}


@pytest.mark.parametrize("name", JOINS)
def test_concepts_are_held_against_their_members(conceived: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))
    column, value, words = JOINS[name]
    path = rewritten(folder, "concepts", put(column, 0, value))
    problems = verify(folder).problems
    assert {problem.file for problem in problems} == {path}
    assert any(words in problem.what for problem in problems), problems


def test_a_concept_that_is_there_twice_is_found_however_far_apart_the_two_are(
    conceived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.schema.ROW_GROUP", 1)
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))
    path = rewritten(folder, "concepts", lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert [(p.file, p.what.endswith("twice")) for p in verify(folder).problems] == [(path, True)]
    with Catalog.open(folder) as catalog, pytest.raises(CatalogError, match="an id twice"):
        load_concepts(catalog)


def test_a_preview_of_the_former_form_is_held_against_its_medoid_s(conceived: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))
    made_former(folder)
    path = rewritten(folder, "concepts", put("preview", 0, shown(1, 1)))
    assert [(p.file, "not as large as its medoid's" in p.what) for p in verify(folder).problems] == [(path, True)]


BOMBS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a path": put("effect", 0, lambda v: {**v, "path": "a" * 2**27}),
    "a list of nothing": put("cosines", 0, [None] * 10**6),
}


@pytest.mark.parametrize("name", BOMBS)
def test_concepts_that_would_fill_the_memory_are_refused_before_they_are_unpacked(
    conceived: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(conceived, tmp_path / "c"))
    rewritten(folder, "concepts", BOMBS[name])
    with Catalog.open(folder) as catalog, pytest.raises(CatalogError, match="unpacked|at most"):
        load_concepts(catalog)


# -- the writer keeps the same rules -----------------------------------------------------------------------------------


def test_the_writer_refuses_what_verify_would_find(tmp_path: Path) -> None:
    image, other = image_record("a"), image_record("b", 2 * SIZE)
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        chunk = chunk_of("one", 1, ("mouth",))
        wide = replace(image, image=other.image)
        direction = chunk.directions[0]
        for wrong, words in (
            (replace(chunk, images=(*chunk.images, wide)), "one size"),
            (
                replace(chunk, regions=(replace(region_record(other, "mouth"), image_id=chunk.images[0].image_id),)),
                "size",
            ),
            (replace(chunk, directions=(replace(direction, preview=direction.preview[:, :SIZE]),)), "preview"),
            (replace(chunk, directions=(replace(direction, parents=(direction.direction_id,)),)), "itself"),
        ):
            with pytest.raises(CatalogError, match=words):
                writer.commit(wrong)
        writer.commit(chunk)
