from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.faces.factors import FACTORS, OWNER, REGIONS, sample_factors
from pipeline.faces.render import SIZE, render
from pipeline.reader import AttributeReader, ReaderTraining, held_out_r2, reader_batch, train_reader

TINY = ReaderTraining(steps=6, batch=8, channels=(4, 8, 8), width=8, warmup=1)
BUILTIN = Path(__file__).parents[2] / "data" / "builtin" / "reader"


@pytest.fixture(scope="module")
def builtin() -> AttributeReader:
    return AttributeReader.load(BUILTIN)


def pictures(count: int, seed: int = 0xFFF0_0000, style: str = "faces64") -> torch.Tensor:
    return render(sample_factors(count, torch.Generator().manual_seed(seed)), style).images


def test_the_same_seed_trains_the_same_reader(tmp_path: Path) -> None:
    first = train_reader(TINY, tmp_path / "a").state_dict()
    second = train_reader(TINY, tmp_path / "b").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Killed

    whole = train_reader(TINY, tmp_path / "whole", save_every=2).state_dict()
    with pytest.raises(Killed):
        train_reader(TINY, tmp_path / "cut", stop, save_every=2)
    steps: list[int] = []
    resumed = train_reader(TINY, tmp_path / "cut", lambda step, loss: steps.append(step), save_every=2).state_dict()
    assert steps == [3, 4, 5, 6]
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)
    assert len(json.loads((tmp_path / "cut" / "losses.json").read_text())) == TINY.steps


def test_a_checkpoint_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    train_reader(TINY, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="training: width: found 9; expected 8"):
        train_reader(TINY.model_copy(update={"width": 9}), tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_batches_are_drawn_from_seed_and_step_alone() -> None:
    first, again, other = reader_batch(TINY, 5), reader_batch(TINY, 5), reader_batch(TINY, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_disturbed_region_takes_its_own_factors_out_of_question_and_no_others_of_small_parts() -> None:
    config = TINY.model_copy(update={"batch": 32, "disturbed": 1.0})
    asked = reader_batch(config, 1)[2]
    small = [i for i, name in enumerate(FACTORS) if OWNER[name] in REGIONS[:5]]
    owners = [{OWNER[FACTORS[i]] for i in small if row[i] == 0} for row in asked]
    assert all(len(owner) <= 1 for owner in owners)
    assert bool((asked == 0).any(1).all())


def test_a_saved_reader_reads_the_same_after_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = AttributeReader((4, 8, 8), 8).eval()
    reader.save(tmp_path)
    assert torch.equal(AttributeReader.load(tmp_path).read(pictures(3)), reader.read(pictures(3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_each_picture_is_read_on_its_own(tmp_path: Path) -> None:
    reader = AttributeReader((4, 8, 8), 8)
    both = reader.read(pictures(4))
    assert torch.allclose(both[1:2], reader.read(pictures(4)[1:2]), atol=1e-6)
    assert not reader.training


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (1, 1, SIZE, SIZE), (1, 3, 32, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected shape \(B, 3, 64, 64\)"):
        AttributeReader((4, 8, 8), 8).read(torch.zeros(shape))


def test_broken_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json"):
        AttributeReader.load(tmp_path)
    AttributeReader((4, 8, 8), 8).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"factors": ["age"]}))
    with pytest.raises(ModelError, match="factors"):
        AttributeReader.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 9}))
    with pytest.raises(ModelError, match="model.safetensors"):
        AttributeReader.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json"):
        AttributeReader.load(tmp_path)


def test_the_built_in_reader_recovers_every_factor_of_held_out_faces(builtin: AttributeReader) -> None:
    scores = held_out_r2(builtin, "faces64", 512)
    assert set(scores) == set(FACTORS)
    assert min(scores.values()) >= 0.98, scores


def test_the_built_in_reader_also_reads_paintings(builtin: AttributeReader) -> None:
    scores = held_out_r2(builtin, "paintings64", 256)
    assert min(scores.values()) >= 0.95, scores


def test_the_built_in_reading_hardly_moves_under_the_error_of_a_round_trip(builtin: AttributeReader) -> None:
    images = pictures(128)
    rms = 2.0 * 10 ** (-42 / 20)  # 42 dB over a data range of 2
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    moved = (builtin.read((images + rms * noise).clamp(-1, 1)) - builtin.read(images)).abs()
    assert float(moved.flatten().quantile(0.95)) <= 0.03


def test_the_built_in_reading_of_a_part_ignores_edits_elsewhere(builtin: AttributeReader) -> None:
    factors = sample_factors(64, torch.Generator().manual_seed(0xFFF0_0001))
    edited = factors.clone()
    edited[:, FACTORS.index("mouth_opening")] = 1.0 - factors[:, FACTORS.index("mouth_opening")]
    moved = (builtin.read(render(edited).images) - builtin.read(render(factors).images)).abs()
    others = [i for i, name in enumerate(FACTORS) if OWNER[name] != "mouth"]
    assert float(moved[:, others].quantile(0.95)) <= 0.05
