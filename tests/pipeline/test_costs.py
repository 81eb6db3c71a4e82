"""Costs computed in advance against what mining does: passes exactly, products and multiply-adds within a factor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.costs import (
    FITS,
    SPREAD,
    Amount,
    NetworkCost,
    Work,
    direction_counts,
    mining_work,
    network_cost,
    outline_unet2d,
    svd_products,
    total,
)
from pipeline.editing import DecodeSettings
from pipeline.mined import JiveSettings, LocoSettings, MinedImage, MiningSettings
from pipeline.mining import mine_image
from pipeline.models.unet2d import UNet2DDenoiser
from pipeline.regions.segments import PRODUCTS, SegmentSettings, jacobian_segments
from tests.pipeline.tiny_latents import tiny_latent_denoiser
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image, tiny_unet

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "svd.json"
COST = NetworkCost(full=1000, behind_h=600)


def small(**changes: Any) -> MiningSettings:
    given: dict[str, Any] = {
        "timestep": 20,
        "loco": LocoSettings(rank=2, null_rank=3),
        "jive": JiveSettings(rank=3, joint_rank=2, individual_rank=1),
        "decode": DecodeSettings(steps=4, h_window=(20, 0)),
        "tolerance": 0.1,
    }
    return MiningSettings(**{**given, **changes})


def masks_of(denoiser: UNet2DDenoiser) -> dict[str, torch.Tensor]:
    one, two = (torch.zeros(denoiser.info.image_shape[1:], dtype=torch.bool) for _ in range(2))
    one[1:4, 1:5], two[5:7, 1:7] = True, True
    return {"one": one, "two": two}


def by_kind(work: list[Work]) -> dict[str, Work]:
    return {item.kind: item for item in work}


class Convolutions(TorchDispatchMode):
    """Counts the operations of convolutions alone: the matrix products of a search outweigh so small a network."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "convolution" in str(func.overloadpacket):
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


# --- one pass -----------------------------------------------------------------------------------------------------


def test_an_outline_agrees_with_the_network_it_outlines() -> None:
    unet = tiny_unet(size=16, down_attention=True)
    denoiser = tiny_denoiser(size=16, down_attention=True)
    known = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    found = outline_unet2d(known)
    assert (found.parameters, found.image_shape) == (denoiser.info.parameters, denoiser.info.image_shape)
    assert found.bottleneck_shape == denoiser.info.bottleneck_shape
    assert found.cost == network_cost(denoiser)
    assert found.cost.behind_h is not None
    assert 0.3 < found.cost.behind_h / found.cost.full < 0.9


def test_counting_runs_no_pass_and_sees_an_autoencoder() -> None:
    cost = network_cost(tiny_latent_denoiser())
    assert min(cost.full, cost.encode, cost.decode) > 0
    assert network_cost(tiny_denoiser()).decode == 0


# --- what mining then does ----------------------------------------------------------------------------------------


@dataclass
class Mined:
    """One image mined, counted: `passes` beside products, and multiply-adds of convolutions, `worth` so many passes."""

    image: MinedImage
    settings: MiningSettings
    work: dict[str, Work]
    passes: int
    worth: float


@pytest.fixture(scope="module")
def mined() -> Mined:
    denoiser, chosen = tiny_denoiser(), small(decode=DecodeSettings(4, (20, 8), "x0"))
    masks, x_t = masks_of(denoiser), tiny_image(denoiser)[0]
    work = by_kind(mining_work(chosen, 4, len(masks), network_cost(denoiser)))
    with Convolutions() as one, torch.no_grad():
        denoiser.predict_noise(x_t[None], 20)
    passes = 0

    def counting(method: Any) -> Any:
        def call(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            nonlocal passes
            passes += len(x)
            return torch.as_tensor(method(x, *rest))

        return call

    denoiser.differentiable()  # made now: its passes are products, not counted here
    both = denoiser.posterior_mean, denoiser.predict_noise
    denoiser.posterior_mean, denoiser.predict_noise = map(counting, both)  # type: ignore[method-assign]
    with Convolutions() as every:
        image = mine_image(denoiser, x_t, masks, chosen)
    return Mined(image, chosen, work, passes, every.flops / one.flops)


def test_directions_and_passes_are_those_that_mining_takes(mined: Mined) -> None:
    for space, own in direction_counts(mined.settings, 2).items():
        for kind, amount in own.items():
            found = sum(d.space == space and d.kind == kind for d in mined.image.directions)
            assert found + len(mined.image.refused) * (kind == "local") == amount.likely
    strengths = mined.work["visible strengths"].units
    assert strengths.low <= mined.passes <= strengths.high


def test_a_reference_and_one_decode_of_each_case_is_the_least_that_visible_strengths_take() -> None:
    work = by_kind(mining_work(small(), 4, 2, COST))["visible strengths"]
    assert (work.units.low, work.units.high) == (2 * 4 + 8 * 4, 2 * 4 + 3 * 8 * 4)
    assert "visible strengths" not in by_kind(mining_work(small(strength=1.0), 4, 2, COST))


def test_products_on_a_small_network_are_within_the_told_range(mined: Mined) -> None:
    reckoned = mined.work["x-space products"].units + mined.work["h-space products"].units
    assert reckoned.low <= mined.image.products.total <= reckoned.high
    assert reckoned.likely / SPREAD <= mined.image.products.total <= reckoned.likely * SPREAD


def test_multiply_adds_of_a_whole_image_are_within_the_told_range(mined: Mined) -> None:
    before_and_after = ("inversion", "round trip", "previews")
    reckoned = total(item.passes for kind, item in mined.work.items() if kind not in before_and_after)
    assert reckoned.low / 1.2 <= mined.worth <= 1.2 * reckoned.high


def test_segments_take_the_products_that_are_told() -> None:
    denoiser = tiny_denoiser()
    chosen = SegmentSettings(count=3, rank=4)
    found = jacobian_segments(denoiser, tiny_image(denoiser)[0], 20, chosen)
    work = by_kind(mining_work(small(), 4, 3, COST, chosen))["segments"]
    assert work.units.low <= found.products.total <= work.units.high == 4 * PRODUCTS


# --- the model of the products ------------------------------------------------------------------------------------


def test_the_model_meets_every_measured_search() -> None:
    rows = [row for row in json.loads(RESULTS.read_text())["details"]["rows"] if row["method"] == "cold"]
    assert len(rows) == 24
    for row in rows:
        # These searches hold complements to the tolerance of regions; mining holds them to five times it.
        fit = FITS[row["space"]]
        regions, rank, null = row["regions"], row["rank"], row["null_rank"]
        likely = fit.once + fit.region * regions + fit.triplet * regions * rank + fit.null * null
        assert row["products"] / 1.25 <= likely <= 1.25 * row["products"], row
        amount = svd_products(row["space"], regions, rank, null, 0.01)
        assert amount.low <= row["products"] <= amount.high


@given(
    space=st.sampled_from(["x", "h"]), regions=st.integers(1, 12), rank=st.integers(1, 30), null=st.integers(0, 40),
    tolerance=st.floats(1e-4, 0.9),
)  # fmt: skip
def test_more_costs_more_and_never_more_than_the_search_may_spend(
    space: str, regions: int, rank: int, null: int, tolerance: float
) -> None:
    amount = svd_products(space, regions, rank, null, tolerance)
    assert 2 * rank <= amount.low <= amount.likely <= amount.high <= 100 + 40 * regions * (rank + null)
    for step in ((1, 0, 0, 1.0), (0, 1, 0, 1.0), (0, 0, 1, 1.0), (0, 0, 0, 0.5)):
        more = svd_products(space, regions + step[0], rank + step[1], null + step[2], tolerance * step[3])
        assert more.likely >= amount.likely


@settings(max_examples=30)
@given(
    rank=st.integers(1, 9), null=st.integers(0, 9), joint=st.sampled_from(["auto", 0, 1, 4]),
    own=st.sampled_from(["auto", 1, 3]), regions=st.integers(1, 5), inside=st.booleans(),
)  # fmt: skip
def test_every_range_holds_its_likely_value(
    rank: int, null: int, joint: Any, own: Any, regions: int, inside: bool
) -> None:
    loco = LocoSettings(rank, null, "inside" if inside else "projected")
    chosen = small(loco=loco, jive=JiveSettings(9, joint, own))
    for item in mining_work(chosen, 5, regions, COST, SegmentSettings()):
        assert 0 <= item.units.low <= item.units.likely <= item.units.high
        assert item.worth > 0
    only_x = {item.kind for item in mining_work(small(jive=None), 5, regions, NetworkCost(1000, None))}
    assert "h-space products" not in only_x and "x-space products" in only_x


def test_amounts_add_and_scale_with_their_ranges() -> None:
    found = (Amount.exactly(2) + Amount(1, 2, 5)) * 2.0
    assert found == Amount(6, 8, 14) and not found.known and Amount.exactly(3).known
    assert total([]) == Amount.exactly(0)
