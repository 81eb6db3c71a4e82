"""A GPU is a concurrency limit of the server: held while mining, waited for by others."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.concurrency.sync import concurrency

from flows.orchestration import gpus as module
from flows.orchestration.gpus import PREFIX, gpus, limits_here

NAME = f"{PREFIX}-of-a-test"


def test_without_a_gpu_nothing_is_held() -> None:
    assert limits_here() == []


def test_a_gpu_is_held_by_one_run_at_a_time_and_given_back(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "limits_here", lambda: [NAME])

    def taken() -> int:
        return int(client.read_global_concurrency_limit_by_name(NAME).active_slots)

    with gpus("processes") as held:
        assert held == [NAME]
        assert taken() == 1
        with pytest.raises(TimeoutError), concurrency(NAME, timeout_seconds=1):
            pass
        with gpus("dask") as elsewhere:
            assert elsewhere == []
    assert taken() == 0
    with gpus("here"):
        assert taken() == 1
