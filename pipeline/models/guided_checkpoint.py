"""Checkpoints of guided-diffusion's family: read without running what they hold, and compared with their flags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import ModelError
from pipeline.models.files import refuse_stand_in
from pipeline.models.guided import GuidedFlags, Plan
from pipeline.models.pickles import read_pickle

_MARK = "time_embed.0.weight"  # the first weight of every network of the family
_SHOWN = 3
_DEPTH = 3  # of mappings within mappings that a network is looked for in


@dataclass(frozen=True)
class Checkpoint:
    """One network's weights under their original names, and where in the file they lay ("" is at its top)."""

    state: dict[str, torch.Tensor]
    place: str


def read_checkpoint(path: Path) -> Checkpoint:
    """The network's state dict of a `.pt` (or safetensors) file; large files stay on disk until used.

    A state dict may lie within others (`state_dict`, `ema`) and its names may have a prefix (`module.`, `model.`). Of
    several networks, the one whose place says `ema` is taken. Only tensors and plain containers are built
    (`weights_only`); a file that names code is refused, and none of it is run.

    Raises:
        ModelError: no such file, damaged, code in the pickle, not exactly one network of the family, or other parts
            of a larger model beside it.
    """
    content = _content(path)
    networks = _networks(content)
    if not networks:
        keys = [str(key) for key in content][:_SHOWN] if isinstance(content, Mapping) else [type(content).__name__]
        raise ModelError(
            str(path),
            f"no {_MARK} (it holds {', '.join(keys) or 'nothing'})",
            "a state dict of guided-diffusion's UNet",
        )
    chosen = list(networks)
    if len(chosen) > 1:
        chosen = [place for place in networks if "ema" in place.lower()] or chosen
    if len(chosen) > 1:
        raise ModelError(
            str(path), f"{len(chosen)} networks ({', '.join(chosen)})", "one, or one whose name says ema",
            "Save the wanted state dict alone.",
        )  # fmt: skip
    state, beside = networks[chosen[0]]
    if beside:
        raise ModelError(
            str(path), f"{len(beside)} other parts ({', '.join(beside[:_SHOWN])}{', ...' if beside[_SHOWN:] else ''}) "
            f"beside the network {chosen[0]}", "the network alone",
            "It is part of a larger model. If the network works by itself, save its own state dict.",
        )  # fmt: skip
    return Checkpoint(state, chosen[0])


def _content(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(str(path), "no such file", "a checkpoint (.pt)", "Check the path.")
    if path.suffix != ".safetensors":
        return read_pickle(path)
    refuse_stand_in(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            str(path), f"a truncated or damaged file ({_short(error)})", "a whole safetensors file",
            "Download it again.",
        ) from error  # fmt: skip


def _networks(content: object) -> dict[str, tuple[dict[str, torch.Tensor], list[str]]]:
    """Place -> state dict, without prefix, of every network in nested mappings; and the tensors beside it, by name."""
    found: dict[str, tuple[dict[str, torch.Tensor], list[str]]] = {}
    for place, mapping in _mappings(content, "", _DEPTH):
        names = {key: value for key, value in mapping.items() if isinstance(key, str) and torch.is_tensor(value)}
        prefixes = sorted((key.removesuffix(_MARK) for key in names if _marked(key)), key=len, reverse=True)
        for prefix in prefixes:  # the longest first, so that what is left is another network's or too much
            own = {key for key in names if key.startswith(prefix)}
            state = {key.removeprefix(prefix): names.pop(key) for key in sorted(own)}
            beside = sorted(names) if len(prefixes) == 1 else []
            found[f"{place}{prefix.removesuffix('.')}".removesuffix("/")] = state, beside
    return found


def _marked(key: str) -> bool:
    return key == _MARK or key.endswith(f".{_MARK}")


def _mappings(content: object, place: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if isinstance(content, Mapping) and depth:
        yield place, content
        for key, value in content.items():
            yield from _mappings(value, f"{place}{key}/", depth - 1)


def check_fit(path: Path, state: Mapping[str, torch.Tensor], expected: Plan, fitting: str) -> None:
    """Compare a state dict with the network that flags describe.

    Args:
        path: of the checkpoint, for the message.
        fitting: what to do where it does not fit; `describe` and the presets' names make it.

    Raises:
        ModelError: missing, extra, misshapen or unusable parameters: how many of each, and the first few by name.
    """
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shared = [name for name in expected if name in state]
    wrong = [
        f"{name} {tuple(state[name].shape)}, not {expected[name][0]}"
        for name in shared
        if tuple(state[name].shape) != expected[name][0]
    ]
    problems = [
        f"{len(names)} {kind} ({'; '.join(names[:_SHOWN])}{'; ...' if names[_SHOWN:] else ''})"
        for kind, names in (("missing", missing), ("extra", extra), ("misshapen", wrong))
        if names
    ]
    if problems:
        raise ModelError(str(path), ", ".join(problems), "exactly the parameters of the network", fitting)
    for name in shared:
        tensor = state[name]
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ModelError(str(path), f"{name} of {tensor.dtype}, {tensor.layout}", "plain floating-point numbers")
        if tensor.is_meta:
            raise ModelError(str(path), f"{name} without numbers (a meta tensor)", "weights", "Save them on a device.")
        if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
            raise ModelError(str(path), f"NaN or infinity in {name}", "finite weights", "Download it again.")


def describe(state: Mapping[str, torch.Tensor]) -> dict[str, str] | None:
    """What the shapes alone tell of the flags, None where they belong to no network of the family.

    Image size, heads, attention order and schedule leave no trace in shapes, so attention resolutions are given in
    image sizes: "image_size/16".
    """
    try:
        return _described({name: tuple(tensor.shape) for name, tensor in state.items()})
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return None


def _described(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    channels, pixels = shapes[_MARK][1], shapes["input_blocks.0.0.weight"][1]
    inputs = sorted({int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks.")})
    ups = [name for name in shapes if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight", name)]
    downs = [name for name in shapes if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)]
    silent = inputs[-1] + 1 - len(inputs)  # average pooling leaves a number without parameters
    levels = 1 + (len(ups) or len(downs) or silent)
    per_level = (inputs[-1] + 1) // levels
    first = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = [shapes[f"{name}.0.out_layers.0.weight"][0] for name in first]
    doubled = shapes["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1]
    attends = [f"{name}.1.qkv.weight" in shapes for name in first]
    found = {
        "in_channels": pixels,
        "num_channels": channels,
        "num_res_blocks": per_level - 1,
        "channel_mult": ",".join(f"{width / channels:g}" for width in widths),
        "attention_resolutions": _resolutions(attends),
        "resblock_updown": bool(ups),
        "conv_resample": not silent,
        "use_scale_shift_norm": doubled,
        "learn_sigma": shapes["out.2.weight"][0] == 2 * pixels,
        "class_cond": "label_emb.weight" in shapes,
    }
    if "label_emb.weight" in shapes:
        found["num_classes"] = shapes["label_emb.weight"][0]
    return {name: str(value) for name, value in found.items()}


def described_flags(flags: GuidedFlags) -> dict[str, str]:
    """`describe` for the network of these flags, without building it."""
    levels = len(flags.widths)
    found = {
        "in_channels": flags.in_channels,
        "num_channels": flags.num_channels,
        "num_res_blocks": flags.num_res_blocks,
        "channel_mult": ",".join(f"{multiplier:g}" for multiplier in flags.multipliers),
        "attention_resolutions": _resolutions(flags.attends),
        "resblock_updown": flags.resblock_updown and levels > 1,
        "conv_resample": flags.conv_resample or flags.resblock_updown or levels == 1,
        "use_scale_shift_norm": flags.use_scale_shift_norm,
        "learn_sigma": flags.learn_sigma,
        "class_cond": flags.class_cond,
    }
    if flags.class_cond:
        found["num_classes"] = flags.num_classes
    return {name: str(value) for name, value in found.items()}


def _resolutions(attends: Iterable[bool]) -> str:
    """The levels with attention, as sizes in terms of the unknown image size."""
    return ",".join(f"image_size/{2**level}" for level, does in enumerate(attends) if does) or "none"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
