from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.models.loading import load_denoiser
from pipeline.models.unet2d import UNet2DDenoiser
from tests.pipeline.tiny_latents import tiny_conditional, tiny_prompt
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_pipeline_folder, tiny_scheduler, tiny_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_pipeline_folder(tmp_path / "model")


def test_a_pipeline_folder_gives_the_model_that_was_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    denoiser, truth = load_denoiser(folder, device="cpu"), tiny_denoiser()
    x = tiny_image(truth)
    torch.testing.assert_close(denoiser.predict_noise(x, 7), truth.predict_noise(x, 7))
    assert denoiser.info == truth.info
    assert capfd.readouterr() == ("", "")


def test_dtype_is_that_asked_for(folder: Path) -> None:
    denoiser = load_denoiser(str(folder), device="cpu", dtype=torch.float64)
    assert denoiser.dtype == denoiser.predict_noise(tiny_image(tiny_denoiser()).double(), 3).dtype == torch.float64


def test_an_older_layout_with_everything_at_the_root_loads(folder: Path) -> None:
    for file in ("unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"):
        (folder / file).rename(folder / Path(file).name)
    (folder / "unet").rmdir()
    assert load_denoiser(folder).info == tiny_denoiser().info


def test_a_bare_unet_folder_uses_the_scheduler_beside_it(folder: Path) -> None:
    assert load_denoiser(folder / "unet").info == tiny_denoiser().info


def test_a_bare_unet_folder_uses_the_scheduler_inside_it(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    DDIMScheduler(num_train_timesteps=20, beta_schedule="linear").save_pretrained(tmp_path)
    info = load_denoiser(tmp_path).info
    assert (info.train_timesteps, info.prediction, info.schedule) == (20, "epsilon", "linear 0.0001-0.02")


def test_unknown_scheduler_keys_of_old_versions_are_harmless(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tensor_format": "pt"}))
    assert load_denoiser(folder).info == tiny_denoiser().info


def test_weights_in_a_pickle_of_tensors_load(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert load_denoiser(folder).info == tiny_denoiser().info


def test_sharded_weights_load_without_a_word(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="60KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    capfd.readouterr()
    assert load_denoiser(folder).info == tiny_denoiser().info
    assert capfd.readouterr() == ("", "")


def test_where_a_whole_file_and_an_index_lie_the_recorded_one_is_the_loaded_one(folder: Path) -> None:
    other = {name: tensor + 1 for name, tensor in load_file(folder / "unet" / WEIGHTS).items()}
    _sharded(folder, other, other)
    denoiser = load_denoiser(folder, device="cpu")
    assert isinstance(denoiser, UNet2DDenoiser) and denoiser.origin is not None
    assert torch.equal(denoiser._unet.conv_in.weight, other["conv_in.weight"])
    assert {name for name in denoiser.origin.files if name.endswith(".safetensors")} == {"unet/shard.safetensors"}


class Bomb:
    """Would create a file if a loader ran it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]


def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps({"conv_in.weight": Bomb(str(tmp_path / "ran"))}))
    with pytest.raises(ModelError, match=r"asks for code \(pathlib"):
        load_denoiser(folder)
    assert not (tmp_path / "ran").exists()


def _without_weights(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()


def _pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"
    (folder / "unet" / WEIGHTS).write_text(text)


def _truncated(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _garbage(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_bytes(b"\xff" * 200)


def _fewer_tensors(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors.pop("conv_in.weight")
    save_file(tensors, folder / "unet" / WEIGHTS)


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    save_file({**tensors, "conv_in.weight": torch.zeros(2, 3, 3, 3)}, folder / "unet" / WEIGHTS)


def _pickled(content: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        _without_weights(folder)
        torch.save(content, (folder / "unet" / WEIGHTS).with_suffix(".bin"))

    return edit


def _nan(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    save_file({**load_file(path), "conv_in.bias": torch.full((8,), torch.nan)}, path)


def _page(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_text("\n<!DOCTYPE html><title>Sign in</title>")


def _sharded(folder: Path, tensors: dict[str, torch.Tensor], named: Iterable[str], **index: object) -> None:
    """One shard of `tensors` and an index that says it holds the names `named`."""
    save_file(tensors, folder / "unet/shard.safetensors", metadata={"format": "pt"})
    content = {"metadata": {}, "weight_map": dict.fromkeys(named, "shard.safetensors"), **index}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(content))


def _shards_without_metadata(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    _sharded(folder, tensors, tensors, metadata=None)


def _shards_without_what_they_should_hold(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    _sharded(folder, {name: tensor for name, tensor in tensors.items() if name != "conv_in.weight"}, tensors)


def _short_time_table(folder: Path) -> None:
    tiny_unet(time_embedding_type="learned", num_train_timesteps=20).save_pretrained(folder / "unet")


def _set(file: str, key: str, value: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return edit


def _empty_network(folder: Path) -> None:
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        _set("unet/config.json", key, [])(folder)


def _broken_json(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def _no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def _shards_outside(folder: Path) -> None:
    _without_weights(folder)
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_weights, "no weights"),
        (_pointer, "Git-LFS pointer"),
        (_truncated, "truncated or damaged"),
        (_garbage, "truncated or damaged"),
        (_fewer_tensors, "missing keys: conv_in.weight"),
        (_other_shape, "conv_in.weight"),
        (_broken_json, "no readable JSON"),
        (_no_scheduler, "no scheduler_config.json"),
        (_shards_outside, "same folder"),
        (_set("unet/config.json", "_class_name", "UNet2DConditionModel"), "UNet2DConditionModel"),
        (_set("model_index.json", "unet", ["diffusers", "UNet2DConditionModel"]), "UNet2DConditionModel"),
        (_set("model_index.json", "unet", ["my_code", "Network"]), "Network"),
        (_set("model_index.json", "vqvae", ["diffusers", "VQModel"]), "vqvae"),
        (_set("scheduler/scheduler_config.json", "_class_name", "UNet2DModel"), "class UNet2DModel"),
        (_set("scheduler/scheduler_config.json", "_class_name", "os.path"), "class os.path"),
        (_set("scheduler/scheduler_config.json", "_class_name", "EDMEulerScheduler"), "EDM"),
        (_set("scheduler/scheduler_config.json", "beta_schedule", "wavy"), "wavy"),
        (_set("scheduler/scheduler_config.json", "prediction_type", "flow"), "prediction_type"),
        (_set("unet/config.json", "sample_size", None), "sample_size"),
        (_set("unet/config.json", "num_class_embeds", 3), "class"),
        (_nan, "NaN or infinity in conv_in.bias"),
        (_page, "found a web page"),
        (_pickled([1, 2]), "found a list"),
        (_pickled({"conv_in.weight": Bomb("ran")}), "asks for code"),
        (_shards_without_metadata, "no `metadata`"),
        (_shards_without_what_they_should_hold, "conv_in.weight"),
        (_short_time_table, "learned times of 20 timesteps; expected 50"),
        (_set("unet/config.json", "norm_num_groups", 0), "ZeroDivisionError"),
        (_set("unet/config.json", "attention_head_dim", 0), "ZeroDivisionError"),
        (_set("unet/config.json", "time_embedding_type", "wavy"), "UnboundLocalError"),
        (_empty_network, "IndexError"),
        (_set("scheduler/scheduler_config.json", "_class_name", "SchedulerMixin"), "class SchedulerMixin"),
    ],
)
def test_a_damaged_or_foreign_model_gives_one_clear_error(
    folder: Path, damage: Callable[[Path], None], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        load_denoiser(folder)
    assert capfd.readouterr() == ("", "")


def test_a_configuration_that_only_fails_in_use_gives_one_clear_error(tmp_path: Path) -> None:
    tiny_conditional(dual_cross_attention=True).save_pretrained(tmp_path)
    tiny_scheduler("epsilon").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="config.json: found a model that cannot be run.*TypeError"):
        load_denoiser(tmp_path, device="cpu", prompt=tiny_prompt())


def test_an_empty_name_is_not_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_denoiser(".", device="cpu").info == tiny_denoiser().info
    with pytest.raises(ModelError, match="an empty name"):
        load_denoiser("")


@pytest.mark.parametrize("reference", ["no-such-folder", "./no/such", "/no/such/folder", Path("a/b")])
def test_a_missing_folder_is_named(reference: str | Path) -> None:
    with pytest.raises(ModelError, match="existing model folder"):
        load_denoiser(reference)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="expected a folder"):
        load_denoiser(tmp_path / "model.safetensors")


def test_a_hub_id_that_cannot_be_reached_is_a_model_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="owner/name at v1"):
        load_denoiser("owner/name", revision="v1")
