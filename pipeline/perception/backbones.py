"""Perceptual backbones in a folder: which are there, and which are absent and what would serve.

Every file lies in the folder itself, under one of these names; the first that is there is read. `.pth` are the authors'
files (state dicts; of pickles only tensors are read), `.safetensors` hold the same tensors by the same names. A hash in
a name must be the file's own.

    figure                    weights                    file names
    ------------------------  -------------------------  ------------------------------------------------------------
    LPIPS (AlexNet)           torchvision's AlexNet      alexnet-owt-7be5be79.pth, alexnet-owt-4df8aa71.pth,
                                                         alexnet.pth, alexnet.safetensors
                              lpips/weights/v0.1 of the  alex.pth, lpips-alex.safetensors
                              package lpips
    LPIPS (VGG16)             torchvision's VGG16        vgg16-397923af.pth, vgg16.pth, vgg16.safetensors
                              lpips/weights/v0.1 of the  vgg.pth, lpips-vgg.safetensors
                              package lpips
    identity (ArcFace)        insightface arcface_torch, arcface-r100.pth, arcface-r50.pth, arcface-r34.pth,
                              backbone.pth of a network  arcface-r18.pth, arcface-r100.safetensors,
                              trained with ArcFace,      arcface-r50.safetensors, arcface-r34.safetensors,
                              renamed by its depth       arcface-r18.safetensors
    FID and KID (Inception)   pytorch-fid's release      pt_inception-2015-12-05-6726825d.pth,
                              fid_weights                pt_inception-2015-12-05.pth,
                                                         pt_inception-2015-12-05.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.perception.contract import Backbone
from pipeline.perception.identity import BLOCKS, ArcFace, Depth
from pipeline.perception.inception import Inception
from pipeline.perception.lpips import Lpips

LPIPS_ALEX, LPIPS_VGG = "LPIPS (AlexNet)", "LPIPS (VGG16)"
IDENTITY, DISTRIBUTIONS = "identity (ArcFace)", "FID and KID (Inception)"
_DEPTHS: dict[str, Depth] = {
    f"arcface-{depth}.{suffix}": depth for suffix in ("pth", "safetensors") for depth in reversed(BLOCKS)
}

FILES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    LPIPS_ALEX: (
        ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth", "alexnet.pth", "alexnet.safetensors"),
        ("alex.pth", "lpips-alex.safetensors"),
    ),
    LPIPS_VGG: (("vgg16-397923af.pth", "vgg16.pth", "vgg16.safetensors"), ("vgg.pth", "lpips-vgg.safetensors")),
    IDENTITY: (tuple(_DEPTHS),),
    DISTRIBUTIONS: (
        (
            "pt_inception-2015-12-05-6726825d.pth",
            "pt_inception-2015-12-05.pth",
            "pt_inception-2015-12-05.safetensors",
        ),
    ),
}
"""Figure -> for each file that it needs, the names under which it may lie."""


@dataclass(frozen=True)
class Backbones:
    """What was found. `absent`: figure -> why, with the names of the files that would serve."""

    alex: Lpips | None
    vgg: Lpips | None
    identity: ArcFace | None
    inception: Inception | None
    absent: Mapping[str, str]

    def evidence(self) -> dict[str, list[dict[str, Any]]]:
        """Of every backbone that is there, its files with sha256, as JSON holds it; no folder is named."""
        return {one.name: [asdict(file) for file in one.files] for one in self._there()}

    def hashes(self) -> dict[str, list[str]]:
        """Of every backbone that is there, the sha256 of its files: what its figures depend on, whatever the files are
        called."""
        return {one.name: [file.sha256 for file in one.files] for one in self._there()}

    def _there(self) -> list[Backbone]:
        found: tuple[Backbone | None, ...] = (self.alex, self.vgg, self.identity, self.inception)
        return [one for one in found if one is not None]


def found_backbones(folder: Path | None, device: torch.device | str = "cpu") -> Backbones:
    """The backbones whose weights lie in a folder, on a device; without a folder all are absent.

    A file that is there and cannot be used is an error, never an absence. Cost: every file is read and hashed.

    Raises:
        InputError: no such folder.
        ModelError: a file that is damaged, names code, or does not fit its network.
    """
    if folder is not None and not folder.is_dir():
        raise InputError("backbones", folder, "a folder with weights", "Give an existing folder, or none.")
    paths = {figure: _paths(folder, names) for figure, names in FILES.items()}
    absent = {
        figure: _reason(folder, lying, FILES[figure])
        for figure, lying in paths.items()
        if any(p is None for p in lying)
    }
    ready = {figure: [p for p in lying if p is not None] for figure, lying in paths.items() if figure not in absent}
    alex, vgg, identity, inception = (ready.get(figure) for figure in (LPIPS_ALEX, LPIPS_VGG, IDENTITY, DISTRIBUTIONS))
    return Backbones(
        alex=Lpips("alex", alex[0], alex[1], device) if alex else None,
        vgg=Lpips("vgg", vgg[0], vgg[1], device) if vgg else None,
        identity=ArcFace(_DEPTHS[identity[0].name], identity[0], device) if identity else None,
        inception=Inception(inception[0], device) if inception else None,
        absent=absent,
    )


def _paths(folder: Path | None, needed: tuple[tuple[str, ...], ...]) -> list[Path | None]:
    if folder is None:
        return [None] * len(needed)
    return [next((folder / name for name in names if (folder / name).is_file()), None) for names in needed]


def _reason(folder: Path | None, lying: list[Path | None], needed: tuple[tuple[str, ...], ...]) -> str:
    missing = " and ".join(" or ".join(names) for path, names in zip(lying, needed, strict=True) if path is None)
    return f"no folder of weights was given; needs {missing}" if folder is None else f"no file {missing}"
