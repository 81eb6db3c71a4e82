"""Predictions of transfer: first-order figures of one batched product, and what decoded edits say of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.editing import DecodeSettings
from pipeline.errors import InputError
from pipeline.jacobian import jacobian
from pipeline.metrics import rms_inside, roir
from pipeline.strengths import STRENGTH_LIMIT, VISIBLE_RMS
from pipeline.transfer import Candidate, Prediction, effect_agreement, predict, verify
from tests.pipeline.tiny_models import tiny_denoiser, tiny_image

T = 20
DENOISER = tiny_denoiser(dtype=torch.float64)
X_T = tiny_image(DENOISER)[0]
MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:5, 1:6] = True
DECODE = DecodeSettings(steps=3)
Space = Literal["x", "h"]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tensor / tensor.norm()


def candidate(space: Space, seed: int) -> Candidate:
    shape = DENOISER.info.image_shape if space == "x" else DENOISER.need_bottleneck()
    return Candidate(space, drawn(shape, seed), drawn((3, 4, 4), 100 + seed), gain=0.5, leakage=0.1)


@cache
def true_effect(space: Space, seed: int) -> torch.Tensor:
    """J v by one product alone, (3, 8, 8)."""
    with torch.no_grad():
        operator = jacobian(DENOISER, X_T, T, "x0/x" if space == "x" else "x0/h")
        return operator.matvec(candidate(space, seed).vector[None])[0]


keys = st.tuples(st.sampled_from(["x", "h"]), st.integers(0, 5))


@settings(max_examples=8, deadline=None)
@given(found=st.lists(keys, max_size=5), block=st.integers(1, 4))
def test_predictions_are_the_true_products_in_any_order_and_block(found: list[tuple[Space, int]], block: int) -> None:
    with torch.no_grad():
        predictions, spent = predict(DENOISER, X_T, T, MASK, [candidate(*key) for key in found], block=block)
    assert (spent.jvp, spent.vjp, len(predictions)) == (len(found), 0, len(found))
    for key, p in zip(found, predictions, strict=True):
        effect = true_effect(*key)
        inside, outside = effect[:, MASK], effect[:, ~MASK]
        gain, leakage = float(inside.norm()), float(outside.norm())
        assert (p.gain, p.leakage) == pytest.approx((gain, leakage), rel=1e-9)
        assert (p.gain_ratio, p.roir) == pytest.approx((gain / 0.5, leakage / gain), rel=1e-9)
        assert p.agreement == pytest.approx(effect_agreement(effect, candidate(*key).effect, MASK), abs=1e-9)
        assert p.score == pytest.approx(gain / float(effect.norm()) * abs(p.agreement), rel=1e-9)


@settings(max_examples=5, deadline=None)
@given(key=keys)
def test_turning_a_vector_turns_nothing_but_the_sign(key: tuple[Space, int]) -> None:
    one = candidate(*key)
    with torch.no_grad():
        (plain, turned), _ = predict(DENOISER, X_T, T, MASK, [one, replace(one, vector=-one.vector)])
    expected = replace(plain, agreement=-plain.agreement, sign=-plain.sign, strength=-plain.strength)
    close(turned, expected)


def close(found: Prediction, expected: Prediction) -> None:
    for name, value in vars(expected).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


@settings(max_examples=5, deadline=None)
@given(key=keys, scale=st.floats(1e-3, 1e3))
def test_only_the_look_of_an_effect_counts_and_only_the_ratio_depends_on_the_gain_at_home(
    key: tuple[Space, int], scale: float
) -> None:
    one = candidate(*key)
    other = replace(one, effect=scale * one.effect, gain=scale * one.gain)
    with torch.no_grad():
        (plain, scaled), _ = predict(DENOISER, X_T, T, MASK, [one, other])
    close(scaled, replace(plain, gain_ratio=plain.gain_ratio / scale))


def test_at_home_a_direction_keeps_its_gain_and_leakage_and_agrees_with_itself() -> None:
    for space in ("x", "h"):
        effect = true_effect(space, 3)
        gain, leakage = float(effect[:, MASK].norm()), float(effect[:, ~MASK].norm())
        small = torch.nn.functional.adaptive_avg_pool2d(effect, 4)
        home = Candidate(space, candidate(space, 3).vector, small, gain, leakage)
        (p,), _ = predict(DENOISER, X_T, T, MASK, [home])
        assert (p.gain, p.leakage, p.gain_ratio, p.agreement) == pytest.approx((gain, leakage, 1.0, 1.0), rel=1e-9)
        assert p.sign == 1


def test_a_singular_value_stands_before_the_gain() -> None:
    (p,), _ = predict(DENOISER, X_T, T, MASK, [replace(candidate("x", 0), sigma=2.0)])
    assert p.gain_ratio == pytest.approx(p.gain / 2.0)


@pytest.mark.parametrize("space", ["x", "h"])
def test_at_the_predicted_strength_the_linear_change_is_just_visible(space: Space) -> None:
    (p,), _ = predict(DENOISER, X_T, T, MASK, [candidate(space, 1)])
    assert not p.limited
    change = p.strength * true_effect(space, 1)
    assert float(rms_inside(change[None], MASK)[0]) == pytest.approx(VISIBLE_RMS)


def test_a_direction_without_effect_is_limited_and_comes_last() -> None:
    nothing = replace(candidate("x", 0), vector=torch.zeros(3, 8, 8, dtype=torch.float64))
    (p,), _ = predict(DENOISER, X_T, T, MASK, [nothing])
    assert (p.gain, p.leakage, p.agreement, p.score, p.sign) == (0, 0, 0, 0, 1)
    assert p.roir == math.inf
    assert p.limited
    assert p.strength == STRENGTH_LIMIT["x"]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), grid=st.sampled_from([1, 2, 4, 8]))
def test_agreement_is_a_cosine_that_sees_only_the_mask(seed: int, grid: int) -> None:
    change, home = drawn((3, 8, 8), seed), drawn((3, grid, grid), seed + 1)
    found = effect_agreement(change, home, MASK)
    assert -1 <= found <= 1
    assert effect_agreement(-change, home, MASK) == pytest.approx(-found)
    blocks = torch.zeros(8, 8, dtype=torch.bool)  # a mask of whole cells of every grid but the coarsest
    blocks[4:, 4:] = True
    elsewhere = torch.where(blocks, change, change + drawn((3, 8, 8), seed + 2))
    if grid > 1:
        assert effect_agreement(elsewhere, home, blocks) == pytest.approx(effect_agreement(change, home, blocks))


WRONG = {
    "an empty mask": (torch.zeros(8, 8, dtype=torch.bool), {}, "an empty mask"),
    "a mask of another size": (torch.ones(4, 8, dtype=torch.bool), {}, r"\(4, 8\); expected shape \(8, 8\)"),
    "a mask of numbers": (MASK.float(), {}, "torch.bool"),
    "another shape": (MASK, {"vector": torch.ones(3, 4, 4)}, r"candidate 1: x-space vector: .*\(3, 4, 4\)"),
    "an x vector as h": (MASK, {"space": "h"}, r"candidate 1: h-space vector: .*\(3, 8, 8\)"),
    "an unknown space": (MASK, {"space": "w"}, "candidate 1: space: found w"),
    "an effect of other channels": (MASK, {"effect": torch.ones(1, 4, 4)}, "candidate 1: effect"),
    "no gain at home": (MASK, {"gain": 0.0}, "candidate 1: gain at home"),
    "a gain that is no number": (MASK, {"gain": math.nan}, "candidate 1: gain at home"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name_before_any_product(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, changes, expected = WRONG[case]
    monkeypatch.setattr("pipeline.transfer.jacobian", None)
    wrong = replace(candidate("x", 1), **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=expected):
        predict(DENOISER, X_T, T, mask, [candidate("x", 0), wrong])
    with pytest.raises(InputError, match=expected):
        verify(DENOISER, X_T, T, mask, [candidate("x", 0), wrong], [1.0, 1.0], DECODE)


# --- trying -------------------------------------------------------------------------------------------------------


def test_outcomes_are_measured_on_the_pictures_that_come_back_in_the_order_asked_for() -> None:
    found = [candidate("h", 0), candidate("x", 1), candidate("h", 2)]
    outcomes, pictures = verify(DENOISER, X_T, T, MASK, found, [2.0, -1.0, 0.5], DECODE)
    assert pictures.shape == (4, 3, 8, 8)
    alone = [verify(DENOISER, X_T, T, MASK, [c], [s], DECODE) for c, s in zip(found, (2.0, -1.0, 0.5), strict=True)]
    for place, ((outcome,), pair) in enumerate(alone):
        torch.testing.assert_close(pictures[[0, place + 1]], pair)
        change = pair[1:] - pair[:1]
        rms = float(rms_inside(change, MASK)[0])
        assert outcomes[place].rms == pytest.approx(outcome.rms) == pytest.approx(rms)
        assert outcomes[place].roir == pytest.approx(float(roir(pair[:1], pair[1:], MASK)[0]))
        norm = float(change[0][:, MASK].norm())
        assert outcomes[place].gain == pytest.approx(norm / abs((2.0, -1.0, 0.5)[place]))
        assert outcomes[place].agreement == pytest.approx(effect_agreement(change[0], found[place].effect, MASK))


def test_a_small_edit_in_one_step_does_what_was_predicted() -> None:
    one = candidate("x", 4)
    (p,), _ = predict(DENOISER, X_T, T, MASK, [one])
    (o,), _ = verify(DENOISER, X_T, T, MASK, [one], [p.sign * 1e-4], DecodeSettings(steps=1))
    assert (o.gain, o.roir, o.agreement) == pytest.approx((p.gain, p.roir, abs(p.agreement)), rel=1e-3)


@pytest.mark.parametrize("strengths", [[], [0.0], [math.nan], [1.0, 1.0]])
def test_every_try_needs_a_strength(strengths: list[float]) -> None:
    with pytest.raises(InputError, match="strengths"):
        verify(DENOISER, X_T, T, MASK, [candidate("x", 0)], strengths, DECODE)
