"""Libraries that load models, kept from talking while they do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(logging: Any) -> Iterator[None]:
    """No log lines, warnings or progress bars while a library loads: what matters among them is checked and raised.

    Args:
        logging: `diffusers.utils.logging` or `transformers.utils.logging`, which have the same switches.
    """
    level, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if progress:
            logging.enable_progress_bar()
