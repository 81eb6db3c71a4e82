"""Append, compact, merge, compare and export: every id and vector is kept, whatever the order."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

from catalog import comparing
from catalog import manifest as manifests
from catalog.codecs import Float16Spec
from catalog.compaction import compact
from catalog.comparing import diff
from catalog.exporting import export
from catalog.index import build_indexes
from catalog.merging import merge
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.verify import verify
from catalog.writer import CatalogWriter
from pipeline.errors import ConflictError, InputError, NotFoundError
from tests.catalog.samples import alike, chunk_of, failed_chunk, provenance

SMALL = [chunk_of(f"chunk-{i}", 1, ("mouth",)) for i in range(6)]


def written(folder: Path, chunks: Sequence[Chunk], recipe: str = "recipe-1", exact: bool = False) -> Path:
    codecs = {"x": Float16Spec(), "h": Float16Spec()} if exact else None
    with CatalogWriter.create(folder, provenance(recipe), codecs) as writer:
        for chunk in chunks:
            writer.commit(chunk)
    return folder


def holds(folder: Path, chunks: Sequence[Chunk]) -> None:
    wanted = {d.direction_id: d for chunk in chunks for d in chunk.directions}
    with Catalog.open(folder) as catalog:
        assert {key.decode() for key in catalog.ids()} == wanted.keys()
        for key, record in wanted.items():
            assert alike(catalog.vector(key), record.vector)
            assert alike(catalog.effect(key), record.effect)
            assert catalog.rows([key], ["region", "rank"]) == [{"region": record.region, "rank": record.rank}]
        for chunk in chunks:
            for image in chunk.images:
                assert np.array_equal(catalog.latent(image.image_id), image.latent)
    assert verify(folder).problems == ()


@given(
    parts=st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=2, max_size=3),
    compacted=st.lists(st.booleans(), min_size=3, max_size=3),
    exact=st.lists(st.booleans(), min_size=3, max_size=3),
)
@settings(max_examples=12, deadline=None)
def test_writing_appending_compacting_and_merging_keep_every_id_and_vector(
    tmp_path_factory: pytest.TempPathFactory, parts: list[set[int]], compacted: list[bool], exact: list[bool]
) -> None:
    root = tmp_path_factory.mktemp("merge")
    folders = []
    for number, part in enumerate(parts):
        chunks = [SMALL[i] for i in sorted(part)]
        folders.append(written(root / str(number), chunks, f"recipe-{number}", exact[number]))
        if compacted[number]:
            compact(folders[-1])
        holds(folders[-1], chunks)
    everything = sorted(set().union(*parts))
    done = merge(folders, root / "out")
    holds(root / "out", [SMALL[i] for i in everything])
    assert done.shared["images"] == sum(map(len, parts)) - len(everything)
    compact(root / "out")
    holds(root / "out", [SMALL[i] for i in everything])


def test_compaction_leaves_few_shards_and_indexes_that_still_answer(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", SMALL)
    build_indexes(folder)
    before = verify(folder)
    done = compact(folder)
    assert (done.shards, done.shards_before) == (3, 18)
    assert verify(folder).problems == before.problems == ()
    with Catalog.open(folder) as catalog:
        assert catalog.manifest.chunks.keys() == {chunk.chunk_id for chunk in SMALL}
    assert compact(folder).shards == 3
    with pytest.raises(InputError, match="shard bytes"):
        compact(folder, 10)


def test_shards_are_merged_up_to_the_size_asked_for(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", SMALL)
    with Catalog.open(folder) as catalog:
        sizes = [catalog.manifest.files[path].bytes for path in catalog.manifest.shards("directions")]
    compact(folder, 3 * max(sizes))
    with Catalog.open(folder) as catalog:
        assert len(catalog.manifest.shards("directions")) == 2
    holds(folder, SMALL)


def test_merging_remembers_what_failed_and_forgets_what_another_source_mined(tmp_path: Path) -> None:
    mined = chunk_of("late", 1)
    one = written(tmp_path / "1", [SMALL[0], failed_chunk("a", "late-0"), failed_chunk("b", "broken")])
    two = written(tmp_path / "2", [mined], "recipe-2")
    merge([one, two], tmp_path / "out")
    with Catalog.open(tmp_path / "out") as catalog:
        assert {entry.source for entry in catalog.manifest.failures.values()} == {"broken.png"}


def test_catalogs_that_do_not_belong_together_are_refused_by_name(tmp_path: Path) -> None:
    one = written(tmp_path / "1", SMALL[:1])
    other = provenance("recipe-2", model="other").model_copy(update={"recipe": {"method": {"timestep": 0.35}}})
    CatalogWriter.create(tmp_path / "2", other).close()
    with pytest.raises(ConflictError, match=r"2: model.*nothing was written"):
        merge([one, tmp_path / "2"], tmp_path / "out")
    method = provenance("recipe-3").model_copy(update={"recipe": {"method": {"timestep": 0.6}}})
    CatalogWriter.create(tmp_path / "3", method).close()
    with pytest.raises(ConflictError, match=r"3: method.*0\.6"):
        merge([one, tmp_path / "3"], tmp_path / "out")
    with pytest.raises(InputError, match="at least two"):
        merge([one], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_masks_of_one_region_are_told(tmp_path: Path) -> None:
    one = written(tmp_path / "1", SMALL[:1])
    changed = dataclasses.replace(SMALL[0].regions[0], region_id="f" * 32)
    image = SMALL[0].images
    two = written(tmp_path / "2", [Chunk("other", image, (changed,), ())], "recipe-2")
    three = written(tmp_path / "3", SMALL[1:2], "recipe-3")
    with pytest.raises(ConflictError, match=r"2: mouth of image .*that of .*1.*nothing was merged"):
        merge([three, one, two], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge([three, one], tmp_path / "out")  # as the message says: one of the two left out
    holds(tmp_path / "out", SMALL[:2])


def test_a_mask_that_changed_since_a_merge_was_begun_is_told_too(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", SMALL[:1]), written(tmp_path / "2", SMALL[1:2], "recipe-2")
    merge([one, two], tmp_path / "out")
    changed = dataclasses.replace(SMALL[0].regions[0], region_id="f" * 32)
    shutil.rmtree(one)
    written(one, [Chunk("other", SMALL[0].images, (changed,), ())])
    with pytest.raises(ConflictError, match="another mask than that of .*out"):
        merge([one, two], tmp_path / "out")
    holds(tmp_path / "out", SMALL[:2])


def test_the_failures_of_a_source_without_new_rows_are_kept(tmp_path: Path) -> None:
    one = written(tmp_path / "1", SMALL[:1])
    two = written(tmp_path / "2", [failed_chunk("a", "broken")], "recipe-2")
    three = written(tmp_path / "3", [SMALL[0], failed_chunk("b", "torn")], "recipe-3")
    for order in ([one, two, three], [two, one, three]):
        out = tmp_path / f"out-{order[0].name}"
        merge(order, out)
        with Catalog.open(out) as catalog:
            assert {entry.source for entry in catalog.manifest.failures.values()} == {"broken.png", "torn.png"}
        assert verify(out).problems == ()


def test_merging_again_changes_nothing_and_counts_what_the_sources_share(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", SMALL[:3]), written(tmp_path / "2", SMALL[2:4], "recipe-2")
    first = merge([one, two], tmp_path / "out")
    assert (first.rows["images"], first.shared["images"]) == (4, 1)
    version = manifests.load(tmp_path / "out").version
    assert merge([one, two], tmp_path / "out") == first
    assert manifests.load(tmp_path / "out").version == version


def test_a_difference_names_what_is_added_dropped_and_changed(tmp_path: Path) -> None:
    target = SMALL[1].directions[0]
    stronger = dataclasses.replace(target, gain=9.0, vector=np.roll(target.vector, 3))
    changed = dataclasses.replace(SMALL[1], directions=(stronger, *SMALL[1].directions[1:]))
    one = written(tmp_path / "1", SMALL[:2])
    two = written(tmp_path / "2", [changed, SMALL[2]])
    with Catalog.open(one) as former, Catalog.open(two) as later:
        found = diff(former, later)
        assert found.added["directions"] == sorted(d.direction_id for d in SMALL[2].directions)
        assert found.dropped["images"] == [SMALL[0].images[0].image_id]
        assert [(c.id, c.columns) for c in found.changed] == [(target.direction_id, ("gain", "vector"))]
        assert found.figures["gain"] == (2.0, 2.0)
        assert not found.same
        assert found.provenance == {}
        assert diff(former, former).same


def test_a_difference_reads_vectors_shard_by_shard_and_filters_no_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = written(tmp_path / "1", SMALL), written(tmp_path / "2", SMALL[::-1], exact=True)
    monkeypatch.setattr(comparing, "_BLOCK", 5)  # as many as a shard of these has
    filtered: list[object] = []
    blocks: list[set[str]] = []
    directions, effects = Catalog.directions, Catalog.effects
    monkeypatch.setattr(
        Catalog, "directions", lambda c, **equals: (filtered.append(equals), directions(c, **equals))[1]
    )
    monkeypatch.setattr(Catalog, "effects", lambda c, ids: (blocks.append(set(ids)), effects(c, ids))[1])
    with Catalog.open(one) as former, Catalog.open(two) as later:
        assert diff(former, later).same
    assert not any(filtered)
    own = [{record.direction_id for record in chunk.directions} for chunk in SMALL]
    assert len(blocks) == 2 * len(SMALL) and all(block in own for block in blocks)


def test_a_difference_reads_no_vector_of_a_shard_that_both_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = written(tmp_path / "1", SMALL[:2]), written(tmp_path / "2", SMALL[:3])
    monkeypatch.setattr(Catalog, "vectors", None)
    monkeypatch.setattr(Catalog, "effects", None)
    with Catalog.open(one) as former, Catalog.open(two) as later:
        found = diff(former, later)
    assert found.changed == [] and len(found.added["directions"]) == len(SMALL[2].directions)


def test_the_same_directions_in_another_codec_or_other_shards_are_no_difference(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1", SMALL[:3]), written(tmp_path / "2", SMALL[2::-1], exact=True)
    compact(two)
    with Catalog.open(one) as former, Catalog.open(two) as later:
        found = diff(former, later)
        assert found.same
        assert found.provenance.keys() == {"codecs"}


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_exported_arrays_are_the_catalogued_vectors_in_the_order_of_their_rows(tmp_path: Path, form: str) -> None:
    folder = written(tmp_path / "c", SMALL[:2])
    chosen = (SMALL[1].directions[0], SMALL[0].directions[-1], SMALL[0].directions[1])
    ids = [record.direction_id for record in chosen]
    with Catalog.open(folder) as catalog:
        data = export(catalog, [ids[0], ids[1][:8], ids[2], ids[0], ids[0][:8]], form)
        if form == "npz":
            arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
            about = json.loads(arrays.pop("about").tobytes())
        else:
            arrays = load_safetensors(data)
            about = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["about"])
        assert arrays.keys() == {"x", "x_effect", "h", "h_effect"}
        rows = {space: [row["direction_id"] for row in about["directions"][space]] for space in ("x", "h")}
        assert rows == {"x": [ids[0], ids[2]], "h": [ids[1]]}
        for space, keys in rows.items():
            for key, vector, effect in zip(keys, arrays[space], arrays[f"{space}_effect"], strict=True):
                assert np.array_equal(vector, catalog.vector(key))
                assert np.array_equal(effect, catalog.effect(key))
        assert about["provenance"]["model"]["fingerprint"] == "m" * 8
        with pytest.raises(InputError, match="at least one"):
            export(catalog, [], form)
        with pytest.raises(NotFoundError):
            export(catalog, ["0" * 32], form)
        with pytest.raises(InputError, match="format"):
            export(catalog, ids, "pt")
