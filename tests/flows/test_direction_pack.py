"""`DirectionPack`: what it lists, finds and applies is what the command line does, and nothing of mining is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image

import flows.direction_pack
from catalog.card import CardFields
from catalog.concept_building import build_concepts
from catalog.hub.names import PackName
from catalog.hub.opening import open_hub
from catalog.hub.publishing import publish
from catalog.reader import Catalog
from catalog.writer import CatalogWriter
from flows import pack_entries
from flows.direction_pack import DirectionPack
from flows.edit_settings import edit_settings, recipe_of
from flows.editing import edit_picture, model_of
from flows.pack_entries import Entries, Entry
from pipeline.errors import InputError, ModelError, NotFoundError
from tests.catalog.published import PART, published
from tests.flows import tiny
from tests.pipeline.tiny_models import tiny_scheduler

SIZE = (40, 32)


@pytest.fixture(scope="module")
def folder(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny catalog with concepts; not to be changed."""
    copy = Path(shutil.copytree(mined / "catalog", tmp_path_factory.mktemp("pack") / "catalog"))
    with CatalogWriter.open(copy) as writer, Catalog(copy, writer.manifest) as catalog:
        writer.replace_concepts(build_concepts(catalog, least=1))
    return copy


@pytest.fixture(scope="module")
def pack(folder: Path) -> DirectionPack:
    return DirectionPack.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> Iterator[Any]:
    """The pack's model in memory; not to be changed."""
    diffusers_logging.disable_progress_bar()
    yield DDPMPipeline.from_pretrained(tiny_model)
    diffusers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("face") / "face.png"
    tiny.photograph(3, SIZE).save(file)
    return file


def one(pack: DirectionPack, **wanted: Any) -> Entry:
    return next(e for e in pack.entries() if all(getattr(e, name) == value for name, value in wanted.items()))


def by_command(folder: Path, face: Path, out: Path, **strengths: float) -> np.ndarray:
    edit_picture(folder, face, [f"{key}={value}" for key, value in strengths.items()], out)
    with Image.open(out) as picture:
        return np.asarray(picture)


# -- applying ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["x", "h"])
@pytest.mark.parametrize("what", ["direction", "prototype"])
def test_apply_gives_the_pixels_of_rhumb_edit(
    pack: DirectionPack, pipe: Any, folder: Path, face: Path, tmp_path: Path, what: str, space: str
) -> None:
    entry = one(pack, what=what, space=space, region="eye")
    edited = pack.apply(pipe, face, {entry.id[:10]: 2.5})
    assert edited.size == (16, 16)
    assert np.array_equal(np.asarray(edited), by_command(folder, face, tmp_path / "out.png", **{entry.id: 2.5}))
    assert not np.array_equal(np.asarray(edited), np.asarray(pack.apply(pipe, face, {entry.id: 0.0})))


def test_several_directions_compose_to_one_edit_and_move_to_their_own_masks(
    pack: DirectionPack, pipe: Any, folder: Path, face: Path, tmp_path: Path
) -> None:
    eye, mouth = one(pack, space="h", region="eye"), one(pack, space="x", region="mouth")
    mask = tiny.box(SIZE, (0.5, 0.5, 0.8, 0.8))
    shutil.copy(face, tmp_path / "face.png")
    mask.save(tmp_path / "face_eye.png")
    expected = by_command(folder, tmp_path / "face.png", tmp_path / "out.png", **{eye.id: 2.0, mouth.id: -1.0})
    for given in (mask, np.asarray(mask), np.asarray(mask) > 127, tmp_path / "face_eye.png"):
        edited = pack.apply(pipe, face, {eye.id: 2.0, mouth.id: -1.0}, {"eye": given})
        assert np.array_equal(np.asarray(edited), expected)
    assert not np.array_equal(np.asarray(pack.apply(pipe, face, {eye.id: 2.0, mouth.id: -1.0})), expected)
    alone = pack.apply(pipe, face, {eye.id: 2.0}, mask)
    truth = by_command(folder, tmp_path / "face.png", tmp_path / "alone.png", **{eye.id: 2.0})
    assert np.array_equal(np.asarray(alone), truth)


def test_a_picture_may_be_a_file_a_picture_or_an_array(pack: DirectionPack, pipe: Any, face: Path) -> None:
    key = one(pack, space="x").id
    with Image.open(face) as picture:
        pixels = np.asarray(picture)
        truth = np.asarray(pack.apply(pipe, str(face), {key: 1.0}))
        for given in (picture, pixels, pixels / 255.0):
            assert np.array_equal(np.asarray(pack.apply(pipe, given, {key: 1.0})), truth)


def test_strengths_are_absolute_or_in_multiples_of_the_visible_one_and_add_up(pack: DirectionPack) -> None:
    first, second = pack.entries()[0], pack.entries()[-1]
    assert pack.absolute({first.id: 1, first.id[:9]: 0.5, second.id: -1}) == [(first, 1.5), (second, -1.0)]
    assert pack.absolute({first.id: -2}, "visible") == [(first, -2 * first.strength)]


def test_settings_are_those_that_directions_were_mined_with(pack: DirectionPack) -> None:
    denoiser, settings = model_of(pack.catalog)
    own = edit_settings(recipe_of(pack.catalog), denoiser.info.train_timesteps)
    assert (own.timestep, own.decode) == (settings.timestep, settings.decode)


def test_a_checked_model_serves_for_many_edits(pack: DirectionPack, pipe: Any, face: Path) -> None:
    key, model = one(pack, space="h").id, pack.check(pipe)
    assert np.array_equal(*(np.asarray(pack.apply(m, face, {key: 3.0})) for m in (model, pipe)))


@pytest.mark.parametrize(
    ("image", "strengths", "mask", "message"),
    [
        ("absent.png", {0: 1.0}, None, "image: found absent.png"),
        (np.zeros((4, 4, 2), np.uint8), {0: 1.0}, None, r"shape \(4, 4, 2\)"),
        (np.full((4, 4), 2.0), {0: 1.0}, None, r"floats outside \[0, 1\]"),
        (np.full((4, 4), np.nan), {0: 1.0}, None, r"floats outside \[0, 1\]"),
        (np.zeros((4, 4), np.int64), {0: 1.0}, None, "dtype int64"),
        (7, {0: 1.0}, None, "image: found int"),
        (None, {0: "much"}, None, "a finite number"),
        (None, {0: float("nan")}, None, "a finite number"),
        (None, [0], None, "a mapping of ids to numbers"),
        (None, {0: 1.0}, {"nose": np.ones((32, 40), bool)}, "a region of the chosen directions: eye"),
        (None, {0: 1.0}, np.zeros((32, 40), bool), "nothing white"),
        (None, {0: 1.0}, np.ones((32, 20), bool), "its image's size, 40 x 32"),
        (None, {0: 1.0, -1: 1.0}, np.ones((32, 40), bool), "one for eye, mouth"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    pack: DirectionPack, pipe: Any, face: Path, image: Any, strengths: Any, mask: Any, message: str
) -> None:
    ids = {0: one(pack, region="eye", space="x").id, -1: one(pack, region="mouth", space="x").id}
    wanted = {ids[key]: value for key, value in strengths.items()} if isinstance(strengths, dict) else strengths
    with pytest.raises(InputError, match=message):
        pack.apply(pipe, face if image is None else image, wanted, mask)


def test_a_part_pulled_from_a_hub_edits_as_the_catalog_that_was_published(
    pack: DirectionPack, pipe: Any, folder: Path, face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHUMB_CACHE", str(tmp_path / "cache"))
    name, card = PackName.parse(f"{tmp_path}/hub/org/tiny"), CardFields(licence="cc0-1.0", data_licence="cc0-1.0")
    with Catalog.open(folder) as source:
        publish(source, name, "1.2.0", open_hub(name), card)
    part = DirectionPack.from_pretrained(str(name), revision=">=1.2,<2", region="mouth")
    assert part.name == f"{name}@1.2.0"
    assert part.entries() == pack.entries(region="mouth")
    wanted = {one(part, what="prototype", space="h").id: 2.0, one(part, what="direction", space="x").id: -1.0}
    mask = tiny.box(SIZE, (0.5, 0.5, 0.8, 0.8))
    assert np.array_equal(*(np.asarray(own.apply(pipe, face, wanted, mask)) for own in (part, pack)))


# -- the model -----------------------------------------------------------------------------------------------------


def _other_weights(pipe: Any, folder: Path) -> Any:
    return DDPMPipeline.from_pretrained(tiny.model(folder, seed=5))


def _other_prediction(pipe: Any, folder: Path) -> Any:
    return {"unet": pipe.unet, "scheduler": tiny_scheduler("epsilon")}


def _other_schedule(pipe: Any, folder: Path) -> Any:
    return {"unet": pipe.unet, "scheduler": tiny_scheduler(beta_schedule="linear", beta_end=0.3)}


def _half(pipe: Any, folder: Path) -> Any:
    return DDPMPipeline.from_pretrained(tiny.model(folder), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        (_other_weights, "other weights or settings, fingerprint ", "fingerprint "),
        (_other_prediction, "found prediction type epsilon, fingerprint ", "prediction type v_prediction, fingerprint"),
        (_other_schedule, "found schedule linear 0.0001-0.3, fingerprint", "schedule squaredcos_cap_v2, fingerprint "),
        (_half, "weights in bfloat16 and no other difference to be seen", "load the pipe in float32"),
    ],
)
def test_another_model_is_named_and_used_only_if_that_is_asked_for(
    pack: DirectionPack, pipe: Any, face: Path, tmp_path: Path, change: Callable[..., Any], found: str, expected: str
) -> None:
    other, entry = change(pipe, tmp_path / "other"), one(pack, space="h")
    with pytest.raises(ModelError) as raised:
        pack.apply(other, face, {entry.id: 1.0})
    assert found in str(raised.value)
    assert expected in str(raised.value)
    assert f"the model of {pack.name}" in str(raised.value)
    with pytest.warns(UserWarning, match="another model than that of"):
        assert pack.apply(other, face, {entry.id: 1.0}, other_model=True).size == (16, 16)


def test_a_model_of_other_shapes_is_refused_in_any_case(pack: DirectionPack, face: Path, tmp_path: Path) -> None:
    other = DDPMPipeline.from_pretrained(tiny.model(tmp_path / "other", size=8))
    for go_on in (False, True):
        with pytest.raises(ModelError, match=r"pictures \[3, 8, 8\].*pictures \[3, 16, 16\]"):
            pack.apply(other, face, {pack.entries()[0].id: 1.0}, other_model=go_on)


# -- what there is -------------------------------------------------------------------------------------------------


def test_entries_are_all_directions_and_prototypes_narrowed_down_by_names(pack: DirectionPack) -> None:
    every = pack.entries()
    assert {e.id for e in every if e.what == "direction"} == set(tiny.direction_ids(pack.catalog.folder))
    prototypes = [e for e in every if e.what == "prototype"]
    assert list(every[: len(prototypes)]) == prototypes
    assert {e.id for e in pack.entries(concepts=False)} == {e.id for e in every} - {e.id for e in prototypes}
    mouth = pack.entries(region="mouth", space=["h"], kind=("joint", "individual"))
    assert {(e.region, e.space) for e in mouth} == {("mouth", "h")}
    assert {e.kind for e in mouth} <= {"joint", "individual"}
    assert set(mouth) == {e for e in every if e in mouth}
    assert all(e.source.endswith((".png", ".jpg", ".tif")) and 1 <= e.images <= e.of_images for e in every)


@pytest.mark.parametrize("name", ["region", "kind", "space"])
def test_an_unknown_name_is_told_the_known_ones(pack: DirectionPack, name: str) -> None:
    known = str(getattr(pack.entries()[0], name))
    with pytest.raises(InputError, match=rf"{name}: found 'nos\\x00e'.*one of .*{known}"):
        pack.search(**{name: "nos\0e"})
    with pytest.raises(InputError, match="a name, or several"):
        pack.entries(**{name: [known, 3]})


def test_a_table_of_entries_runs_no_script(pack: DirectionPack) -> None:
    import dataclasses

    html = Entries([dataclasses.replace(pack.entries()[0], source="<script>alert(1)</script>")] * 50)._repr_html_()
    assert "<script>" not in html
    assert "and 10 more" in html


def test_a_part_of_a_pack_without_pictures_lists_and_applies_what_it_has(
    pack: DirectionPack, pipe: Any, folder: Path, face: Path, tmp_path: Path
) -> None:
    left_out = ("effect", "image", "latent", "mask", "preview")
    mouth = [e.id for e in pack.entries(region="mouth", concepts=False)]
    part = DirectionPack.from_pretrained(published(folder, tmp_path / "part", left_out, PART, mouth), region="mouth")
    assert {e.id for e in part.entries()} == {e.id for e in pack.entries(region="mouth")}
    with pytest.raises(InputError, match="one of mouth, as was asked for"):
        part.entries(region="eye")
    key = one(part, what="prototype").id
    truth = np.asarray(pack.apply(pipe, face, {key: 2.0}))
    assert np.array_equal(np.asarray(part.apply(pipe, face, {key: 2.0})), truth)
    with pytest.warns(UserWarning, match="has no masks: directions are applied where they were found"):
        assert np.array_equal(np.asarray(part.apply(pipe, face, {key: 2.0}, tiny.box(SIZE, (0, 0, 0.5, 1)))), truth)
    with pytest.raises(NotFoundError, match="preview"):
        part.preview(key)
    assert pack.preview(key).size == (48, 16)


def test_prototypes_alone_are_listed_where_only_they_are_asked_for(folder: Path) -> None:
    pack = DirectionPack.from_pretrained(folder, prototypes=True)
    assert {e.what for e in pack.entries()} == {e.what for e in pack.search(like=pack.entries()[0].id)} == {"prototype"}


def test_prototypes_of_former_directions_are_left_out_with_a_warning(mined: Path, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "catalog"))
    with CatalogWriter.open(copy) as writer, writer.transaction() as transaction:
        entry = writer.manifest.concepts
        assert entry is not None
        stale = entry.model_copy(update={"directions_fingerprint": "0" * 32})
        writer.finish(transaction, writer.manifest, {"concepts": stale})
    pack = DirectionPack.from_pretrained(copy)
    with pytest.warns(UserWarning, match="older than its directions"):
        assert {e.what for e in pack.entries()} == {"direction"}


# -- search and ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("by", ["vector", "effect"])
def test_likeness_finds_a_vector_itself_and_its_opposite(
    pack: DirectionPack, by: Any, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_entries, "_INDEXED", 0 if indexed else 10**9)
    for entry in (one(pack, what="direction", space="h"), one(pack, what="prototype", space="x")):
        array = pack.vector(entry.id) if by == "vector" else pack.effect(entry.id)
        for sign in (1, -1):
            found = pack.search(like=sign * array, by=by, space=entry.space, k=4)
            assert len(found) == 4
            alike = {e.id: e.score for e in found}
            assert alike[entry.id] == pytest.approx(sign, abs=1e-3)
            scores = [abs(e.score or 0.0) for e in found]
            assert scores == sorted(scores, reverse=True)
        others = pack.search(like=entry.id[:8], by=by, k=3)
        assert entry.id not in {e.id for e in others}
        assert by == "effect" or {e.space for e in others} == {entry.space}
        truth = [float(pack.vector(e.id).ravel() @ pack.vector(entry.id).ravel()) for e in others]
        assert by == "effect" or [e.score for e in others] == pytest.approx(truth, abs=2e-3)


def test_without_a_likeness_prototypes_come_first_and_then_what_leaks_least(pack: DirectionPack) -> None:
    found = pack.search(region="mouth", k=100)
    assert [e.what for e in found] == sorted((e.what for e in found), reverse=True)
    leaks = [e.leakage / e.gain for e in found if e.what == "direction"]
    assert leaks == sorted(leaks)
    assert {e.score for e in found} == {None}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"like": np.zeros((3, 16, 16))}, "not all zero"),
        ({"like": np.full((3, 16, 16), np.inf)}, "not all zero"),
        ({"like": np.zeros((3, 4, 4))}, r"shape \(3, 4, 4\)"),
        ({"like": np.array(["a"])}, "shape"),
        ({"like": np.ones((3, 16, 16), complex), "space": "x"}, "complex128"),
        ({"like": np.ones((3, 4, 4)), "by": "effect"}, "numbers of shape"),
        ({"by": "colour"}, "vector | effect"),
        ({"k": 0}, "at least 1"),
    ],
)
def test_a_search_for_nothing_is_refused(pack: DirectionPack, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack.search(**asked)


def test_an_unknown_id_is_told_the_nearest(pack: DirectionPack) -> None:
    for entry in (pack.entries()[0], pack.entries()[-1]):
        changed = entry.id[:-1] + ("0" if entry.id[-1] != "0" else "1")
        with pytest.raises(NotFoundError, match=f"id: found '{changed}'.*Nearest: .*{entry.id}"):
            pack.vector(changed)
        assert np.array_equal(pack.vector(entry.id[:12]), pack.vector(entry.id))


@pytest.mark.parametrize("key", ["", "abc", "../../etc", "é" * 40, "\x1b[31m" * 8, "0" * 10_000, 3, None, b"abcdef"])
def test_an_id_that_is_none_is_refused_in_one_clean_line(pack: DirectionPack, pipe: Any, face: Path, key: Any) -> None:
    for ask in (pack.vector, pack.entry, pack.preview, lambda k: pack.apply(pipe, face, {k: 1.0})):
        with pytest.raises((InputError, NotFoundError)) as raised:
            ask(key)
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 400


# -- start-up and the example --------------------------------------------------------------------------------------


def test_neither_prefect_nor_the_miner_is_needed_and_torch_only_to_apply() -> None:
    code = """
        import sys
        import flows.direction_pack
        assert not {"torch", "diffusers", "prefect", "faiss", "huggingface_hub"} & set(sys.modules), sys.modules.keys()
        import flows.edit_pipeline, flows.pack_cache
        assert not {"prefect", "flows.miner", "flows.mining", "pipeline.mining"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=240)


def test_the_example_of_the_module_runs_as_it_is_written(
    folder: Path, tiny_model: Path, face: Path, tmp_path: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = flows.direction_pack.__doc__ or ""
    example = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    places = {"org/faces-directions": folder, "org/faces-model": tiny_model}
    for name, place in places.items():
        assert name in example
        example = example.replace(name, str(place))
    assert len([line for line in example.splitlines() if line and "import" not in line]) <= 5
    shutil.copy(face, tmp_path / "face.png")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    with Image.open("edited.png") as edited:
        assert edited.size == (16, 16)
