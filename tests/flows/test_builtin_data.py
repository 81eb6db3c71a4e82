from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import flows.builtin_data as builtin_data
from flows.datasets.contract import image_id
from flows.paths import builtin_folder
from pipeline.faces.dataset import SPLITS, draw_face
from pipeline.faces.factors import FACTORS, OWNER, REGIONS

FEW = {"faces64": {"mine": 2, "holdout": 2}, "paintings64": {"mine": 2, "holdout": 2}}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for style, splits in FEW.items():
        monkeypatch.setitem(SPLITS, style, splits)


@pytest.mark.usefixtures("few")
def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = builtin_data.write_builtin_data(tmp_path / "a")
    builtin_data.write_builtin_data(tmp_path / "b")
    assert len(sizes) == 5
    for name, size in sizes.items():
        content = (tmp_path / "a" / name).read_bytes()
        assert len(content) == size
        assert content == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("few")
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin_data.write_builtin_data(tmp_path)
    before = (tmp_path / "README.md").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builtin_data.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        builtin_data.write_builtin_data(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before
    assert pq.read_table(tmp_path / "faces64" / "mine.parquet").num_rows == 2


@pytest.mark.parametrize("name", list(SPLITS))
def test_the_shipped_data_loads_with_the_datasets_library(name: str, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(builtin_folder()), name, cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == SPLITS[name]
    row = loaded["holdout"][0]
    assert row["image"].size == (64, 64)
    assert set(row["factors"]) == set(FACTORS)
    assert set(np.unique(np.asarray(row["mask"]))) == set(range(len(REGIONS)))


def test_the_shipped_rows_are_what_their_seeds_draw_and_under_eight_megabytes() -> None:
    total, ids = 0, []
    for name, splits in SPLITS.items():
        for split in splits:
            path = builtin_folder() / name / f"{split}.parquet"
            total += path.stat().st_size
            table = pq.read_table(path)
            ids += table["image_id"].to_pylist()
            row = table.slice(5, 1).to_pylist()[0]
            face = draw_face(row["seed"], name)
            pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
            # One grey level of tolerance: other versions of torch may round a pixel the other way.
            assert np.abs(pixels.astype(int) - face.image).max() <= 1
            assert row["image_id"] == image_id(name, pixels)
            assert row["factors"] == pytest.approx(face.factors)
    assert total < 8e6
    assert len(set(ids)) == len(ids) >= 768


def test_the_card_says_which_region_owns_which_factor() -> None:
    text = (builtin_folder() / "README.md").read_text()
    assert text == builtin_data.card()
    for name in FACTORS:
        line = next(line for line in text.splitlines() if line.startswith("|") and name in line)
        owner = OWNER[name]
        assert line.startswith(f"| {owner} |" if owner in REGIONS else "| (whole scene) |")
