"""Values as what JSON has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Number = Callable[[float], Any]


def null(_: float) -> None:
    """Nothing in the place of a number that JSON lacks."""
    return None


def plain(value: Any, lacking: Number = null) -> Any:
    """`value` as JSON: dataclasses, mappings and arrays unfolded, sequences as lists, paths as text.

    `lacking`: what becomes of NaN and infinities, which JSON lacks; `float` keeps them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return lacking(float(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), lacking) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, lacking) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), lacking)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item, lacking) for item in value]
    return str(value) if isinstance(value, Path) else value
