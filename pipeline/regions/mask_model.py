"""Mask-generation models of transformers (SAM, SAM-HQ, SAM 2, EdgeTAM, ...): loaded, and called alike.

transformers is an optional dependency. Its own image processors and pipeline import torchvision; here pictures are
prepared by the processor's settings with Pillow, and nothing needs torchvision.
"""

from __future__ import annotations

import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from pipeline.errors import InputError, ModelError
from pipeline.models.files import ModelFiles, Origin, open_files, refuse_stand_in
from pipeline.models.quiet import quiet
from pipeline.regions.generated import GeneratedMasks, MaskSettings, Prompted, generate_masks

INSTALL = "Install it with: pip install 'rhumb[masks]' (transformers 5.23)."


@dataclass(frozen=True)
class Frame:
    """Where a picture lies on a model's canvas: resized to `inner`, in the top left corner of `canvas`; all (H, W)."""

    picture: tuple[int, int]
    inner: tuple[int, int]
    canvas: tuple[int, int]

    def on_canvas(self, points: torch.Tensor) -> torch.Tensor:
        """Points (n, 2), (x, y) in shares of the picture, as numbers of canvas pixels, whose centres are integers.

        Models of this family add the half pixel from a pixel's number to its centre themselves.
        """
        return points * torch.tensor([self.inner[1], self.inner[0]], dtype=points.dtype) - 0.5

    def off_canvas(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (n, m, h, w) over the canvas as (n, m, H, W) at the centres of the picture's pixels, bilinear."""
        axes = []
        for side in (0, 1):
            middles = (torch.arange(self.picture[side], dtype=torch.float64) + 0.5) / self.picture[side]
            axes.append(2.0 * middles * self.inner[side] / self.canvas[side] - 1.0)
        down, across = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack([across, down], dim=-1)[None].to(logits)
        flat = logits.flatten(0, 1)[None]
        sampled = torch.nn.functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
        return sampled[0].view(*logits.shape[:2], *self.picture)


@dataclass(frozen=True)
class Preprocessing:
    """What the model's own image processor does: `longest` or `size` (H, W) to resize to, `canvas` to pad to."""

    longest: int | None
    size: tuple[int, int]
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def frame(self, picture: tuple[int, int]) -> Frame:
        """The frame of a picture (H, W)."""
        if self.longest is None:
            return Frame(picture, self.size, self.size)
        ratio = self.longest / max(picture)
        height, width = (int(side * ratio + 0.5) for side in picture)
        return Frame(picture, (height, width), self.size)

    def pixels(self, image: NDArray[np.uint8], frame: Frame) -> torch.Tensor:
        """(1, 3, *canvas) of pixels uint8 (H, W, 3): resized, normalised, then padded with zeros."""
        height, width = frame.inner
        resized = Image.fromarray(image).resize((width, height), Image.Resampling(self.resample))
        values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(torch.float32) * self.scale
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        padding = (0, frame.canvas[1] - width, 0, frame.canvas[0] - height)
        return torch.nn.functional.pad((values - mean) / std, padding)[None]


class MaskModel:
    """A mask-generation model with its preprocessing; `load_mask_model` makes one. `origin` names its files."""

    def __init__(self, network: Any, preprocessing: Preprocessing, origin: Origin, device: torch.device | str) -> None:
        self.network, self.preprocessing, self.origin = network.eval().to(device), preprocessing, origin
        self.device = torch.device(device)

    @torch.no_grad()
    def prompted(self, image: NDArray[np.uint8]) -> Prompted:
        """The model at one picture, uint8 (H, W, 3) or grey (H, W, 1). Cost: one encoding; prompts cost little.

        Raises:
            InputError: an image of another type or shape.
            ModelError: the network refuses what its own processor's settings make of the picture.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
            raise InputError("image", f"{image.dtype} {image.shape}", "uint8 (H, W, 3) or (H, W, 1)")
        frame = self.preprocessing.frame((image.shape[0], image.shape[1]))
        pixels = self.preprocessing.pixels(np.repeat(image, 3 // image.shape[2], axis=2), frame)
        try:
            found = self.network.get_image_embeddings(pixels.to(self.device))
        except (ValueError, RuntimeError) as error:
            raise ModelError("mask model", _short(error), "a network that takes what its processor makes") from error
        embeddings = {"image_embeddings": found}
        if isinstance(found, tuple):  # SAM-HQ
            embeddings = {"image_embeddings": found[0], "intermediate_embeddings": found[1]}

        def answer(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            where = frame.on_canvas(points).to(self.device, torch.float32)[None, :, None]  # (1, n, 1, 2)
            labels = torch.ones(where.shape[:3], dtype=torch.int, device=self.device)
            with torch.no_grad():
                output = self.network(input_points=where, input_labels=labels, **embeddings)
            return frame.off_canvas(output.pred_masks[0].float()), output.iou_scores[0].float()

        return answer

    def masks(self, image: NDArray[np.uint8], settings: MaskSettings | None = None) -> GeneratedMasks:
        """Masks of a picture, uint8 (H, W, 3) or (H, W, 1), at its own size. See `generate_masks` and `prompted`."""
        return generate_masks(self.prompted(image), settings)


def load_mask_model(
    reference: str | Path, *, revision: str | None = None, device: torch.device | str | None = None
) -> MaskModel:
    """The mask-generation model behind a folder or a Hub id such as facebook/sam-vit-large, in float32.

    Files are found, pinned to a commit and hashed as those of denoisers are (`pipeline.models.files`); a cached model
    serves offline. Weights are safetensors, or pickles of which only tensors are read; no code of a model is run.

    Raises:
        ModelError: transformers is missing, the model belongs to another family, or its files are missing, damaged, or
            do not fit each other.
    """
    transformers = _transformers()
    files = open_files(reference, revision)
    kind = files.json("config.json").get("model_type")
    names = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_MASK_GENERATION_MAPPING_NAMES
    if kind not in names:
        raise ModelError(str(files.folder / "config.json"), f"model type {kind}", f"one of {', '.join(names)}")
    preprocessing = _preprocessing(files)
    weights = _weights(files)
    try:
        with quiet(transformers.utils.logging):
            network, report = transformers.AutoModelForMaskGeneration.from_pretrained(
                files.folder, local_files_only=True, trust_remote_code=False, output_loading_info=True,
                use_safetensors=weights.suffix == ".safetensors", dtype=torch.float32,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        found = f"weights or configuration that do not load ({type(error).__name__}: {_short(error)})"
        raise ModelError(str(weights), found, "the weights of config.json", "Download the model again.") from error
    for problem in ("missing_keys", "mismatched_keys"):  # a video model has more than pictures need
        if report.get(problem):
            names = sorted(str(name) for name in report[problem])[:3]
            raise ModelError(
                str(weights), f"{problem.replace('_', ' ')}: {', '.join(names)}", "the weights of config.json"
            )
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return MaskModel(network, preprocessing, files.origin, chosen)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError("transformers", "not installed", "it, for mask-generation models", INSTALL) from error


def _weights(files: ModelFiles) -> Path:
    """The file of the weights, or the first of several; all are fetched, checked and recorded."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        names = [stem] if files.has(stem) else []
        if not names and files.has(f"{stem}.index.json"):
            mapping = files.json(f"{stem}.index.json").get("weight_map")
            names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
            if not names or any(Path(name).name != name for name in names):
                raise ModelError(f"{stem}.index.json", names[:1] or "no files", "names of files in the same folder")
        if names:
            path = files.paths(names)[0]
            refuse_stand_in(path)
            return path
    raise ModelError(str(files.folder), "no weights", "model.safetensors (or pytorch_model.bin)")


def _preprocessing(files: ModelFiles) -> Preprocessing:
    """The settings of the model's image processor; what it leaves out is as in SAM."""
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if files.has(name):
            content = files.json(name)
            config = content.get("image_processor", content)
            break
    else:
        raise ModelError(str(files.folder), "no preprocessor_config.json", "the model's image processor settings")
    try:
        size = config.get("size", {"longest_edge": 1024})
        longest = size.get("longest_edge")
        canvas = size if longest is None else config.get("pad_size", {"height": longest, "width": longest})
        normal = config.get("do_normalize", True)
        return Preprocessing(
            longest=None if longest is None else int(longest),
            size=(int(canvas["height"]), int(canvas["width"])),
            resample=int(config.get("resample", Image.Resampling.BILINEAR)),
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=_three(config.get("image_mean", (0.485, 0.456, 0.406))) if normal else (0.0, 0.0, 0.0),
            std=_three(config.get("image_std", (0.229, 0.224, 0.225))) if normal else (1.0, 1.0, 1.0),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            str(files.folder / name), f"settings that cannot be read ({_short(error)})", "size, pad_size, mean and std"
        ) from error


def _three(numbers: Any) -> tuple[float, ...]:
    three = tuple(float(number) for number in numbers)
    if len(three) != 3:
        raise ValueError(f"{len(three)} numbers for 3 channels")
    return three


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
