"""One run at a time on a GPU: a global concurrency limit of the server for each, by what the GPU itself is called, so
that it is the same under any CUDA_VISIBLE_DEVICES and no other machine's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.concurrency.sync import concurrency

PREFIX = "rhumb-gpu"
ELSEWHERE = ("dask", "ray")
"""Runners whose workers mine on machines of their own; their scheduler knows those GPUs."""


def limits_here() -> list[str]:
    """The names of the limits of the GPUs that this process may use; empty without any."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [f"{PREFIX}-{device.uuid}" for device in devices]


def make_limits(client: SyncPrefectClient) -> list[str]:
    """Make the limits of this machine's GPUs where they are not there yet; their names."""
    names = limits_here()
    for name in names:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    return names


@contextmanager
def gpus(runner: str) -> Iterator[list[str]]:
    """Hold this machine's GPUs, waiting for them; nothing where there is none, or the runner mines elsewhere.

    A server that goes away meanwhile does not end what is held.
    """
    if runner in ELSEWHERE:
        yield []
        return
    with get_client(sync_client=True) as client:
        names = make_limits(client)
    if not names:
        yield []
        return
    with concurrency(names, occupy=1, raise_on_lease_renewal_failure=False):
        yield names
