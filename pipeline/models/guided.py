"""Networks of guided-diffusion's family in the terms of diffusers: its flags, its parameter names, its schedules.

The family: improved-diffusion (Nichol and Dhariwal, arXiv:2102.09672), guided-diffusion, called ADM (Dhariwal and
Nichol, arXiv:2105.05233), and what was trained with their code, such as P2 weighting (Choi et al., arXiv:2204.00227).
All are one UNet, chosen by flags. Tensors in, tensors out; nothing here reads or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from diffusers import UNet2DModel
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from pipeline.errors import ModelError

GROUPS = 32  # of every group norm of the family, whatever the width
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}

Shape = tuple[int, ...]
Plan = dict[str, tuple[Shape, tuple[str, ...]]]
"""Original name -> (its shape, the diffusers names it fills: one, or query, key and value)."""


class GuidedFlags(BaseModel):
    """The flags of the original scripts that decide the network and its schedule, under their own names and defaults.

    `attention_resolutions` are image sizes at which residual blocks are followed by attention; `channel_mult` () is
    the scripts' choice for `image_size`; `num_head_channels` and `num_heads_upsample` -1 are "as num_heads says".
    `conv_resample`, `in_channels` and `num_classes` (with `class_cond`) are no flags there, but arguments of the
    network. Lists may be given as the scripts take them, "16,8".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = Field(default=64, ge=1)
    in_channels: int = Field(default=3, ge=1)
    num_channels: int = Field(default=128, ge=GROUPS, multiple_of=GROUPS)
    num_res_blocks: int = Field(default=2, ge=1)
    channel_mult: tuple[FiniteFloat, ...] = ()
    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads: int = Field(default=4, ge=1)
    num_head_channels: int = Field(default=-1, ge=-1)
    num_heads_upsample: int = Field(default=-1, ge=-1)
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    conv_resample: bool = True
    use_new_attention_order: bool = False
    class_cond: bool = False
    num_classes: int = Field(default=1000, ge=1)
    learn_sigma: bool = False
    predict_xstart: bool = False
    diffusion_steps: int = Field(default=1000, ge=1, le=100_000)
    noise_schedule: Literal["linear", "cosine"] = "linear"
    rescale_timesteps: bool = False

    @field_validator("channel_mult", "attention_resolutions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return () if value in ("", "none") else tuple(value.split(","))

    @field_validator("attention_resolutions")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in value):
            raise ValueError("image sizes of at least 1")
        return value

    @model_validator(mode="after")
    def _fits_the_image(self) -> GuidedFlags:
        if 0 in (self.num_head_channels, self.num_heads_upsample):
            raise ValueError("num_head_channels and num_heads_upsample of at least 1, or -1 for none")
        if not self.channel_mult and self.image_size not in _MULTIPLIERS:
            raise ValueError(f"channel_mult, which the scripts choose only for image_size {sorted(_MULTIPLIERS)}")
        if not all(width >= GROUPS and width % GROUPS == 0 for width in self.widths):
            raise ValueError(f"channel_mult that makes every width a multiple of {GROUPS}")
        if self.image_size % 2 ** (len(self.widths) - 1):
            raise ValueError(f"image_size that {len(self.widths) - 1} halvings divide evenly")
        return self

    @property
    def multipliers(self) -> tuple[float, ...]:
        """Width of each level in units of `num_channels`, from full size down."""
        return self.channel_mult or _MULTIPLIERS[self.image_size]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiplier * self.num_channels) for multiplier in self.multipliers)

    @property
    def attends(self) -> tuple[bool, ...]:
        """Which levels have attention; the middle block always has."""
        rates = {self.image_size // size for size in self.attention_resolutions}
        return tuple(2**level in rates for level in range(len(self.widths)))


def unet_config(flags: GuidedFlags) -> dict[str, Any]:
    """Arguments of the diffusers `UNet2DModel` that is this network.

    Raises:
        ModelError: diffusers has no such network; the message says what it lacks.
    """
    if flags.multipliers[0] != 1:
        raise ModelError(
            "channel_mult",
            f"{flags.multipliers[0]:g} at full size",
            "1: diffusers takes the width of the time embedding from the first level",
            "This architecture cannot be written as a UNet2DModel.",
        )
    updown = flags.resblock_updown
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if updown else ("DownBlock2D", "UpBlock2D")
    config: dict[str, Any] = {
        "sample_size": flags.image_size,
        "in_channels": flags.in_channels,
        "out_channels": flags.in_channels * (2 if flags.learn_sigma else 1),
        "block_out_channels": list(flags.widths),
        "layers_per_block": flags.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if attends else plain[0] for attends in flags.attends],
        "up_block_types": ["AttnUpBlock2D" if attends else plain[1] for attends in reversed(flags.attends)],
        "downsample_type": "resnet" if updown else "conv",
        "upsample_type": "resnet" if updown else "conv",
        "attention_head_dim": _head_width(flags),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,  # without it, the middle attention has no norm where scale-shift is used
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "num_class_embeds": flags.num_classes if flags.class_cond else None,
    }
    if _own_clock(flags):
        config |= {"time_embedding_type": "learned", "num_train_timesteps": flags.diffusion_steps}
    return config


def _head_width(flags: GuidedFlags) -> int:
    """Channels of an attention head, which diffusers has as one number for the whole network."""
    attending = [width for width, attends in zip(flags.widths, flags.attends, strict=True) if attends]
    widths = sorted({*attending, flags.widths[-1]})
    if flags.num_head_channels > 0:
        name, divisors, per_head = "num_head_channels", {flags.num_head_channels}, {flags.num_head_channels}
    else:
        name, divisors = "num_heads", {flags.num_heads}
        if attending and flags.num_heads_upsample > 0:
            divisors.add(flags.num_heads_upsample)
        per_head = {width // heads for width in widths for heads in divisors}
    uneven = [(divisor, width) for width in widths for divisor in sorted(divisors) if width % divisor]
    if uneven:
        raise ModelError(
            name, f"{uneven[0][0]} at an attention of {uneven[0][1]} channels",
            "a divisor of the channels at every attention level",
        )  # fmt: skip
    if len(per_head) > 1:
        raise ModelError(
            name,
            f"{_listed(divisors)} heads at attention levels of {_listed(widths)} channels: heads of "
            f"{_listed(per_head)} channels",
            "heads of one width, since a UNet2DModel has one attention_head_dim for all its levels",
            "This architecture cannot be written as a UNet2DModel.",
        )
    return per_head.pop()


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))


def _own_clock(flags: GuidedFlags) -> bool:
    """Whether the network was shown t 1000 / T, which diffusers can express only as a table of time embeddings."""
    return flags.rescale_timesteps and flags.diffusion_steps != 1000


def scheduler_config(flags: GuidedFlags) -> dict[str, Any]:
    """Arguments of the diffusers `DDPMScheduler` with this training schedule (arXiv:2102.09672, equation 17)."""
    scale = 1000 / flags.diffusion_steps
    config: dict[str, Any] = {
        "num_train_timesteps": flags.diffusion_steps,
        "beta_schedule": "squaredcos_cap_v2" if flags.noise_schedule == "cosine" else "linear",
        "prediction_type": "sample" if flags.predict_xstart else "epsilon",
        "variance_type": "learned_range" if flags.learn_sigma else "fixed_large",
    }
    if flags.noise_schedule == "linear":
        config |= {"beta_start": scale * 1e-4, "beta_end": scale * 0.02}
    return config


_PARTS = {
    "plain": {"": ""},
    "down": {".op": ".conv"},
    "up": {".conv": ".conv"},
    "attention": {".norm": ".group_norm", ".proj_out": ".to_out.0"},
    "resnet": {
        ".in_layers.0": ".norm1",
        ".in_layers.2": ".conv1",
        ".emb_layers.1": ".time_emb_proj",
        ".out_layers.0": ".norm2",
        ".out_layers.3": ".conv2",
        ".skip_connection": ".conv_shortcut",
    },
}
"""What each kind of module calls its layers, there and here."""


def _modules(flags: GuidedFlags) -> Iterator[tuple[str, str, str]]:
    """(original module, diffusers module, kind) of the whole network."""
    blocks, last = flags.num_res_blocks, len(flags.widths) - 1
    yield "time_embed.0", "time_embedding.linear_1", "plain"
    yield "time_embed.2", "time_embedding.linear_2", "plain"
    if flags.class_cond:
        yield "label_emb", "class_embedding", "plain"
    yield "input_blocks.0.0", "conv_in", "plain"
    for level, attends in enumerate(flags.attends):
        for i in range(blocks):
            old = f"input_blocks.{1 + level * (blocks + 1) + i}"
            yield f"{old}.0", f"down_blocks.{level}.resnets.{i}", "resnet"
            if attends:
                yield f"{old}.1", f"down_blocks.{level}.attentions.{i}", "attention"
        if level < last:
            kind = "resnet" if flags.resblock_updown else "down"
            yield f"input_blocks.{(level + 1) * (blocks + 1)}.0", f"down_blocks.{level}.downsamplers.0", kind
    yield "middle_block.0", "mid_block.resnets.0", "resnet"
    yield "middle_block.1", "mid_block.attentions.0", "attention"
    yield "middle_block.2", "mid_block.resnets.1", "resnet"
    for up, attends in enumerate(reversed(flags.attends)):
        for i in range(blocks + 1):
            old = f"output_blocks.{up * (blocks + 1) + i}"
            yield f"{old}.0", f"up_blocks.{up}.resnets.{i}", "resnet"
            if attends:
                yield f"{old}.1", f"up_blocks.{up}.attentions.{i}", "attention"
        if up < last:
            kind = "resnet" if flags.resblock_updown else "up"
            yield f"{old}.{1 + attends}", f"up_blocks.{up}.upsamplers.0", kind
    yield "out.0", "conv_norm_out", "plain"
    yield "out.2", "conv_out", "plain"


def diffusers_shapes(flags: GuidedFlags) -> dict[str, Shape]:
    """Shape of every parameter of the diffusers network, found without allocating it. Raises as `unet_config`."""
    with torch.device("meta"):
        unet = UNet2DModel(**unet_config(flags))
    return {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}


def plan(flags: GuidedFlags) -> Plan:
    """Every parameter of the original network, its shape there, and where it goes. Raises as `unet_config`."""
    shapes, found = diffusers_shapes(flags), Plan()
    for old, new, kind in _modules(flags):
        if kind in ("down", "up") and not flags.conv_resample:
            continue
        for mine, theirs in _PARTS[kind].items():
            for end in (".weight", ".bias"):
                if new + theirs + end in shapes:
                    shape = shapes[new + theirs + end]
                    if mine + end == ".proj_out.weight":
                        shape = (*shape, 1)  # a convolution over positions in a row
                    found[old + mine + end] = shape, (new + theirs + end,)
        if kind == "attention":
            for end, width in ((".weight", (shapes[f"{new}.to_q.weight"][1], 1)), (".bias", ())):
                parts = tuple(f"{new}.to_{part}{end}" for part in "qkv")
                found[f"{old}.qkv{end}"] = (3 * shapes[parts[0]][0], *width), parts
    return found


def translate(state: Mapping[str, torch.Tensor], flags: GuidedFlags) -> dict[str, torch.Tensor]:
    """The diffusers network's weights, float32, from a state dict that fits `plan(flags)`.

    Where the original resamples without weights (`conv_resample` off), diffusers' convolutions become that average
    and that repetition. Weights are shared with `state` where they need no change.
    """
    shapes, weights = diffusers_shapes(flags), dict[str, torch.Tensor]()
    head = _head_width(flags)
    for old, (_, names) in plan(flags).items():
        tensor = state[old].detach().to(torch.float32)
        parts = [tensor] if len(names) == 1 else split_qkv(tensor, head, flags.use_new_attention_order)
        for name, part in zip(names, parts, strict=True):
            weights[name] = part.reshape(shapes[name]).contiguous()
    for _, new, kind in _modules(flags):
        if kind in ("down", "up") and not flags.conv_resample:
            weights[f"{new}.conv.weight"] = _resampling(shapes[f"{new}.conv.weight"][0], kind)
            weights[f"{new}.conv.bias"] = torch.zeros(shapes[f"{new}.conv.bias"])
    if _own_clock(flags):
        weights["time_proj.weight"] = _time_table(flags)
    if weights.keys() != shapes.keys():
        raise AssertionError(f"unfilled: {sorted(shapes.keys() ^ weights.keys())[:3]}")
    return weights


def split_qkv(tensor: torch.Tensor, head: int, new_order: bool) -> list[torch.Tensor]:
    """Query, key and value rows, each (C, ...), of a joint projection (3C, ...) whose heads have `head` channels.

    The rows stand as (heads, 3, head) in the first order and as (3, heads, head) in the new one.
    """
    rest = tensor.shape[1:]
    if new_order:
        return list(tensor.reshape(3, -1, *rest))
    grouped = tensor.reshape(-1, 3, head, *rest)
    return [grouped[:, part].reshape(-1, *rest) for part in range(3)]


def _resampling(channels: int, kind: str) -> torch.Tensor:
    """A 3 x 3 convolution (C, C, 3, 3), padding 1, that averages 2 x 2 pixels at stride 2 ("down") or copies ("up")."""
    weight = torch.zeros(channels, channels, 3, 3)
    own = torch.arange(channels)
    if kind == "down":
        weight[own, own, 1:, 1:] = 0.25
    else:
        weight[own, own, 1, 1] = 1.0
    return weight


def _time_table(flags: GuidedFlags) -> torch.Tensor:
    """Sinusoids of t 1000 / T for every timestep t, (T, num_channels): cosines first."""
    half = flags.num_channels // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    times = torch.arange(flags.diffusion_steps, dtype=torch.float32) * (1000.0 / flags.diffusion_steps)
    angles = times[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
