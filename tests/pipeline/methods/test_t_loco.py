"""T-LOCO on exact Gaussian denoisers, whose directions are known in closed form."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.methods.contract import Found, Refused, Subject
from pipeline.methods.guidance import Goal
from pipeline.methods.t_loco import TLoco, TLocoSettings
from pipeline.models.conditional import ConditionalDenoiser
from pipeline.models.counting import counting
from pipeline.models.latents import LatentDenoiser
from pipeline.models.prompted import PromptedDenoiser
from tests.pipeline.methods.prompted_world import Gaussians, factors, inside, left, means, subject
from tests.pipeline.tiny_latents import noise, tiny_conditional, tiny_prompt, tiny_vae
from tests.pipeline.tiny_models import tiny_denoiser, tiny_scheduler

SMILE = Goal("left", "smile", source="a face", target="a smiling face")
MODEL = Gaussians()


def method(model: Gaussians = MODEL, **settings: Any) -> TLoco:
    """Of few steps, to a tight residual, without noise."""
    given = {"goals": (SMILE,), "null_rank": 2, "tolerance": 1e-6, "steps": 8, "timestep": 0.6, **settings}
    return TLoco(model, TLocoSettings(**given))


def found(own: TLoco, region: str = "left", **masks: torch.Tensor) -> Found:
    edit = own.find(subject(**masks))[region]
    assert isinstance(edit, Found), edit
    return edit


def flat(edit: Found) -> torch.Tensor:
    assert edit.vector is not None
    return edit.vector.flatten()


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


def pulled_back(own: TLoco, goal: Goal = SMILE) -> torch.Tensor:
    """A^T M (I - alpha A) (mean_e - mean_o), (SIZE,): where all prompts share A, guidance only scales it."""
    matrix, (alpha, _) = MODEL.matrix(own.timestep), MODEL.alpha_sigma(own.timestep)
    apart = means()[goal.target] - means()[goal.source]
    return matrix.T @ (inside() * (apart - alpha * matrix @ apart))


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_without_null_space_the_direction_is_the_closed_form_whatever_the_guidance(guidance: float) -> None:
    own = method(null_rank=0, guidance=guidance)
    edit = found(own)
    torch.testing.assert_close(flat(edit), unit(pulled_back(own)))
    assert edit.evidence["kept_share"] == pytest.approx(1.0)


def test_the_null_space_leaves_everything_else_unchanged_to_first_order_and_the_rest_is_the_closed_form() -> None:
    own = method()
    edit, u = found(own), factors()
    # Everything outside the region varies along the last two factors only, so these are its row space.
    pulled = pulled_back(own)
    kept = pulled - u[2:].T @ (u[2:] @ pulled)
    torch.testing.assert_close(flat(edit), unit(kept), atol=1e-5, rtol=0.0)
    assert edit.evidence["kept_share"] == pytest.approx(float(kept.norm() / pulled.norm()), abs=1e-5)
    assert 0.05 < edit.evidence["kept_share"] < 0.999  # there was something to remove
    effect = MODEL.matrix(own.timestep) @ flat(edit)
    assert float(((1 - inside()) * effect).norm()) < 1e-5 * float((inside() * effect).norm())
    plain = found(method(null_rank=0))
    assert edit.evidence["leakage"] < 1e-4 * plain.evidence["leakage"]
    assert edit.evidence["gain"] == pytest.approx(float((inside() * effect).norm()))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_editing_moves_the_region_towards_the_edited_prompts_mean_and_nothing_else(guidance: float) -> None:
    own = method(guidance=guidance)
    edit, one = found(own), subject()
    strengths = torch.tensor([0.0, 1.0, 2.0, -1.0])
    pictures = own.apply([edit] * 4, [one] * 4, strengths).flatten(1)
    change = pictures - pictures[0]
    towards = means()["a smiling face"] - means()["a face"]
    # The model varies along two factors inside the region: the edit goes its prompt's way along both, and no other.
    moved, wanted = factors()[:2] @ change[1], factors()[:2] @ towards
    assert bool((moved * wanted > 0).all()) and float(change[1] @ towards) > 0
    torch.testing.assert_close(float(moved.norm()), float(change[1].norm()))
    torch.testing.assert_close(change[2], 2 * change[1])
    torch.testing.assert_close(change[3], -change[1])
    outside = (change[1:] * (1 - inside())).norm(dim=1)
    assert bool((outside < 1e-5 * (change[1:] * inside()).norm(dim=1)).all())


def test_the_edited_prompts_jacobian_pulls_back_and_the_originals_has_the_null_space() -> None:
    model = Gaussians({"a smiling face": (0.1, 2.0, 1.5, 0.05)})
    own = method(model, guidance=1.0)
    edit, u, x = found(own), factors(), subject().x_t[None]
    old, new = (model.prompted(text) for text in ("a face", "a smiling face"))
    shift = inside() * (new.posterior_mean(x, own.timestep) - old.posterior_mean(x, own.timestep)).flatten()
    pulled = new.matrix(own.timestep).T @ shift
    torch.testing.assert_close(flat(edit), unit(pulled - u[2:].T @ (u[2:] @ pulled)), atol=1e-5, rtol=0.0)
    effect = old.matrix(own.timestep) @ flat(edit)
    assert edit.evidence["gain"] == pytest.approx(float((inside() * effect).norm()))
    assert edit.evidence["difference"] == pytest.approx(float(shift.norm() / inside().sum().sqrt()))


def test_an_edited_prompt_beside_the_original_one_adds_what_it_changes() -> None:
    own = method(null_rank=0, guidance=3.0, edit_guidance=2.0)
    matrix, (alpha, _) = MODEL.matrix(own.timestep), MODEL.alpha_sigma(own.timestep)
    new = means()["a smiling face"]  # no words have the mean 0: f_e - f_o = 2 (I - alpha A) mean_e
    torch.testing.assert_close(flat(found(own)), unit(matrix.T @ (inside() * (new - alpha * matrix @ new))))


class Worded(LatentDenoiser, PromptedDenoiser):
    """A random conditional network on latents, with an embedding for each text."""

    def __init__(self) -> None:
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        self.network, self.vae = tiny_conditional(size=4, block_out_channels=(8,), **blocks), tiny_vae()
        super().__init__(self._under(0), self.vae)

    def _under(self, seed: int) -> ConditionalDenoiser:
        return ConditionalDenoiser(self.network, tiny_scheduler(), tiny_prompt(seed), dtype=torch.float64)

    def prompted(self, text: str) -> LatentDenoiser:
        return LatentDenoiser(self._under(len(text)), self.vae)


def test_of_a_network_on_latents_the_direction_is_the_gradient_towards_the_edited_picture_under_guidance() -> None:
    model, mask = Worded(), torch.zeros(8, 8, dtype=torch.bool)
    mask[1:5, 2:6] = True
    x_t = noise(model.info.x_shape, torch.float64)[0]
    one = Subject("image", torch.zeros(model.info.image_shape), x_t, {"left": mask})
    settings = TLocoSettings(goals=(SMILE,), null_rank=0, guidance=3.0, steps=2, tolerance=0.1)
    own, local = TLoco(model, settings), TLoco(model, replace(settings, null_rank=2))
    plain, edit = own.find(one)["left"], local.find(one)["left"]
    assert isinstance(plain, Found) and isinstance(edit, Found)
    leaf = x_t[None].clone().requires_grad_(True)
    texts = ("", SMILE.source, SMILE.target)
    nothing, old, new = (model.prompted(text).posterior_mean(leaf, own.timestep) for text in texts)
    before, after = (model.decode(nothing + 3.0 * (mean - nothing)) for mean in (old, new))
    towards = ((after - before) * mask).detach()
    torch.testing.assert_close(flat(plain), unit(torch.autograd.grad((after * towards).sum(), leaf)[0].flatten()))
    assert edit.evidence["leakage"] < plain.evidence["leakage"] and edit.evidence["kept_share"] < 1.0
    pictures = local.apply([edit] * 2, [one] * 2, torch.tensor([0.0, 0.5]))
    assert pictures.shape == (2, *model.info.image_shape) and float((pictures[1] - pictures[0]).abs().max()) > 1e-4


def test_prompts_that_make_no_difference_are_refused_and_why() -> None:
    model = Gaussians()
    same = replace(SMILE, target="a face")
    refused = method(model, goals=(same,)).find(subject())["left"]
    assert isinstance(refused, Refused) and "both are 'a face'" in refused.reason
    deaf = Gaussians()
    deaf.prompted = lambda text: MODEL.prompted("")  # type: ignore[method-assign]
    refused = method(deaf).find(subject())["left"]
    assert isinstance(refused, Refused) and "the prompts make no difference inside the region" in refused.reason
    assert "under 0.001" in refused.reason


def test_a_region_without_prompts_is_left_out_and_one_without_an_edited_prompt_is_refused() -> None:
    right = torch.zeros(8, 8, dtype=torch.bool)
    right[5:, 5:] = True
    read = Goal("right", "brightness", 3)  # a reading, not a prompt
    (found,) = method(goals=(SMILE,)).find(subject(right=right, left=left())).values()
    assert isinstance(found, Found) and found.region == "left"
    edits = method(goals=(SMILE, read)).find(subject(right=right, left=left()))
    assert list(edits) == ["right", "left"] and isinstance(edits["left"], Found)
    refused = edits["right"]
    assert isinstance(refused, Refused) and "no prompt" in refused.reason


def test_what_the_null_space_leaves_under_a_twentieth_of_is_refused() -> None:
    half = left().clone()
    half[3:] = False  # no factor of variation lies inside it alone
    refused = method(null_rank=4).find(subject(left=half))["left"]
    assert isinstance(refused, Refused) and "kept share" in refused.reason
    assert isinstance(method(null_rank=0).find(subject(left=half))["left"], Found)


def test_a_null_rank_beyond_what_lies_outside_is_what_lies_there() -> None:
    most = torch.ones(8, 8, dtype=torch.bool)
    most[0, 0] = False
    edit = found(method(null_rank=50), left=most)
    assert edit.evidence["leakage"] < 1e-6


def test_each_edit_of_a_batch_is_decoded_under_its_own_original_prompt() -> None:
    right = torch.zeros(8, 8, dtype=torch.bool)
    right[5:, 5:] = True
    ageing = Goal("right", "age", source="", target="an old face")
    own = method(goals=(SMILE, ageing), null_rank=1, eta=1.0)
    one = subject(left=left(), right=right)
    edits = [found(own, region, left=left(), right=right) for region in ("right", "left", "right")]
    strengths = torch.tensor([0.5, -0.3, 0.0])
    together = own.apply(edits, [one] * 3, strengths)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], own.apply(edits[i : i + 1], [one], strengths[i : i + 1]))
    zero = own.apply(edits[:2], [one] * 2, torch.zeros(2))
    assert float((zero[0] - zero[1]).abs().max()) > 0.05 and own.reference_by_region
    torch.testing.assert_close(zero[0], together[2])


@dataclass
class Count:
    passes: int = 0


def test_products_and_passes_count_once_for_every_prompt_that_guidance_mixes() -> None:
    plain, both, beside = method(guidance=1.0), method(guidance=7.5), method(guidance=7.5, edit_guidance=4.0)
    for own in (plain, both, beside):
        found(own)
    assert plain.cost.vjp >= 2 and plain.cost.jvp >= 2
    assert (both.cost.jvp, both.cost.vjp) == (2 * plain.cost.jvp, 2 * plain.cost.vjp)
    assert (beside.cost.jvp, beside.cost.vjp) == (both.cost.jvp, both.cost.vjp + 1)  # one through three prompts
    none = method(guidance=1.0, null_rank=0)
    found(none)
    assert (none.cost.jvp, none.cost.vjp, none.cost.backward) == (1, 1, 0)
    count = Count()
    own = TLoco(counting(MODEL, count), both.settings)
    edit = found(own)
    count.passes = 0
    own.apply([edit] * 3, [subject()] * 3, torch.zeros(3))
    assert count.passes == 2 * 3 * own.settings.steps


def test_models_without_text_and_edits_without_prompts_are_errors() -> None:
    with pytest.raises(ModelError, match="takes no text"):
        TLoco(tiny_denoiser(), TLocoSettings())
    with pytest.raises(InputError, match="none for nose"):
        method().apply([Found("nose", 1.0, subject().x_t)], [subject()], torch.ones(1))
    with pytest.raises(InputError, match="one of each"):
        method().apply([found(method())], [subject()], torch.ones(2))
    with pytest.raises(InputError, match="mask of left"):
        method().find(subject(left=torch.ones(4, 4, dtype=torch.bool)))


def test_settings_are_tried_from_the_given_ones_on_and_json_can_hold_them() -> None:
    given = TLocoSettings(goals=(SMILE,), timestep=0.4, null_rank=30)
    tried = TLoco.grid(given)
    assert tried[0] == given and len(tried) == 4 == len(set(tried))
    assert any((one.timestep, one.null_rank) == (0.7, 5) for one in tried if isinstance(one, TLocoSettings))
    held = json.loads(json.dumps(tried[-1].as_dict()))
    goals = tuple(Goal(**goal) for goal in held.pop("goals"))
    assert TLocoSettings(**held, goals=goals) == tried[-1]
