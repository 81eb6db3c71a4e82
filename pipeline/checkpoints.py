"""Checkpoints of trainings: whole or absent on disk, and continued under the settings they were begun with only."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from pipeline.errors import InputError

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.json"


def replace_file(path: Path, data: bytes) -> None:
    """The whole new file or the old one, whenever the process dies."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(folder: Path, config: BaseModel, state: dict[str, Any], losses: Sequence[float]) -> None:
    """Write `state` (tensors and plain values) with its settings, and the losses so far.

    The losses first: whoever finds a checkpoint finds at least its losses.
    """
    buffer = io.BytesIO()
    torch.save({**state, "config": config.model_dump_json(), "losses": list(losses)}, buffer)
    replace_file(folder / LOSSES, json.dumps(list(losses)).encode())
    replace_file(folder / CHECKPOINT, buffer.getvalue())


def load_checkpoint(folder: Path, config: BaseModel, device: torch.device) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, `losses` included; None where nothing was begun.

    Raises:
        InputError: the checkpoint is damaged, or of a run with other settings.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(str(path), "a damaged checkpoint", "a whole one", "Delete it to begin anew.") from error
    there, wanted = json.loads(state.get("config", "{}")), json.loads(config.model_dump_json())
    for name, value in there.items():
        if wanted.get(name) != value:
            raise InputError(
                f"training: {name}", wanted.get(name), f"{value}, as in {path}",
                "Train with the settings that were begun with, or in another folder.",
            )  # fmt: skip
    return state
