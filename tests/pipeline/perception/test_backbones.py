from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.perception import backbones
from pipeline.perception.backbones import FILES, IDENTITY, LPIPS_ALEX, LPIPS_VGG, found_backbones
from pipeline.perception.weights import weight_file
from tests.pipeline.perception.reference import Drawn, alexnet, linear_layers


@pytest.fixture(scope="module")
def alex(folder: Path) -> Path:
    """A folder with AlexNet and the layers of LPIPS, and nothing else."""
    net = Drawn()
    with torch.no_grad():
        alexnet(net, torch.zeros(1, 3, 64, 64))
    torch.save(net.state, folder / "alexnet.pth")
    torch.save(linear_layers("alex"), folder / "alex.pth")
    return folder


def test_without_a_folder_every_figure_is_absent_and_the_files_that_would_serve_are_named() -> None:
    found = found_backbones(None)
    assert set(found.absent) == set(FILES) and found.evidence() == {}
    assert (found.alex, found.vgg, found.identity, found.inception) == (None, None, None, None)
    for figure, needed in FILES.items():
        assert all(name in found.absent[figure] for names in needed for name in names)


def test_what_lies_in_the_folder_is_found_and_the_rest_named_as_absent(alex: Path) -> None:
    found = found_backbones(alex)
    assert found.alex is not None and found.alex.name == LPIPS_ALEX and found.alex.name not in found.absent
    assert set(found.absent) == set(FILES) - {LPIPS_ALEX}
    assert found.vgg is None and "vgg16-397923af.pth" in found.absent[LPIPS_VGG]
    assert str(alex) not in " ".join(found.absent.values())


def test_half_of_the_files_is_an_absence_that_names_the_other_half(alex: Path, tmp_path: Path) -> None:
    (tmp_path / "alex.pth").write_bytes((alex / "alex.pth").read_bytes())
    reason = found_backbones(tmp_path).absent[LPIPS_ALEX]
    assert "alexnet-owt-7be5be79.pth" in reason and "alex.pth" not in reason.split()


def test_the_evidence_is_each_files_sha256_and_says_that_it_is_not_the_authors(alex: Path) -> None:
    evidence = found_backbones(alex).evidence()
    content = (alex / "alexnet.pth").read_bytes()
    trunk = evidence[LPIPS_ALEX][0]
    assert trunk == {
        "name": "alexnet.pth", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "published": False,
    }  # fmt: skip
    assert json.loads(json.dumps(evidence)) == evidence


def test_hashes_are_those_of_the_files_without_names_and_whoever_published_them(alex: Path) -> None:
    own = [hashlib.sha256((alex / name).read_bytes()).hexdigest() for name in ("alexnet.pth", "alex.pth")]
    assert found_backbones(alex).hashes() == {LPIPS_ALEX: own}
    assert found_backbones(None).hashes() == {}


def test_a_file_counts_as_published_by_its_hash(alex: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = alex / "alexnet.pth"
    monkeypatch.setattr("pipeline.perception.weights.PUBLISHED", (weight_file(path).sha256[:8],))
    assert weight_file(path).published and not weight_file(alex / "alex.pth").published


def test_a_file_whose_name_carries_another_hash_is_refused(alex: Path, tmp_path: Path) -> None:
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes((alex / "alexnet.pth").read_bytes())
    (tmp_path / "alex.pth").write_bytes((alex / "alex.pth").read_bytes())
    with pytest.raises(ModelError, match="sha256 .* expected the 7be5be79... of its name"):
        found_backbones(tmp_path)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_bad_files_are_one_clear_error_and_never_an_absence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "arcface-r18.pth"
    torch.save({"conv1.weight": torch.zeros(2), "epoch": 3}, tmp_path / "mixed.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    contents = {
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "Git-LFS pointer",
        b"<!doctype html><html></html>": "web page",
        b"nothing": "damaged",
        pickle.dumps({"conv1.weight": Code()}, protocol=2): "asks for code",
        (tmp_path / "mixed.pth").read_bytes(): "epoch, which is no tensor",
        (tmp_path / "list.pth").read_bytes(): "found list",
    }
    for content, message in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            found_backbones(tmp_path)
    assert "run" not in capsys.readouterr().out
    (tmp_path / name).unlink()
    (tmp_path / "arcface-r50.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="arcface-r50.safetensors.*truncated or damaged"):
        found_backbones(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backbones"):
        found_backbones(tmp_path / "none")


def test_the_documented_table_names_every_file_and_no_other() -> None:
    documented = set((backbones.__doc__ or "").replace(",", " ").split())
    names = {name for needed in FILES.values() for group in needed for name in group}
    assert names <= documented
    assert {word for word in documented if word.endswith((".pth", ".safetensors")) and word[0] != "`"} <= names | {
        "backbone.pth"
    }
    assert next(iter(FILES[IDENTITY][0])) == "arcface-r100.pth"  # the deepest comes first


def test_reading_weights_draws_nothing_at_random(alex: Path) -> None:
    state = torch.get_rng_state()
    found_backbones(alex)
    assert torch.equal(torch.get_rng_state(), state)
