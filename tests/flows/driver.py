"""Run by the tests in a process of its own: one `rhumb` command, with small chunks and, if asked, a sudden death.

python -m tests.flows.driver DIE_AT_CALL COMMAND...: at that call of `mine_image` the process kills itself. With "quick"
instead of a number it lives, and mines nothing real.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

import flows.mining
from flows.cli import main
from tests.flows import tiny

mine_image = flows.mining.mine_image
calls = 0


def mortal(*arguments: Any) -> Any:
    global calls
    calls += 1
    if calls == DIE_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return mine_image(*arguments)


if __name__ == "__main__":
    quick = sys.argv[1] == "quick"
    DIE_AT = 0 if quick else int(sys.argv[1])
    torch.set_num_threads(1)
    flows.mining.CHUNK = tiny.CHUNK
    flows.mining.mine_image = tiny.quick_mine_image if quick else mortal
    sys.exit(main(sys.argv[2:]))
