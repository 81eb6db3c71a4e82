"""Edits along directions as a pipeline of diffusers: pictures, directions and strengths in, pictures out.

from flows.edit_pipeline import DirectionEditPipeline

editor = DirectionEditPipeline.from_pipe(pipe)
editor(["a.png", "b.png"], {found.id: 4.0}, pack=pack).images[0].save("edited.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image

from flows.direction_pack import DirectionPack, finite
from flows.edit_settings import EditSettings, edit_settings, fit_of, recipe_of
from flows.pack_editing import (
    Masks,
    Picture,
    edited,
    fitted,
    masks_by_region,
    opened_picture,
    placed_edits,
)
from pipeline.editing import DecodeSettings, Edit
from pipeline.errors import InputError
from pipeline.images import CENTER, Fit, as_image
from pipeline.inversion import timestep_grid
from pipeline.models.contract import Denoiser
from pipeline.models.in_memory import denoiser_of

Vector = torch.Tensor | np.ndarray
Space = Literal["x", "h"]
OutputType = Literal["pil", "np", "pt"]
_PARTS = ("unet", "scheduler", "transformer", "vae", "text_encoder", "tokenizer")
_INVERSION_STEPS, _STEPS = 100, 25  # of a recipe that does not say


class DirectionEditPipeline(DiffusionPipeline):
    """Real pictures edited along directions: inverted by DDIM, shifted in the noisy image or the bottleneck, decoded.

    Any sampler's scheduler will do: what is used of it is the noise schedule and the prediction type.

    Args:
        unet, scheduler: of an unconditional or class-conditional model, or of one with prompts.
        transformer: of a DiT, in place of a unet; such models have x-space alone.
        vae: the autoencoder of a latent model.
        text_encoder, tokenizer: of a model with prompts, which is given the prompt of no words.
    """

    _optional_components: ClassVar[list[str]] = list(_PARTS)  # of diffusers: what may be missing

    def __init__(
        self,
        unet: UNet2DModel | UNet2DConditionModel | None = None,
        scheduler: SchedulerMixin | None = None,
        transformer: DiTTransformer2DModel | None = None,
        vae: AutoencoderKL | None = None,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: object | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - as pipelines of diffusers are called
        self,
        image: Picture | torch.Tensor | Sequence[Picture],
        directions: Mapping[str, float] | Vector | Sequence[Vector],
        *,
        pack: DirectionPack | None = None,
        strengths: float | Sequence[float] | None = None,
        space: Space | Sequence[Space] = "x",
        mask: Masks | Sequence[Masks | None] | None = None,
        timestep: int | None = None,
        num_inversion_steps: int | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        class_label: int | None = None,
        other_model: bool = False,
        generator: torch.Generator | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Edit one picture or a batch of them, all along the same directions.

        Args:
            image: pictures of any size, as `DirectionPack.apply` takes them, alone, in a list, or as an array
                (B, H, W, C); or a tensor (C, H, W) or (B, C, H, W) in [0, 1] of the model's own size.
            directions: with a `pack`, strengths by id; without, one vector in the shape of its space, or several.
            pack: what ids are of. It decides what is not given below, and the model must be its own.
            strengths, space: of vectors, one each or one for all.
            mask: with a pack, where a picture has the region; see `DirectionPack.apply`. One for all, or one each.
            timestep: index in [0, T) that pictures are inverted to; needed without a pack.
            num_inversion_steps, num_inference_steps: of DDIM, 100 and 25 without a pack.
            eta: above 0 the last steps of decoding add noise, from `generator`, or from the seed of the pack's recipe.
            class_label: of a class-conditional model without a pack.
            other_model: a warning, not an error, where the model is not that of the pack, as long as shapes fit.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W), both floats in [0, 1].

        Returns:
            `ImagePipelineOutput`, or (images,) unless `return_dict`.

        Raises:
            InputError: what does not fit the model or each other. ModelError: another model than the pack's.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError("output_type", repr(output_type)[:80], "pil | np | pt")
        if pack is None:
            denoiser = denoiser_of(self, class_label=class_label)
            own = EditSettings(-1, _INVERSION_STEPS, DecodeSettings(_STEPS))
            pictures, sizes = _pictures(image, denoiser, CENTER)
            edits = [_vectors(directions, strengths, space, mask)] * len(pictures)
        else:
            denoiser = pack.check(self, other_model=other_model)
            own = edit_settings(recipe_of(pack.catalog), denoiser.info.train_timesteps)
            pictures, sizes = _pictures(image, denoiser, fit_of(pack.catalog))
            edits = _placed(pack, directions, strengths, mask, sizes, denoiser)
        settings = _changed(own, timestep, num_inversion_steps, num_inference_steps, eta)
        if settings.decode.eta > 0 and generator is None and pack is None:
            raise InputError("generator", None, "a seeded torch.Generator where eta > 0")
        total = sum(len(timestep_grid(settings.timestep, n)) - 1 for n in _steps(settings))
        with self.progress_bar(total=total) as bar:
            out = edited(denoiser, pictures, edits, settings, lambda *_: bar.update(), generator)
        images = _as(out, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _changed(
    settings: EditSettings, timestep: int | None, inversion: int | None, decoding: int | None, eta: float | None
) -> EditSettings:
    """The settings with what was given in place. Raises InputError without a timestep."""
    decode = settings.decode
    if timestep is None and settings.timestep < 0:
        raise InputError("timestep", None, "the index that directions were found at, where no pack says it")
    if timestep is not None and timestep != settings.timestep:
        high, low = decode.h_window or (settings.timestep, 0)
        # A window that began with the edit begins with it still.
        decode = replace(decode, h_window=(timestep if high >= settings.timestep else high, low))
    decode = replace(
        decode,
        steps=decode.steps if decoding is None else decoding,
        eta=decode.eta if eta is None else eta,
    )
    return EditSettings(
        settings.timestep if timestep is None else timestep,
        settings.inversion_steps if inversion is None else inversion,
        decode,
    )


def _steps(settings: EditSettings) -> tuple[int, int]:
    return settings.inversion_steps, settings.decode.steps


def _pictures(image: Any, denoiser: Denoiser, fit: Fit) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """(B, C, H, W) in [-1, 1], and the size (width, height) that each picture had."""
    if isinstance(image, torch.Tensor):
        batch = image[None] if image.ndim == 3 else image
        channels, height, width = denoiser.info.image_shape
        if batch.ndim != 4 or tuple(batch.shape[1:]) != denoiser.info.image_shape or len(batch) == 0:
            raise InputError("image", f"a tensor {tuple(image.shape)}", f"(B, {channels}, {height}, {width})")
        if not batch.is_floating_point() or not bool(((batch >= 0) & (batch <= 1)).all()):
            raise InputError("image", f"{batch.dtype} outside [0, 1]", "floats in [0, 1]")
        return batch * 2 - 1, [(width, height)] * len(batch)
    many = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    pictures = [opened_picture(one) for one in (image if many else [image])]
    if not pictures:
        raise InputError("image", "none", "at least one picture")
    return fitted(denoiser, pictures, fit), [picture.size for picture in pictures]


def _placed(
    pack: DirectionPack, directions: Any, strengths: Any, mask: Any, sizes: list[tuple[int, int]], denoiser: Denoiser
) -> list[list[Edit]]:
    """The edits of every picture, by ids of a pack."""
    if not isinstance(directions, Mapping) or strengths is not None:
        raise InputError("directions", type(directions).__name__, "strengths by id, as a pack is given")
    wanted = pack.absolute(directions)
    regions = sorted({entry.region for entry, _ in wanted})
    masks = list(mask) if isinstance(mask, list | tuple) else [mask] * len(sizes)
    if len(masks) != len(sizes):
        raise InputError("mask", f"{len(masks)} masks", f"one for all, or {len(sizes)}, one for each picture")
    opened = [masks_by_region(own, regions) for own in masks]
    return [placed_edits(pack, wanted, own, size, denoiser) for own, size in zip(opened, sizes, strict=True)]


def _vectors(directions: Any, strengths: Any, space: Any, mask: Any) -> list[Edit]:
    """Edits of vectors that are given themselves. Raises InputError."""
    if isinstance(directions, Mapping):
        raise InputError("pack", None, "the pack that the ids are of")
    if mask is not None:
        raise InputError("mask", "one without a pack", "a pack that knows where its directions are at home")
    many = isinstance(directions, list | tuple)
    vectors = [torch.as_tensor(np.asarray(one) if not isinstance(one, torch.Tensor) else one)
               for one in (directions if many else [directions])]  # fmt: skip
    numbers, spaces = _each("strengths", strengths, len(vectors)), _each("space", space, len(vectors))
    for vector, own in zip(vectors, spaces, strict=True):
        if own not in ("x", "h"):
            raise InputError("space", repr(own)[:80], "x | h")
        if not vector.is_floating_point() or not bool(vector.isfinite().all()):
            raise InputError("directions", f"{vector.dtype}, or values that are not finite", "finite floats")
    return [
        Edit(own, vector, finite(number, "strengths"))
        for own, vector, number in zip(spaces, vectors, numbers, strict=True)
    ]


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of `count` vectors."""
    values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value] * count
    if len(values) != count:
        raise InputError(name, f"{len(values)}", f"one for all, or {count}, one for each vector")
    return values


def _as(out: torch.Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Pictures (B, C, H, W) in [-1, 1] as they are wanted."""
    if output_type == "pil":
        return [as_image(image) for image in out]
    unit = (out / 2 + 0.5).clamp(0, 1)
    return unit if output_type == "pt" else unit.cpu().permute(0, 2, 3, 1).float().numpy()
