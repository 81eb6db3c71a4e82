"""From a reference (a diffusers folder or a Hub id) to a denoiser. Reads numbers and JSON; never runs what it reads."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from pipeline.errors import ModelError
from pipeline.models.contract import Denoiser
from pipeline.models.unet2d import UNet2DDenoiser

_WEIGHTS = "diffusion_pytorch_model"
_LFS_HEADER = b"version https://git-lfs"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_JSON_FILES = ("model_index.json", "config.json", "scheduler_config.json", "unet/config.json",
               "scheduler/scheduler_config.json")  # fmt: skip


def load_denoiser(
    reference: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    class_label: int | None = None,
) -> Denoiser:
    """The denoiser behind a reference.

    Args:
        reference: a diffusers pipeline folder (model_index.json, unet and scheduler), a UNet folder with the scheduler
            inside or beside it, or a Hub id "owner/name", whose cached copy serves offline.
        device: default a GPU where there is one.
        dtype: of weights and computation.
        revision: branch, tag or commit of a Hub id.
        class_label: the class of a class-conditional network.

    Raises:
        ModelError: a missing folder, missing, damaged or unfetched weights, weights that do not fit the network, or a
            class that has no adapter.
    """
    folder = _resolve(reference, revision)
    _check_pipeline(folder)
    network = folder / "unet" if (folder / "unet").is_dir() else folder
    unet = _load_unet(network)
    scheduler = _load_scheduler(folder, network)
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return UNet2DDenoiser(unet, scheduler, device=chosen, dtype=dtype, class_label=class_label)


def _resolve(reference: str | Path, revision: str | None) -> Path:
    """The local folder of a reference, downloaded if it is a Hub id that is no folder here."""
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError("model", reference, "a folder", "Give the folder that holds model_index.json.")
    if isinstance(reference, Path) or not _HUB_ID.fullmatch(reference) or reference.startswith("."):
        raise ModelError("model", reference, "an existing model folder or a Hub id such as owner/name")
    found = _download(reference, revision, (*_JSON_FILES, *_weight_patterns("safetensors")))
    network = found / "unet" if (found / "unet").is_dir() else found
    if not _weight_files(network, "safetensors"):
        found = _download(reference, revision, (*_JSON_FILES, *_weight_patterns("bin")))
    return found


def _weight_patterns(suffix: str) -> tuple[str, ...]:
    """Whole and sharded weights of the default variant, at the root or in unet/."""
    names = (f"{_WEIGHTS}.{suffix}", f"{_WEIGHTS}-?????-of-?????.{suffix}", f"{_WEIGHTS}.{suffix}.index.json")
    return tuple(f"{folder}{name}" for folder in ("", "unet/") for name in names)


def _download(reference: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = reference if revision is None else f"{reference} at {revision}"
        raise ModelError(
            "model",
            f"{where} ({type(error).__name__})",
            "a model folder here, or a model on the Hub or in its cache",
            "Check the spelling, the network, and for a private model the login.",
        ) from error


def _check_pipeline(folder: Path) -> None:
    """Refuse a pipeline with other parts than an unconditional UNet and a scheduler; nothing of it is imported."""
    path = folder / "model_index.json"
    if not path.exists():
        return
    index = _read_json(path)
    parts = {key: value for key, value in index.items() if not key.startswith("_") and isinstance(value, list)}
    found = parts.get("unet")
    if found is None:
        raise ModelError(
            str(path), index.get("_class_name", "no class"), "a pipeline with a unet", "This family has no adapter."
        )
    if found != ["diffusers", "UNet2DModel"]:
        raise ModelError(str(path), f"unet of class {found[-1]}", "UNet2DModel", "This family has no adapter.")
    others = sorted(key for key, value in parts.items() if key not in ("unet", "scheduler") and value[-1] is not None)
    if others:
        raise ModelError(
            str(path),
            f"{index.get('_class_name')} with {', '.join(others)}",
            "a pixel model: unet and scheduler only",
            "Latent and conditional pipelines have no adapter.",
        )


def _load_unet(folder: Path) -> UNet2DModel:
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ModelError(
            str(folder / "config.json"),
            f"class {config.get('_class_name')}",
            "UNet2DModel",
            "This family has no adapter.",
        )
    safetensors = _weight_files(folder, "safetensors")
    files = safetensors or _weight_files(folder, "bin")
    if not files:
        raise ModelError(
            str(folder),
            "no weights",
            f"{_WEIGHTS}.safetensors (or .bin)",
            "Download the whole model again.",
        )
    for file in files:
        _check_file(file)
    try:
        with _quiet():
            # Pickled .bin files are read by torch with weights_only=True, which builds nothing but tensors.
            unet, report = UNet2DModel.from_pretrained(
                folder, use_safetensors=bool(safetensors), local_files_only=True, low_cpu_mem_usage=False,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(
            str(files[0]),
            f"weights or configuration that do not load ({type(error).__name__}: {_short(error)})",
            "the weights of the network in config.json",
            "Download the model again.",
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(kind):
            names = [str(name) for name in report[kind]]
            raise ModelError(
                str(files[0]),
                f"{kind.replace('_', ' ')}: {', '.join(names[:3])}{' ...' if names[3:] else ''}",
                "exactly the weights of the network in config.json",
                "Download the model again.",
            )
    return cast(UNet2DModel, unet)


def _weight_files(folder: Path, suffix: str) -> list[Path]:
    """The weight files of a network folder, whole or sharded; empty without any.

    Raises:
        ModelError: the index of sharded weights names a missing file, or one outside the folder.
    """
    whole, index = folder / f"{_WEIGHTS}.{suffix}", folder / f"{_WEIGHTS}.{suffix}.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        return []
    mapping = _read_json(index).get("weight_map")
    names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
    wrong = [name for name in names if Path(name).name != name or not (folder / name).exists()]
    if wrong or not names:
        raise ModelError(str(index), wrong[:1] or "no files", "names of weight files in the same folder")
    return [folder / name for name in names]


def _check_file(path: Path) -> None:
    """Refuse Git-LFS pointers and damaged safetensors, whose header tells their length."""
    with path.open("rb") as stream:
        head = stream.read(len(_LFS_HEADER))
    if head == _LFS_HEADER:
        raise ModelError(
            str(path), "a Git-LFS pointer", "the weights themselves", "Run `git lfs pull` in the model's repository."
        )
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise ModelError(
            str(path),
            f"a truncated or damaged file ({_short(error)})",
            "a whole safetensors file",
            "Download the model again.",
        ) from error


def _load_scheduler(folder: Path, network: Path) -> Any:
    """The scheduler in or beside the network: only a class of diffusers itself, built from plain numbers."""
    places = [folder / "scheduler", folder, network, network.parent / "scheduler"]
    path = next((p / "scheduler_config.json" for p in places if (p / "scheduler_config.json").exists()), None)
    if path is None:
        raise ModelError(
            str(folder),
            "no scheduler_config.json",
            "the noise schedule the model was trained with",
            "Put it into a folder `scheduler` beside the weights.",
        )
    config = _read_json(path)
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (inspect.isclass(kind) and issubclass(kind, SchedulerMixin)):
        raise ModelError(str(path), f"class {name}", "a scheduler of diffusers")
    known = inspect.signature(kind.__init__).parameters
    try:
        with _quiet():
            return kind(**{key: value for key, value in config.items() if key in known})
    except (TypeError, ValueError, NotImplementedError, ImportError, RuntimeError) as error:
        raise ModelError(
            str(path), f"settings that {name} refuses ({_short(error)})", "a working scheduler configuration"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(str(path), "no such file", "a diffusers model folder with its configuration") from error
    except (OSError, ValueError) as error:
        pointer = path.read_bytes().startswith(_LFS_HEADER) if path.is_file() else False
        raise ModelError(str(path), "a Git-LFS pointer" if pointer else "no readable JSON", "a JSON object") from error
    if not isinstance(content, dict):
        raise ModelError(str(path), type(content).__name__, "a JSON object")
    return content


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines or warnings from diffusers: what matters among them is checked and raised here."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(level)
