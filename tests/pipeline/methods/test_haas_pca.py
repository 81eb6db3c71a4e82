from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.methods.haas_pca import HaasPCA, HaasPCASettings
from tests.pipeline.methods.jacobian_world import DENOISER, dense, found, masks, share, subject, vector

SUBJECTS = [subject(seed) for seed in range(1, 9)]


def learned(**settings: object) -> HaasPCA:
    method = HaasPCA(DENOISER, HaasPCASettings(**{"samples": 8, "rank": 4, "steps": 3, **settings}))
    method.learn(SUBJECTS)
    return method


def test_components_are_the_principal_ones_of_the_activations_at_t() -> None:
    method = learned()
    x = torch.stack([s.x_t for s in SUBJECTS])
    h = DENOISER.bottleneck(x, method.timestep).flatten(1).detach()
    _, sigma, vh = torch.linalg.svd(h - h.mean(0), full_matrices=False)
    tensors = method.learned()
    overlap = (tensors["components"].flatten(1) @ vh[:4].T).abs()
    torch.testing.assert_close(overlap, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(tensors["shares"], sigma[:4].square() / sigma.square().sum())


def test_within_a_window_every_steps_mean_is_removed() -> None:
    method = learned(at="window", rank=50)
    components = method.learned()["components"].flatten(1)
    assert len(components) == 3 * (8 - 1)  # three steps, of each of which centring takes one dimension
    x = torch.stack([s.x_t for s in SUBJECTS])
    h = DENOISER.bottleneck(x, method.timestep).flatten(1).detach()
    rest = (h - h.mean(0)) - (h - h.mean(0)) @ components.T @ components
    assert float(rest.norm()) < 1e-6 * float(h.norm())


def test_a_window_takes_fewer_steps_and_one_without_steps_is_an_input_error() -> None:
    assert len(learned(at="window", rank=50, window=(0.4, 0.3)).learned()["components"]) == 8 - 1
    with pytest.raises(InputError, match="window"):
        learned(at="window", window=(0.9, 0.8))


@pytest.mark.parametrize("at", ["t", "window"])
def test_settings_that_the_lesson_leaves_out_change_nothing_of_what_is_learned(at: str) -> None:
    others = {"tolerance": 0.5, "seed": 3, "eta": 1.0, "convention": "x0"}
    others |= {"steps": 5, "window": (0.2, 0.0)} if at == "t" else {}
    first, second = learned(at=at), learned(at=at, **others)
    assert first.settings.lesson() == second.settings.lesson() != learned(at=at, rank=3).settings.lesson()
    assert all(torch.equal(second.learned()[name], tensor) for name, tensor in first.learned().items())


def test_a_region_takes_the_component_that_is_most_inside_it_and_says_which() -> None:
    method = learned()
    components = method.learned()["components"].flatten(1)
    matrix = dense("x0/h", method.timestep)
    for region, edit in found(method).items():
        shares = [share(matrix, v, masks()[region]) for v in components]
        assert edit.index == max(range(4), key=shares.__getitem__)
        assert torch.equal(vector(edit), components[edit.index])
        assert edit.evidence["share"] == pytest.approx(max(shares))


def test_what_was_learned_comes_back_and_finds_the_same() -> None:
    first = learned()
    second = HaasPCA(DENOISER, first.settings)
    assert second.learned() == {}
    second.restore(first.learned())
    for region, edit in found(first).items():
        assert torch.equal(vector(found(second)[region]), vector(edit))


def test_learning_again_from_the_same_images_does_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    method, told = learned(), list[tuple[int, int]]()
    before = method.learned()["components"]
    method.learn(SUBJECTS, lambda done, of: told.append((done, of)))
    assert not told
    assert method.learned()["components"] is before
    method.learn(SUBJECTS[:5], lambda done, of: told.append((done, of)))
    assert told == [(5, 5)]
    assert method.learned()["components"] is not before


def test_only_the_first_samples_are_learned_from_and_their_number_is_said() -> None:
    method = learned(samples=5)
    assert method.images == 5
    few = HaasPCA(DENOISER, method.settings)
    few.learn(SUBJECTS[:5])
    assert torch.equal(few.learned()["components"], method.learned()["components"])


def test_nothing_to_learn_from_and_nothing_learned_are_input_errors() -> None:
    method = HaasPCA(DENOISER, HaasPCASettings(samples=8))
    with pytest.raises(InputError, match="nothing learned"):
        method.find(subject())
    with pytest.raises(InputError, match="at least 2"):
        method.learn(SUBJECTS[:1])
    with pytest.raises(InputError, match="the same for all images"):
        method.learn([subject(1)] * 3)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"components": torch.zeros(2, 1, 1, 1), "shares": torch.zeros(2)},
        {"components": torch.full((2, 8, 8, 8), torch.nan), "shares": torch.zeros(2)},
        {"components": torch.zeros(2, 8, 8, 8), "shares": torch.zeros(2)},
        {"components": torch.zeros(2, 8, 8, 8), "shares": torch.zeros(3)},
    ],
)
def test_what_does_not_fit_is_not_restored(broken: dict[str, torch.Tensor]) -> None:
    assert DENOISER.info.bottleneck_shape == (8, 8, 8)
    with pytest.raises(InputError, match="learned|components"):
        HaasPCA(DENOISER, HaasPCASettings()).restore(broken)
