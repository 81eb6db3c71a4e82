from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError, ModelError
from pipeline.perception.lpips import TRUNKS, Lpips, Network
from tests.pipeline.perception.reference import Drawn, alexnet, linear_layers, lpips

Pictures = Callable[..., torch.Tensor]
SIZE = 64


@pytest.fixture(scope="module", params=["alex", "vgg"])
def network(request: pytest.FixtureRequest) -> Network:
    return request.param


@pytest.fixture(scope="module")
def drawn(network: Network, pictures: Pictures) -> Drawn:
    net = Drawn()
    with torch.no_grad():
        lpips(net, linear_layers(network), network, pictures(1, SIZE), pictures(1, SIZE))
    return net


@pytest.fixture(scope="module")
def judge(network: Network, drawn: Drawn, folder: Path) -> Lpips:
    """As the authors' files: the trunk's with a classifier, which is not used."""
    state = {**drawn.state, "classifier.6.weight": torch.zeros(2, 2)}
    torch.save(state, folder / f"{network}-trunk.pth")
    torch.save(linear_layers(network), folder / f"{network}.pth")
    return Lpips(network, folder / f"{network}-trunk.pth", folder / f"{network}.pth")


def test_lpips_and_its_map_are_those_of_an_independent_reading_of_the_paper(
    judge: Lpips, network: Network, drawn: Drawn, pictures: Pictures
) -> None:
    before, after = pictures(2, SIZE, 1), pictures(2, SIZE, 2)
    expected, spatial = lpips(drawn, linear_layers(network), network, before, after)
    torch.testing.assert_close(judge(before, after), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(judge.spatial(before, after), spatial, rtol=1e-3, atol=1e-5)
    assert judge(before, after).shape == (2,) and not judge(before, after).requires_grad


def test_lpips_is_zero_for_equal_pictures_symmetric_and_positive_otherwise(judge: Lpips, pictures: Pictures) -> None:
    before, after = pictures(2, SIZE, 3), pictures(2, SIZE, 4)
    assert torch.equal(judge(before, before), torch.zeros(2))
    assert torch.equal(judge(before, after), judge(after, before))
    assert bool((judge(before, after) > 0).all())


def test_lpips_grows_with_the_change(judge: Lpips, pictures: Pictures) -> None:
    before, noise = pictures(1, SIZE, 5), pictures(1, SIZE, 6)
    distances = [float(judge(before, before + step * noise)) for step in (0.01, 0.1, 0.5)]
    assert distances == sorted(distances) and distances[0] < 0.5 * distances[-1]


def test_a_large_batch_gives_each_pair_what_it_has_alone(judge: Lpips, network: Network, pictures: Pictures) -> None:
    count = 18 if network == "alex" else 2  # more than are computed at once
    before, after = pictures(count, 32, 7), pictures(count, 32, 8)
    alone = judge(before[-1:], after[-1:])
    torch.testing.assert_close(judge(before, after)[-1:], alone, rtol=1e-5, atol=1e-7)


def test_the_parts_are_means_of_the_map_and_a_change_inside_is_mostly_inside(judge: Lpips, pictures: Pictures) -> None:
    before = pictures(2, SIZE, 9)
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[:24, :24] = True
    after = torch.where(mask, pictures(2, SIZE, 10), before)
    parts, spatial = judge.parts(before, after, mask), judge.spatial(before, after)
    torch.testing.assert_close(parts.inside, spatial[:, mask].mean(1))
    torch.testing.assert_close(parts.outside, spatial[:, ~mask].mean(1))
    assert bool((parts.inside > 2 * parts.outside).all())
    each = judge.parts(before, after, torch.stack([mask, ~mask]))
    torch.testing.assert_close(each.inside, torch.stack([parts.inside[0], parts.outside[1]]))


def test_grey_pictures_count_as_their_own_repetition(judge: Lpips, pictures: Pictures) -> None:
    before, after = pictures(1, 32, 11, channels=1), pictures(1, 32, 12, channels=1)
    repeated = judge(before.repeat(1, 3, 1, 1), after.repeat(1, 3, 1, 1))
    torch.testing.assert_close(judge(before, after), repeated, rtol=1e-6, atol=0)


def test_safetensors_of_the_same_names_give_the_same_distances(
    judge: Lpips, network: Network, drawn: Drawn, folder: Path, pictures: Pictures
) -> None:
    save_file(drawn.state, folder / "trunk.safetensors")
    save_file(linear_layers(network), folder / "linear.safetensors")
    same = Lpips(network, folder / "trunk.safetensors", folder / "linear.safetensors")
    assert torch.equal(same(*(pair := (pictures(1, 32, 1), pictures(1, 32, 2)))), judge(*pair))


def test_the_networks_have_as_many_parameters_as_torchvisions() -> None:
    counts = {name: sum(p.numel() for p in kind.build().parameters()) for name, kind in TRUNKS.items()}
    assert counts == {"alex": 2_469_696, "vgg": 14_714_688}


def test_files_that_do_not_fit_are_refused_by_the_names_that_do_not(folder: Path) -> None:
    net, trunk, linear = Drawn(), folder / "good.pth", folder / "good-linear.pth"
    alexnet(net, torch.zeros(1, 3, SIZE, SIZE))
    state = net.state
    torch.save(state, trunk)
    torch.save(linear_layers("alex"), linear)
    torch.save({name: value for name, value in state.items() if name != "features.3.bias"}, folder / "less.pth")
    torch.save({**state, "head.weight": torch.zeros(1)}, folder / "more.pth")
    torch.save({**state, "features.3.bias": torch.full((192,), torch.nan)}, folder / "nan.pth")
    torch.save({name: -value for name, value in linear_layers("alex").items()}, folder / "negative.pth")
    for name, message in (("less", r"missing \(features.3.bias"), ("more", r"extra \(head.weight"), ("nan", "NaN")):
        with pytest.raises(ModelError, match=message):
            Lpips("alex", folder / f"{name}.pth", linear)
    with pytest.raises(ModelError, match="negative weights in lin0"):
        Lpips("alex", trunk, folder / "negative.pth")
    with pytest.raises(ModelError, match=r"misshapen .*torchvision's VGG16"):
        Lpips("vgg", trunk, linear)


def test_pictures_and_masks_that_do_not_fit_are_refused(judge: Lpips, pictures: Pictures) -> None:
    two = pictures(2, SIZE)
    whole = torch.ones(SIZE, SIZE)
    for pair in ((two, two[:1]), (pictures(1, 16), pictures(1, 16)), (two[:, :2], two[:, :2]), (two * torch.nan, two)):
        with pytest.raises(InputError):
            judge(*pair)
    for mask in (whole, 0 * whole, whole[1:], whole.expand(3, -1, -1)):
        with pytest.raises(InputError, match="mask"):
            judge.parts(two, two, mask)
