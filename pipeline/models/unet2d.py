"""The denoiser contract over diffusers' `UNet2DModel`: unconditional pixel models of any size and channel count."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from diffusers import UNet2DModel

from pipeline.errors import InputError, ModelError
from pipeline.models.contract import Denoiser, DenoiserInfo
from pipeline.models.forward_mode import forward_mode_copy, shared_copy

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)


@dataclass(frozen=True)
class _Encoded:
    """What the part behind h needs: h (B, *bottleneck_shape), skips, time embedding and timesteps, all (B, ...)."""

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
        scheduler: any diffusers scheduler with `alphas_cumprod`; its own config names prediction type and betas.
        device, dtype: where and how to compute; default the network's own.
        class_label: the class of a class-conditional network.

    Raises:
        ModelError: no cumulative alphas, unknown prediction type, missing sizes, or a class label that is missing or
            not wanted.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        class_label: int | None = None,
    ) -> None:
        config = dict(unet.config)
        self._alphas, self._sigmas = _schedule(scheduler)
        self._prediction = _prediction(scheduler)
        self._class_label = _class_label(config, class_label)
        channels = _channels(config)
        self.device = torch.device(device) if device is not None else unet.device
        self.dtype = unet.dtype if dtype is None else dtype
        self._unet: Any = shared_copy(unet, device=self.device, dtype=self.dtype).eval()
        self._twin: UNet2DDenoiser | None = None
        self._learned_variance = config["out_channels"] == 2 * channels
        self.info = DenoiserInfo(
            family="diffusers UNet2DModel",
            parameters=sum(p.numel() for p in unet.parameters()),
            prediction=self._prediction,
            image_shape=(channels, *_image_size(config)),
            bottleneck_shape=None,
            schedule=_schedule_name(scheduler),
            train_timesteps=len(self._alphas),
            fingerprint=_fingerprint(unet, scheduler, class_label),
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
        output = self._output(x, t, h_shift)
        alpha, sigma = self.alpha_sigma(t)
        if self._prediction == "sample":
            return output
        if self._prediction == "v_prediction":
            return alpha * x - sigma * output
        if alpha == 0.0:
            raise InputError("timestep", t, "a timestep with some signal left (alpha > 0)", "Use a smaller timestep.")
        return (x - sigma * output) / alpha

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        self._need_bottleneck()
        return self._encode(x, t).h

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The map h (B', *bottleneck_shape) -> eps (B', C, H, W); B' is B, or any number where B = 1.

        Cost: one encoder pass now, one decoder pass per call.
        """
        self._need_bottleneck()
        encoded = self._encode(x, t)

        def noise(h: torch.Tensor) -> torch.Tensor:
            return self._to_noise(x, t, self._decode(h, encoded))

        return noise

    def differentiable(self) -> UNet2DDenoiser:
        """The same model, weights shared, with attention and group norm that survive forward mode; made once."""
        if self._twin is None:
            twin = copy.copy(self)
            twin._unet = forward_mode_copy(self._unet)
            twin._twin = twin
            self._twin = twin
        return self._twin

    def _need_bottleneck(self) -> None:
        if self._unet.mid_block is None:
            raise ModelError(
                "mid_block", "none", "a network with a middle block", "Only x-space directions exist for this model."
            )

    def _output(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None) -> torch.Tensor:
        """The network's own output (B, C, H, W)."""
        if x.ndim != 4 or x.shape[1] != self.info.image_shape[0]:
            raise InputError("x", tuple(x.shape), f"shape (B, {self.info.image_shape[0]}, H, W)")
        if h_shift is None:
            encoded = self._encode(x, t)
            return self._decode(encoded.h, encoded)
        self._need_bottleneck()
        encoded = self._encode(x, t)
        if h_shift.shape[1:] != encoded.h.shape[1:] or h_shift.shape[0] not in (1, x.shape[0]):
            raise InputError("h_shift", tuple(h_shift.shape), f"({x.shape[0]} or 1, {tuple(encoded.h.shape[1:])})")
        return self._decode(encoded.h + h_shift, encoded)

    def _to_noise(self, x: torch.Tensor, t: int, output: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self.alpha_sigma(t)
        if self._prediction == "epsilon":
            return output
        if self._prediction == "v_prediction":
            return alpha * output + sigma * x
        return (x - alpha * output) / sigma

    def _encode(self, x: torch.Tensor, t: int) -> _Encoded:
        """First half of `UNet2DModel.forward`: time, down blocks, middle block."""
        if not 0 <= t < len(self._alphas):
            raise InputError("timestep", t, f"an index in [0, {len(self._alphas)})")
        net = self._unet
        timesteps = torch.full((x.shape[0],), t, dtype=torch.long, device=x.device)
        embedding = net.time_embedding(net.time_proj(timesteps).to(self.dtype))
        if self._class_label is not None:
            labels = torch.full_like(timesteps, self._class_label)
            if net.config.class_embed_type == "timestep":
                labels = net.time_proj(labels).to(self.dtype)
            embedding = embedding + net.class_embedding(labels).to(self.dtype)
        skip_image = 2 * x - 1.0 if net.config.center_input_sample else x
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
        return _Encoded(hidden, skips, embedding, timesteps)

    def _decode(self, h: torch.Tensor, encoded: _Encoded) -> torch.Tensor:
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

    def _bottleneck_shape(self) -> tuple[int, int, int] | None:
        """Shape of h, found on a copy without numbers."""
        if self._unet.mid_block is None:
            return None
        probe = copy.copy(self)
        probe._unet = shared_copy(self._unet, device="meta")
        image = torch.empty((1, *self.info.image_shape), dtype=self.dtype, device="meta")
        _, c, h, w = probe._encode(image, 0).h.shape
        return c, h, w


def _schedule(scheduler: Any) -> tuple[list[float], list[float]]:
    """(alpha_t, sigma_t) for every training timestep, from the scheduler's own cumulative alphas."""
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if not torch.is_tensor(cumulative):
        raise ModelError(
            "scheduler",
            type(scheduler).__name__,
            "one with cumulative alphas (DDPM, DDIM, PNDM, ...)",
            "Models of the EDM, flow-matching and variance-exploding families have no adapter.",
        )
    values = cumulative.double().tolist()
    return [math.sqrt(a) for a in values], [math.sqrt(max(0.0, 1.0 - a)) for a in values]


def _prediction(scheduler: Any) -> str:
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelError("prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    return str(prediction)


def _schedule_name(scheduler: Any) -> str:
    config = scheduler.config
    if config.get("trained_betas") is not None:
        return "trained betas"
    name = str(config.get("beta_schedule", "unnamed"))
    if name in ("linear", "scaled_linear"):
        name += f" {config.get('beta_start')}-{config.get('beta_end')}"
    return name


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
    channels, out = int(config["in_channels"]), int(config["out_channels"])
    if out not in (channels, 2 * channels):
        raise ModelError("out_channels", out, f"{channels}, or {2 * channels} with a learned variance")
    return channels


def _image_size(config: dict[str, Any]) -> tuple[int, int]:
    size = config.get("sample_size")
    if size is None:
        raise ModelError("sample_size", None, "the image size", "Set sample_size in the network's config.json.")
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _fingerprint(unet: UNet2DModel, scheduler: Any, class_label: int | None) -> str:
    """sha256 over weights (names, dtypes, shapes, bytes) and numerical configuration, first 32 hex digits.

    Device, paths and library versions do not enter; of the scheduler, only what fixes the noise schedule does.
    """
    numerical = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    schedule = {key: scheduler.config.get(key) for key in _SCHEDULE_KEYS}
    head = [type(unet).__name__, numerical, schedule, class_label]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=repr).encode())
    for name, tensor in sorted(unet.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
