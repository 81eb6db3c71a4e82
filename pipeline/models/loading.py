"""From a reference (a diffusers folder or a Hub id) to a denoiser. Reads numbers and JSON; never runs what it reads.

What can be loaded says the table `FAMILIES` of `families.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin, SchedulerMixin, ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from diffusers.utils import logging as diffusers_logging

from pipeline.errors import ModelError
from pipeline.models.conditional import TEXT_FILES, OwnPrompt, empty_prompt
from pipeline.models.contract import Denoiser
from pipeline.models.families import FAMILIES, Family, Parts, reason, told
from pipeline.models.files import ModelFiles, inside, open_files
from pipeline.models.pickles import read_pickle
from pipeline.models.quiet import quiet

Network = TypeVar("Network", bound=ModelMixin)

_OLD_SCHEDULERS = {"VeSdeScheduler": ScoreSdeVeScheduler, "ScoreSdeVpScheduler": ScoreSdeVpScheduler}
_SECOND_NAMES = {"time_proj.W"}  # score-sde files of the first diffusers hold time_proj.weight under this name too


def load_denoiser(
    reference: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    class_label: int | None = None,
    prompt: torch.Tensor | None = None,
) -> Denoiser:
    """The denoiser behind a reference; its `origin` tells the commit and the files it was read from.

    Args:
        reference: a diffusers pipeline folder (model_index.json, network and scheduler), a network folder with the
            scheduler inside or beside it, or a Hub id "owner/name" or "owner/name@revision", whose cached copy serves
            offline.
        device: default a GPU where there is one.
        dtype: of weights and computation.
        revision: branch, tag or commit of a Hub id.
        class_label: the class of a class-conditional network.
        prompt: embedding (1, L, D) that a network with cross-attention is given; default that of no words, by the
            pipeline's own text encoder, which takes the package transformers. Other networks ignore it.

    Raises:
        ModelError: a missing folder, missing, damaged, changed or unfetched weights, weights that do not fit the
            network, or a class that has no adapter.
    """
    files = open_files(reference, revision)
    family, part = _family(files)
    scheduler = _load_scheduler(files, part)
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    torch.empty(0, device=chosen)  # a device that is not there is no fault of the model
    place = str(files.folder / inside(part, "config.json"))
    with told(place):
        words = _own_prompt(files) if family.prompted and prompt is None else prompt
        network, vae = load_network(files, family.network, part), _autoencoder(files, family)
        denoiser = family.denoiser(Parts(network, scheduler, chosen, dtype, class_label, words, vae, place))
    denoiser.origin = files.origin
    return denoiser


def _family(files: ModelFiles) -> tuple[Family, str]:
    """The family of a model and the folder of its network; nothing of the model is imported."""
    parts = _pipeline_parts(files) if files.has("model_index.json") else {}
    known = sorted({family.part for family in FAMILIES})
    named = next((name for name in known if name in parts), None)
    if parts and named is None:
        raise ModelError(
            str(files.folder / "model_index.json"),
            f"a pipeline of {', '.join(sorted(parts))}",
            f"a pipeline with a {' or a '.join(known)}",
            "This family has no adapter.",
        )
    part = next((name for name in known if files.has(f"{name}/config.json")), "")
    config = inside(part, "config.json")
    network = files.json(config).get("_class_name") if named is None else parts[named]
    if network == files.json(config).get("_class_name"):
        for family in FAMILIES:
            if family.network.__name__ == network:
                family.check_others(set(parts), str(files.folder / "model_index.json"))
                return family, part
    found = {str(network), str(files.json(config).get("_class_name"))}
    raise ModelError(
        str(files.folder / config),
        f"class {' and '.join(sorted(found))}",
        f"{' or '.join(family.network.__name__ for family in FAMILIES)}",
        "This family has no adapter.",
    )


def _pipeline_parts(files: ModelFiles) -> dict[str, str]:
    """Class names of a pipeline's parts; a class of another library than diffusers carries that library's name."""
    index = files.json("model_index.json")
    parts = {key: value for key, value in index.items() if not key.startswith("_") and isinstance(value, list)}
    named = {key: value for key, value in parts.items() if len(value) == 2 and value[1] is not None}
    return {key: str(name) if library == "diffusers" else f"{library}.{name}" for key, (library, name) in named.items()}


def _own_prompt(files: ModelFiles) -> OwnPrompt:
    """No words, embedded by the model's own text encoder."""
    files.paths([name for name in TEXT_FILES if files.has(name)])
    return empty_prompt(files.folder)


def _autoencoder(files: ModelFiles, family: Family) -> AutoencoderKL | None:
    """The autoencoder of a model that has one, where its family may."""
    if "vae" not in family.others:
        return None
    config = "vae/config.json"
    named = _pipeline_parts(files).get("vae") if files.has("model_index.json") else None
    if named is None and not files.has(config):
        return None
    classes = {files.json(config).get("_class_name"), named or "AutoencoderKL"}
    if classes != {"AutoencoderKL"}:
        found = " and ".join(sorted(map(str, classes)))
        raise ModelError(str(files.folder / config), f"class {found}", "AutoencoderKL", "No adapter for others.")
    return load_network(files, AutoencoderKL, "vae")


def load_network(files: ModelFiles, kind: type[Network], part: str) -> Network:
    """The network of class `kind` in the folder `part`, with exactly the weights its configuration asks for.

    Raises:
        ModelError: files that are missing or damaged, or that do not fit each other.
    """
    files.json(inside(part, "config.json"))
    paths = files.weights(part)
    for path in paths:
        if path.suffix == ".bin" and not isinstance(content := read_pickle(path), Mapping):
            raise ModelError(str(path), f"a {type(content).__name__}", "a state dict", "Download the model again.")
    try:
        with quiet(diffusers_logging):
            # Pickled .bin files are read by torch with weights_only=True, which builds nothing but tensors.
            network, report = kind.from_pretrained(
                files.folder / part, use_safetensors=paths[0].suffix == ".safetensors", local_files_only=True,
                low_cpu_mem_usage=False, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a foreign configuration may fail anywhere in diffusers
        raise ModelError(
            str(paths[0]),
            f"weights or configuration that do not load ({reason(error)})",
            "a config.json of diffusers, and the weights of its network",
            "Check the configuration, or download the model again.",
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted({str(name) for name in report.get(problem) or ()} - _SECOND_NAMES)
        if names:
            raise ModelError(
                str(paths[0]),
                f"{problem.replace('_', ' ')}: {', '.join(names[:3])}{' ...' if names[3:] else ''}",
                "exactly the weights of the network in config.json",
                "Download the model again.",
            )
    if not isinstance(network, kind):
        raise TypeError(f"{kind.__name__}.from_pretrained made a {type(network).__name__}")
    for name, tensor in network.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(str(paths[0]), f"NaN or infinity in {name}", "finite weights", "Download the model again.")
    return network


def _load_scheduler(files: ModelFiles, part: str) -> Any:
    """The scheduler in or beside the network: only a class of diffusers itself, built from plain numbers."""
    beside = "../scheduler" if part == "" else "scheduler"
    places = [inside(place, "scheduler_config.json") for place in ("scheduler", "", part, beside)]
    name = next((place for place in places if files.has(place)), None)
    if name is None:
        raise ModelError(
            str(files.folder),
            "no scheduler_config.json",
            "the noise schedule the model was trained with",
            "Put it into a folder `scheduler` beside the weights.",
        )
    config, path = files.json(name), files.folder / name
    title = str(config.get("_class_name"))
    kind = _OLD_SCHEDULERS.get(title) or (getattr(diffusers, title, None) if title.isidentifier() else None)
    if not (inspect.isclass(kind) and issubclass(kind, SchedulerMixin) and issubclass(kind, ConfigMixin)):
        raise ModelError(str(path), f"class {title}", "a scheduler of diffusers")
    known = inspect.signature(kind.__init__).parameters
    try:
        with quiet(diffusers_logging):
            return kind(**{key: value for key, value in config.items() if key in known})
    except Exception as error:  # as above
        raise ModelError(
            str(path), f"settings that {title} refuses ({reason(error)})", "a working scheduler configuration"
        ) from error
