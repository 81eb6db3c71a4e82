from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.evaluation import homes as module
from flows.evaluation.homes import Homes, apply_all, combined
from pipeline.errors import InputError
from pipeline.methods.components import IndividualSettings
from pipeline.methods.contract import Found, Refused
from tests.flows.evaluation.linear_world import linear_setup
from tests.flows.evaluation.small_world import small_setup


def test_an_edit_is_kept_at_the_visible_strength_with_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Homes(linear_setup(tmp_path, monkeypatch), 3)
    method, image = found.method("loco"), found.images[0]
    subject = found.subject(method, image)
    edits = found.get(method, image)
    assert [home.region for home in edits] == list(subject.masks)
    for home in edits:
        assert home.edit is not None and home.verdict is not None and home.verdict.success
        change = apply_all(method, subject, [home.edit], [home.edit.guess])[0] - subject.picture
        inside = change[:, subject.masks[home.region]]
        assert float(inside.square().mean().sqrt()) == pytest.approx(0.15, rel=0.05)
        assert home.verdict.move == pytest.approx(2 * float(inside.mean()), abs=1e-4)


def test_an_edit_is_found_once_for_all_figures_and_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    first = Homes(setup, 3)
    before = first.get(first.method("loco"), first.images[0])
    again = Homes(setup, 3)
    after = again.get(again.method("loco"), again.images[0])
    assert type(again.method("loco")).finds == 1  # type: ignore[attr-defined]
    for one, other in zip(before, after, strict=True):
        assert one.edit is not None and other.edit is not None
        assert one.edit.vector is not None and other.edit.vector is not None
        assert torch.equal(one.edit.vector, other.edit.vector) and one.edit.guess == other.edit.guess
        assert one.row == other.row and one.edit.evidence == other.edit.evidence


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", None])
def test_latents_and_vectors_that_are_damaged_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    first = Homes(setup, 3)
    before = first.get(first.method("loco"), first.images[0])
    files = [file for kind in ("latents", "found") for file in (setup.world.folder / kind).iterdir()]
    assert len(files) == 2
    sound = [file.read_bytes() for file in files]
    for file, content in zip(files, sound, strict=True):
        file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    after = first.get(first.method("loco"), first.images[0])
    assert [home.row for home in after] == [home.row for home in before]
    assert [file.read_bytes() for file in files] == sound


def test_a_refused_edit_is_a_failure_with_its_reason_and_is_kept_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Homes(linear_setup(tmp_path, monkeypatch, refused=("mouth",)), 1)
    for _ in range(2):
        edits = {home.region: home for home in found.get(found.method("loco"), found.images[0])}
        mouth = edits["mouth"]
        assert mouth.edit is None and mouth.verdict is None
        assert mouth.row["success"] is False and mouth.row["roir"] == float("inf")
        assert mouth.row["failure"] == "refused: nothing there"
        assert edits["hair"].edit is not None


def test_a_refused_edit_of_a_region_that_nothing_reads_is_no_failure_and_has_cells_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch, refused=("mouth",))
    found = Homes(setup, 1)
    method, image = found.method("loco"), found.images[0]
    read, finds = found.key(method, image), type(method).finds  # type: ignore[attr-defined]
    found.get(method, image)
    setup.world.reader = None
    (mouth,) = (home for home in found.get(method, image) if home.region == "mouth")
    assert "success" not in mouth.row and mouth.row["roir"] == float("inf")
    assert found.key(method, image) != read
    assert type(method).finds == finds + 1  # type: ignore[attr-defined]  # vectors depend on no reader


def test_edits_that_were_refused_or_stay_invisible_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Homes(linear_setup(tmp_path, monkeypatch, refused=("mouth",), limit=0.5), 2)
    assert [row["text"] for row in found.refusals()] == [
        f"2 of 8 {method} edits were refused and are left out." for method in ("LOCO", "individual")
    ]
    assert [row["text"].split(" stay")[0] for row in found.limits()] == ["6 of 6 LOCO edits", "6 of 6 individual edits"]
    assert found.refusals(images=()) == []


def test_pictures_are_kept_of_the_first_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Homes(linear_setup(tmp_path, monkeypatch), 3)
    kept = ["pictures" in home.row for image in found.images for home in found.get(found.method("loco"), image)]
    assert kept == [True] * 8 + [False] * 4


def test_another_timestep_finds_other_edits_and_keeps_the_windows_shares(tmp_path: Path) -> None:
    settings = IndividualSettings(timestep=0.4, window=(0.4, 0.1)).at_timestep(0.6)
    assert settings.timestep == 0.6 and settings.window == pytest.approx((0.6, 0.15))
    assert IndividualSettings(window=None).at_timestep(0.2).window is None
    found = Homes(small_setup(tmp_path), 1)
    keys = [found.key(found.method("loco", at), found.images[0]) for at in (None, 0.5)]
    assert keys[0] != keys[1]


def test_both_methods_are_measured_on_a_model_with_a_bottleneck_and_one_without(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    assert Homes(setup, 1).methods == ("loco", "individual")
    assert [row["what"] for row in Homes(setup, 1).left_out()] == ["success and attribute changes"]
    setup.world.denoiser.info = replace(setup.world.denoiser.info, bottleneck_shape=None)
    found = Homes(setup, 1)
    assert found.methods == ("loco",)
    assert "individual components" in [row["what"] for row in found.left_out()]


def test_a_small_data_set_gives_what_it_has(tmp_path: Path) -> None:
    world = small_setup(tmp_path).world
    assert len(world.up_to("holdout", 50)) == 2
    assert len(world.up_to("holdout", 1)) == 1


def test_quick_takes_fewer_regions_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = linear_setup(tmp_path, monkeypatch, quick=True)
    found = Homes(setup, 3, quick=2)
    assert len(found.images) == 2
    assert len(found.get(found.method("loco"), found.images[0])) == module.QUICK_REGIONS
    assert found.method("loco").settings.steps <= module.QUICK_STEPS


def test_a_sum_of_edits_is_one_edit_with_the_sum_of_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Homes(linear_setup(tmp_path, monkeypatch), 1)
    edits = found.get(found.method("loco"), found.images[0])[:2]
    both, size = combined(edits, (1.0, -0.5))
    assert both.vector is not None and float(both.vector.norm()) == pytest.approx(1.0)
    parts = [home.edit.guess * home.edit.vector for home in edits if home.edit and home.edit.vector is not None]
    torch.testing.assert_close(size * both.vector, parts[0] - 0.5 * parts[1])
    nothing, size = combined(edits, (0.0, 0.0))
    assert size == 0 and nothing.vector is not None and not nothing.vector.any()


def test_edits_without_vectors_cannot_be_added(tmp_path: Path) -> None:
    for edit in (None, Found("mouth", 1.0)):
        with pytest.raises(InputError, match="mouth"):
            combined([module.Home("mouth", edit, {})], (1.0,))


def test_edits_are_kept_with_refusals_and_edits_without_vectors(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    vector = torch.randn(3, 4, 4)
    edits = {"a": Found("a", 2.0, vector, 1, {"gain": 3.0}), "b": Refused("b", "why"), "c": Found("c", 1.0)}
    path.write_bytes(module._packed(edits))
    back = module._unpacked(path, vector)
    assert list(back) == ["a", "b", "c"] and back["b"] == edits["b"] and back["c"] == edits["c"]
    a = back["a"]
    assert isinstance(a, Found) and a.vector is not None and torch.equal(a.vector, vector)
    assert (a.guess, a.index, a.evidence) == (2.0, 1, {"gain": 3.0})


def test_regions_that_nothing_reads_are_said_to_be_so_although_there_is_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = linear_setup(tmp_path, monkeypatch)
    assert Homes(setup, 1).left_out() == []
    monkeypatch.setattr(setup.world, "factors", lambda region: ())
    (row,) = Homes(setup, 1).left_out()
    assert row["why"] == "nothing reads the attributes of these regions"
