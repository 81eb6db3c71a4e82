from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.evaluation.backbones import VARIABLE, backbones_folder, for_pictures, look_for_backbones
from flows.evaluation.tables import FIRST, SECOND
from flows.evaluation.world import World
from flows.recipe import load_recipe
from pipeline.errors import InputError
from tests.flows.tiny import model, photographs, recipe
from tests.pipeline.perception.reference import Drawn, alexnet, linear_layers, vgg16


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both networks of LPIPS, random."""
    folder = tmp_path_factory.mktemp("weights")
    for name, network in (("alex", alexnet), ("vgg", vgg16)):
        net = Drawn()
        with torch.no_grad():
            network(net, torch.zeros(1, 3, 64, 64))
        torch.save(net.state, folder / ("alexnet.pth" if name == "alex" else "vgg16.pth"))
        torch.save(linear_layers(name), folder / f"{name}.pth")
    return folder


def test_the_option_comes_before_the_environment_and_nothing_is_no_folder(tmp_path: Path) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    given.mkdir()
    named.mkdir()
    environment = {VARIABLE: str(named)}
    assert backbones_folder(given, environment) == given
    assert backbones_folder(None, environment) == named
    assert backbones_folder(None, {}) is None and backbones_folder(None, {VARIABLE: ""}) is None


def test_a_folder_that_is_not_there_is_an_error_that_says_who_named_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(InputError, match="--backbones: found"):
        backbones_folder(missing, {})
    with pytest.raises(InputError, match=f"{VARIABLE}: found"):
        backbones_folder(None, {VARIABLE: str(missing)})


def test_an_empty_folder_of_the_environment_leaves_every_figure_of_the_tables_absent_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = look_for_backbones()
    assert all(reason.startswith("no file ") for reason in found.absent.values())
    columns = [column.title for column in FIRST + SECOND]
    judged = [title for title in columns if re.search("AlexNet|ArcFace|Inception", title)]
    networks = [re.search(r"\((.*)\)", name) for name in found.absent]
    assert [title for network in networks for title in columns if network and network[0] in title] == judged
    assert "KID (Inception)" in found.absent and len(found.absent) == len(judged) == 3


def test_a_network_that_no_table_shows_is_neither_used_nor_named(weights: Path) -> None:
    found = look_for_backbones(weights)
    assert found.alex is not None and found.vgg is None
    assert list(found.evidence()) == ["LPIPS (AlexNet)"]
    assert list(found.absent) == ["identity (ArcFace)", "KID (Inception)"]


@pytest.mark.parametrize(("shape", "fits"), [((3, 32, 32), True), ((3, 64, 31), False), ((1, 16, 16), False)])
def test_pictures_too_small_for_a_network_leave_its_figure_absent_and_say_so(
    weights: Path, shape: tuple[int, int, int], fits: bool
) -> None:
    found = for_pictures(look_for_backbones(weights), shape)
    reason = f"pictures here are {shape[1]} x {shape[2]} pixels, and it needs at least 32 x 32"
    assert (found.alex is not None) == fits
    assert found.absent.get("LPIPS (AlexNet)") == (None if fits else reason)
    assert ("LPIPS (AlexNet)" in found.evidence()) == fits


def test_an_edit_of_small_pictures_is_judged_by_what_can_judge_it(weights: Path, tmp_path: Path) -> None:
    photographs(tmp_path)
    for size, judged in ((16, set()), (32, {"lpips"})):
        path = recipe(tmp_path, model(tmp_path / f"model{size}", size=size))
        world = World(load_recipe(path), tmp_path / "evaluation", backbones=weights)
        before, after = torch.zeros(2, 3, size, size)
        assert set(world.perception(before, after, torch.eye(size) > 0)) == judged
        assert ("LPIPS (AlexNet)" in world.backbones.absent) == (not judged)


def test_looking_for_the_folder_does_not_wait_for_torch() -> None:
    code = "import sys, flows.evaluation.backbones; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
