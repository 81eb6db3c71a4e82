from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.perception.inception import Inception, InceptionNetwork
from tests.pipeline.perception.reference import Drawn, inception

Pictures = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def case(pictures: Pictures, folder: Path) -> tuple[Inception, torch.Tensor, torch.Tensor]:
    """The network on a file of random weights, a picture and the features that an independent reading gives it."""
    picture, net = pictures(1, 299, 1), Drawn(4)
    with torch.no_grad():
        expected = inception(net, picture)
    torch.save(net.state, folder / "inception.pth")
    return Inception(folder / "inception.pth"), picture, expected


def test_features_are_those_of_an_independent_reading(case: tuple[Inception, torch.Tensor, torch.Tensor]) -> None:
    network, picture, expected = case
    assert expected.shape == (1, network.width) and float(expected.std()) > 0.01
    torch.testing.assert_close(network.features(picture), expected, rtol=1e-3, atol=1e-4)


def test_pictures_are_clamped_and_resized_bilinearly(
    case: tuple[Inception, torch.Tensor, torch.Tensor], pictures: Pictures
) -> None:
    network, *_ = case
    small = 1.5 * pictures(1, 64, 2)
    resized = torch.nn.functional.interpolate(small.clamp(-1, 1), size=(299, 299), mode="bilinear")
    torch.testing.assert_close(network.features(small), network.features(resized), rtol=1e-4, atol=1e-5)
    assert network.features(small[:0]).shape == (0, 2048)
    with pytest.raises(InputError, match="pictures"):
        network.features(small[0])


def test_the_network_has_the_parameters_of_torchvisions_with_1008_classes_and_no_auxiliary_head() -> None:
    with torch.device("meta"):
        network = InceptionNetwork()
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * 2049


def test_torchvisions_own_inception_is_refused(
    case: tuple[Inception, torch.Tensor, torch.Tensor], folder: Path
) -> None:
    state = torch.load(folder / "inception.pth", weights_only=True)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    torch.save(state, folder / "torchvision.pth")
    with pytest.raises(ModelError, match=r"misshapen \(fc.weight \(1000, 2048\).*not FID"):
        Inception(folder / "torchvision.pth")


def test_files_from_before_norms_counted_their_batches_are_read(
    case: tuple[Inception, torch.Tensor, torch.Tensor], folder: Path
) -> None:
    network, picture, _ = case
    state = torch.load(folder / "inception.pth", weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, folder / "old.pth")
    assert torch.equal(Inception(folder / "old.pth").features(picture), network.features(picture))
