"""Every kind of damage is found, and named with its file."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.index import build_indexes
from catalog.pictures import encode_png
from catalog.reader import Catalog
from catalog.search import codes as coded
from catalog.search.codes import Codes
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError, NotFoundError
from tests.catalog.forging import put, recorded, rewritten, shard_of
from tests.catalog.samples import chunk_of, provenance


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "c"
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk_of("one", 1, ("mouth",)))
        writer.add_picture("sheet", encode_png(np.full((2, 2, 3), 9, np.uint8)))
    build_indexes(folder)
    assert verify(folder).problems == ()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "c"))


def names_of(folder: Path) -> list[str]:
    names = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in names if not name.startswith("."))


def test_a_flipped_byte_anywhere_is_found_in_its_file(whole: Path, copy: Path) -> None:
    generator = np.random.default_rng(0)
    for name in names_of(copy):
        data = (copy / name).read_bytes()
        for place in {0, len(data) - 1, *generator.integers(0, len(data), 4).tolist()}:
            changed = bytearray(data)
            changed[place] ^= 1 << int(generator.integers(0, 8))
            (copy / name).write_bytes(changed)
            assert [p.file for p in verify(copy).problems] == [name], (name, place)
        (copy / name).write_bytes(data)
    assert verify(copy).ok


def test_truncated_missing_and_extra_files_are_found(copy: Path) -> None:
    names = [name for name in names_of(copy) if name != "manifest.json"]
    for name in names:
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[:-7])
        assert [(p.file, "truncated" in p.what) for p in verify(copy).problems] == [(name, True)]
        (copy / name).unlink()
        assert [(p.file, p.what) for p in verify(copy).problems] == [(name, "missing")]
        (copy / name).write_bytes(data)
    (copy / "directions" / "extra.parquet").write_bytes(b"PAR1")
    (copy / "link").symlink_to("/etc")
    assert {p.file for p in verify(copy).problems} == {"directions/extra.parquet", "link"}
    (copy / "manifest.json").unlink()
    with pytest.raises(NotFoundError):
        verify(copy)


def test_a_file_replaced_by_a_link_is_not_followed(copy: Path) -> None:
    target = copy / "README.md"
    target.rename(copy.parent / "elsewhere.md")
    target.symlink_to(copy.parent / "elsewhere.md")
    assert any(p.file == "README.md" and "symbolic link" in p.what for p in verify(copy).problems)


FORGED = {
    "norm": ("directions", put("effect_vector", 0, lambda v: [x * 2 for x in v]), "norm 2"),
    "nan": ("directions", put("effect_vector", 1, lambda v: [float("nan")] * len(v)), "norm nan"),
    "null": ("directions", put("x_vector", 4, None), "not exactly in the rows"),
    "evidence": ("directions", put("sigma", 0, None), "sigma"),
    "parents": ("directions", put("parents", 2, ["0" * 32]), "0" * 32),
    "image": ("directions", put("image_id", 2, "f" * 32), "f" * 32),
    "region": ("directions", put("region", 2, "hair"), "as hair"),
    "model": ("directions", put("model", 2, "other"), "model"),
    "id": ("directions", put("direction_id", 0, "<script>"), "direction_id"),
    "duplicate": ("regions", lambda t: pa.concat_tables([t, t]), "is also in"),
    "picture": ("images", put("image", 0, {"bytes": b"GIF89a", "path": None}), "no readable PNG"),
    "no picture": ("directions", put("preview", 1, None), "preview"),
    "latent": ("images", put("latent", 0, lambda v: [float("inf")] * len(v)), "latent"),
    "schema": ("images", lambda t: t.rename_columns(["id", *t.column_names[1:]]), "differ from the schema"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_shard_with_right_checksums_and_wrong_content_is_found(copy: Path, name: str) -> None:
    table, change, words = FORGED[name]
    try:
        rewritten(copy, table, change)
    except KeyError:  # a renamed column cannot be given its usual statistics
        pytest.fail("the forged shard could not be written")
    report = verify(copy)
    assert any(words in problem.what for problem in report.problems), report.problems
    assert all(problem.file.endswith(".parquet") for problem in report.problems)


def test_an_index_of_other_directions_is_found(copy: Path) -> None:
    with CatalogWriter.open(copy) as writer:
        writer.commit(chunk_of("two", 1))
    report = verify(copy)
    assert {p.file.split("-")[0] for p in report.problems} == {"index/x", "index/h", "index/effect"}
    assert all("rhumb index" in p.what for p in report.problems)
    build_indexes(copy)
    assert verify(copy).ok


def with_codes(folder: Path, name: str, change: Callable[[Codes], Codes]) -> None:
    """Replace the one code file of an index, with right checksums."""
    with CatalogWriter.open(folder) as writer:
        entry = writer.manifest.indexes[name]  # type: ignore[index]
        ((shard, path),) = entry.codes.items()
        stream, known = io.BytesIO(), writer.manifest.files
        changed = change(coded.read(folder / path, entry.spec, known[path].rows or 0))
        coded.write(changed, entry.spec, stream)
        forged = f"index/{name}-{'0' * 16}.parquet"
        entries = {**writer.manifest.indexes, name: entry.model_copy(update={"codes": {shard: forged}})}
        writer.replace_indexes(entries, {forged: (stream.getvalue(), len(changed))})


def test_a_shard_that_would_fill_the_memory_is_refused_before_it_is_unpacked(copy: Path) -> None:
    name = shard_of(copy, "images")
    rows = pq.read_table(copy / name, partitioning=None)
    bomb = pa.array([{"bytes": bytes(150_000_000), "path": None}], rows.schema.field("image").type)
    pq.write_table(rows.set_column(4, rows.schema.field("image"), bomb), copy / name, compression="zstd")
    assert (copy / name).stat().st_size < 1_000_000
    recorded(copy, "images", rows.num_rows)
    problem = verify(copy).problems[0]
    assert problem.file == name
    assert "bytes unpacked" in problem.what
    with Catalog.open(copy) as catalog, pytest.raises(CatalogError, match="bytes unpacked"):
        catalog.images()


def test_rows_that_the_bytes_of_a_shard_cannot_hold_are_refused_with_the_manifest(copy: Path) -> None:
    recorded(copy, "regions", 10**9)
    (problem,) = verify(copy).problems
    assert problem.file == "manifest.json"
    assert "ids alone take more" in problem.what


FORGED_CODES: dict[str, tuple[Callable[[Codes], Codes], str]] = {
    "others' codes": (lambda c: Codes(c.keys, c.lists, c.codes[::-1].copy()), "is not that of its vector"),
    "others' ids": (lambda c: Codes(np.array([b"f" * 32] * len(c), "S32"), c.lists, c.codes), "other ids"),
    "too few": (lambda c: Codes(c.keys[1:], c.lists[1:], c.codes[1:]), "found 4"),
    "a list that is not there": (lambda c: Codes(c.keys, c.lists + 7, c.codes), "list"),
}


@pytest.mark.parametrize("name", FORGED_CODES)
def test_forged_codes_with_right_checksums_are_found(copy: Path, name: str) -> None:
    change, words = FORGED_CODES[name]
    with_codes(copy, "effect", change)
    problems = verify(copy).problems
    assert len(problems) == 1
    assert words in problems[0].what
    assert problems[0].file.startswith("index/effect-")


def test_reading_a_damaged_row_group_names_the_shard(copy: Path) -> None:
    path = copy / shard_of(copy, "directions")
    data = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    column = next(c for c in range(metadata.num_columns) if metadata.column(c).path_in_schema.startswith("effect_v"))
    start = metadata.column(column).data_page_offset
    data[start + metadata.column(column).total_compressed_size // 2] ^= 4
    path.write_bytes(data)
    with Catalog.open(copy) as catalog:
        key = catalog.directions().column("direction_id")[0].as_py()
        with pytest.raises(CatalogError, match=path.name):
            catalog.effect(key)
