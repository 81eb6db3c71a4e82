"""Run by test_killed: mines in forked children that die by SIGKILL just before their n-th change to the disk.

python -m tests.flows.coordinator.crash_driver RECIPE WORK STRIDE: the n-th child mines into WORK/n, where mining
itself is quick. Prints how each child ended, as JSON. The parent only imports, loads and forks, so no thread is ever
copied.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

import flows.miner
import flows.mining
from flows.datasets.dataset import load_dataset
from flows.opening import open_model
from flows.recipe import load_recipe
from tests.catalog.crash_driver import arm
from tests.flows import tiny


def main(recipe_path: Path, work: Path, stride: int) -> None:
    recipe = load_recipe(recipe_path)
    denoiser = open_model(recipe.model, "cpu")
    data = load_dataset(recipe, denoiser.info.image_shape)
    endings: list[int] = []
    while not endings or endings[-1] == -signal.SIGKILL:
        step = stride * len(endings)
        child = os.fork()
        if child == 0:
            arm(step)
            flows.mining.mine(recipe, work / str(step), denoiser, data)
            os._exit(0)
        endings.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(endings))


if __name__ == "__main__":
    torch.set_num_threads(1)
    flows.mining.CHUNK = tiny.CHUNK
    flows.miner.mine_image = tiny.quick_mine_image
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
