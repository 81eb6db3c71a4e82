from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from pipeline.errors import InputError, ModelError
from pipeline.faces.factors import FACTORS, OWNER, REGIONS
from pipeline.methods.clip_guidance import ClipGuidance
from pipeline.methods.guidance import Goal, ReaderGuidance, reader_goals
from tests.pipeline.methods.tiny_clip import tiny_clip

SMILE = Goal("mouth", "smile", source="a face", target="a face with a smile")


def pictures(count: int = 2, seed: int = 0, channels: int = 3) -> torch.Tensor:
    return 0.4 * torch.randn((count, channels, 8, 8), generator=torch.Generator().manual_seed(seed))


def corners(images: torch.Tensor) -> torch.Tensor:
    """A reader of the four quarters' mean, in [0, 1]."""
    return 0.5 + 0.5 * torch.nn.functional.adaptive_avg_pool2d(images, 2).mean(1).flatten(1)


# --- goals and the reader ----------------------------------------------------------------------------------------


def test_every_region_gets_the_first_factor_it_owns() -> None:
    goals = reader_goals(FACTORS, OWNER, REGIONS)
    assert [goal.region for goal in goals] == list(REGIONS)
    assert all(FACTORS[goal.index] == goal.name and OWNER[goal.name] == goal.region for goal in goals)
    assert all(OWNER[name] != goal.region for goal in goals for name in FACTORS[: goal.index])


def test_a_preferred_factor_takes_the_place_of_the_first_where_there_is_one() -> None:
    owner = {"a": "x", "b": "y", "c": "y", "d": "x"}
    goals = reader_goals(("a", "b", "c", "d"), owner, preferred={"y": "c", "x": "elsewhere"})
    assert [(goal.region, goal.name, goal.index) for goal in goals] == [("x", "a", 0), ("y", "c", 2)]


def test_a_region_without_a_factor_has_no_goal() -> None:
    assert [goal.name for goal in reader_goals(("a", "b"), {"a": "x", "b": "y"}, ["z", "y"])] == ["b"]


@pytest.mark.parametrize("given", [{"region": ""}, {"name": "a/b"}, {"sign": 0}, {"sign": 2}, {"index": -1}])
def test_a_goal_that_says_nothing_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match="goal"):
        Goal(**{"region": "mouth", "name": "smile", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(("sign", "end"), [(1, 1.0), (-1, -1.0)])
def test_the_readers_loss_vanishes_at_the_end_of_the_range_and_nowhere_before(sign: int, end: float) -> None:
    guidance, goal = ReaderGuidance(corners), Goal("corner", "first", 0, sign)
    there = torch.full((2, 3, 8, 8), -end)
    there[:, :, :4, :4] = end
    assert float(guidance.loss(goal, pictures(), there)) == pytest.approx(0.0)
    assert float(guidance.loss(goal, pictures(), -there)) == pytest.approx(1.0)


def test_holding_weighs_what_happens_to_the_other_readings_alone() -> None:
    goal, before = Goal("corner", "first", 0), 0.3 * torch.ones(1, 3, 8, 8)
    own, other = before.clone(), before.clone()
    own[:, :, :4, :4] += 0.2
    other[:, :, 4:, 4:] += 0.2
    free, held = (ReaderGuidance(corners, hold) for hold in (0.0, 3.0))
    assert float(held.loss(goal, before, own)) == pytest.approx(float(free.loss(goal, before, own)))
    extra = float(held.loss(goal, before, other) - free.loss(goal, before, other))
    assert extra == pytest.approx(3.0 * 0.1 / 3, rel=1e-5)


def test_readings_beyond_what_a_picture_can_show_do_not_count() -> None:
    guidance, goal = ReaderGuidance(corners), Goal("corner", "first", 0)
    beyond = 5.0 * torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(guidance.loss(goal, beyond, beyond), torch.tensor(0.0))


def test_a_reading_that_the_reader_lacks_is_named() -> None:
    with pytest.raises(InputError, match="goal corner/fifth: found index 4; expected one of the reader's 4"):
        ReaderGuidance(corners).loss(Goal("corner", "fifth", 4), pictures(), pictures())


# --- CLIP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipGuidance:
    return ClipGuidance.load(folder)


def test_the_loss_is_that_of_the_step_between_the_models_own_embeddings(folder: Path, clip: ClipGuidance) -> None:
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    before, after = pictures(seed=1).clamp(-1, 1), pictures(seed=2).clamp(-1, 1)
    with torch.no_grad():
        seen = []
        for shown in (before, after):
            sized = torch.nn.functional.interpolate((shown + 1) / 2, (12, 12), mode="bicubic", antialias=True)
            seen.append(network.get_image_features(pixel_values=(sized - 0.5) / 0.25).pooler_output)
        said = [
            network.get_text_features(**tokenizer(caption, return_tensors="pt")).pooler_output
            for caption in (SMILE.source, SMILE.target)
        ]
    unit = torch.nn.functional.normalize
    cosine = torch.cosine_similarity(unit(seen[1]) - unit(seen[0]), unit(said[1]) - unit(said[0]))
    torch.testing.assert_close(clip.loss(SMILE, before, after), -((1 + cosine) / 2).log().mean())


def test_following_the_gradient_comes_nearer_to_the_target_caption(clip: ClipGuidance) -> None:
    before = pictures()
    edited = (before + 0.05 * pictures(seed=3)).requires_grad_()
    losses = []
    for _ in range(15):
        loss = clip.loss(SMILE, before, edited)
        losses.append(float(loss.detach()))
        (gradient,) = torch.autograd.grad(loss, edited)
        edited = (edited - 0.5 * gradient / gradient.norm()).detach().requires_grad_()
    assert losses[-1] < 0.5 * losses[0]


def test_an_unchanged_picture_has_a_finite_loss_and_grey_ones_are_seen(clip: ClipGuidance) -> None:
    grey = pictures(channels=1)
    assert bool(clip.loss(SMILE, grey, grey).isfinite())


def test_every_file_that_is_read_is_recorded(folder: Path, clip: ClipGuidance) -> None:
    assert set(clip.origin.files) == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("captions", [("", "a face"), ("a face", ""), ("a face", "a face")])
def test_a_goal_needs_two_captions(clip: ClipGuidance, captions: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="two different captions"):
        clip.check(Goal("mouth", "smile", source=captions[0], target=captions[1]))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no safetensors"):
        ClipGuidance.load(tiny_clip(tmp_path, safe=False))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", b"{}", "does not load"),
        ("config.json", b'{"model_type": "bert"}', "model type bert"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "found"),
        ("preprocessor_config.json", b'{"image_mean": [0.5]}', "three numbers"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    tiny_clip(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        ClipGuidance.load(tmp_path)


def test_a_model_of_the_hub_is_not_fetched() -> None:
    with pytest.raises(ModelError, match="local folder"):
        ClipGuidance.load("openai/clip-vit-base-patch32")
