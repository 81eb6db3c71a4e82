"""Noise schedules in the contract's terms: what alpha, sigma and the network's own time are at every training timestep.

Three kinds, all read from the configuration of a diffusers scheduler: cumulative alphas (DDPM, DDIM, PNDM and every
sampler of such models), the variance-exploding and the variance-preserving SDE (Song et al. 2021, "Score-based
generative modeling", appendix C). How a scheduler samples (solver, spacing, Karras sigmas) is no part of a model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler

from pipeline.errors import ModelError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_ALPHA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
_VE_KEYS = ("num_train_timesteps", "sigma_min", "sigma_max")
_VP_KEYS = ("num_train_timesteps", "beta_min", "beta_max", "sampling_eps")
_FOREIGN = {
    "EDM": "EDM models, preconditioned by sigma (Karras et al. 2022)",
    "KarrasVe": "stochastic samplers of Karras et al. 2022",
    "FlowMatch": "flow matching",
    "CMStochastic": "consistency models",
}


@dataclass(frozen=True)
class Schedule:
    """Noise levels of T training timesteps: x_t = alphas[t] x0 + sigmas[t] n, pictures in [-1, 1].

    Attributes:
        prediction: what the network gives: "epsilon", "v_prediction", "sample", or "score", the gradient of the log
            density in the network's own units.
        times: what the network is told of each timestep: its index, a noise level, or a scaled time.
        sde: "ve" or "vp" of score-sde, whose networks are told no index.
        unit_range: the network sees pictures in [0, 1], (x_t + 1) / 2, and its noise levels are sigmas / 2.
        numerical: the settings that fix all this, for the model's fingerprint.
    """

    name: str
    prediction: str
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    numerical: Mapping[str, Any]
    sde: Literal["ve", "vp"] | None = None

    @property
    def unit_range(self) -> bool:
        return self.sde == "ve"

    def __len__(self) -> int:
        return len(self.alphas)


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a diffusers scheduler, whatever it was set to sample with.

    Raises:
        ModelError: a family without an adapter, by its name, or settings that make no schedule.
    """
    kind = type(scheduler).__name__
    if kind == "ScoreSdeVeScheduler":
        return _exploding(dict(scheduler.config))
    if kind == "ScoreSdeVpScheduler":
        return _preserving(dict(scheduler.config))
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    foreign = next((name for start, name in _FOREIGN.items() if kind.startswith(start)), None)
    if scheduler.config.get("use_flow_sigmas"):
        foreign = _FOREIGN["FlowMatch"]
    if foreign is not None or not torch.is_tensor(cumulative):
        raise ModelError(
            "scheduler",
            kind if foreign is None else f"{kind}, {foreign}",
            "one with cumulative alphas (DDPM, DDIM, PNDM, ...) or of score-sde (VE, VP)",
            "This family has no adapter.",
        )
    return _cumulative(scheduler, cumulative)


def _cumulative(scheduler: Any, cumulative: torch.Tensor) -> Schedule:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n, from the scheduler's own cumulative alphas; the time is t."""
    config: dict[str, Any] = dict(scheduler.config)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ModelError("prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    values = _checked(scheduler, cumulative.double()).tolist()
    name = str(config.get("beta_schedule", "unnamed"))
    if name in ("linear", "scaled_linear"):
        name += f" {config.get('beta_start')}-{config.get('beta_end')}"
    return Schedule(
        name="trained betas" if config.get("trained_betas") is not None else name,
        prediction=str(prediction),
        alphas=tuple(math.sqrt(a) for a in values),
        sigmas=tuple(math.sqrt(1.0 - a) for a in values),
        times=tuple(range(len(values))),
        numerical=_fixing(scheduler, cumulative),
    )


def _checked(scheduler: Any, cumulative: torch.Tensor) -> torch.Tensor:
    """Cumulative alphas (T,), if they are a schedule; rounding may raise them a little.

    Betas are looked at too: in a thousand steps, alphas below 0 may have a product too small to tell.
    """
    kind, betas = type(scheduler).__name__, getattr(scheduler, "betas", None)
    if cumulative.ndim != 1 or len(cumulative) == 0:
        raise ModelError("scheduler", f"{kind} of no timesteps", "1 timestep or more")
    low, high = cumulative.min().item(), cumulative.max().item()
    if not (0.0 <= low <= high <= 1.0 and bool((cumulative.diff() <= 1e-6).all())):
        raise ModelError(
            "scheduler", f"{kind} with cumulative alphas between {low:g} and {high:g}",
            "numbers in [0, 1] that never rise", "Betas must lie in [0, 1].",
        )  # fmt: skip
    if torch.is_tensor(betas) and betas.max().item() > 1.0:
        raise ModelError("scheduler", f"{kind} with betas up to {betas.max().item():g}", "betas in [0, 1]")
    return cumulative


def _fixing(scheduler: Any, cumulative: torch.Tensor) -> dict[str, Any]:
    """The settings that fix these cumulative alphas: a few keys where DDPM makes the same of them, as most do.

    Of other schedulers, the class and all settings. Raises ModelError where not even those give the alphas.
    """
    config = dict(scheduler.config)
    keys = {key: config.get(key) for key in _ALPHA_KEYS}
    given = {key: value for key, value in keys.items() if value is not None and key != "prediction_type"}
    with suppress(NotImplementedError):  # a beta schedule that DDPM does not know
        if _same(DDPMScheduler(**given).alphas_cumprod, cumulative):
            return keys
    kind = type(scheduler)
    if not _same(kind.from_config(scheduler.config).alphas_cumprod, cumulative):
        raise ModelError("scheduler", f"{kind.__name__} with alphas of its own", "the alphas that its settings give")
    known = inspect.signature(kind.__init__).parameters  # a pipeline in memory keeps keys of other schedulers too
    return {**keys, "scheduler": kind.__name__, **{key: config[key] for key in config if key in known}}


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal up to rounding, relative to each: 0 and almost 0 are two schedules."""
    return one.shape == two.shape and torch.allclose(one.double(), two.double(), rtol=1e-4, atol=0.0)


def _exploding(config: dict[str, Any]) -> Schedule:
    """Variance exploding: y_t = y_0 + s_t n with y_0 in [0, 1] and s_t geometric, so that alpha = 1 and sigma = 2 s_t.

    The network is told s_t and gives the score of y_t, -n / s_t, as `ScoreSdeVePipeline` uses it.
    """
    steps, low, high = (config[key] for key in _VE_KEYS)
    if not (isinstance(steps, int) and steps >= 2 and 0.0 < low < high):
        raise ModelError(
            "scheduler", f"{steps} timesteps, sigma {low} to {high}", "2 timesteps or more, 0 < sigma_min < sigma_max"
        )
    levels = tuple(low * (high / low) ** (t / (steps - 1)) for t in range(steps))
    return Schedule(
        name=f"variance exploding {low}-{high}",
        prediction="score",
        alphas=(1.0,) * steps,
        sigmas=tuple(2.0 * level for level in levels),
        times=levels,
        sde="ve",
        numerical={"sde": "ve", **{key: config[key] for key in _VE_KEYS}},
    )


def _preserving(config: dict[str, Any]) -> Schedule:
    """Variance preserving: log alpha = -s^2 (b1 - b0) / 4 - s b0 / 2 at s from `sampling_eps` to 1.

    The network is told s (T - 1) and gives the noise: `ScoreSdeVpScheduler.step_pred` takes -output / sigma for score.
    """
    steps, first, last, start = (config[key] for key in _VP_KEYS)
    if not (isinstance(steps, int) and steps >= 2 and 0.0 <= first < last and 0.0 < start < 1.0):
        raise ModelError(
            "scheduler", f"{steps} timesteps, beta {first} to {last}, sampling_eps {start}",
            "2 timesteps or more, 0 <= beta_min < beta_max, sampling_eps in (0, 1)",
        )  # fmt: skip
    times = [start + (1.0 - start) * t / (steps - 1) for t in range(steps)]
    logs = [-0.25 * s**2 * (last - first) - 0.5 * s * first for s in times]
    return Schedule(
        name=f"variance preserving {first}-{last}",
        prediction="epsilon",
        alphas=tuple(math.exp(log) for log in logs),
        sigmas=tuple(math.sqrt(-math.expm1(2.0 * log)) for log in logs),
        times=tuple(s * (steps - 1) for s in times),
        sde="vp",
        numerical={"sde": "vp", **{key: config[key] for key in _VP_KEYS}},
    )
