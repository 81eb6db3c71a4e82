from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.perception.identity import BLOCKS, ArcFace, IResNet
from tests.pipeline.perception.reference import IRESNETS, Drawn, iresnet

Pictures = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def drawn(pictures: Pictures) -> Drawn:
    net = Drawn(3)
    with torch.no_grad():
        iresnet(net, pictures(1, 112), "r18")
    return net


@pytest.fixture(scope="module")
def arcface(drawn: Drawn, folder: Path) -> ArcFace:
    torch.save(drawn.state, folder / "arcface-r18.pth")
    return ArcFace("r18", folder / "arcface-r18.pth")


def test_embeddings_and_cosines_are_those_of_an_independent_reading(
    arcface: ArcFace, drawn: Drawn, pictures: Pictures
) -> None:
    before, after = pictures(2, 112, 1), pictures(2, 112, 2)
    first, second = iresnet(drawn, before, "r18"), iresnet(drawn, after, "r18")
    torch.testing.assert_close(arcface.features(before), first, rtol=1e-3, atol=1e-3)
    cosines = (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
    torch.testing.assert_close(arcface(before, after), cosines, rtol=1e-3, atol=1e-4)


def test_the_same_face_has_cosine_one_and_the_cosine_is_symmetric(arcface: ArcFace, pictures: Pictures) -> None:
    before, after = pictures(1, 112, 3), pictures(1, 112, 4)
    torch.testing.assert_close(arcface(before, before), torch.ones(1))
    torch.testing.assert_close(arcface(before, after), arcface(after, before))
    assert float(arcface(before, before + 0.02 * after)) > float(arcface(before, after))


def test_faces_of_another_size_are_brought_to_that_of_the_network(arcface: ArcFace, pictures: Pictures) -> None:
    large = pictures(1, 112, 5).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    small = torch.nn.functional.interpolate(large, size=(112, 112), mode="bilinear", antialias=True)
    torch.testing.assert_close(arcface.features(large), arcface.features(small), rtol=1e-4, atol=1e-4)


def test_every_depth_has_the_names_of_insightface() -> None:
    for depth in BLOCKS:
        with torch.device("meta"):
            own = IResNet(depth).state_dict()
        assert set(own) == _names(depth), depth


def test_the_networks_are_as_large_as_insightface_says() -> None:
    with torch.device("meta"):
        counts = {depth: sum(p.numel() for p in IResNet(depth).parameters()) for depth in ("r50", "r100")}
    assert {depth: round(count / 1e6, 1) for depth, count in counts.items()} == {"r50": 43.6, "r100": 65.2}


def _names(depth: str) -> set[str]:
    """Names of insightface's state dict of a depth, from its blocks alone."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    names |= {f"{layer}.{part}" for layer in ("bn1", "bn2", "features") for part in norm}
    for stage, count in enumerate(IRESNETS[depth], start=1):
        for number in range(count):
            block = f"layer{stage}.{number}"
            names |= {f"{block}.{layer}.weight" for layer in ("conv1", "conv2", "prelu")}
            names |= {f"{block}.bn{i}.{part}" for i in (1, 2, 3) for part in norm}
        names |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{part}" for part in norm}
    return names


def test_a_file_of_another_depth_is_refused(arcface: ArcFace, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"missing \(layer1.2.bn1.weight.*insightface's r50"):
        ArcFace("r50", folder / "arcface-r18.pth")


def test_weights_in_half_precision_are_computed_with_in_single(drawn: Drawn, folder: Path, pictures: Pictures) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in drawn.state.items()}
    torch.save(half, folder / "half.pth")
    features = ArcFace("r18", folder / "half.pth").features(pictures(1, 112, 6))
    assert features.dtype == torch.float32 and features.shape == (1, 512)
    assert ArcFace("r18", folder / "half.pth").features(pictures(0, 64)).shape == (0, 512)


def test_pairs_of_different_shapes_are_refused(arcface: ArcFace, pictures: Pictures) -> None:
    with pytest.raises(InputError, match="after"):
        arcface(pictures(2, 112), pictures(1, 112))
