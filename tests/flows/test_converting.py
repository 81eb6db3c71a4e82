"""`rhumb convert`: a folder that every loader reads, with its provenance, or nothing at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

import flows.converting
from flows.converting import convert
from pipeline.errors import ConflictError, InputError, ModelError
from pipeline.models.files import CONVERSION
from pipeline.models.guided_presets import PRESETS, Preset, flags_of
from pipeline.models.loading import load_denoiser
from tests.flows import tiny
from tests.pipeline.guided_reference import Network, State, guided_settings, random_state, reduced_p2, reference

SIZE = 16


def options(net: Network, **changes: object) -> list[str]:
    return [f"{key}={value}" for key, value in {**guided_settings(net, SIZE), **changes}.items()]


def checkpoint(folder: Path, net: Network, wrap: Mapping[str, object] | None = None) -> tuple[Path, State]:
    state = random_state(net)
    torch.save(wrap or state, folder / "weights.pt")
    return folder / "weights.pt", state


def listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("net", [reduced_p2(), reduced_p2(classes=4, updown=False, learn_sigma=False)])
def test_the_folder_gives_the_noise_that_the_original_predicts(net: Network, tmp_path: Path) -> None:
    path, state = checkpoint(tmp_path, net)
    done = convert(path, "custom", tmp_path / "model", options(net, noise_schedule="cosine"))
    label = None if net.classes is None else 3
    denoiser = load_denoiser(tmp_path / "model", device="cpu", class_label=label)
    x = torch.randn((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    y = None if label is None else torch.full((2,), label)
    theirs = reference(net, state, x, torch.full((2,), 321), y)[:, :3]
    torch.testing.assert_close(denoiser.predict_noise(x, 321), theirs, rtol=0, atol=1e-4)
    assert (done.prediction, done.schedule, done.train_timesteps) == ("epsilon", "squaredcos_cap_v2", 1000)
    assert (done.image_shape, done.classes) == ((3, SIZE, SIZE), net.classes)
    assert done.parameters == sum(value.numel() for value in state.values()) == denoiser.info.parameters


def test_a_float16_ema_within_a_training_checkpoint_is_the_one_converted(tmp_path: Path) -> None:
    net = reduced_p2()
    ema = {f"module.{name}": value.half() for name, value in random_state(net, seed=1).items()}
    path, _ = checkpoint(tmp_path, net, {"model": random_state(net), "ema": ema, "step": 7})
    done = convert(path, "custom", tmp_path / "model", options(net))
    x = torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    state = {name.removeprefix("module."): value.float() for name, value in ema.items()}
    theirs = reference(net, state, x, torch.tensor([9]), None)[:, :3]
    torch.testing.assert_close(load_denoiser(tmp_path / "model").predict_noise(x, 9).cpu(), theirs, rtol=0, atol=1e-4)
    assert done.place == "ema/module"


def test_a_network_that_predicts_images_is_loaded_as_one(tmp_path: Path) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    assert convert(path, "custom", tmp_path / "model", options(net, predict_xstart=True)).prediction == "sample"


def test_diffusers_own_pipeline_samples_from_the_folder(tmp_path: Path) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    convert(path, "custom", tmp_path / "model", options(net))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, SIZE, SIZE, 3)


def test_provenance_stays_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    preset = Preset(
        {**guided_settings(net, SIZE)}, "weights.pt", "https://example.org", "A. Author, 2020", "Weights: MIT."
    )
    monkeypatch.setitem(PRESETS, "tiny", preset)
    done = convert(path, "tiny", tmp_path / "model", ["use_fp16=True"])
    text = (tmp_path / "model" / CONVERSION).read_text()
    record = json.loads(text)
    assert record["sha256"] == done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["checkpoint"] == "weights.pt" and record["bytes"] == path.stat().st_size
    assert (record["citation"], record["licence"]) == ("A. Author, 2020", "Weights: MIT.")
    assert record["source"] == "weights.pt of https://example.org"
    assert record["flags"]["num_head_channels"] == 32 and record["settings"] == ["use_fp16=True"]
    denoiser = load_denoiser(tmp_path / "model")
    assert record["fingerprint"] == denoiser.info.fingerprint
    assert denoiser.origin is not None
    assert (denoiser.origin.terms.citation, denoiser.origin.terms.licence) == ("A. Author, 2020", "Weights: MIT.")
    assert str(tmp_path) not in text  # where a folder lay is nobody else's business


def test_only_the_files_of_a_pipeline_are_written(tmp_path: Path) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    (tmp_path / "model").mkdir()  # empty, so it may be filled
    convert(path, "custom", tmp_path / "model", options(net))
    assert listed(tmp_path / "model") == {
        CONVERSION, "model_index.json", "unet", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "scheduler", "scheduler/scheduler_config.json",
    }  # fmt: skip
    assert {entry.name for entry in tmp_path.iterdir()} == {"weights.pt", "model"}


def test_what_is_already_there_is_refused_and_kept(tmp_path: Path) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = listed(tmp_path)
    for name in ("full", "file", "link", "weights.pt"):
        with pytest.raises(ConflictError, match=f"{name}, which is already there"):
            convert(path, "custom", tmp_path / name, options(net))
    assert listed(tmp_path) == before
    assert (tmp_path / "full/mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_a_folder_under_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file/x", "file/x/y"):
        with pytest.raises(ConflictError, match=r"--out: found .* under .*file, which is no folder"):
            convert(tmp_path / "none.pt", "ffhq-p2", tmp_path / out)
    assert listed(tmp_path) == {"file"}


def test_a_folder_filled_in_the_meantime_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    real = flows.converting._probe

    def late(*arguments: object) -> object:
        (tmp_path / "model").mkdir()
        (tmp_path / "model/mine.txt").write_text("mine")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(flows.converting, "_probe", late)
    with pytest.raises(ConflictError):
        convert(path, "custom", tmp_path / "model", options(net))
    assert listed(tmp_path) == {"weights.pt", "model", "model/mine.txt"}


def test_a_network_that_overflows_leaves_nothing(tmp_path: Path) -> None:
    net = reduced_p2()
    state = {name: value * (1e30 if "out.2" in name else 1.0) for name, value in random_state(net).items()}
    state["out.0.weight"] = torch.full((32,), 1e30)
    path, _ = checkpoint(tmp_path, net, state)
    with pytest.raises(ModelError, match="NaN or infinity in its output"):
        convert(path, "custom", tmp_path / "model", options(net))
    assert listed(tmp_path) == {"weights.pt"}


def test_a_pickle_with_code_writes_and_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.write_text, (tmp_path / "proof", "ran")

    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net, {**random_state(net), "bomb": Bomb()})
    with pytest.raises(ModelError, match="weights.pt.*asks for code"):
        convert(path, "custom", tmp_path / "model", options(net))
    assert listed(tmp_path) == {"weights.pt"}


def test_a_preset_that_does_not_fit_is_told_what_the_shapes_suggest(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, reduced_p2(blocks=2))
    with pytest.raises(ModelError) as raised:
        convert(path, "metfaces-p2", tmp_path / "model")
    text = str(raised.value)
    assert "weights.pt" in text and "missing" in text and "misshapen" in text
    assert "num_channels=32 (given: 128)" in text
    assert "num_res_blocks=2 (given: 1)" in text
    assert "channel_mult=1,2 (given: 1,1,2,2,4,4)" in text
    assert "attention_resolutions=image_size/2 (given: image_size/16)" in text
    assert "use_scale_shift_norm" not in text
    assert listed(tmp_path) == {"weights.pt"}


def test_the_presets_that_would_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = reduced_p2()
    monkeypatch.setitem(PRESETS, "right", Preset(guided_settings(net, SIZE), "a", "https://a", "a", "a"))
    path, _ = checkpoint(tmp_path, net)
    with pytest.raises(ModelError, match="Presets of that shape: right"):
        convert(path, "lsun-cat-adm", tmp_path / "model")


def test_a_classifier_is_recognised_as_none_of_the_family(tmp_path: Path) -> None:
    state = {name: value for name, value in random_state(reduced_p2()).items() if not name.startswith("out")}
    path, _ = checkpoint(tmp_path, reduced_p2(), {**state, "out.2.c_proj.weight": torch.zeros(4)})
    with pytest.raises(ModelError, match="not a classifier"):
        convert(path, "imagenet256-adm", tmp_path / "model")


def test_the_command_converts_and_answers_in_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = reduced_p2()
    path, _ = checkpoint(tmp_path, net)
    changes = [word for setting in options(net) for word in ("--set", setting)]
    words = ("convert", path, "--preset", "custom", *changes, "--out")
    assert tiny.run(*words, tmp_path / "one") == 0
    shown = capsys.readouterr().out
    assert "828358" in shown and "3 x 16 x 16" in shown and "epsilon" in shown
    assert tiny.run(*words, tmp_path / "two", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tiny.run(*words, tmp_path / "two") == 2
    assert "which is already there" in capsys.readouterr().err


def test_an_unknown_preset_reads_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'lsun-cat-adm'"):
        convert(tmp_path / "none.pt", "lsun-cats-adm", tmp_path / "model")
    with pytest.raises(InputError):
        flags_of("custom", ["learn_sigma=perhaps"])
