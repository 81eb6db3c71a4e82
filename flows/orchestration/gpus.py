"""One run at a time on a GPU: a global concurrency limit of the server for each, by what the GPU itself is called, so
that it is the same under any CUDA_VISIBLE_DEVICES and no other machine's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.concurrency.sync import concurrency

from flows.devices import gpu_names, only
from flows.run_settings import RunSettings

PREFIX = "rhumb-gpu-"
_TRY_SECONDS = 10.0  # for one GPU that is free: a busy server takes its time
_AGAIN_SECONDS = 5.0


def make_limits(client: SyncPrefectClient) -> list[str]:
    """Make the limits of this machine's GPUs where they are not there yet; the names of the GPUs."""
    names = gpu_names()
    for name in names:
        client.upsert_global_concurrency_limit_by_name(PREFIX + name, 1)
    return names


@contextmanager
def gpus(settings: RunSettings) -> Iterator[list[str]]:
    """Hold as many of this machine's GPUs as a run with these settings uses, waiting for them: one where this process
    mines, else one for each worker. The run then sees no others. Empty where there is none, or where the workers are
    those of a cluster at an address, whose scheduler knows its GPUs.

    A server that goes away meanwhile does not end what is held.
    """
    if settings.runner in ("dask", "ray") and settings.address is not None:
        yield []
        return
    with get_client(sync_client=True) as client:
        names = make_limits(client)
    workers = 1 if settings.runner in ("here", "prefect") else settings.workers or len(names)
    if workers < len(names):
        with _some(names, workers) as held, only(held):
            yield held
    elif names:
        with _limits(names):
            yield names
    else:
        yield []


@contextmanager
def _limits(names: Sequence[str], patience: float | None = None) -> Iterator[None]:
    """Hold the limits of GPUs, all or none. Raises TimeoutError where others hold them for longer than `patience`."""
    limits = [PREFIX + name for name in names]
    with concurrency(limits, occupy=1, timeout_seconds=patience, raise_on_lease_renewal_failure=False):
        yield


def _free(names: Sequence[str]) -> list[str]:
    """Those of some GPUs that nobody holds now."""
    with get_client(sync_client=True) as client:
        limits = {name: client.read_global_concurrency_limit_by_name(PREFIX + name) for name in names}
    return [name for name, limit in limits.items() if limit.active_slots < limit.limit]


@contextmanager
def _some(names: Sequence[str], wanted: int) -> Iterator[list[str]]:
    """Hold any so many of some GPUs. None is kept while there are too few, so that no two runs wait for each other."""
    while True:
        with ExitStack() as stack:
            held: list[str] = []
            for name in _free(names):
                if len(held) < wanted:
                    try:
                        stack.enter_context(_limits([name], _TRY_SECONDS))
                    except TimeoutError:
                        continue
                    held.append(name)
            if len(held) == wanted:
                yield held
                return
        time.sleep(_AGAIN_SECONDS)
