"""From a picture to the catalogued directions that will work on it: predicted, ranked, tried and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flows.transferring
from catalog.lookup import Transfer
from catalog.reader import Catalog
from flows.edit_settings import recipe_of
from flows.editing import edit_picture, load_picture, model_of
from flows.transfer_sheet import transfer_sheet
from flows.transferring import Ask, TransferDone, as_document, find_transfers, moved_candidates
from pipeline.editing import invert_pictures
from pipeline.errors import InputError
from pipeline.images import as_tensor
from pipeline.strengths import VISIBLE_RMS
from pipeline.transfer import predict
from tests.flows import tiny

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A picture that the catalog does not know, with its mask of the eye beside it."""
    tiny.photograph(9, (41, 30)).save(tmp_path / "new.png")
    tiny.box((41, 30), tiny.BOXES["eye"]).save(tmp_path / "new_eye.png")
    return tmp_path / "new.png"


def asked(mined: Path, image: Path, **options: Any) -> TransferDone:
    return find_transfers(mined / "catalog", image, Ask("eye", **options))


def test_every_candidate_is_predicted_once_and_the_best_come_first(mined: Path, new: Path) -> None:
    done = asked(mined, new, k=3)
    everything = asked(mined, new, k=100)
    assert done.cost is not None
    assert (done.cost.jvp, done.cost.inversion_steps, done.cost.decodes) == (done.compared, 3, 0)
    assert len(everything.choices) == done.compared == 10  # five images, one local and one individual direction each
    scores = [choice.score for choice in everything.choices]
    assert scores == sorted(scores, reverse=True)
    assert done.choices == everything.choices[:3]
    assert all(c.prediction is not None and c.score == c.prediction.score for c in done.choices)


def test_only_the_most_alike_candidates_are_predicted(mined: Path, new: Path) -> None:
    alike = {c.candidate.direction_id for c in asked(mined, new, k=4, predict=False).choices}
    done = asked(mined, new, k=2, candidates=4)
    assert done.compared == 4
    assert {c.candidate.direction_id for c in done.choices} <= alike


def test_without_predictions_no_model_is_loaded_and_likeness_ranks(
    mined: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.transferring, "model_of", None)
    done = asked(mined, new, k=4, predict=False)
    assert [c.score for c in done.choices] == sorted((c.candidate.score for c in done.choices), reverse=True)
    assert all(c.prediction is None and c.outcome is None for c in done.choices)
    assert done.cost is None


def test_on_its_own_picture_a_direction_is_predicted_as_it_was_measured(mined: Path) -> None:
    with Catalog.open(mined / "catalog") as catalog:
        image = next(row for row in catalog.images().to_pylist() if row["source"].endswith("a.png"))
        mask = catalog.mask(image["image_id"], "eye")
        rows = catalog.directions(region="eye", image_id=image["image_id"]).to_pylist()
        found = [_as_found(row) for row in rows]
        moved, left_out = moved_candidates(catalog, found, mask)
        denoiser, settings = model_of(catalog)
        x_t = torch.from_numpy(catalog.latent(image["image_id"]))
    with torch.no_grad():
        candidates = [moved[row["direction_id"]] for row in rows]
        predictions, _ = predict(denoiser, x_t, settings.timestep, torch.from_numpy(mask), candidates)
    assert left_out == {}
    assert {row["space"] for row in rows} == {"x", "h"}
    for row, p in zip(rows, predictions, strict=True):
        # Stored vectors and effects are half precision.
        assert (p.gain, p.leakage) == pytest.approx((row["gain"], row["leakage"]), rel=5e-3, abs=1e-3)
        assert p.agreement == pytest.approx(1, abs=1e-3)
        assert p.gain_ratio == pytest.approx(1, abs=2e-2 if row["sigma"] is None else 0.3)  # sigma: to the tolerance


def _as_found(row: dict[str, Any]) -> Transfer:
    names = ("direction_id", "image_id", "dataset", "space", "kind", "rank", "gain", "leakage", "strength")
    kept = {name: row[name] for name in names}
    return Transfer(score=1.0, mask_iou=1.0, image_similarity=1.0, effect_inside=1.0, shift=(0.0, 0.0), **kept)


@pytest.mark.parametrize("own", [True, False])
def test_what_is_predicted_and_tried_is_what_an_edit_does(mined: Path, new: Path, own: bool) -> None:
    if not own:
        new.with_name("new_eye.png").unlink()
    done = asked(mined, new, k=3, verify=3)
    assert done.shifted == own
    for choice in done.choices:
        assert choice.prediction is not None
        assert choice.outcome is not None
        strength, key = choice.prediction.strength, choice.candidate.direction_id
        edited = edit_picture(mined / "catalog", new, [f"{key}={strength}"], new.with_name("out.png"))
        assert (edited.shifts[key] is not None) == own
        inside = choice.outcome.rms**2 * _mask(mined, new, own).mean()
        total = inside * (1 + choice.outcome.roir**2)
        assert edited.change_rms == pytest.approx(total**0.5, rel=1e-3)


def _mask(mined: Path, new: Path, own: bool) -> np.ndarray:
    with Catalog.open(mined / "catalog") as catalog:
        pixels = load_picture(new, (3, 16, 16))
        found = flows.transferring.region_mask(catalog, None, new, "eye", pixels)
    assert own == new.with_name("new_eye.png").is_file()
    return found


def test_only_the_best_are_tried_and_the_sheet_shows_them(mined: Path, new: Path) -> None:
    out = new.with_name("sheet.png")
    done = asked(mined, new, k=4, verify=2, picture=out)
    assert [c.outcome is not None for c in done.choices] == [True, True, False, False]
    assert done.cost is not None
    assert done.cost.decodes == 3
    assert done.picture == str(out)
    two = size_of(out)
    asked(mined, new, k=4, picture=out)
    assert size_of(out) == (two[0], 2 * two[1])


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as opened:
        return opened.size


def test_a_sheet_has_a_row_for_every_edit_and_the_same_scale_in_all(mined: Path) -> None:
    plain = torch.zeros(3, 16, 16)
    pictures = torch.stack([plain, plain + 0.5, plain + 0.25])
    mask = np.zeros((16, 16), bool)
    mask[4:9, 3:8] = True
    sheet = transfer_sheet(pictures, mask, [["one"], ["two"]])
    assert sheet.shape[0] % 2 == 0
    top, bottom = np.split(sheet, 2)
    assert not np.array_equal(top, bottom)
    assert sheet.dtype == np.uint8


def test_a_direction_that_cannot_be_moved_there_is_left_out_with_its_reason(
    mined: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(mined, new, k=1).choices[0].candidate.direction_id
    plain = flows.transferring.placed

    def placed(catalog: Catalog, row: Any, target: Any) -> Any:
        if row["direction_id"] == first:
            raise InputError("mask of eye", "a place so far away", "one nearer to home")
        return plain(catalog, row, target)

    monkeypatch.setattr(flows.transferring, "placed", placed)
    done = asked(mined, new, k=100)
    assert done.left_out == {first: "a place so far away"}
    assert first not in {choice.candidate.direction_id for choice in done.choices}
    assert done.compared == 9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 0}, "-k: found 0"),
        ({"candidates": 0}, "--candidates: found 0"),
        ({"verify": -1}, "--verify: found -1"),
        ({"predict": False, "verify": 1}, "--no-predict"),
        ({"predict": False, "picture": Path("sheet.png")}, "--no-predict"),
        ({"picture": Path("sheet.jpg")}, "--picture: .*ending in .png"),
        ({"picture": Path("new.png")}, "--picture: .*An edit keeps its original"),
        ({"picture": Path("new_eye.png")}, "--picture: .*An edit keeps its masks"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_done(
    mined: Path, new: Path, options: dict[str, Any], expected: str
) -> None:
    if "picture" in options:
        options = {**options, "picture": new.parent / options["picture"]}
    before = tiny.tree(new.parent)
    with pytest.raises(InputError, match=expected):
        asked(mined, new, **options)
    assert tiny.tree(new.parent) == before


def test_the_command_says_what_it_predicts_what_was_done_and_what_it_cost(
    mined: Path, new: Path, capsys: Capture
) -> None:
    command = ("transfer", mined / "catalog", "--image", new, "--region", "eye", "-k", 2)
    assert tiny.run(*command, "--verify", 1, "--json") == 0
    answer = tiny.parsed(capsys.readouterr().out)
    first, second = answer["candidates"]
    assert first["score"] == first["prediction"]["score"] >= second["score"]
    assert {"likeness", "strength", "direction_id", "mask_iou", "shift"} <= set(first)
    assert set(first["outcome"]) == {"rms", "gain", "roir", "agreement"}
    assert second["outcome"] is None
    assert answer["cost"]["jvp"] == answer["compared"] == 10
    assert tiny.run(*command, "--verify", 1) == 0
    text = capsys.readouterr().out
    assert all(key in text for key in (first["direction_id"], "ROIR done", "10 JVPs after an inversion of 3 steps"))
    assert tiny.run(*command, "--no-predict") == 0
    assert "by likeness" in capsys.readouterr().out


def test_a_prediction_is_of_the_catalogs_own_timestep_and_inversion(mined: Path, new: Path) -> None:
    done = asked(mined, new, k=1)
    with Catalog.open(mined / "catalog") as catalog:
        denoiser, settings = model_of(catalog)
        mask = load_mask(catalog, new)
        moved, _ = moved_candidates(catalog, [done.choices[0].candidate], mask)
        steps = recipe_of(catalog).method.inversion_steps
    picture = as_tensor(load_picture(new, (3, 16, 16)))[None]
    x_t = invert_pictures(denoiser, picture, settings.timestep, steps)[0]
    with torch.no_grad():
        (p,), _ = predict(denoiser, x_t, settings.timestep, torch.from_numpy(mask), list(moved.values()))
    assert done.choices[0].prediction is not None
    assert done.choices[0].prediction.gain == pytest.approx(p.gain, rel=1e-4)
    assert as_document(done)["candidates"][0]["prediction"] is done.choices[0].prediction
    assert abs(p.strength) * p.gain == pytest.approx(VISIBLE_RMS * (3 * mask.sum()) ** 0.5, rel=1e-3) or p.limited


def load_mask(catalog: Catalog, image: Path) -> np.ndarray:
    found = flows.transferring.own_mask(None, image, "eye", load_picture(image, (3, 16, 16)))
    assert found is not None
    return found
