"""However many concepts there are, checking, publishing and pulling them holds a few of their vectors at once."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from catalog import manifest as manifests
from catalog.codecs import DctCodec, Float16Codec
from catalog.concept_files import stored_table
from catalog.concepts import Concept, concepts_table
from catalog.hub import concept_shards
from catalog.hub.parts import Part
from catalog.hub.pulling import pull
from catalog.places import texts
from catalog.reader import Catalog
from catalog.records import content_id
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.catalog.former_concepts import made_former
from tests.catalog.packs import NAME, REGIONS, FolderHub, chunks_of_pack, write_manifest
from tests.catalog.samples import provenance
from tests.catalog.test_arranging import arranged, assembled

GROUP = 4  # concepts of a row group
MOST = 4 * GROUP  # arrays of two row groups: the one that is read, and the one before


class Alive:
    """Vectors that are decoded one by one, as those of concepts are: how many there are, and were at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.most, self.ever = 0, 0, 0
        for codec in (DctCodec, Float16Codec):
            monkeypatch.setattr(codec, "decode", self._counted(codec.decode))

    def _counted(self, decode: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def counted(codec: DctCodec, columns: Mapping[str, np.ndarray]) -> np.ndarray:
            found = decode(codec, columns)
            if len(found) == 1:
                self.now, self.ever = self.now + 1, self.ever + 1
                self.most = max(self.most, self.now)
                weakref.finalize(found, self._gone)
            return found

        return counted

    def _gone(self) -> None:
        self.now -= 1


def of_one_member(catalog: Catalog, key: str) -> Concept:
    """A concept that is one direction."""
    (row,) = catalog.rows([key])
    same = {name: row[name] for name in ("region", "space", "kind", "timestep", "image_id", "region_id")}
    return Concept(
        concept_id=content_id("alone", key), **same, datasets=(row["dataset"],), members=(key,), signs=(1,),
        cosines=(1.0,), effect_cosines=(1.0,), images=1, of_images=1, agreement=1.0, effect_agreement=0.0,
        spread=(1.0, 1.0, 1.0), gain=1.0, gain_range=(1.0, 1.0), leakage=0.0, leakage_range=(0.0, 0.0), strength=1.0,
        medoid=key, vector=catalog.vector(key), effect=catalog.effect(key), catalog=catalog,
    )  # fmt: skip


@pytest.fixture
def catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Catalogs of 60 and of 240 concepts."""
    for module in ("schema", "concept_tables"):
        monkeypatch.setattr(f"catalog.{module}.ROW_GROUP", GROUP)
    folders = []
    for images in (2, 8):
        folder = tmp_path / f"c{images}"
        with CatalogWriter.create(folder, provenance()) as writer:
            for chunk in chunks_of_pack(images, REGIONS[:3]):
                writer.commit(chunk)
            with Catalog(folder, writer.manifest) as catalog:
                concepts = [of_one_member(catalog, key) for key in texts(catalog.ids())]
                writer.replace_concepts(concepts_table(concepts, catalog.layout))
        folders.append(folder)
    return folders


@pytest.mark.parametrize("form", ["now", "formerly"])
def test_a_few_vectors_are_held_at_once_however_many_concepts_are_verified_and_published(
    catalogs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "formerly":
        for folder in catalogs:
            made_former(folder)
    alive, ever = Alive(monkeypatch), []
    for number, folder in enumerate(catalogs):
        alive.ever = 0
        assert verify(folder).problems == ()
        ever.append(alive.ever)
        arranged(folder, tmp_path / f"new-{number}")
    assert ever[1] > 2 * ever[0] > 4 * MOST
    assert alive.most <= MOST


@pytest.mark.parametrize("form", ["now", "formerly"])
def test_a_few_vectors_are_held_at_once_when_a_pack_or_a_part_of_it_is_pulled(
    catalogs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    pack = assembled(arranged(catalogs[1], tmp_path / "new"), tmp_path / "pack")
    if form == "formerly":
        published = manifests.load(pack).pack
        made_former(pack)
        write_manifest(pack, manifests.load(pack).model_copy(update={"pack": published}))
    alive = Alive(monkeypatch)
    for name, part in (("whole", None), ("part", Part(regions=REGIONS[:2]))):
        pull(NAME, tmp_path / name, part, FolderHub(pack))
        features = manifests.load(tmp_path / name).required_features
        assert ("concept-codecs" in features) == (name == "part" or form == "now")
    assert alive.ever > 4 * MOST
    assert alive.most <= MOST


def test_a_pack_has_the_same_concepts_however_few_are_held_at_once(
    catalogs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = arranged(catalogs[0], tmp_path / "whole")
    monkeypatch.setattr(concept_shards, "TOGETHER", 1)
    read, rows_of = list[int](), concept_shards.stored_rows
    monkeypatch.setattr(concept_shards, "stored_rows", lambda *given: (read.append(1), rows_of(*given))[1])
    piecewise = arranged(catalogs[0], tmp_path / "piecewise")
    assert whole.manifest.concepts is not None and whole.manifest.concepts.shards is not None
    assert piecewise.manifest.concepts == whole.manifest.concepts
    assert len(read) == 1 + len(whole.manifest.concepts.shards) > 3
    pack = assembled(piecewise, tmp_path / "pack")
    with Catalog.open(pack) as one, Catalog.open(catalogs[0]) as two:
        assert stored_table(one) == stored_table(two)


def test_concepts_written_of_several_tables_lie_in_a_file_each(catalogs: list[Path]) -> None:
    with CatalogWriter.open(catalogs[0]) as writer:
        with Catalog(writer.folder, writer.manifest) as catalog:
            table = stored_table(catalog)
        assert table is not None
        writer.replace_concepts(table.slice(start, 20) for start in range(0, table.num_rows + 20, 20))
    entry = manifests.load(catalogs[0]).concepts
    assert entry is not None and entry.shards is not None and entry.rows == table.num_rows
    assert len(entry.shards) == -(-table.num_rows // 20)
    assert verify(catalogs[0]).problems == ()
    with Catalog.open(catalogs[0]) as catalog:
        assert stored_table(catalog) == table


def test_a_concept_is_told_from_another_by_all_but_its_catalog(catalogs: list[Path]) -> None:
    with Catalog.open(catalogs[0]) as catalog, Catalog.open(catalogs[1]) as other:
        concept = of_one_member(catalog, texts(catalog.ids())[0])
        assert dataclasses.replace(concept, catalog=other) == concept
        assert dataclasses.replace(concept, strength=2.0) != concept
