"""A published version read in place, what it is told to hold, and how its shards are named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import manifest as manifests
from catalog.concepts import load_concepts
from catalog.fs import check_relative
from catalog.hub.listing import listed
from catalog.hub.parts import part_name, part_of
from catalog.hub.snapshots import open_pack
from catalog.lookup import similar
from catalog.reader import Catalog
from tests.catalog.packs import NAME, REGIONS, SETS, FolderHub, chunks_of_pack, write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "pack", chunks_of_pack())


@pytest.fixture
def hub(pack: Path) -> FolderHub:
    return FolderHub(pack)


def test_a_listing_counts_every_part(pack: Path, hub: FolderHub) -> None:
    found = listed(NAME, hub)
    with Catalog.open(pack) as catalog:
        rows = catalog.directions().to_pylist()
    assert {(one.dataset, one.region) for one in found.shares} == {(d, r) for d in SETS for r in REGIONS}
    for one in found.shares:
        own = [r for r in rows if all(r[name] == getattr(one, name) for name in ("dataset", "region", "space", "kind"))]
        assert one.rows == len(own)
    assert sum(one.rows for one in found.shares) == found.rows["directions"] == len(rows)
    assert 0 < sum(one.bytes for one in found.shares) < found.bytes
    assert (found.version, found.versions[0].tag, found.concepts) == ("1.0.0", "v1.0.0", len(REGIONS))


def test_a_version_is_read_in_place_by_what_is_asked_of_it(pack: Path, hub: FolderHub) -> None:
    size = sum(entry.bytes for entry in manifests.load(pack).files.values())
    with open_pack(NAME, hub) as far, Catalog.open(pack) as near:
        assert far.directions(region="mouth").equals(near.directions(region="mouth"))
        key = near.ids()[7].decode()
        assert np.array_equal(far.vector(key), near.vector(key))
        assert hub.own.bytes < 0.5 * size
        assert far.direction(key).effect.tolist() == near.direction(key).effect.tolist()
        image = near.ids("images")[0].decode()
        assert np.array_equal(far.mask(image, "hair"), near.mask(image, "hair"))
        assert np.array_equal(far.latent(image), near.latent(image))
        assert far.picture("sheet") == near.picture("sheet")
        assert far.column_bytes(["preview"]) == near.column_bytes(["preview"])
        assert similar(far, key, 5) == similar(near, key, 5)
        assert [c.concept_id for c in load_concepts(far)] == [c.concept_id for c in load_concepts(near)]
        assert far.fetched == hub.own.bytes
        name = next(iter(near.manifest.chunks))
        assert far.chunk(name).images().equals(near.chunk(name).images())
    seen: dict[str, list[tuple[int, int]]] = {}
    for name, start, length in hub.own.read_spans:
        assert all(start + length <= first or end <= start for first, end in seen.get(name, ()))
        seen.setdefault(name, []).append((start, start + length))


@given(st.lists(st.text(min_size=1, max_size=60), min_size=2, max_size=2, unique=True))
def test_shards_are_named_after_what_they_hold_and_names_that_differ_stay_apart(names: list[str]) -> None:
    own, other = (part_name("set", name) for name in names)
    assert own != other
    assert re.fullmatch(r"set\.[a-z0-9-]{1,40}", own)
    path = check_relative(f"directions/{own}-{'0' * 16}.parquet")
    assert part_of(path) == own


def test_plain_names_stay_and_others_are_marked() -> None:
    assert part_name("faces64", "left-eye") == "faces64.left-eye"
    assert part_name("Faces", "left eye").startswith("faces-")
    assert part_of(f"directions/{'0' * 16}.parquet") is None
