from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from pipeline.checkpoints import load_checkpoint, replace_file, save_checkpoint
from pipeline.errors import InputError

CPU = torch.device("cpu")


class Settings(BaseModel):
    steps: int = 3
    widths: tuple[int, ...] = (8, 16)


def test_what_is_saved_is_loaded_and_nothing_else_lies_there(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, Settings(), CPU) is None
    save_checkpoint(tmp_path, Settings(), {"weights": torch.arange(3.0), "step": 2}, [0.5, 0.25])
    state = load_checkpoint(tmp_path, Settings(), CPU)
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert (state["step"], state["losses"]) == (2, [0.5, 0.25])
    assert json.loads((tmp_path / "losses.json").read_text()) == [0.5, 0.25]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "losses.json"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Settings(), {}, [])
    with pytest.raises(InputError, match="training: steps: found 4; expected 3"):
        load_checkpoint(tmp_path, Settings(steps=4), CPU)
    with pytest.raises(InputError, match="training: widths"):
        load_checkpoint(tmp_path, Settings(widths=(8,)), CPU)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="a damaged checkpoint"):
        load_checkpoint(tmp_path, Settings(), CPU)


def test_a_full_disk_keeps_the_former_file_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "losses.json", b"[1]")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "losses.json", b"[1, 2]")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"losses.json": b"[1]"}
