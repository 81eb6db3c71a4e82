"""What mining an image takes, computed before anything runs: network passes by kind, and multiply-adds of one pass.

The unit is one forward pass of one image through the whole network, by multiply-adds of its convolutions and matrix
products; norms, activations and the small matrices of the searches are not counted. Most counts follow from the
settings alone. How many products an SVD takes depends on the spectrum: that is an estimate, with its range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inversion import timestep_grid
from pipeline.mined import JiveSettings, LocoSettings, MiningSettings
from pipeline.mining import NULL_SPACE_TOLERANCE
from pipeline.models.contract import Denoiser, Shape
from pipeline.regions.segments import PRODUCTS, SegmentSettings

# A product pushes or pulls one vector through the network. Forward ones carry the point itself along, once for every
# block of about four vectors, by which a search grows; about half of all products are forward ones.
PRODUCT = 1.12
# Decodes of the search for a visible strength, per direction: least, likely (1.7 and 1.9 on two built-in faces), most.
EVALUATIONS = (1.0, 1.8, 3.0)

FITTED_TOLERANCE, SLOPE = 0.01, 0.2  # products grow as tolerance ** -SLOPE
SPREAD = 2.0  # the true number lies between the estimate over and times this, on networks that have learnt


@dataclass(frozen=True)
class Fit:
    """Products of masked SVDs at a residual of `FITTED_TOLERANCE`: once, per region, per wanted triplet of a region,
    and per null direction, which the complements of all regions largely share."""

    once: float
    region: float
    triplet: float
    null: float


# Fitted to tests/benchmarks/results/svd.json (1 to 8 regions, ranks 1 to 30), which they meet within a ninth.
FITS = {"x": Fit(23.7, 10.0, 2.96, 5.46), "h": Fit(10.9, 16.6, 3.85, 8.57)}


@dataclass(frozen=True)
class Amount:
    """A number that is likely `likely`, and at least `low` and at most `high`; all three are one where it is known."""

    low: float
    likely: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Amount:
        return cls(value, value, value)

    @property
    def known(self) -> bool:
        return self.low == self.high

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.low * factor, self.likely * factor, self.high * factor)


@dataclass(frozen=True)
class NetworkCost:
    """Multiply-adds for one image: the whole network, its part behind h (None without one), and the autoencoder's
    halves, which are 0 for models of pixels."""

    full: int
    behind_h: int | None
    encode: int = 0
    decode: int = 0


@dataclass(frozen=True)
class Work:
    """One kind of work on an image: how many `units` of it, and how many forward passes a unit is worth."""

    kind: str
    unit: str
    units: Amount
    worth: float

    @property
    def passes(self) -> Amount:
        """The same in forward passes."""
        return self.units * self.worth


def counted(run: Callable[[], object]) -> int:
    """Multiply-adds of the convolutions and matrix products that `run` asks for."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def network_cost(denoiser: Denoiser) -> NetworkCost:
    """Multiply-adds of a loaded model, counted on tensors without numbers (torch's fake tensors): no pass is run."""
    info, t = denoiser.info, denoiser.info.train_timesteps // 2
    denoiser = denoiser.differentiable()  # whose attention is made of products that are counted on every device
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty((1, *info.x_shape), device=denoiser.device, dtype=denoiser.dtype)
        full = counted(lambda: denoiser.predict_noise(x, t))
        behind = None
        if info.bottleneck_shape is not None:
            behind = full - counted(lambda: denoiser.bottleneck(x, t))
        if info.latent_shape is None:
            return NetworkCost(full, behind)
        pictures = torch.empty((1, *info.image_shape), device=denoiser.device, dtype=denoiser.dtype)
        return NetworkCost(
            full, behind, counted(lambda: denoiser.encode(pictures)), counted(lambda: denoiser.decode(x))
        )


@dataclass(frozen=True)
class UNetOutline:
    """What a `UNet2DModel` of a configuration would be: parameters, shapes (C, H, W), and its cost."""

    parameters: int
    image_shape: Shape
    bottleneck_shape: Shape | None
    cost: NetworkCost


def outline_unet2d(config: Mapping[str, Any]) -> UNetOutline:
    """The outline of a network that need not be there: made on the meta device, where weights take no memory."""
    with torch.device("meta"):
        unet: Any = UNet2DModel(**config).eval().requires_grad_(False)
    size, channels = int(config["sample_size"]), int(config["in_channels"])
    image = torch.empty((1, channels, size, size), device="meta")
    seen: list[torch.Size] = []
    behind = 0
    if unet.mid_block is not None:
        unet.mid_block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(image, torch.zeros((1,), dtype=torch.long, device="meta"))
    for name, flops in counter.get_flop_counts().items():
        part = name.split(".")[1:]
        if (part[:1] == ["up_blocks"] and len(part) == 2) or part == ["conv_out"]:
            behind += sum(flops.values()) // 2
    shape: Shape | None = (seen[0][1], seen[0][2], seen[0][3]) if seen else None
    cost = NetworkCost(int(counter.get_total_flops()) // 2, behind if seen else None)
    return UNetOutline(sum(p.numel() for p in unet.parameters()), (channels, size, size), shape, cost)


# --- products of the searches -------------------------------------------------------------------------------------


def svd_products(space: str, regions: int, rank: int, null_rank: int, tolerance: float) -> Amount:
    """Estimated products of the masked SVDs of `regions` masks, and of their complements where `null_rank` > 0.

    A model fitted to measurements on the built-in network: for a learnt network its likely value is right within a
    factor of `SPREAD`. A spectrum without gaps, as of random weights, takes all that the search may spend.
    """
    fit = FITS[space]
    ours = fit.once + fit.region * regions + fit.triplet * regions * rank
    likely = ours * _accuracy(tolerance) + fit.null * null_rank * _accuracy(NULL_SPACE_TOLERANCE * tolerance)
    budget = 100 + 40 * regions * (rank + null_rank)
    return _within(likely, 2 * (rank + null_rank), budget)


def _accuracy(tolerance: float) -> float:
    return (FITTED_TOLERANCE / tolerance) ** SLOPE


def segment_products(settings: SegmentSettings) -> Amount:
    """Products of the SVD behind `regions.segments`: about 3 a triplet, at least 2, and 8 where that is not enough."""
    return Amount(2.0 * settings.rank, 3.0 * settings.rank, float(PRODUCTS * settings.rank))


def _within(likely: float, floor: float, ceiling: float) -> Amount:
    likely = min(max(likely, floor), ceiling)
    return Amount(max(floor, likely / SPREAD), likely, min(ceiling, likely * SPREAD))


# --- one image ----------------------------------------------------------------------------------------------------


def direction_counts(settings: MiningSettings, regions: int) -> dict[str, dict[str, Amount]]:
    """Directions of an image by space and kind, none of them refused."""
    found: dict[str, dict[str, Amount]] = {}
    if (loco := settings.loco) is not None:
        found["x"] = dict.fromkeys(("singular", "local"), Amount.exactly(regions * loco.rank))
    if (jive := settings.jive) is not None:
        found["h"] = {kind: _components(jive, kind) * regions for kind in ("singular", "joint", "individual")}
    return found


def _components(jive: JiveSettings, kind: str) -> Amount:
    """h-space directions of a kind in one region: one for each individual rank, but for singular ones at least one."""
    if jive.individual_rank == "auto":
        own = Amount(0.0, min(3.0, jive.rank), float(jive.rank))
    else:
        own = Amount.exactly(jive.individual_rank)
    if kind == "individual":
        return own
    count = Amount(max(1.0, own.low), max(1.0, own.likely), max(1.0, own.high))
    if kind == "singular":
        return count
    low, most = (0.0, count.high) if jive.joint_rank == "auto" else (float(jive.joint_rank), float(jive.joint_rank))
    return Amount(min(count.low, low), min(count.likely, most), min(count.high, most))


def total(amounts: Iterable[Amount]) -> Amount:
    """Their sum."""
    return sum(amounts, Amount.exactly(0))


def mining_work(
    settings: MiningSettings,
    inversion_steps: int,
    regions: int,
    cost: NetworkCost,
    segments: SegmentSettings | None = None,
) -> list[Work]:
    """All network work on one image with masks of `regions` regions, in the order in which it is done.

    `segments`: the regions are segments of the picture, which are found first. Refused directions and regions that an
    image lacks make it less.
    """
    steps = Amount.exactly(len(timestep_grid(settings.timestep, inversion_steps)) - 1)
    picture, encode = 1.0 + cost.decode / cost.full, cost.encode / cost.full
    behind = ((cost.behind_h or 0) + cost.decode) / cost.full
    work = [Work("inversion", "passes", steps, 1.0), Work("round trip", "passes", steps, 1.0)]
    if cost.encode or cost.decode:
        work.append(Work("autoencoder", "picture there and back", Amount.exactly(1), encode + picture - 1.0))
    counts = direction_counts(settings, regions)
    operators = (segments is not None) + len(counts)  # each takes its value, and a graph for transposed products
    work.append(Work("Jacobians", "passes", Amount.exactly(2 * operators), picture))
    if segments is not None:
        work.append(Work("segments", "products", segment_products(segments), PRODUCT * picture))
    if (loco := settings.loco) is not None:
        products = _local_products(loco, regions, settings.tolerance) + total(counts["x"].values())
        work.append(Work("x-space products", "products", products, PRODUCT * picture))
    if (jive := settings.jive) is not None:  # everything else is one more block
        products = svd_products("h", regions + 1, jive.rank, 0, settings.tolerance) + total(counts["h"].values())
        work.append(Work("h-space products", "products", products, PRODUCT * behind))
    if settings.strength == "visible":
        work.append(Work("visible strengths", "passes", _strength_passes(settings, counts, regions, cost), 1.0))
    previews = total(amount for own in counts.values() for amount in own.values()) * 2.0
    work.append(Work("previews", "passes", previews + Amount.exactly(1), picture))
    return work


def _local_products(loco: LocoSettings, regions: int, tolerance: float) -> Amount:
    """Products of the SVDs of x-space; those inside the null space are one more for each region."""
    found = svd_products("x", regions, loco.rank, loco.null_rank, tolerance)
    if loco.variant == "inside" and loco.null_rank:
        found += svd_products("x", 1, loco.rank, 0, tolerance) * regions
    return found


def _strength_passes(
    settings: MiningSettings, counts: Mapping[str, Mapping[str, Amount]], regions: int, cost: NetworkCost
) -> Amount:
    """Passes that decode edits until they are visible: one reference a space, and every first direction a few times."""
    decoding = settings.decode
    grid = timestep_grid(settings.timestep, decoding.steps)
    high, low = decoding.h_window or (settings.timestep, 0)
    # Asyrp's convention asks the network twice where h is shifted; the clean end of the grid is no call.
    twice = sum(high >= t >= low for t in grid[1:]) if decoding.convention == "x0" else 0
    found = Amount.exactly(0)
    for space, kinds in counts.items():
        passes = len(grid) - 1 + cost.decode / cost.full
        first = sum(regions * min(1.0, kinds[kind].likely) for kind in kinds if kind != "joint")
        edits = Amount(*EVALUATIONS) * (first * (passes + (twice if space == "h" else 0)))
        found += Amount.exactly(passes) + edits
    return found
