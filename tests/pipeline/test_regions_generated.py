"""Masks generated from prompts: what passes, what copies, names, geometry; and a small SAM saved and loaded again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.errors import InputError, ModelError
from pipeline.regions.generated import MaskSettings, Prompted, distinct_masks, generate_masks, point_grid
from pipeline.regions.mask_model import Frame, Preprocessing, load_mask_model
from pipeline.regions.masks import Mask
from tests.pipeline.tiny_sam import small_sam

SIZE = (24, 36)
OBJECTS = {
    "large": (slice(2, 14), slice(3, 20)),
    "small": (slice(16, 22), slice(22, 34)),
    "dot": (slice(5, 6), slice(30, 31)),
}
ANY = MaskSettings(min_score=-9.0, min_stability=0.0, min_share=0.0, max_share=1.0)


def scene() -> dict[str, Mask]:
    """Three objects on a picture of `SIZE`."""
    masks = {name: np.zeros(SIZE, dtype=np.bool_) for name in OBJECTS}
    for name, where in OBJECTS.items():
        masks[name][where] = True
    return masks


def segmenter(sharpness: float = 9.0, scores: tuple[float, ...] = (0.95,)) -> Prompted:
    """A perfect mask function: a point's object, or everything else, once for each score."""
    masks = scene()
    rest = ~np.logical_or.reduce(list(masks.values()))

    def answer(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for x, y in points.tolist():
            row, column = int(y * SIZE[0]), int(x * SIZE[1])
            mask = next((mask for mask in masks.values() if mask[row, column]), rest)
            found.append(torch.from_numpy(np.where(mask, sharpness, -sharpness)).float())
        logits = torch.stack(found)[:, None].expand(-1, len(scores), -1, -1)
        return logits, torch.tensor(scores).expand(len(points), -1)

    return answer


# --- what passes --------------------------------------------------------------------------------------------------


def test_every_object_that_a_point_of_the_grid_meets_is_found_once_in_its_own_pixels() -> None:
    found = generate_masks(segmenter(scores=(0.95, 0.9)), MaskSettings(points_per_side=12, max_share=0.9))
    objects = scene()
    assert np.array_equal(found.regions.masks["segment-2"], objects["large"])
    assert np.array_equal(found.regions.masks["segment-3"], objects["small"])
    assert len(found.regions.masks) == 3 and found.scores["segment-2"] == pytest.approx(0.95)
    assert found.candidates == 2 * 144
    assert found.candidates == len(found.regions.masks) + sum(found.dropped.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"min_score": 0.96}, "score"),
        ({"offset": 10.0}, "stability"),
        ({"min_share": 0.3}, "size: too small"),
        ({"max_share": 0.05}, "size: too large"),
    ],
)
def test_what_falls_short_is_dropped_and_counted_by_reason(change: dict[str, float], reason: str) -> None:
    found = generate_masks(segmenter(), MaskSettings(**{"points_per_side": 6, **change}))  # type: ignore[arg-type]
    assert found.dropped[reason] > 0
    assert found.candidates == len(found.regions.masks) + sum(found.dropped.values())


def test_nothing_left_is_a_skipped_region_with_the_counts() -> None:
    found = generate_masks(segmenter(scores=(float("nan"),)), MaskSettings(points_per_side=3))
    assert not found.regions.masks
    assert "9 by score" in found.regions.skipped["segment-1"]


def test_no_more_than_asked_for_stay_and_they_are_the_best() -> None:
    masks = torch.from_numpy(np.stack(list(scene().values())))

    def answer(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (masks.float() * 20 - 10).expand(len(points), *masks.shape), torch.tensor([[0.9, 0.99, 0.95]])

    found = generate_masks(answer, MaskSettings(points_per_side=1, min_share=0.0, most=2))
    assert [int(mask.sum()) for mask in found.regions.masks.values()] == [72, 1]
    assert found.dropped == {"more than asked for": 1}


@settings(max_examples=40, deadline=None)
@given(
    masks=st.lists(arrays.arrays(np.bool_, (3, 4)).filter(np.any), min_size=1, max_size=8),
    seed=st.integers(0, 999),
    limit=st.floats(0, 1),
)
def test_masks_that_stay_overlap_little_and_each_that_goes_copies_a_better_one(
    masks: list[Mask], seed: int, limit: float
) -> None:
    scores = np.random.default_rng(seed).integers(0, 3, len(masks)).astype(float).tolist()
    kept = distinct_masks(masks, scores, limit)

    def overlap(one: int, two: int) -> float:
        return float((masks[one] & masks[two]).sum() / (masks[one] | masks[two]).sum())

    assert all(overlap(one, two) <= limit + 1e-12 for one in kept for two in kept if one != two)
    for gone in set(range(len(masks))) - set(kept):
        assert any(overlap(gone, better) >= limit - 1e-12 and scores[better] >= scores[gone] for better in kept)
    assert [scores[index] for index in kept] == sorted((scores[index] for index in kept), reverse=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), batch=st.integers(1, 40))
def test_names_do_not_depend_on_the_order_or_grouping_of_answers(seed: int, batch: int) -> None:
    plain = segmenter(scores=(0.95, 0.95))
    order = torch.randperm(36, generator=torch.Generator().manual_seed(seed))
    every = point_grid(6)

    def shuffled(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = [int((every == point).all(1).nonzero()) for point in points]
        return plain(every[order[index]])

    one = generate_masks(plain, MaskSettings(points_per_side=6)).regions.masks
    two = generate_masks(shuffled, MaskSettings(points_per_side=6, points_per_batch=batch)).regions.masks
    assert list(one) == list(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "wrong", [{"points_per_side": 0}, {"min_share": 0.5, "max_share": 0.4}, {"max_overlap": 2.0}, {"most": 0}]
)
def test_settings_out_of_range_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        MaskSettings(**wrong)  # type: ignore[arg-type]


# --- geometry -----------------------------------------------------------------------------------------------------


def test_the_grid_holds_the_middles_of_equal_cells() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 40), width=st.integers(2, 40), row=st.integers(0, 39), column=st.integers(0, 39))
def test_a_prompt_lands_on_the_pixel_it_names_and_masks_come_back_to_their_pixels(
    height: int, width: int, row: int, column: int
) -> None:
    row, column = row % height, column % width
    longest = 4 * max(height, width)
    frame = Preprocessing(longest, (longest, longest), 0, 1.0, (0.0,) * 3, (1.0,) * 3).frame((height, width))
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[row, column] = 1
    canvas = Preprocessing(longest, (longest, longest), 0, 1.0, (0.0,) * 3, (1.0,) * 3).pixels(picture, frame)
    point = torch.tensor([[(column + 0.5) / width, (row + 0.5) / height]], dtype=torch.float64)
    x, y = (frame.on_canvas(point)[0] + 0.5).tolist()  # the models add the half pixel
    assert canvas[0, 0, int(y), int(x)] == 1
    back = frame.off_canvas(canvas[:, :1] * 2 - 1)[0, 0] > 0
    assert back.nonzero().tolist() == [[row, column]]


def test_a_stretched_frame_maps_both_axes_by_themselves() -> None:
    frame = Preprocessing(None, (64, 64), 2, 1.0, (0.0,) * 3, (1.0,) * 3).frame((32, 16))
    assert frame == Frame((32, 16), (64, 64), (64, 64))
    assert frame.on_canvas(torch.tensor([[0.5, 0.25]])).tolist() == [[31.5, 15.5]]


# --- a real architecture ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_sam(tmp_path_factory.mktemp("sam"))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_a_saved_sam_answers_with_masks_of_the_pictures_size_and_says_what_it_was_read_from(sam: Path) -> None:
    model = load_mask_model(sam, device="cpu")
    assert set(model.origin.files) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    logits, scores = model.prompted(noise(40, 48))(point_grid(3))
    assert logits.shape == (9, 3, 40, 48) and scores.shape == (9, 3)
    assert float((logits[0] - logits[8]).abs().max()) > 1e-4  # the prompt matters
    one, two = (model.masks(noise(40, 48), ANY) for _ in range(2))
    assert one.regions.masks and one.dropped == two.dropped
    assert all(np.array_equal(mask, two.regions.masks[name]) for name, mask in one.regions.masks.items())
    assert all(mask.shape == (40, 48) and mask.any() and not mask.all() for mask in one.regions.masks.values())
    assert model.prompted(noise(16, 64, 1))(point_grid(1))[0].shape == (1, 3, 16, 64)


def test_pictures_are_prepared_and_answers_agree_with_transformers_own_way(sam: Path) -> None:
    own = pytest.importorskip("transformers.models.sam.image_processing_pil_sam")
    processor = own.SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    image = noise(32, 64)
    prepared = processor(images=image, return_tensors="pt")
    model = load_mask_model(sam, device="cpu")
    frame = model.preprocessing.frame((32, 64))
    assert torch.allclose(model.preprocessing.pixels(image, frame), prepared["pixel_values"], atol=1e-5)
    with torch.no_grad():
        point = torch.tensor([[[[31.5, 15.5]]]])
        output = model.network(pixel_values=prepared["pixel_values"], input_points=point)
    theirs = torch.nn.functional.interpolate(output.pred_masks[0], (64, 64), mode="bilinear")[..., :32, :]
    ours, scores = model.prompted(image)(torch.tensor([[0.5, 0.5]]))
    assert torch.allclose(ours, theirs, atol=1e-3) and torch.allclose(scores, output.iou_scores[0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"model_type": "bert"}', "one of .*sam"),
        ("config.json", None, "no such file"),
        ("preprocessor_config.json", None, "image processor settings"),
        ("preprocessor_config.json", b'{"size": {"width": 3}}', "cannot be read"),
        ("model.safetensors", None, "no weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "Git-LFS"),
        ("model.safetensors", b"nonsense", "do not load"),
    ],
)
def test_a_damaged_folder_is_a_clear_error(
    sam: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    for file in sam.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_mask_model(tmp_path)


def test_weights_of_another_network_and_pickled_code_are_refused(sam: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((sam / file).read_bytes())
    weights = load_file(sam / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="missing keys"):
        load_mask_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**weights, "code": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="do not load"):
        load_mask_model(tmp_path)


def test_a_processor_of_another_size_than_the_network_takes_is_an_error(sam: Path, tmp_path: Path) -> None:
    for file in sam.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 32}}))
    with pytest.raises(ModelError, match="what its processor makes"):
        load_mask_model(tmp_path, device="cpu").prompted(noise(8, 8))


def test_what_is_no_picture_is_an_error(sam: Path) -> None:
    model = load_mask_model(sam, device="cpu")
    for wrong in (noise(8, 8).astype(float), noise(8, 8)[..., 0], noise(8, 8)[..., :2]):
        with pytest.raises(InputError, match="uint8"):
            model.prompted(wrong)


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"rhumb\[masks\]"):
        load_mask_model(tmp_path)
