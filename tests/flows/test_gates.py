"""Quality gates: what is rejected, why, and that nothing else depends on them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from catalog.reader import Catalog
from catalog.records import Chunk, DirectionRecord
from catalog.writer import CatalogWriter
from flows.gates import PARENT, Gates, adopt_gates, gates_of, judge, rejected_of, rejections
from flows.gates import _of_catalog as evidence_of_catalog
from flows.recipe import parse_recipe
from pipeline.errors import InputError
from tests.catalog.samples import chunk_of, provenance

RECIPE = {"name": "r", "dataset": {"kind": "builtin"}, "regions": ["mouth"]}


def changed(chunk: Chunk, **by_row: dict[int, object]) -> Chunk:
    """A chunk with other evidence: column to {position of the direction: value}."""
    directions = list(chunk.directions)
    for name, values in by_row.items():
        for at, value in values.items():
            directions[at] = dataclasses.replace(directions[at], **{name: value})
    return dataclasses.replace(chunk, directions=tuple(directions))


def written(folder: Path, *chunks: Chunk) -> Path:
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
    return folder


def why(folder: Path, gates: Gates) -> dict[str, str]:
    with Catalog.open(folder) as catalog:
        return dict(rejections(catalog, gates).items())


def family(chunk: Chunk, at: int) -> list[DirectionRecord]:
    """A direction and what is derived from it."""
    own = chunk.directions[at]
    return [own, *(d for d in chunk.directions if own.direction_id in d.parents)]


def test_without_gates_nothing_is_rejected(tmp_path: Path) -> None:
    assert why(written(tmp_path, chunk_of("a")), Gates()) == {}


def test_an_image_that_does_not_come_back_loses_all_its_directions(tmp_path: Path) -> None:
    chunk = chunk_of("a")
    poor = dataclasses.replace(chunk.images[0], round_trip_psnr=19.0)
    chunk = dataclasses.replace(chunk, images=(poor, chunk.images[1]))
    found = why(written(tmp_path, chunk), Gates(psnr=20))
    assert found == {d.direction_id: "round trip below 20 dB" for d in chunk.directions if d.image_id == poor.image_id}


def test_what_is_derived_from_a_rejected_direction_is_rejected_for_that(tmp_path: Path) -> None:
    chunk = changed(chunk_of("a"), residual={0: 0.2})
    parent, child = family(chunk, 0)
    found = why(written(tmp_path, chunk), Gates(residual=0.1))
    assert found == {parent.direction_id: "residual above 0.1", child.direction_id: PARENT}


def test_a_direction_that_is_not_local_is_rejected_but_not_where_a_kept_one_needs_it(tmp_path: Path) -> None:
    chunk = changed(chunk_of("a"), leakage={0: 9.0, 3: 9.0, 4: 9.0})  # a parent, a child, and one without children
    (needed, _), child, alone = family(chunk, 0), chunk.directions[3], chunk.directions[4]
    folder = written(tmp_path, chunk)
    found = why(folder, Gates(leakage=1.0))
    assert found == dict.fromkeys((child.direction_id, alone.direction_id), "leakage / gain above 1")
    with Catalog.open(folder) as catalog:
        done = rejections(catalog, Gates(leakage=1.0))
        assert done.spared == 1
        assert done.reason(needed.direction_id) is None
        assert done.reason(alone.direction_id) == "leakage / gain above 1"
        assert done.reason("f" * 32) is None
    assert len(why(folder, Gates(leakage=0.1))) == len(chunk.directions)


def test_what_was_not_measured_fails_no_gate_and_leakage_without_gain_does(tmp_path: Path) -> None:
    chunk = changed(chunk_of("a"), roir={4: 3.0}, gain={9: 0.0})
    found = why(written(tmp_path, chunk), Gates(roir=2.0, leakage=100.0))
    assert found == {
        chunk.directions[4].direction_id: "ROIR above 2",
        chunk.directions[9].direction_id: "leakage / gain above 100",
    }


def test_a_chunk_is_judged_as_it_will_be_in_the_catalog(tmp_path: Path) -> None:
    chunk = changed(chunk_of("a"), residual={0: 0.2}, leakage={4: 9.0, 8: 9.0})
    gates = Gates(psnr=30, residual=0.1, leakage=1.0)
    found = why(written(tmp_path, chunk), gates)
    assert rejected_of(chunk, gates) == Counter(found.values())
    assert rejected_of(Chunk("empty", (), (), ()), gates) == {}


def test_rejected_parents_and_children_never_part(tmp_path: Path) -> None:
    """Over random evidence: whoever is kept has all parents kept, and rows and reasons agree with a plain loop."""
    generator = np.random.default_rng(0)
    chunk = chunk_of("a", images=6)
    chunk = changed(
        chunk,
        residual={i: float(generator.random()) for i, d in enumerate(chunk.directions) if d.kind == "singular"},
        leakage={i: float(generator.random() * 4) for i in range(len(chunk.directions))},
    )
    gates = Gates(residual=0.5, leakage=1.0)
    found = why(written(tmp_path, chunk), gates)
    kept = [d for d in chunk.directions if d.direction_id not in found]
    assert 0 < len(kept) < len(chunk.directions)
    assert not any(parent in found for d in kept for parent in d.parents)
    needed = {parent for d in kept for parent in d.parents}
    for d in chunk.directions:
        good = (d.residual is None or d.residual <= 0.5) and d.leakage / d.gain <= 1.0
        bad_parent = any(p.residual > 0.5 for p in chunk.directions if p.direction_id in d.parents)
        assert (d.direction_id not in found) == ((good and not bad_parent) or d.direction_id in needed)


def test_a_misspelt_gate_names_the_nearest_and_gates_are_no_part_of_what_is_mined() -> None:
    with pytest.raises(InputError, match="residual"):
        parse_recipe({**RECIPE, "gates": {"residul": 0.1}})
    with pytest.raises(InputError, match=r"gates\.leakage"):
        parse_recipe({**RECIPE, "gates": {"leakage": -1}})
    gated, plain = parse_recipe({**RECIPE, "gates": {"psnr": 30, "leakage": 1}}), parse_recipe(RECIPE)
    assert gated.gates == Gates(psnr=30, leakage=1)
    assert gated.fingerprint() == plain.fingerprint()
    assert gated.numerical() == plain.numerical()


def test_other_gates_are_noted_in_the_catalog_by_one_commit(tmp_path: Path) -> None:
    chunk = chunk_of("a")
    written(tmp_path, chunk)
    with CatalogWriter.create(tmp_path, provenance()) as writer:
        assert gates_of(writer.manifest.provenance) == Gates()
        assert not adopt_gates(writer, Gates())
        version = writer.manifest.version
        assert adopt_gates(writer, Gates(psnr=30))
        assert not adopt_gates(writer, Gates(psnr=30))
        assert writer.manifest.version == version + 1
    with Catalog.open(tmp_path) as catalog:
        assert gates_of(catalog.manifest.provenance) == Gates(psnr=30)
        assert len(catalog.ids()) == len(chunk.directions)


def test_judging_takes_no_vectors_and_an_empty_catalog_is_judged_too(tmp_path: Path) -> None:
    CatalogWriter.create(tmp_path, provenance()).close()
    with Catalog.open(tmp_path) as catalog:
        assert len(judge(evidence_of_catalog(catalog), Gates(psnr=30, residual=1, leakage=1, roir=1))) == 0
