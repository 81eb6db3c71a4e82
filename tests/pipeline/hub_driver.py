"""A client of the Hub in a process of its own, since huggingface_hub reads its environment when it is imported.

Standard input: a JSON list of jobs, {"load": arguments of load_denoiser} or {"write": [path, text]}. Standard output:
one result each, what was loaded, or {"error": message}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

TOKEN = "hf_" + "verysecret" * 3


def run(jobs: list[dict[str, Any]], home: Path, endpoint: str, *, offline: bool = False) -> list[dict[str, Any]]:
    """The results of `jobs`, done by a fresh process whose Hub is at `endpoint` and whose cache lies in `home`."""
    return run_client("tests.pipeline.hub_driver", jobs, home, endpoint, offline=offline)


def run_client(
    module: str, jobs: list[dict[str, Any]], home: Path, endpoint: str, *, offline: bool
) -> list[dict[str, Any]]:
    """What `python -m module` answers to `jobs` on its standard input, and what it wrote to standard error."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(jobs), capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the client ended with {done.returncode}:\n{done.stderr}")
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return [*results, {"stderr": done.stderr}]


def _do(job: dict[str, Any]) -> dict[str, Any]:
    from pipeline.errors import ModelError
    from pipeline.models.loading import load_denoiser

    if "write" in job:
        path, text = job["write"]
        Path(path).write_text(text, encoding="utf-8")
        return {}
    try:
        denoiser = load_denoiser(**job["load"])
    except ModelError as error:
        return {"error": str(error)}
    if denoiser.origin is None:
        return {"error": "no origin"}
    return {"fingerprint": denoiser.info.fingerprint, **asdict(denoiser.origin)}


if __name__ == "__main__":
    print(json.dumps([_do(job) for job in json.load(sys.stdin)]))
