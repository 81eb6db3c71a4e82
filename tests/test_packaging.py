"""The wheel is whole: code, format, recipes, built-in model and images; it works from any folder, without the clone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
PACKAGES = ("pipeline", "catalog", "flows")
LARGEST = 40e6  # bytes; the model may take 16 MB and the images 8 MB
LEFTOVERS = ("__pycache__", "checkpoint.pt", ".tmp")


def sources(folder: str, pattern: str = "*") -> set[str]:
    """Files below a folder of the repository, by their path in it."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern) if path.is_file())
    return {path.as_posix() for path in found if not any(word in path.as_posix() for word in LEFTOVERS)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the working tree without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installer would into site-packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def metadata(installed: Path) -> Message:
    """What the wheel says of itself."""
    return message_from_string((installed / f"rhumb-{VERSION}.dist-info" / "METADATA").read_text(encoding="utf-8"))


def run(installed: Path, where: Path, *arguments: str) -> str:
    """Run this Python in `where` with the unpacked wheel before everything else; returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=where, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_the_format(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = set[str]().union(*(sources(package, "*.py") for package in PACKAGES))
    assert modules | {"catalog/format.md"} <= names
    assert {name.split("/")[0] for name in names} == {*PACKAGES, f"rhumb-{VERSION}.dist-info"}


def test_the_wheel_holds_the_built_in_data_and_nothing_else_of_its_folder(wheel: Path) -> None:
    data = {path.replace("data/", "flows/_data/", 1) for path in sources("data/recipes") | sources("data/builtin")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if name.startswith("flows/_data/")} == data
    for file in ("recipes/faces64-demo.yaml", "builtin/denoiser/model_index.json", "builtin/faces64/mine.parquet"):
        assert f"flows/_data/{file}" in names
    assert not [name for name in names if any(word in name for word in LEFTOVERS)]
    assert wheel.stat().st_size < LARGEST


def test_the_wheel_names_its_command_licence_and_pinned_torch(installed: Path) -> None:
    about = metadata(installed)
    information = installed / f"rhumb-{VERSION}.dist-info"
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("rhumb", VERSION, "Apache-2.0")
    assert "torch==2.13.0" in about.get_all("Requires-Dist", [])
    assert (information / "licenses" / "LICENSE").is_file()
    assert "rhumb = flows.cli:main" in (information / "entry_points.txt").read_text()


def test_an_installed_copy_uses_its_own_data_from_any_folder(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "-c", "from flows.paths import data_folder; print(data_folder())")
    assert Path(shown.strip()) == (installed / "flows" / "_data").resolve()


def test_an_installed_copy_inspects_the_built_in_model(installed: Path, tmp_path: Path) -> None:
    model = json.loads(run(installed, tmp_path, "-m", "flows.cli", "inspect", "builtin", "--json"))
    assert model["image_shape"] == [3, 64, 64]
    assert model["prediction"] == "v_prediction"
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_command_and_does_not_wait_for_torch(installed: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['rhumb', '--help']; from flows.cli import main\ntry: main()\nfinally: "
    shown = run(installed, tmp_path, "-c", code + "print('torch' in sys.modules)")
    assert shown.startswith("usage: rhumb") and shown.rstrip().endswith("False")


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == VERSION
    assert changes[0] == VERSION


def test_every_direct_dependency_is_pinned_in_the_tested_set() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line and not line.startswith("#")}
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=~!;]", requirement)[0].strip().lower() for requirement in wanted}
    assert names - {"rhumb"} <= pinned  # an extra may name another of the project's own


def test_everything_but_mask_models_and_prompts_works_without_the_optional_package() -> None:
    code = """
import importlib.metadata, importlib.util, sys
find, version = importlib.util.find_spec, importlib.metadata.version
def none(name, *rest):
    return None if name.split(".")[0] == "transformers" else find(name, *rest)
importlib.util.find_spec = none
sys.modules["transformers"] = None
import flows.commands, flows.running, flows.demo, flows.planning, flows.converting
from flows.opening import open_model
print(open_model("builtin").info.family)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "UNet2DModel" in done.stdout
