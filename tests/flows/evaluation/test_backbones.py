from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.evaluation.backbones import VARIABLE, backbones_folder, look_for_backbones
from pipeline.errors import InputError


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


def test_an_empty_folder_of_the_environment_leaves_every_figure_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    found = look_for_backbones()
    assert len(found.absent) == 4 and all(reason.startswith("no file ") for reason in found.absent.values())


def test_looking_for_the_folder_does_not_wait_for_torch() -> None:
    code = "import sys, flows.evaluation.backbones; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
