"""What every benchmark shares: its options, targets, intervals, cost counters, and the answer as table or JSON.

`python -m tests.benchmarks.NAME [--quick] [--json] [--save FILE]`: progress goes to stderr, the answer to stdout. The
JSON holds `targets`, a list of {name, value, target, met}, every value measured in that run, and `details`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from flows.console import answer
from pipeline.models.contract import Denoiser


@dataclass(frozen=True)
class Target:
    """One bar: what was measured, what it should be in words, and whether it is."""

    name: str
    value: float
    target: str
    met: bool


def at_least(name: str, value: float, bar: float) -> Target:
    return Target(name, value, f">= {bar:g}", value >= bar)


def at_most(name: str, value: float, bar: float) -> Target:
    return Target(name, value, f"<= {bar:g}", value <= bar)


def between(name: str, value: float, low: float, high: float) -> Target:
    return Target(name, value, f"{low:g} to {high:g}", low <= value <= high)


@dataclass
class Clock:
    """Seconds and network passes by stage; one pass is one image through the whole network."""

    passes: int = 0
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun, before = time.monotonic(), self.passes
        yield
        spent = self.stages.setdefault(name, {"seconds": 0.0, "network_passes": 0})
        spent["seconds"] += time.monotonic() - begun
        spent["network_passes"] += self.passes - before


class CountingDenoiser(Denoiser):
    """A denoiser that counts the images sent through it; products with Jacobians are counted by their operators."""

    def __init__(self, inner: Denoiser, clock: Clock) -> None:
        self._inner, self.clock = inner, clock
        self.info, self.device, self.dtype = inner.info, inner.device, inner.dtype

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self._inner.alpha_sigma(t)

    def predict_noise(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        self.clock.passes += len(x)
        return self._inner.predict_noise(x, t, h_shift)

    def posterior_mean(self, x: torch.Tensor, t: int, h_shift: torch.Tensor | None = None) -> torch.Tensor:
        self.clock.passes += len(x)
        return self._inner.posterior_mean(x, t, h_shift)

    def bottleneck(self, x: torch.Tensor, t: int) -> torch.Tensor:
        self.clock.passes += len(x)
        return self._inner.bottleneck(x, t)

    def noise_from_bottleneck(self, x: torch.Tensor, t: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return self._inner.noise_from_bottleneck(x, t)

    def differentiable(self) -> Denoiser:
        return self._inner.differentiable()


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % interval by bootstrap over images, and over how many values."""

    estimate: float
    low: float
    high: float
    count: int


def figure(
    values: Sequence[float],
    images: Sequence[str],
    statistic: Literal["median", "mean"] = "median",
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Percentile bootstrap that draws whole images: values of one image are not independent of each other.

    `images` names the image of each value. Infinite values are kept (a median survives some); no values give NaN.
    """
    if not values:
        return Figure(math.nan, math.nan, math.nan, 0)
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    numbers = np.asarray(values, dtype=np.float64)[order]
    _, image_of = np.unique(np.asarray(images)[order], return_inverse=True)
    count = int(image_of.max()) + 1
    pick = np.random.default_rng(seed).integers(count, size=(samples, count))
    drawn = np.zeros((samples + 1, count), dtype=np.int64)  # how often each sample drew each image
    np.add.at(drawn, (np.arange(samples)[:, None], pick), 1)
    drawn[-1] = 1  # the last row is the data itself
    compute = _medians if statistic == "median" else _means
    results = compute(numbers, drawn[:, image_of])
    low, high = np.sort(results[:-1])[[round(q * (samples - 1)) for q in (0.025, 0.975)]]
    return Figure(float(results[-1]), float(low), float(high), len(values))


def _medians(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Medians (s,) of sorted `numbers` (n,) repeated `weights` (s, n) times."""
    until = weights.cumsum(1)
    total = until[:, -1:]
    ends = [numbers[(until <= middle).sum(1)] for middle in ((total - 1) // 2, total // 2)]
    result: np.ndarray = np.where(ends[0] == ends[1], ends[0], 0.5 * ends[0] + 0.5 * ends[1])
    return result


def _means(numbers: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (s,) of `numbers` (n,) repeated `weights` (s, n) times; infinite numbers count only where drawn."""
    finite = np.isfinite(numbers)
    sums = weights[:, finite] @ numbers[finite]
    broken = (weights[:, ~finite] > 0).any(1)
    return np.where(broken, np.inf, sums / weights.sum(1))


@dataclass(frozen=True)
class Options:
    """The options every benchmark has; `extra` holds its own."""

    quick: bool
    json: bool
    save: Path | None
    extra: argparse.Namespace


def options(
    name: str,
    description: str,
    argv: Sequence[str] | None,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Options:
    """Parse the command line of one benchmark; `more` adds its own options."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="few images: a smoke test with wide intervals")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of tables")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the JSON document to FILE")
    more(parser)
    given = parser.parse_args(argv)
    return Options(given.quick, given.json, given.save, given)


def plain(value: Any) -> Any:
    """`value` as strict JSON holds it: dataclasses as mappings, tensors as lists, NaN and infinities as null."""
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def document(
    name: str, quick: bool, targets: Sequence[Target], details: Mapping[str, Any], clock: Clock
) -> dict[str, Any]:
    """The JSON document of one run."""
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    seconds = sum(stage["seconds"] for stage in clock.stages.values())
    content = {
        "benchmark": name,
        "mode": "quick" if quick else "full",
        "targets": list(targets),
        "details": details,
        "cost": {"seconds": seconds, "network_passes": clock.passes, "stages": clock.stages},
        "machine": machine,
    }
    result = plain(content)
    assert isinstance(result, dict)
    return result


def save_json(content: Mapping[str, Any] | Sequence[Any], path: Path) -> None:
    """Write `content` to `path` in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def finish(content: Mapping[str, Any], given: Options, tables: Callable[[], None] = lambda: None) -> int:
    """Print the answer and save it where asked. Returns 0: an unmet target is an answer, not a failure to run."""
    if given.save is not None:
        save_json(content, given.save)

    def text() -> None:
        tables()
        rows = [(t["name"], _shown(t["value"]), t["target"], "yes" if t["met"] else "NO") for t in content["targets"]]
        table(f"{content['benchmark']} ({content['mode']})", ("target", "measured", "wanted", "met"), rows)
        cost = content["cost"]
        sys.stdout.write(f"{cost['seconds']:.0f} s, {cost['network_passes']:,} network passes\n")

    answer(content, given.json, text)
    return 0


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print an aligned table on stdout without wrapping: logs have no width, and these rows are long."""
    cells = [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    sys.stdout.write("\n".join([title, "-" * len(title), *lines, "", ""]))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
