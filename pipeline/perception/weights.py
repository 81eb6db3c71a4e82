"""Weights of published networks: read without running what a file holds, all of them and no others, with their hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ModelError
from pipeline.models.files import refuse_stand_in
from pipeline.models.guided_checkpoint import check_fit
from pipeline.models.pickles import read_pickle
from pipeline.perception.contract import WeightFile

PUBLISHED = (
    "7be5be79",  # torchvision's AlexNet
    "4df8aa71",  # the same, as it was saved before
    "397923af",  # torchvision's VGG16
    "6726825d",  # pytorch-fid's Inception
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",  # lpips 0.1.4, weights/v0.1/alex.pth
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",  # lpips 0.1.4, weights/v0.1/vgg.pth
)
"""sha256 of the authors' files, or as much of it as they put in the files' names."""

Network = TypeVar("Network", bound=nn.Module)
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.")  # as torch.hub writes it
_COUNTER = "num_batches_tracked"  # of batch norms; counts training batches, and old files lack it


def weight_file(path: Path) -> WeightFile:
    """Hash a file. Cost: one read of it.

    Raises:
        ModelError: an unreadable file, a Git-LFS pointer or web page in its place, or other bytes than the hash in its
            name says.
    """
    try:
        refuse_stand_in(path)
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(str(path), f"no readable file ({type(error).__name__})", "a file of weights") from error
    named = _HASH_IN_NAME.search(path.name)
    if named is not None and not sha256.startswith(named[1]):
        raise ModelError(
            str(path), f"sha256 {sha256[:8]}...", f"the {named[1]}... of its name",
            "Download it again; weights of your own go by a name without a hash.",
        )  # fmt: skip
    return WeightFile(path.name, sha256, size, sha256.startswith(PUBLISHED))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict by name, from safetensors or a pickle of which nothing is run.

    Raises:
        ModelError: a damaged file, one that names code, or one that is no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            found = f"a truncated or damaged file ({' '.join(str(error).split())[:120]})"
            raise ModelError(str(path), found, "a whole safetensors file", "Download it again.") from error
    content = read_pickle(path)
    if not isinstance(content, Mapping):
        raise ModelError(str(path), type(content).__name__, "a state dict: tensors by name")
    strange = [str(key) for key, value in content.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if strange:
        raise ModelError(
            str(path),
            f"{strange[0]}, which is no tensor",
            "a state dict: tensors by name",
            "Save the state dict alone.",
        )
    return dict(content)


def fitting(
    path: Path, state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], action: str
) -> dict[str, torch.Tensor]:
    """Float32 copies of a state dict that has exactly these names and shapes; `action` is what to do otherwise.

    Raises:
        ModelError: missing, extra or misshapen tensors, by name, or numbers that are not finite.
    """
    check_fit(path, state, {name: (tuple(shape), ()) for name, shape in shapes.items()}, action)
    return {name: state[name].to(torch.float32, copy=True) for name in shapes}


def filled(build: Callable[[], Network], path: Path, action: str, unused: str | None = None) -> Network:
    """A network that `build` makes, with every weight from a file: frozen, in evaluation mode, on the CPU.

    Nothing is drawn at random. Tensors whose names begin with `unused` may be there or not.

    Raises:
        ModelError: as `read_weights` and `fitting`.
    """
    state = {
        name: tensor
        for name, tensor in read_weights(path).items()
        if not name.endswith(_COUNTER) and not (unused and name.startswith(unused))
    }
    with torch.device("meta"):
        network = build()
    own = network.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items() if not name.endswith(_COUNTER)}
    counters = {name: torch.zeros((), dtype=torch.long) for name in own if name.endswith(_COUNTER)}
    network.load_state_dict({**fitting(path, state, shapes, action), **counters}, assign=True)
    return network.requires_grad_(False).eval()
