"""What every runner does when workers die: it finds the image that ends them, gives it up, and goes on with the rest.

What was in hand is done again, one piece at a time, then each image of a piece by itself: one whose worker dies again
has failed. A run ends only where worker after worker dies and nothing is done between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from flows.work import Desk, Work
from pipeline.errors import InputError

DEATHS = 5  # in a row, with nothing done between, after which a run ends: it is no single image then

Attempt = Callable[[Iterable[Work]], Iterator[bool]]
"""Has works done by workers. Yields whether any was since the last time. Raises WorkerDied once nothing is in hand but
what it names."""


class WorkerDied(Exception):
    """A process that was mining ended without a word: the system killed it, or it crashed. `in_hand`: what it, or one
    of several, was mining then."""

    def __init__(self, in_hand: Sequence[Work]) -> None:
        super().__init__(f"{len(in_hand)} works in hand")
        self.in_hand = in_hand


def surviving(desk: Desk, works: Iterable[Work], workers: int, together: Attempt, single: Attempt) -> Iterator[None]:
    """Have works done by `together`, and by `single`, one at a time, what was in hand when a worker died.

    Raises InputError: DEATHS in a row, and nothing done between.
    """
    rest, deaths = iter(works), 0
    while deaths < DEATHS:
        try:
            for done in together(rest):
                deaths = 0 if done else deaths
                yield
            return
        except WorkerDied as death:
            deaths, in_hand = deaths + 1, death.in_hand
        for done in _alone(desk, in_hand, single):
            deaths = 0 if done else deaths
            yield
    raise InputError(
        "--workers", f"{workers} processes, of which {DEATHS} died in a row", "processes that live, which takes memory",
        "Run the same command again with fewer: what was mined is kept.",
    )  # fmt: skip


def _alone(desk: Desk, works: Sequence[Work], single: Attempt) -> Iterator[bool]:
    """Have each piece of work done with nothing beside it, to find the image that ends its worker."""
    for work in works:
        if desk.stopping():
            return
        try:
            yield from single([work])
        except WorkerDied:
            if len(work.items) > 1:
                yield from _alone(desk, [Work((item,)) for item in work.items], single)
            else:
                desk.give_up(work, "the process that mined it died, twice")
