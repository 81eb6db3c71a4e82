"""Guidance by prompts is the weighted sum it is defined as, in every map that the rest of the pipeline asks for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.jacobian import jacobian
from pipeline.models.counting import CountingDenoiser, counting
from pipeline.models.prompted import GuidedDenoiser, PromptedDenoiser, guided, networks
from tests.pipeline.methods.prompted_world import SIZE, VARIANCES, Gaussians, OnePrompt, subject
from tests.pipeline.tiny_models import tiny_denoiser

MODEL, X, T = Gaussians({"a face": (0.2, 1.0, 0.1, 0.6)}), subject().x_t[None], 20


@dataclass
class Count:
    passes: int = 0


def test_guidance_adds_what_each_prompt_changes_times_its_scale() -> None:
    mixed = guided(MODEL, {"a face": 3.0, "an old face": -0.5})
    plain, face, old = (MODEL.prompted(text) for text in ("", "a face", "an old face"))
    for name in ("predict_noise", "posterior_mean", "predicted_picture"):
        nothing, one, two, own = (getattr(model, name)(X, T) for model in (plain, face, old, mixed))
        torch.testing.assert_close(own, nothing + 3.0 * (one - nothing) - 0.5 * (two - nothing))
    alpha, sigma = mixed.alpha_sigma(T)
    torch.testing.assert_close(mixed.posterior_mean(X, T), (X - sigma * mixed.predict_noise(X, T)) / alpha)
    assert torch.equal(mixed.decode(mixed.encode(X)), X)


def test_the_jacobian_under_guidance_is_the_same_sum_of_jacobians() -> None:
    operator = jacobian(guided(MODEL, {"a face": 3.0}), X[0], T, "x0/x")
    matrix = operator.matvec(torch.eye(SIZE, dtype=torch.float64).view(-1, *X.shape[1:])).flatten(1).T
    torch.testing.assert_close(matrix, 3.0 * MODEL.prompted("a face").matrix(T) - 2.0 * MODEL.matrix(T))


def test_what_has_no_weight_is_not_run() -> None:
    alone = guided(MODEL, {"a face": 1.0})
    assert isinstance(alone, OnePrompt) and networks(alone) == 1
    assert networks(guided(MODEL, {"": 5.0})) == 1  # towards no words from no words
    assert networks(guided(MODEL, {"a face": 0.5, "an old face": 0.5})) == 2
    assert networks(guided(MODEL, {"a face": 2.0, "an old face": 1.0})) == 3


def test_passes_under_prompts_are_counted_by_a_model_that_still_takes_text() -> None:
    count = Count()
    model = counting(MODEL, count)
    assert isinstance(model, PromptedDenoiser) and not isinstance(counting(tiny_denoiser(), count), PromptedDenoiser)
    guided(model, {"a face": 2.0}).posterior_mean(X.expand(4, -1, -1, -1), T)
    assert count.passes == 2 * 4
    model.predict_noise(X, T)
    assert count.passes == 2 * 4 + 1
    assert isinstance(model.prompted("a face"), CountingDenoiser)


def test_guided_models_are_other_models_and_have_no_bottleneck() -> None:
    one, two = guided(MODEL, {"a face": 2.0}), guided(MODEL, {"a face": 3.0})
    assert len({one.info.fingerprint, two.info.fingerprint, MODEL.info.fingerprint}) == 3
    assert one.info.bottleneck_shape is None and one.differentiable() is one.differentiable().differentiable()
    for ask in (
        lambda: one.bottleneck(X, T),
        lambda: one.noise_from_bottleneck(X, T),
        lambda: one.posterior_mean_from_bottleneck(X, T),
        lambda: one.predict_noise(X, T, torch.zeros(1)),
        lambda: one.posterior_mean(X, T, torch.zeros(1)),
    ):
        with pytest.raises(ModelError, match="bottleneck"):
            ask()


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    for parts in ({}, {"a face": (0.5, OnePrompt("", MODEL.mean, VARIANCES))}):
        with pytest.raises(InputError, match="a sum of 1"):
            GuidedDenoiser(parts)
