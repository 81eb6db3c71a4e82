"""The denoiser contract over diffusers' `UNet2DModel`: pixel models of any size and channel count, with classes or not.

DDPM and its kin, and the NCSN++ networks of score-sde: what they differ in is in their `Schedule`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from diffusers import UNet2DModel

from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser, DenoiserInfo, Shape
from pipeline.models.fingerprints import fingerprint, known_settings
from pipeline.models.forward_mode import forward_mode_copy, shared_copy
from pipeline.models.schedules import schedule_of


@dataclass(frozen=True)
class Encoded:
    """What the part behind h needs: h (B, *bottleneck_shape), skips, time embedding and times, all (B, ...)."""

    h: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    embedding: torch.Tensor
    timesteps: torch.Tensor


class UNet2DDenoiser(Denoiser):
    """A `UNet2DModel` with the schedule of a diffusers scheduler.

    The given network is neither changed nor moved: this object holds frozen views of its weights (copies, where
    device or dtype differ). Learned-variance outputs (twice the channels) are cut to the mean.

    Args:
        unet: any `UNet2DModel`; `sample_size` must be set.
        scheduler: any diffusers scheduler with `alphas_cumprod`, whose config names prediction type and betas, or one
            of score-sde: see `pipeline.models.schedules`.
        device, dtype: where and how to compute; default the network's own.
        class_label: the class of a class-conditional network.
        condition: what fixes the model besides weights and schedule, for its fingerprint; default the class.

    Raises:
        ModelError: a schedule without an adapter, unknown prediction type, a size that is missing or does not pass
            through the network, or a class label that is missing or not wanted.
    """

    family: ClassVar[str] = "diffusers UNet2DModel"

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        class_label: int | None = None,
        condition: Any = None,
    ) -> None:
        config = dict(unet.config)
        self._schedule = schedule_of(scheduler)
        if self._schedule.sde is not None and not isinstance(unet, UNet2DModel):
            raise ModelError("scheduler", type(scheduler).__name__, f"a schedule of {type(unet).__name__} models")
        self._alphas, self._sigmas = self._schedule.alphas, self._schedule.sigmas
        self._prediction = self._schedule.prediction
        self._class_label = self._checked_label(config, class_label)
        channels = _channels(config)
        self.device = torch.device(device) if device is not None else unet.device
        self.dtype = unet.dtype if dtype is None else dtype
        self._unet: Any = shared_copy(unet, device=self.device, dtype=self.dtype).eval()
        self._twin: UNet2DDenoiser | None = None
        self._learned_variance = config["out_channels"] == 2 * channels
        self.info = DenoiserInfo(
            family=self.family,
            parameters=sum(p.numel() for p in unet.parameters()),
            prediction=self._prediction,
            image_shape=(channels, *_image_size(config)),
            bottleneck_shape=None,
            schedule=self._schedule.name,
            train_timesteps=len(self._alphas),
            fingerprint=fingerprint(
                [
                    type(unet).__name__,
                    known_settings(unet),
                    self._schedule.numerical,
                    self._class_label if condition is None else condition,
                ],
                unet.state_dict(),
            ),
        )
        self.info = replace(self.info, bottleneck_shape=self._bottleneck_shape())

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        if not -1 <= t < len(self._alphas):
            raise InputError("timestep", t, f"-1 (clean) or an index in [0, {len(self._alphas)})")
        return (1.0, 0.0) if t == -1 else (self._alphas[t], self._sigmas[t])

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        return self._to_noise(x, t, self._output(x, t, h_shift))

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x_t = x], (B, C, H, W), straight from the network's own output: no division by a small alpha."""
        return self._to_clean(x, t, self._output(x, t, h_shift))

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        self.need_bottleneck()
        return self._encode(x, t).h

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h (B', *bottleneck_shape) -> eps (B', C, H, W); B' is B, or any number where B = 1.

        Cost: one encoder pass now, one decoder pass per call.
        """
        behind = self._behind(x, t)
        return lambda h: self._to_noise(x, t, behind(h))

    def posterior_mean_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h (B', *bottleneck_shape) -> f (B', C, H, W), straight from the network's output too.

        Cost: as of `noise_from_bottleneck`.
        """
        behind = self._behind(x, t)
        return lambda h: self._to_clean(x, t, behind(h))

    def differentiable(self) -> UNet2DDenoiser:
        """The same model, weights shared, with attention and group norm that survive forward mode; made once."""
        if self._twin is None:
            twin = copy.copy(self)
            twin._unet = forward_mode_copy(self._unet)
            twin._twin = twin
            self._twin = twin
        return self._twin

    def _behind(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h -> the network's own output, after one encoder pass."""
        self.need_bottleneck()
        encoded = self._encode(x, t)
        return lambda h: self._decode(h, encoded)

    def _output(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None) -> torch.Tensor:
        """The network's own output (B, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.info.image_shape[0]:
            raise InputError("x", tuple(x.shape), f"shape (B, {self.info.image_shape[0]}, H, W)")
        if h_shift is None:
            encoded = self._encode(x, t)
            return self._decode(encoded.h, encoded)
        self.need_bottleneck()
        encoded = self._encode(x, t)
        if h_shift.shape[1:] != encoded.h.shape[1:] or h_shift.shape[0] not in (1, x.shape[0]):
            raise InputError("h_shift", tuple(h_shift.shape), f"({x.shape[0]} or 1, {tuple(encoded.h.shape[1:])})")
        return self._decode(encoded.h + h_shift, encoded)

    def _to_noise(self, x: torch.Tensor, t: int, output: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.alpha_sigma(t)
        if self._prediction == "epsilon":
            return output
        if self._prediction == "score":
            return -self._schedule.times[t] * output
        if self._prediction == "v_prediction":
            return alpha * output + sigma * x
        return (x - alpha * output) / sigma

    def _to_clean(self, x: torch.Tensor, t: int, output: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.alpha_sigma(t)
        if self._prediction == "score":
            return x - sigma * self._to_noise(x, t, output)
        if self._prediction == "sample":
            return output
        if self._prediction == "v_prediction":
            return alpha * x - sigma * output
        if alpha == 0.0:
            raise InputError("timestep", t, "a timestep with some signal left (alpha > 0)", "Use a smaller timestep.")
        return (x - sigma * output) / alpha

    def _encode(self, x: torch.Tensor, t: int) -> Encoded:
        """First half of `UNet2DModel.forward`: time, down blocks, middle block."""
        net = self._unet
        timesteps = self._times(x, t)
        embedding = net.time_embedding(net.time_proj(timesteps).to(self.dtype))
        if self._class_label is not None:
            labels = torch.full_like(timesteps, self._class_label, dtype=torch.long)
            if net.config.class_embed_type == "timestep":
                labels = net.time_proj(labels).to(self.dtype)
            embedding = embedding + net.class_embedding(labels).to(self.dtype)
        picture = (x + 1.0) / 2 if self._schedule.unit_range else x
        skip_image = 2 * picture - 1.0 if net.config.center_input_sample else picture
        hidden = net.conv_in(skip_image)
        skips: tuple[torch.Tensor, ...] = (hidden,)
        for block in net.down_blocks:
            if hasattr(block, "skip_conv"):
                hidden, more, skip_image = block(hidden_states=hidden, temb=embedding, skip_sample=skip_image)
            else:
                hidden, more = block(hidden_states=hidden, temb=embedding)
            skips += more
        if net.mid_block is not None:
            hidden = net.mid_block(hidden, embedding)
        return Encoded(hidden, skips, embedding, timesteps)

    def _decode(self, h: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """Second half of `UNet2DModel.forward`: up blocks and output, from any h (B', ...)."""
        net, skips, embedding, timesteps = self._unet, encoded.skips, encoded.embedding, encoded.timesteps
        if h.shape[0] != embedding.shape[0]:
            skips = tuple(skip.expand(h.shape[0], *skip.shape[1:]) for skip in skips)
            embedding, timesteps = embedding.expand(h.shape[0], -1), timesteps.expand(h.shape[0])
        hidden, skip_image = h, None
        for block in net.up_blocks:
            count = len(block.resnets)
            skips, own = skips[:-count], skips[-count:]
            if hasattr(block, "skip_conv"):
                hidden, skip_image = block(hidden, own, embedding, skip_image)
            else:
                hidden = block(hidden, own, embedding)
        hidden = net.conv_out(net.conv_act(net.conv_norm_out(hidden)))
        if skip_image is not None:
            hidden = hidden + skip_image
        if net.config.time_embedding_type == "fourier":
            hidden = hidden / timesteps.reshape(-1, 1, 1, 1).to(hidden.dtype)
        return cast(torch.Tensor, hidden[:, : hidden.shape[1] // 2] if self._learned_variance else hidden)

    def _times(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """What the network is told of timestep t, (B,): an index, or a noise level in single precision or better.

        Raises InputError for a timestep outside the schedule.
        """
        if not 0 <= t < len(self._alphas):
            raise InputError("timestep", t, f"an index in [0, {len(self._alphas)})")
        time = self._schedule.times[t]
        kind = torch.long if isinstance(time, int) else torch.promote_types(self.dtype, torch.float32)
        return torch.full((x.shape[0],), time, dtype=kind, device=x.device)

    def _bottleneck_shape(self) -> Shape | None:
        """Shape of h, found on a copy without numbers, through all of which an image of `image_shape` must pass."""
        probe = copy.copy(self)
        probe._unet = shared_copy(self._unet, device="meta")
        image = torch.empty((1, *self.info.image_shape), dtype=self.dtype, device="meta")
        size, expected = self.info.image_shape[1:], "a size that comes out of the network as it went in"
        try:
            output, h = probe._whole_pass(image)
        except (RuntimeError, ValueError) as error:
            found = f"{size}, at which the network fails ({' '.join(str(error).split())[:200]})"
            raise ModelError("sample_size", found, expected) from error
        if output.shape != image.shape:
            raise ModelError("sample_size", f"{size}, which comes out as {tuple(output.shape[2:])}", expected)
        return None if h is None else cast(Shape, tuple(h.shape[1:]))

    def _whole_pass(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's own output at timestep 0, and h where there is one."""
        encoded = self._encode(x, 0)
        return self._decode(encoded.h, encoded), None if self._unet.mid_block is None else encoded.h

    def _checked_label(self, config: dict[str, Any], label: int | None) -> int | None:
        return _class_label(config, label)


def _class_label(config: dict[str, Any], label: int | None) -> int | None:
    classes, kind = config.get("num_class_embeds"), config.get("class_embed_type")
    conditional = kind is not None or classes is not None
    if conditional and kind == "identity":
        raise ModelError("class_embed_type", kind, "no class, or a class given as a number")
    if conditional and label is None:
        raise ModelError("class_label", None, "a class label for this class-conditional model", "Pass class_label.")
    if not conditional and label is not None:
        raise ModelError("class_label", label, "none, as this model has no classes")
    if kind is None and classes is not None and label is not None and not 0 <= label < classes:
        raise ModelError("class_label", label, f"a class in [0, {classes})")
    return label


def _channels(config: dict[str, Any]) -> int:
    channels = int(config["in_channels"])
    out = channels if config["out_channels"] is None else int(config["out_channels"])
    if out not in (channels, 2 * channels):
        raise ModelError("out_channels", out, f"{channels}, or {2 * channels} with a learned variance")
    return channels


def _image_size(config: dict[str, Any]) -> tuple[int, int]:
    size = config.get("sample_size")
    if size is None:
        raise ModelError("sample_size", None, "the image size", "Set sample_size in the network's config.json.")
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ModelError("sample_size", repr(size), "a whole number of pixels, or two: height and width")
    return sides[0], sides[1]
