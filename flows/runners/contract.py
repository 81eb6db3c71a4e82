"""What a runner is: it has work done somewhere. Results do not come back through it: workers leave deposits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flows.work import Desk, Work

Runner = Callable[[Desk, Iterable[Work]], Iterator[None]]
"""Called with an open desk and works, which are read as they are needed. Yields often, about once a second at least
while it waits, and ends when all of them are done. Raises what ended a worker, but for what one image failed of."""


def run_here(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
    """The runner without others: piece by piece, in this process, with the model that is open."""
    for work in works:
        desk.do(work)
        yield
