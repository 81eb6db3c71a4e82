"""How good a catalog is, and what has become worse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows.gates import Gates
from flows.quality import LEAST, Quality, evidence_of, quality_of, regression
from flows.watching.progress import Progress
from tests.catalog.samples import chunk_of, failed_chunk, provenance

IMAGES = 40


def quality(folder: Path, seed: int = 0, images: int = IMAGES, **worse: float) -> Quality:
    """Of a catalog whose evidence is spread by chance about medians; `worse` multiplies a column, or adds to psnr."""
    generator = np.random.default_rng(seed)
    chunk = chunk_of(f"{seed}", images=images)
    records = []
    for d in chunk.directions:
        chance = {"leakage": 0.5, "roir": 0.4} | ({"residual": 0.01} if d.kind == "singular" else {})
        values = {
            name: float(value * np.exp(0.3 * generator.standard_normal()) * worse.get(name, 1.0))
            for name, value in chance.items()
        }
        converged = bool(generator.random() < worse.get("converged", 1.0)) if d.kind == "singular" else None
        records.append(dataclasses.replace(d, **values, converged=converged))
    records = records[: round(len(records) * worse.get("directions", 1.0))]
    psnr = [float(40 + generator.standard_normal() + worse.get("psnr", 0.0)) for _ in chunk.images]
    pictures = [dataclasses.replace(i, round_trip_psnr=p) for i, p in zip(chunk.images, psnr, strict=True)]
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(dataclasses.replace(chunk, images=tuple(pictures), directions=tuple(records)))
    with Catalog.open(folder) as catalog:
        return quality_of(catalog)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Quality:
    return quality(tmp_path_factory.mktemp("before") / "c")


def test_figures_are_the_medians_of_each_group(tmp_path: Path) -> None:
    found = quality(tmp_path / "c", images=10)
    assert (found.images, found.directions, found.per_image) == (10, 100, 10.0)
    assert [group.name for group in found.groups] == [
        "hair h singular", "hair x local", "hair x singular", "mouth h singular", "mouth x local", "mouth x singular"
    ]  # fmt: skip
    with Catalog.open(tmp_path / "c") as catalog:
        rows = catalog.directions(region="mouth", space="x", kind="singular").to_pylist()
        group = found.groups[-1]
        assert group.directions == len(rows) == 20
        assert group.figures["residual"].median == pytest.approx(np.median([row["residual"] for row in rows]))
        ratios = [row["leakage"] / row["gain"] for row in rows]
        assert group.figures["leakage_ratio"].high == pytest.approx(np.quantile(ratios, 0.75))
        assert found.groups[1].figures.keys() == {"leakage_ratio", "roir"}  # derived: no residual
        assert found.groups[1].converged is None
        one = quality_of(catalog, catalog.select(region="mouth", kind="local"))
        assert [(group.name, group.directions) for group in one.groups] == [("mouth x local", 20)]
    assert Quality.model_validate_json(found.model_dump_json()) == found


def test_other_images_of_the_same_quality_are_no_regression(tmp_path: Path, before: Quality) -> None:
    for seed in range(1, 6):
        assert regression(quality(tmp_path / str(seed), seed), before) == []
    assert regression(before, before) == []


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ({"residual": 2.0}, "residual of mouth x singular"),
        ({"leakage": 1.5}, "leakage / gain of hair x local"),
        ({"roir": 1.5}, "ROIR of mouth h singular"),
        ({"psnr": -3.0}, "round-trip PSNR"),
        ({"converged": 0.7}, "converged of mouth x singular"),
        ({"directions": 0.5}, "directions per image"),
    ],
)
def test_what_is_worse_is_named_with_both_figures_and_what_is_better_is_not(
    tmp_path: Path, before: Quality, worse: dict[str, float], told: str
) -> None:
    now = quality(tmp_path / "c", 9, **worse)
    found = regression(now, before)
    assert any(line.startswith(told) and " now, " in line and " before" in line for line in found), found
    figure = next(iter(worse))
    only = {"leakage": "leakage", "psnr": "PSNR", "roir": "ROIR"}.get(figure, figure)
    assert all(only in line for line in found)
    assert not any(only in line for line in regression(before, now))


def test_a_group_that_is_gone_is_told_and_few_rows_are_not_compared(tmp_path: Path, before: Quality) -> None:
    gone = before.model_copy(update={"groups": before.groups[1:]})
    assert regression(gone, before) == ["hair h singular: no directions now, 40 before"]
    few = quality(tmp_path / "few", 3, images=LEAST - 1, residual=9.0, psnr=-9.0)
    assert not any("h singular" in line or "PSNR" in line for line in regression(few, before))


def test_the_note_of_a_deposit_holds_one_figure_an_image_and_none_for_what_has_none() -> None:
    chunk = chunk_of("a", images=3)
    directions = tuple(d for d in chunk.directions if d.image_id != chunk.images[2].image_id)
    broken = failed_chunk("b", "broken").images
    chunk = dataclasses.replace(chunk, directions=directions, images=(*chunk.images, *broken))
    found = evidence_of(chunk, Gates(psnr=50))
    assert found["psnr"] == [44.5, 44.5, 44.5]
    assert found["residual"] == [1e-4, 1e-4, None]
    assert found["leakage_ratio"] == [0.25, 0.25, None]
    assert found["rejected"] == {"round trip below 50 dB": len(directions)}
    Progress(1, "c").add(found)
