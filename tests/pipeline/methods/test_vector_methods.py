"""What all methods whose edit is a vector found by Jacobians, or drawn, have in common."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence

import pytest
import torch

from pipeline.editing import DecodeSettings, decode
from pipeline.errors import InputError, ModelError
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Found, Method, Refused, Subject
from pipeline.methods.directions import STRAIGHT
from tests.pipeline.methods.jacobian_world import DENOISER, dense, found, masks, rows, subject, vector
from tests.pipeline.tiny_latents import noise, tiny_dit_denoiser, tiny_latent_denoiser

X = ("loco", "loco-plain", "pullback", "eps-x", "random-x")
H = ("individual", "h-masked", "haas", "haas-masked", "haas-pca", "random-h")
FAST = {"tolerance": 0.1, "steps": 2}
SMALL = {
    "loco": {"null_rank": 4},
    "individual": {"rank": 3, "joint_rank": 2, "individual_rank": 2},
    "haas": {"rank": 4, "rounds": 3},
    "haas-masked": {"rank": 2, "rounds": 3},
    "haas-pca": {"samples": 3, "rank": 2},
}


def made(name: str, **more: object) -> Method:
    """A method on the tiny model, of small ranks, having learned where it has to."""
    kind = METHODS[name]
    method = kind(DENOISER, kind.settings_class(**{**FAST, **SMALL.get(name, {}), **more}))
    method.learn([subject(seed) for seed in range(1, 4)])
    return method


@functools.cache
def first(name: str) -> tuple[Method, dict[str, Found]]:
    """A method that has found the edits of one image, and those."""
    method = made(name)
    return method, found(method)


@pytest.mark.parametrize("name", [*X, *H])
def test_edits_are_unit_vectors_of_their_space_with_measured_gain_and_leakage(name: str) -> None:
    method, edits = first(name)
    space = "x" if name in X else "h"
    assert method.about.space == space
    matrix = dense("x0/x" if space == "x" else "x0/h", method.timestep)
    shape = DENOISER.info.x_shape if space == "x" else DENOISER.info.bottleneck_shape
    for region, edit in edits.items():
        assert edit.region == region
        assert edit.vector is not None
        assert tuple(edit.vector.shape) == shape
        assert float(edit.vector.norm()) == pytest.approx(1.0)
        effect, inside = matrix @ vector(edit), rows(masks()[region])
        assert edit.evidence["gain"] == pytest.approx(float((effect * inside).norm()))
        assert edit.evidence["leakage"] == pytest.approx(float((effect * (1 - inside)).norm()))
        assert 0 < edit.guess <= method.limit


@pytest.mark.parametrize("name", [*X, *H])
def test_edits_depend_on_image_and_seed_only_and_finding_them_is_counted_in_products(name: str) -> None:
    method, edits = first(name)
    before = dataclasses.replace(method.cost)
    torch.manual_seed(5)
    again = found(method)
    for region in edits:
        assert torch.equal(vector(edits[region]), vector(again[region]))
        assert edits[region].guess == again[region].guess
    spent = method.cost - before
    assert spent.jvp >= 2  # one a region, at least
    assert (spent.vjp > 0) == (name not in ("random-x", "random-h", "haas-pca"))


@pytest.mark.parametrize("name", ["loco", "individual"])
def test_each_edit_of_a_batch_is_as_alone_and_strength_zero_is_the_reconstruction(name: str) -> None:
    method, own = first(name)
    edits, two = [own["left"], own["right"]], [subject(0), subject(1)]
    strengths = torch.tensor([0.7, -0.4])
    together = method.apply(edits, two, strengths)
    for i in range(2):
        alone = method.apply(edits[i : i + 1], two[i : i + 1], strengths[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    plain = decode(DENOISER, torch.stack([s.x_t for s in two]), method.timestep, DecodeSettings(steps=2))
    torch.testing.assert_close(method.apply(edits, two, torch.zeros(2)), plain)
    assert float((together - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("name", [*X, *H])
def test_products_keep_to_the_budget_of_memory(name: str) -> None:
    method = made(name)
    method.memory = 1
    with pytest.raises(InputError, match="memory: found 1 bytes"):
        method.find(subject())


@pytest.mark.parametrize(
    "name", ["loco", "loco-plain", "individual", "h-masked", "haas", "haas-masked", "pullback", "eps-x"]
)
def test_it_is_said_that_pictures_are_inverted_straight_to_the_timestep(name: str) -> None:
    assert STRAIGHT in METHODS[name].about.deviations


def test_iterated_methods_cost_two_products_a_vector_and_round() -> None:
    shared, own = made("haas", rounds=2), made("haas-masked", rounds=2)
    found(shared)
    found(own)
    assert (shared.cost.jvp, shared.cost.vjp) == (4 * 2 + 2, 4 * 2)
    assert (own.cost.jvp, own.cost.vjp) == (2 * 2 * 2 + 2, 2 * 2 * 2)


@pytest.mark.parametrize("name", [*X, *H])
def test_grids_begin_with_what_is_given_and_hold_two_to_six_different_settings_that_json_can_hold(name: str) -> None:
    kind = METHODS[name]
    given = kind.settings_class(timestep=0.41, seed=3)
    tried: Sequence[object] = kind.grid(given)
    assert tried[0] == given
    assert len(tried) == 1 if name.startswith("random") else 2 <= len(tried) <= 6
    assert len(set(tried)) == len(tried)
    for settings in kind.grid(given):
        assert isinstance(settings, kind.settings_class)
        assert settings.seed == 3
        held = json.loads(json.dumps(settings.as_dict()))
        assert kind.settings_class(**held) == settings


def test_every_name_is_its_methods_own_and_what_differs_from_papers_is_said() -> None:
    assert {*X, *H} <= METHODS.keys()
    for name in (*X, *H):
        about = METHODS[name].about
        assert METHODS[name].name == name
        assert about.one_step == (name in X)
        assert bool(about.deviations) != name.startswith("random")


@pytest.mark.parametrize("name", H)
def test_h_space_methods_name_the_missing_bottleneck(name: str) -> None:
    denoiser = tiny_dit_denoiser(dtype=torch.float64)
    x_t = noise(denoiser.info.x_shape, torch.float64)[0]
    one = Subject("image", x_t, x_t, masks())
    kind = METHODS[name]
    with pytest.raises(ModelError, match="bottleneck"):
        kind(denoiser, kind.settings_class(**SMALL.get(name, {}))).find(one)


@pytest.mark.parametrize("name", ["loco", "eps-x", "pullback", "haas", "individual"])
def test_models_on_latents_are_edited_under_masks_of_pictures(name: str) -> None:
    denoiser = tiny_latent_denoiser("conditional", dtype=torch.float64)
    x_t = noise(denoiser.info.x_shape, torch.float64)[0]
    mask = torch.zeros(denoiser.info.image_shape[1:], dtype=torch.bool)
    mask[2:8, 3:9] = True
    one = Subject("image", torch.zeros(denoiser.info.image_shape), x_t, {"left": mask})
    kind = METHODS[name]
    method = kind(denoiser, kind.settings_class(**{**FAST, **SMALL.get(name, {})}))
    edits = found(method, one)
    pictures = method.apply([edits["left"]], [one], torch.tensor([1.0]))
    assert pictures.shape == (1, *denoiser.info.image_shape)


@pytest.mark.parametrize("name", ["loco", "individual"])
def test_a_region_smaller_than_the_rank_is_refused_and_the_others_are_not(name: str) -> None:
    small = torch.zeros(8, 8, dtype=torch.bool)
    small[0, 0] = True
    one = dataclasses.replace(subject(), masks={**masks(), "dot": small})
    edits = made(name, rank=4).find(one)
    refusal = edits["dot"]
    assert isinstance(refusal, Refused)
    assert "too small for rank 4" in refusal.reason
    assert not any(isinstance(edits[region], Refused) for region in masks())


@pytest.mark.parametrize("name", [*X, *H])
def test_masks_that_do_not_fit_are_input_errors(name: str) -> None:
    wrong = dataclasses.replace(subject(), masks={"left": torch.ones(4, 4, dtype=torch.bool)})
    with pytest.raises(InputError, match="mask of left"):
        first(name)[0].find(wrong)
