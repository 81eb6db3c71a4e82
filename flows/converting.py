"""`rhumb convert`: a published checkpoint becomes a diffusers pipeline folder, whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from catalog.fs import flush_folder, sha256_of
from pipeline.errors import ConflictError, ModelError
from pipeline.models.contract import DenoiserInfo
from pipeline.models.files import CONVERSION
from pipeline.models.guided import GuidedFlags, plan, scheduler_config, translate, unet_config
from pipeline.models.guided_checkpoint import check_fit, describe, described_flags, read_checkpoint
from pipeline.models.guided_presets import CUSTOM, PRESETS, flags_of
from pipeline.models.loading import load_denoiser

_OF_THE_MODEL = ("image_shape", "prediction", "schedule", "train_timesteps", "fingerprint")


@dataclass(frozen=True)
class Conversion:
    """What was converted, and the evidence. `place` is where in the checkpoint the network lay, "" at its top.

    `parameters` counts the original network's; `image_shape` is (C, H, W); `fingerprint` is that of the loaded folder
    (of class 0 where there are classes). `check` says what the folder was put through before it was put in place.
    """

    folder: str
    preset: str
    checkpoint: str
    sha256: str
    bytes: int
    place: str
    parameters: int
    image_shape: tuple[int, ...]
    prediction: str
    learned_variance: bool
    classes: int | None
    schedule: str
    train_timesteps: int
    fingerprint: str
    check: str
    source: str | None
    citation: str | None
    licence: str | None


def convert(checkpoint: Path, preset: str, out: Path, settings: Sequence[str] = ()) -> Conversion:
    """Write `out` as a diffusers pipeline folder with the network of a guided-diffusion checkpoint.

    Weights are written as float32. The folder is made beside `out` under another name, loaded, run once at T / 2 on
    noise, and only then renamed; `rhumb_conversion.json` within it keeps the flags and what this returns, and
    loading the folder records its hash beside those of the weights.

    Args:
        checkpoint: a `.pt` (or safetensors) state dict; read without running anything in it.
        preset: a name of `PRESETS`, or `custom` for guided-diffusion's own defaults.
        settings: flags that differ from the preset, as KEY=VALUE.

    Raises:
        InputError: an unknown preset or flag.
        ModelError: a checkpoint that is damaged, names code or does not fit, or a network that diffusers has not.
        ConflictError: `out` is a file or lies under one, or is a folder that is not empty.
    """
    checkpoint, out = Path(checkpoint), Path(out).expanduser().absolute()
    flags, published = flags_of(preset, settings)
    expected = plan(flags)
    _refuse_occupied(out)
    found = read_checkpoint(checkpoint)
    check_fit(checkpoint, found.state, expected, _fitting(found.state, preset, flags))
    weights = translate(found.state, flags)
    parameters, place = sum(found.state[name].numel() for name in expected), found.place
    del found
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        _write_model(temporary, flags, weights)
        del weights  # the network is about to be loaded once more
        info = _probe(temporary, flags)
        done = Conversion(
            **{name: getattr(info, name) for name in _OF_THE_MODEL},
            folder=str(out),
            preset=preset,
            checkpoint=checkpoint.name,
            sha256=sha256_of(checkpoint),
            bytes=checkpoint.stat().st_size,
            place=place,
            parameters=parameters,
            learned_variance=flags.learn_sigma,
            classes=flags.num_classes if flags.class_cond else None,
            check=f"loaded strictly, one forward pass at timestep {_middle(info)}: finite",
            source=f"{published.file} of {published.source}" if published else None,
            citation=published.citation if published else None,
            licence=published.licence if published else None,
        )
        _write_json(temporary / CONVERSION, _record(done, flags, settings))
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def _refuse_occupied(out: Path) -> None:
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise ConflictError("--out", f"{out}, which is already there", "a new or empty folder", "Choose another name.")
    above = next(parent for parent in out.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise ConflictError("--out", f"{out} under {above}, which is no folder", "a folder in a folder")


def _fitting(state: Mapping[str, torch.Tensor], preset: str, flags: GuidedFlags) -> str:
    """What to do with a checkpoint that the flags do not fit, from its own shapes."""
    seen = describe(state)
    if seen is None:
        return "Its shapes are of no UNet of this family: check that it is the diffusion model, not a classifier."
    mine = described_flags(flags)
    differing = [f"{name}={value} (given: {mine.get(name, 'none')})" for name, value in seen.items()
                 if mine.get(name) != value]  # fmt: skip
    alike = [name for name, other in PRESETS.items() if described_flags(flags_of(name)[0]) == seen and name != preset]
    advice = f"Its shapes suggest {', '.join(differing)}." if differing else "Its shapes suggest these flags."
    return advice + (f" Presets of that shape: {', '.join(alike)}." if alike else f" Try --preset {CUSTOM} with --set.")


def _write_model(folder: Path, flags: GuidedFlags, weights: dict[str, torch.Tensor]) -> None:
    """model_index.json, unet/ and scheduler/ in a new folder, as diffusers' own `save_pretrained` names them."""
    shutil.rmtree(folder, ignore_errors=True)
    version = {"_diffusers_version": diffusers.__version__}
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    _write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", **version, **parts})
    _write_json(folder / "unet/config.json", {"_class_name": "UNet2DModel", **version, **unet_config(flags)})
    scheduler = {"_class_name": "DDPMScheduler", **version, **scheduler_config(flags)}
    _write_json(folder / "scheduler/scheduler_config.json", scheduler)
    try:
        save_file(weights, folder / "unet/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
        raise ModelError(
            str(folder.parent), f"weights that cannot be written ({error})", f"room for {size / 1e6:.0f} MB"
        ) from error


def _probe(folder: Path, flags: GuidedFlags) -> DenoiserInfo:
    """Load the folder as any user of it will, and run it once on seeded noise."""
    denoiser = load_denoiser(folder, device="cpu", class_label=0 if flags.class_cond else None)
    noise = torch.randn((1, *denoiser.info.x_shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = denoiser.predict_noise(noise, _middle(denoiser.info))
    if not bool(torch.isfinite(prediction).all()):
        raise ModelError(
            "the converted network", "NaN or infinity in its output", "finite numbers",
            "The checkpoint is damaged, or trained with flags that leave no trace in shapes (heads, attention order).",
        )  # fmt: skip
    return denoiser.info


def _middle(info: DenoiserInfo) -> int:
    return info.train_timesteps // 2


def _record(done: Conversion, flags: GuidedFlags, settings: Sequence[str]) -> dict[str, Any]:
    """The record without the folder's place on this machine, which may move."""
    fields = {name: value for name, value in dataclasses.asdict(done).items() if name != "folder"}
    return {"format": 1, **fields, "settings": list(settings), "flags": flags.model_dump(mode="json")}


def _put_in_place(temporary: Path, out: Path) -> None:
    """Flush every file, then rename: an empty `out` is replaced, anything else there is left alone."""
    for path in sorted(temporary.rglob("*")):
        if path.is_dir():
            continue
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    for folder in (temporary / "unet", temporary / "scheduler", temporary):
        flush_folder(folder)
    try:
        os.replace(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            _refuse_occupied(out)
        raise
    flush_folder(out.parent)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
