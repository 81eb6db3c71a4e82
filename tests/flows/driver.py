"""Run by the tests in a process of its own: one `rhumb` command, with small chunks and, if asked, a sudden end.

python -m tests.flows.driver PLAN COMMAND...: `quick` mines nothing real; `kill:FUNCTION:N` dies by SIGKILL just before
the N-th call of FUNCTION, written as flows.miner/mine_image; `interrupt:FUNCTION:N` gets SIGINT there.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import torch

import flows.miner
import flows.mining
from flows.cli import main
from tests.flows import tiny


def end_at(function: str, number: int, how: signal.Signals) -> None:
    """Send `how` to this process just before the `number`-th call of `function` (module/name/name)."""
    module, *path = function.split("/")
    owner = importlib.import_module(module)
    for name in path[:-1]:
        owner = getattr(owner, name)
    real = getattr(owner, path[-1])
    left = number

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), how)
        return real(*arguments, **keywords)

    setattr(owner, path[-1], call)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us started deaf to Ctrl-C
    torch.set_num_threads(1)
    flows.mining.CHUNK = tiny.CHUNK
    os.sched_getaffinity = lambda process: {0}  # one process mines unless the command asks for more
    plan, *details = sys.argv[1].split(":")
    if plan == "quick":
        flows.miner.mine_image = tiny.quick_mine_image
    else:
        end_at(details[0], int(details[1]), signal.SIGKILL if plan == "kill" else signal.SIGINT)
    sys.exit(main(sys.argv[2:]))
