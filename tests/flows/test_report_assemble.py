"""What the report decodes: directions at home as mined, on other images where those have the region."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from catalog.reader import Catalog
from flows.editing import model_of
from flows.report.assemble import _reader_for, _Studio
from pipeline.editing import Edit


@pytest.fixture
def studio(mined: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Studio]:
    """A studio over a catalog in which each image has its eye one pixel further down than the one before."""
    with Catalog.open(mined / "catalog") as catalog:
        images = catalog.images().column("image_id").to_pylist()

        def mask(self: Catalog, image_id: str, region: str) -> np.ndarray:
            place = np.zeros((16, 16), bool)
            place[3 + images.index(image_id) :, 5:9][:4] = True
            return place

        monkeypatch.setattr(Catalog, "mask", mask)
        denoiser, settings = model_of(catalog)
        yield _Studio(catalog, denoiser, settings.timestep, settings.decode, None)


def test_triples_on_other_images_are_of_the_shifted_direction(studio: _Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Edit | None] = []
    plain = _Studio.decode_all

    def recorded(self: _Studio, jobs: Sequence[tuple[torch.Tensor, Edit | None]]) -> list[torch.Tensor]:
        decoded.extend(edit for _, edit in jobs)
        return plain(self, jobs)

    monkeypatch.setattr(_Studio, "decode_all", recorded)
    images = studio.catalog.images().column("image_id").to_pylist()
    row = studio.catalog.directions(image_id=images[0], region="eye", space="x", kind="local").to_pylist()[0]
    studio.triples(row, [images[0], images[2]])
    home = torch.from_numpy(studio.catalog.vector(row["direction_id"]))
    moved = torch.zeros_like(home)
    moved[:, 2:] = home[:, :-2]
    strength = row["strength"]
    assert [None if edit is None else edit.strength for edit in decoded] == [-strength, None, strength] * 2
    for edit, vector in zip(decoded, (home, None, home, moved, None, moved), strict=True):
        assert (edit is None) == (vector is None)
        if edit is not None and vector is not None:
            assert torch.allclose(edit.vector, vector / vector.norm(), atol=1e-3)


def test_a_direction_stays_where_it_is_at_home_and_on_an_image_without_its_region(
    studio: _Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = studio.catalog.images().column("image_id").to_pylist()
    row = studio.catalog.directions(image_id=images[0], region="eye", space="h").to_pylist()[0]
    vector = torch.from_numpy(studio.catalog.vector(row["direction_id"]))
    assert torch.equal(studio.edit(row, images[0]).vector, vector)
    assert not torch.allclose(studio.edit(row, images[1]).vector, vector, atol=1e-3)
    monkeypatch.setattr(Catalog, "regions", lambda self, **equals: self.images(image_id="none"))
    assert torch.equal(studio.edit(row, images[1]).vector, vector)


@pytest.mark.parametrize(("side", "x", "known"), [(64, (4, 8, 8), True), (32, (3, 64, 64), False)])
def test_the_attribute_reader_goes_by_the_size_of_pictures_and_not_of_latents(
    side: int, x: tuple[int, ...], known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader").mkdir()
    monkeypatch.setattr("flows.report.assemble.builtin_folder", lambda: tmp_path)
    monkeypatch.setattr("flows.report.assemble.AttributeReader.load", lambda folder: folder)
    provenance = SimpleNamespace(recipe={"dataset": {"kind": "builtin"}}, spaces={"x": x})
    catalog: Any = SimpleNamespace(
        manifest=SimpleNamespace(provenance=provenance),
        images=lambda: pa.table({"image_id": ["a"]}),
        image=lambda image_id: np.zeros((side, side, 3), np.uint8),
        lacks=lambda column: False,
    )
    assert (_reader_for(catalog) is not None) == known
