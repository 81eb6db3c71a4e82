"""Guidance by CLIP (Radford et al. 2021): the directional loss of StyleGAN-NADA (Gal et al. 2022), as Asyrp uses it.

transformers is an optional dependency. Pictures are prepared by torch alone, so that gradients pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.errors import InputError, ModelError
from pipeline.methods.contract import Reader
from pipeline.methods.guidance import Goal, Guidance
from pipeline.models.files import ModelFiles, Origin, open_files, refuse_stand_in
from pipeline.models.quiet import quiet

INSTALL = "Install it with: pip install 'rhumb[masks]' (transformers 5.23)."
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own


class ClipGuidance(Guidance):
    """-log((1 + cos) / 2) of the step from picture to edit and the step from caption to caption, in CLIP's space.

    `load` makes one; `origin` names its files. The directional loss is that of Gal et al. 2022, its logarithm that of
    Asyrp's code (Kwon et al. 2023), which comes from DiffusionCLIP.
    """

    def __init__(self, network: Any, tokenizer: Any, normal: tuple[tuple[float, ...], ...], origin: Origin) -> None:
        self._network, self._tokenizer, self.origin = network.eval().requires_grad_(False), tokenizer, origin
        self._mean, self._std = (torch.tensor(three).view(1, 3, 1, 1) for three in normal)
        self._steps: dict[tuple[str, str], torch.Tensor] = {}

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ClipGuidance:
        """The `CLIPModel` and tokenizer of a local transformers folder, in float32. Only safetensors are read.

        Raises:
            ModelError: transformers is missing, the folder holds no CLIP model, or its files are missing, damaged, or
                do not fit each other.
        """
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError("transformers", "not installed", "it, for guidance by CLIP", INSTALL) from error
        if not Path(folder).is_dir():
            raise ModelError("clip", folder, "a local folder with a CLIPModel of transformers", "Download it first.")
        files = open_files(folder)
        kind = files.json("config.json").get("model_type")
        if kind != "clip":
            raise ModelError(str(files.folder / "config.json"), f"model type {kind}", "clip")
        weights = _fetched(files)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with quiet(transformers.utils.logging):
                network, report = transformers.CLIPModel.from_pretrained(
                    files.folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
                )
                tokenizer = transformers.CLIPTokenizer.from_pretrained(files.folder, **options)
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
            found = f"a model that does not load ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            raise ModelError(str(files.folder), found, "a whole CLIPModel with its tokenizer") from error
        lacking = sorted(str(name) for part in ("missing_keys", "mismatched_keys") for name in report.get(part, ()))
        if lacking:
            raise ModelError(str(weights), f"weights without {', '.join(lacking[:3])}", "the weights of config.json")
        return cls(network.to(device), tokenizer, _normalisation(files), files.origin)

    def check(self, goal: Goal) -> None:
        """Two different captions. Raises InputError."""
        if not goal.source or not goal.target or goal.source == goal.target:
            captions = f"captions {goal.source!r} and {goal.target!r}"
            raise InputError(f"goal {goal.key}", captions, "two different captions, source and target")

    def loss(self, goal: Goal, pictures: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            before = self._seen(pictures)
        moved = torch.nn.functional.cosine_similarity(self._seen(edited) - before, self._said(goal).to(before), dim=1)
        return -((1.0 + moved) / 2.0).clamp(min=1e-6).log().mean()

    def reader(self, goals: Sequence[Goal]) -> Reader:
        """A classifier with a reading for each goal: cosine of a picture to the step from caption to caption."""
        for goal in goals:
            self.check(goal)

        def read(pictures: torch.Tensor) -> torch.Tensor:
            said = torch.cat([self._said(goal) for goal in goals])
            seen = self._seen(pictures)
            return seen @ said.to(seen).T

        return read

    def _seen(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (B, width) of pictures (B, 3 or 1, H, W), resized as a whole to what the network takes."""
        side = self._network.config.vision_config.image_size
        shown = ((pictures.float() + 1.0) / 2.0).clamp(0.0, 1.0).expand(-1, 3, -1, -1).to(self._network.device)
        fitted = torch.nn.functional.interpolate(
            shown, size=(side, side), mode="bicubic", align_corners=False, antialias=True
        )
        output = self._network.get_image_features(pixel_values=(fitted - self._mean.to(fitted)) / self._std.to(fitted))
        return torch.nn.functional.normalize(output.pooler_output, dim=1).to(pictures.device)

    def _said(self, goal: Goal) -> torch.Tensor:
        """The unit step (1, width) from the source caption to the target caption."""
        captions = (goal.source, goal.target)
        if captions not in self._steps:
            longest = self._network.config.text_config.max_position_embeddings
            tokens = self._tokenizer(
                list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.no_grad():
                output = self._network.get_text_features(**tokens.to(self._network.device))
            source, target = torch.nn.functional.normalize(output.pooler_output, dim=1)
            self._steps[captions] = torch.nn.functional.normalize((target - source)[None], dim=1)
        return self._steps[captions]


def _fetched(files: ModelFiles) -> Path:
    """The first file of the weights; all of them, and the tokenizer's, are checked and recorded."""
    names = ["model.safetensors"] if files.has("model.safetensors") else []
    if not names and files.has("model.safetensors.index.json"):
        mapping = files.json("model.safetensors.index.json").get("weight_map")
        names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise ModelError("model.safetensors.index.json", names[:1] or "no files", "names of files in its folder")
    if not names:
        raise ModelError(str(files.folder), "no safetensors", "model.safetensors", "Convert the weights: no pickles.")
    words = next((part for part in (["tokenizer.json"], ["vocab.json", "merges.txt"]) if all(map(files.has, part))), [])
    if not words:
        raise ModelError(str(files.folder), "no tokenizer", "tokenizer.json, or vocab.json and merges.txt")
    weights = files.paths(names)
    for path in weights:
        refuse_stand_in(path)
    files.paths([*words, *filter(files.has, ("tokenizer_config.json", "special_tokens_map.json"))])
    return weights[0]


def _normalisation(files: ModelFiles) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the model's image processor; CLIP's own where it has none."""
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if files.has(name):
            content = files.json(name)
            config = content.get("image_processor", content)
            break
    mean, std = (tuple(config.get(key, own)) for key, own in (("image_mean", MEAN), ("image_std", STD)))
    if any(len(three) != 3 or not all(isinstance(number, int | float) for number in three) for three in (mean, std)):
        raise ModelError(str(files.folder), f"mean {mean}, std {std}", "three numbers each in preprocessor_config.json")
    return mean, std
