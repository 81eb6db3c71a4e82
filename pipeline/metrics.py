"""What is measured: locality, picture quality outside a region, visible strength, rank, linearity, success.

Images are (B, C, H, W) in [-1, 1] (data range 2); masks are (H, W) or (B, H, W), true or 1 inside the region. Edits
are compared with the strength-0 reconstruction under identical noise, never with the source image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from skimage.metrics import structural_similarity

from pipeline.errors import InputError
from pipeline.spectrum import Interval, RankRatio, captured_energy, rank_ratio, rank_ratio_matrix_free

__all__ = [
    "EditSuccess",
    "Interval",
    "LocalLinearity",
    "RankRatio",
    "VisibleStrength",
    "bootstrap_interval",
    "captured_energy",
    "local_linearity",
    "mask_iou",
    "psnr_outside",
    "rank_ratio",
    "rank_ratio_matrix_free",
    "rms_inside",
    "roir",
    "ssim_outside",
    "success",
    "visible_strength",
]

_SSIM_WINDOW = 7


def _inside(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mask as floats (B, 1, H, W) that fit `images`."""
    batch, _, *size = images.shape
    if mask.ndim == 2:
        mask = mask.expand(batch, *mask.shape)
    if tuple(mask.shape) != (batch, *size):
        raise InputError("mask", tuple(mask.shape), f"{tuple(size)} or {(batch, *size)}")
    inside = mask.to(images)
    if not bool(inside.flatten(1).any(dim=1).all()):
        raise InputError("mask", "an empty mask", "at least one pixel")
    return inside[:, None]


def _same(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    if before.ndim != 4 or before.shape != after.shape:
        raise InputError("after", tuple(after.shape), f"the (B, C, H, W) of before, {tuple(before.shape)}")
    return after - before


def roir(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Region-of-interest ratio ||Mc d|| / ||M d|| of d = after - before, (B,); inf where nothing changes inside.

    Raises:
        InputError: shapes differ or a mask is empty.
    """
    d = _same(before, after)
    inside = _inside(d, mask)
    within, without = ((d * part).flatten(1).norm(dim=1) for part in (inside, 1 - inside))
    return torch.where(within > 0, without / torch.where(within > 0, within, 1.0), math.inf)


def rms_inside(d: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Root-mean-square of d (B, C, H, W) over the mask's pixels and all channels, (B,)."""
    inside = _inside(d, mask)
    entries = inside.flatten(1).sum(dim=1) * d.shape[1]
    return ((d * inside).square().flatten(1).sum(dim=1) / entries).sqrt()


def psnr_outside(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """PSNR in dB over the pixels outside the mask, data range 2, (B,); inf where they are equal.

    Raises:
        InputError: shapes differ, a mask is empty or leaves nothing outside.
    """
    d = _same(before, after)
    outside = _outside(d, mask)
    error = (d * outside).square().flatten(1).sum(dim=1) / (outside.flatten(1).sum(dim=1) * d.shape[1])
    return 10.0 * torch.log10(4.0 / error)


def _outside(d: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    outside = 1 - _inside(d, mask)
    if not bool(outside.flatten(1).any(dim=1).all()):
        raise InputError("mask", "a mask over the whole image", "at least one pixel outside")
    return outside


def ssim_outside(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels outside the mask of scikit-image's SSIM map (7x7 window, data range 2), (B,).

    Raises:
        InputError: as `psnr_outside`, or images smaller than the window.
    """
    d = _same(before, after)
    outside = _outside(d, mask)
    if min(d.shape[-2:]) < _SSIM_WINDOW:
        raise InputError("image size", tuple(d.shape[-2:]), f"at least {_SSIM_WINDOW}x{_SSIM_WINDOW}")
    figures = []
    for a, b, weight in zip(before, after, outside, strict=True):
        pair = (image.detach().double().cpu().numpy() for image in (a, b))
        _, ssim = structural_similarity(*pair, data_range=2.0, channel_axis=0, full=True, win_size=_SSIM_WINDOW)
        weights = weight.double().cpu().expand(a.shape)
        figures.append(float((torch.from_numpy(ssim) * weights).sum() / weights.sum()))
    return torch.tensor(figures, dtype=d.dtype)


def mask_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boolean masks (..., H, W), shape (...); 0 for two empty masks."""
    a, b = a.bool(), b.bool()
    union = (a | b).flatten(-2).sum(-1)
    return (a & b).flatten(-2).sum(-1) / union.clamp(min=1)


# --- visible strength ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VisibleStrength:
    """Per case (B,): the strength found, the change it makes inside the mask (RMS), and how the search ended.

    `reached`: RMS within the tolerance of the target. `limited`: the range limit was tried and is still too weak.
    `images` (B, C, H, W) are the decoded images at `strength`, `roir` (B,) their ROIR against the reference.
    """

    strength: torch.Tensor
    rms: torch.Tensor
    images: torch.Tensor
    roir: torch.Tensor
    reached: torch.Tensor
    limited: torch.Tensor
    evaluations: int


def visible_strength(
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    reference: torch.Tensor,
    mask: torch.Tensor,
    *,
    target: float = 0.15,
    first_guess: float | torch.Tensor,
    limit: float,
    evaluations: int = 4,
    tolerance: float = 0.05,
) -> VisibleStrength:
    """Scale B strengths until each decoded change is `target` RMS inside its mask: a bracketed secant search.

    Args:
        decode: (strengths (n,), cases (n,)) -> images (n, C, H, W) of the cases named by index; the only cost, called
            at most `evaluations` times, and only for cases that have not settled.
        reference: (B, C, H, W), the strength-0 reconstructions under the same noise.
        mask: (H, W) or (B, H, W).
        target: wanted RMS in units of [-1, 1] pixels.
        first_guess: strength to try first, one or (B,); its sign is kept throughout.
        limit: largest magnitude allowed.
        evaluations: budget of decode calls.
        tolerance: relative distance from `target` that counts as reached.

    Returns:
        The closest strength seen per case. No randomness of its own.

    Raises:
        InputError: a guess of zero or beyond the limit, or other numbers that make no sense.
    """
    guess = torch.as_tensor(first_guess, dtype=reference.dtype, device=reference.device).expand(len(reference))
    if not bool(((guess != 0) & (guess.abs() <= limit)).all()):
        raise InputError("first_guess", guess.tolist(), f"non-zero, magnitude at most the limit {limit}")
    if evaluations < 1 or not (target > 0 and tolerance > 0 and math.isfinite(limit)):
        raise InputError("target, evaluations, tolerance", (target, evaluations, tolerance), "positive numbers")
    sign, trial = guess.sign(), guess.abs()
    search = _Search.begin(reference, target)
    where = mask.expand(len(reference), *reference.shape[-2:])
    open_cases, used = torch.arange(len(reference), device=reference.device), 0
    reached = limited = torch.zeros_like(trial, dtype=torch.bool)
    while used < evaluations and len(open_cases) > 0:
        images = decode((sign * trial)[open_cases], open_cases)
        used += 1
        change = rms_inside(images - reference[open_cases], where[open_cases])
        search.tell(open_cases, trial[open_cases], change.nan_to_num(nan=math.inf), images)
        reached = (search.best_rms - target).abs() <= tolerance * target
        limited = (search.low >= limit) & ~reached
        trial = search.next_strength(limit)
        open_cases = (~(reached | limited)).nonzero().squeeze(1)
    found = (search.best_rms, search.images, roir(reference, search.images, mask))
    return VisibleStrength(sign * search.best, *found, reached, limited, used)


@dataclass
class _Search:
    """Brackets of B strengths: the strongest that was too weak, the weakest that was too strong, and the closest.

    A broken picture (RMS infinite) counts as too strong.
    """

    target: float
    low: torch.Tensor
    low_rms: torch.Tensor
    high: torch.Tensor
    high_rms: torch.Tensor
    best: torch.Tensor
    best_rms: torch.Tensor
    images: torch.Tensor

    @classmethod
    def begin(cls, reference: torch.Tensor, target: float) -> _Search:
        nothing = reference.new_zeros(len(reference))
        ends = (nothing, nothing, nothing + math.inf, nothing + math.inf, nothing, nothing, reference)
        return cls(target, *(end.clone() for end in ends))

    def tell(self, cases: torch.Tensor, strength: torch.Tensor, rms: torch.Tensor, images: torch.Tensor) -> None:
        """What the decodes of `cases` (n,) at `strength` (n,) gave: RMS inside the mask (n,) and images."""
        closer = (rms - self.target).abs() < (self.best_rms[cases] - self.target).abs()
        self.best[cases[closer]], self.best_rms[cases[closer]] = strength[closer], rms[closer]
        self.images[cases[closer]] = images[closer]
        weak = rms < self.target
        self.low[cases[weak]], self.low_rms[cases[weak]] = strength[weak], rms[weak]
        self.high[cases[~weak]], self.high_rms[cases[~weak]] = strength[~weak], rms[~weak]

    def next_strength(self, limit: float) -> torch.Tensor:
        """Secant through the bracket's ends; without an upper end, straight through the origin, at most fourfold."""
        growth = torch.where(self.low_rms > 0, self.target / self.low_rms.clamp(min=1e-12), 4.0).clamp(max=4.0)
        slope = (self.target - self.low_rms) / (self.high_rms - self.low_rms)
        # Well inside the bracket: a saturating curve would otherwise creep towards the same end for ever.
        share = torch.where(torch.isfinite(self.high_rms), slope, 0.5).clamp(0.05, 0.95)
        inside = self.low + share * (self.high - self.low)
        return torch.where(torch.isfinite(self.high), inside, (self.low * growth).clamp(max=limit))


# --- linearity ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLinearity:
    """Per case (B,): agreement of the change of f with lambda J v, and the papers' figures on f itself.

    `cosine` and `norm_ratio` (||f(x + lambda v) - f(x)|| / ||lambda J v||) compare the changes; `value_cosine` and
    `value_norm_ratio` compare f(x + lambda v) with f(x) + lambda J v, which f(x) dominates.
    """

    cosine: torch.Tensor
    norm_ratio: torch.Tensor
    value_cosine: torch.Tensor
    value_norm_ratio: torch.Tensor


def local_linearity(
    f: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    direction: torch.Tensor,
    strength: float | torch.Tensor,
    jvp: torch.Tensor,
) -> LocalLinearity:
    """How linear f is along a direction at a strength. Cost: two forward passes.

    Args:
        f: (B, *shape_in) -> (B, *shape_out); x and direction (B, *shape_in); strength one or (B,);
        jvp: J v at x (B, *shape_out), for the direction as given, without the strength.

    Raises:
        InputError: shapes differ.
    """
    if direction.shape != x.shape:
        raise InputError("direction", tuple(direction.shape), f"the shape of x, {tuple(x.shape)}")
    steps = torch.as_tensor(strength, dtype=x.dtype, device=x.device).expand(len(x))
    base, moved = f(x), f(x + steps.view(-1, *[1] * (x.ndim - 1)) * direction)
    if jvp.shape != base.shape:
        raise InputError("jvp", tuple(jvp.shape), f"the shape of f(x), {tuple(base.shape)}")
    linear = steps.view(-1, *[1] * (jvp.ndim - 1)) * jvp
    pairs = [(part.flatten(1).double() for part in pair) for pair in ((moved - base, linear), (moved, base + linear))]
    figures = []
    for pair in pairs:
        a, b = pair
        sizes = a.norm(dim=1), b.norm(dim=1)
        figures += [(a * b).sum(1) / (sizes[0] * sizes[1]).clamp(min=1e-300), sizes[0] / sizes[1].clamp(min=1e-300)]
    return LocalLinearity(*figures)


# --- items and success --------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: torch.Tensor,
    statistic: Literal["median", "mean"] = "median",
    *,
    generator: torch.Generator,
    samples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap over items of `values` (n,); infinite ratios are kept, NaN is refused.

    Raises:
        InputError: no values, NaN, or a confidence outside (0, 1).
    """
    items = values.double().cpu().flatten()
    if len(items) == 0 or bool(items.isnan().any()):
        raise InputError("values", "no values or NaN among them", "at least one number")
    if not 0 < confidence < 1 or samples < 1:
        raise InputError("confidence, samples", (confidence, samples), "between 0 and 1, at least 1")
    pick = torch.randint(len(items), (samples, len(items)), generator=generator, device=generator.device).cpu()

    def figure(rows: torch.Tensor) -> torch.Tensor:
        if statistic == "mean":
            return rows.mean(dim=1)
        ordered, middle = rows.sort(dim=1).values, rows.shape[1]
        return (ordered[:, (middle - 1) // 2] + ordered[:, middle // 2]) / 2

    drawn = figure(items[pick]).sort().values
    edge = (1 - confidence) / 2
    low, high = (drawn[round(q * (samples - 1))] for q in (edge, 1 - edge))
    return Interval(float(figure(items[None])[0]), float(low), float(high))


@dataclass(frozen=True)
class EditSuccess:
    """Verdict on one edit. `factor` moved most of the region's own, by `move` (signed); `other` of the rest."""

    success: bool
    factor: str
    move: float
    other: str
    other_move: float
    roir: float

    @property
    def sign(self) -> int:
        """Whether the own factor's reading rose (1), fell (-1) or stayed (0)."""
        return (self.move > 0) - (self.move < 0)


def success(
    before: Mapping[str, float],
    after: Mapping[str, float],
    own: Collection[str],
    roir: float,
    *,
    others: Collection[str] | None = None,
    like: EditSuccess | None = None,
    least_move: float = 0.15,
    other_limit: float = 0.10,
    roir_limit: float = 1.0,
) -> EditSuccess:
    """Local edit success, or transfer success, of one edit at visible strength.

    Args:
        before, after: factor readings in [0, 1] of the reconstruction and of the edited image.
        own: the edited region's factors.
        roir: of the decoded edit; NaN fails.
        others: factors that must stay; left out, every factor that is not the region's own, scene factors included.
        like: the edit at home; then only its factor and sign count (transfer success).
        least_move, other_limit, roir_limit: one own factor moves by at least, no other by, ROIR at most.

    Raises:
        InputError: no own factors, or a factor without a reading.
    """
    rest = [name for name in before if name not in own] if others is None else list(others)
    missing = [name for name in (*own, *rest) if name not in before or name not in after]
    if not own or missing:
        raise InputError("own, others", missing or "no own factor", f"names with readings: {', '.join(sorted(after))}")
    moves = {name: after[name] - before[name] for name in (*own, *rest)}
    factor = max(own, key=lambda name: abs(moves[name])) if like is None else like.factor
    if factor not in own:
        raise InputError("like", factor, f"one of the region's own factors, {', '.join(own)}")
    other = max(rest, key=lambda name: abs(moves[name]), default="")
    worst = moves.get(other, 0.0)
    far = abs(moves[factor]) >= least_move and (like is None or moves[factor] * like.move > 0)
    verdict = far and abs(worst) < other_limit and roir <= roir_limit
    return EditSuccess(verdict, factor, moves[factor], other, worst, roir)
