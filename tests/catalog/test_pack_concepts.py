"""Concepts of packs: a shard for each region, of which a part takes its own and the next version sends what changed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from catalog import manifest as manifests
from catalog.canonical import sealed
from catalog.card import CardFields
from catalog.concept_building import build_concepts
from catalog.concept_files import stored_table
from catalog.concepts import load_concepts
from catalog.fs import MANIFEST
from catalog.hub.card import CardContent, configs
from catalog.hub.figures import figures_of
from catalog.hub.parts import Part, concepts_part, part_name, part_of_concepts
from catalog.hub.pulling import pull
from catalog.manifest import Manifest
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import CatalogError
from tests.catalog.forging import rewritten
from tests.catalog.packs import NAME, REGIONS, SETS, FolderHub, chunks_of_pack, write_pack
from tests.catalog.samples import provenance
from tests.catalog.test_arranging import NEXT, arranged, assembled
from tests.catalog.test_hostile import BOMBS

MOUTH = Part(regions=("mouth",), without=("preview",))


def conceived(folder: Path, chunks: Sequence[Chunk], least: int = 3) -> Path:
    """A catalog of some chunks, or with more of them, and the concepts of all."""
    with CatalogWriter.create(folder, provenance()) as writer:
        for chunk in chunks:
            writer.commit(chunk)
        with Catalog(folder, writer.manifest) as catalog:
            table = build_concepts(catalog, least=least, former=stored_table(catalog))
        writer.replace_concepts(table)
    return folder


def of_one_set(chunk: Chunk) -> Chunk:
    """The chunk with all of it in one data set."""
    images = tuple(dataclasses.replace(image, dataset=SETS[0]) for image in chunk.images)
    directions = tuple(dataclasses.replace(direction, dataset=SETS[0]) for direction in chunk.directions)
    return Chunk(chunk.chunk_id, images, chunk.regions, directions)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Concepts of three regions, each of two data sets."""
    return conceived(tmp_path_factory.mktemp("source") / "c", chunks_of_pack(6, REGIONS[:3]))


@pytest.fixture(scope="module")
def pack(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    return assembled(arranged(source, folder / "new"), folder / "pack")


def shards(manifest: Manifest) -> tuple[str, ...]:
    assert manifest.concepts is not None and manifest.concepts.shards is not None
    return manifest.concepts.shards


def test_a_pack_holds_the_concepts_of_its_catalog_in_a_shard_for_each_region(source: Path, pack: Path) -> None:
    assert verify(pack).problems == ()
    manifest = manifests.load(pack)
    assert "concept-shards" in manifest.required_features
    assert {part_of_concepts(path) for path in shards(manifest)} == {concepts_part(SETS, r) for r in REGIONS[:3]}
    with Catalog.open(source) as one, Catalog.open(pack) as two:
        assert stored_table(one) == stored_table(two)
        assert [concept.concept_id for concept in load_concepts(two)] == [c.concept_id for c in load_concepts(one)]


def test_shards_of_one_data_set_are_named_after_it_too(tmp_path: Path) -> None:
    catalog = conceived(tmp_path / "c", [of_one_set(chunk) for chunk in chunks_of_pack(4, REGIONS[:1])])
    version = arranged(catalog, tmp_path / "new")
    assert [part_of_concepts(path) for path in shards(version.manifest)] == [part_name(SETS[0], REGIONS[0])]


def test_a_part_takes_its_own_concepts_only_and_of_them_what_it_wants(pack: Path, tmp_path: Path) -> None:
    hub = FolderHub(pack)
    pull(NAME, tmp_path / "mouth", MOUTH, hub)
    assert verify(tmp_path / "mouth").problems == ()
    read = dict.fromkeys(shards(manifests.load(pack)), 0)
    for name, _, size in hub.own.read_spans:
        read[name] = read.get(name, 0) + size
    own = next(name for name in read if part_of_concepts(name) == concepts_part(SETS, "mouth"))
    assert hub.own.asked["fetch"] == 0
    assert [name for name, size in read.items() if size and name.startswith("concepts/")] == [own]
    with Catalog.open(pack) as whole, Catalog.open(tmp_path / "mouth") as part:
        table, found = stored_table(whole), stored_table(part)
        assert table is not None and found is not None
        of_mouths = table.filter([region == "mouth" for region in table["region"].to_pylist()])
        assert found == of_mouths
        assert {"concept-codecs", "concept-shards"} <= set(part.manifest.required_features)


EVERY = (Part(datasets=SETS[1:]), Part(spaces=("x",), kinds=("local",)), Part(prototypes=True))


@pytest.mark.parametrize("part", EVERY)
def test_concepts_of_several_data_sets_come_with_a_part_of_any_of_them(pack: Path, tmp_path: Path, part: Part) -> None:
    pull(NAME, tmp_path / "part", part, FolderHub(pack))
    with Catalog.open(tmp_path / "part") as own, Catalog.open(pack) as whole:
        assert stored_table(own) == stored_table(whole)


def test_concepts_of_regions_that_did_not_change_are_not_sent_again(source: Path, pack: Path, tmp_path: Path) -> None:
    grown = Path(shutil.copytree(source, tmp_path / "grown"))
    last = chunks_of_pack(8, REGIONS[:3])[-1]
    only = [tuple(own for own in rows if own.region == "mouth") for rows in (last.regions, last.directions)]
    conceived(grown, [Chunk(last.chunk_id, last.images, *only)])  # type: ignore[arg-type]
    version = arranged(grown, tmp_path / "new", manifests.load(pack), NEXT)
    sent = [part_of_concepts(path) for path in version.places if path.startswith("concepts/")]
    assert sent == [concepts_part(SETS, "mouth")]
    again = assembled(version, tmp_path / "pack", pack)
    assert verify(again).problems == ()
    with Catalog.open(grown) as one, Catalog.open(again) as two:
        assert stored_table(one) == stored_table(two)


def test_concepts_made_anew_take_the_place_of_shards(pack: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pack, tmp_path / "pack"))
    with Catalog.open(folder) as catalog:
        table = stored_table(catalog)
    with CatalogWriter.open(folder) as writer:
        assert table is not None
        writer.replace_concepts(table)
    assert verify(folder).problems == ()
    manifest = manifests.load(folder)
    assert manifest.concepts is not None and manifest.concepts.path is not None
    assert "concept-shards" not in manifest.required_features
    assert [path.name for path in (folder / "concepts").iterdir()] == [Path(manifest.concepts.path).name]


def test_a_pack_of_no_concepts_says_so_and_has_neither_file_nor_configuration_of_them(tmp_path: Path) -> None:
    catalog = conceived(tmp_path / "c", chunks_of_pack(2, REGIONS[:1]), least=99)
    version = arranged(catalog, tmp_path / "new")
    folder = assembled(version, tmp_path / "pack")
    assert verify(folder).problems == ()
    assert shards(version.manifest) == () and not (folder / "concepts").exists()
    with Catalog.open(folder) as own:
        assert load_concepts(own) == []
        made = CardContent(version.manifest, figures_of(own), CardFields(licence="mit"))
    assert "concepts" not in dict(configs(made))
    pull(NAME, tmp_path / "part", Part(regions=REGIONS[:1]), FolderHub(folder))
    assert manifests.load(tmp_path / "part").concepts is None


def forged(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest as a publisher could: its checksum is right."""
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    value.pop("checksum")
    (folder / MANIFEST).write_bytes(sealed(value))
    return folder


def test_a_shard_that_says_another_region_than_its_concepts_is_refused(pack: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pack, tmp_path / "pack"))
    path = next(path for path in shards(manifests.load(folder)) if "/mouth-" in path)
    wrong = path.replace("/mouth-", "/nose-")
    (folder / path).rename(folder / wrong)
    text = (folder / MANIFEST).read_text().replace(path, wrong)
    (folder / MANIFEST).write_text(text)
    forged(folder, lambda value: value["concepts"].update(shards=sorted(value["concepts"]["shards"])))
    problems = verify(folder).problems
    assert {problem.file for problem in problems} == {wrong}
    assert "another part" in problems[0].what
    with pytest.raises(CatalogError, match="another part"):
        pull(NAME, tmp_path / "out", None, FolderHub(folder))


@pytest.mark.parametrize("name", BOMBS)
def test_concepts_that_would_fill_the_memory_are_refused_in_a_part_too(tmp_path: Path, name: str) -> None:
    folder = write_pack(tmp_path / "pack", chunks_of_pack(4, REGIONS[:1]))
    rewritten(folder, "concepts", BOMBS[name])
    with pytest.raises(CatalogError, match="unpacked|at most"):
        pull(NAME, tmp_path / "out", Part(regions=REGIONS[:1]), FolderHub(folder))


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "both": lambda value: value["concepts"].update(path=value["concepts"]["shards"][0]),
    "neither": lambda value: value["concepts"].pop("shards"),
    "out of order": lambda value: value["concepts"]["shards"].reverse(),
    "twice": lambda value: value["concepts"]["shards"].append(value["concepts"]["shards"][-1]),
    "other rows": lambda value: value["concepts"].update(rows=99),
    "a file of images": lambda value: value["concepts"]["shards"].append(
        value["chunks"]["chunk-0"]["shards"]["images"][0]
    ),
    "no feature": lambda value: value["required_features"].remove("concept-shards"),
    "no feature of their codecs": lambda value: value["required_features"].remove("concept-codecs"),
    "no codec of their effects": lambda value: value["concepts"].pop("effect"),
    "another codec of their effects": lambda value: value["concepts"].update(effect={"kind": "float16"}),
    "an effect that is no codec": lambda value: value["concepts"]["effect"].update(kind="jpeg"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_whose_concepts_contradict_themselves_is_refused(pack: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "pack").mkdir()
    shutil.copyfile(pack / MANIFEST, tmp_path / "pack" / MANIFEST)
    forged(tmp_path / "pack", WRONG[name])
    with pytest.raises(CatalogError):
        manifests.load(tmp_path / "pack")
