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
from typing import Any

import torch

from flows.console import answer


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
