"""Fingerprints: one hash of all that fixes a model's numbers, the same on every machine and wherever its files lie."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def fingerprint(settings: Sequence[Any], weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 over settings (as JSON) and weights (names, dtypes, shapes, bytes), first 32 hex digits.

    Only what is read enters: a number that was computed may differ in its last bits on another machine.
    Cost: every weight is hashed, about a second per gigabyte.
    """
    digest = hashlib.sha256(json.dumps(list(settings), sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def known_settings(network: Any) -> dict[str, Any]:
    """The configuration of a diffusers network without paths, versions and keys that its class does not know."""
    known = inspect.signature(type(network).__init__).parameters
    return {key: value for key, value in network.config.items() if key in known}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)
