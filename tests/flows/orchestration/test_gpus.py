"""A GPU is a concurrency limit of the server: held while mining, waited for by others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.concurrency.sync import concurrency

from flows.devices import VISIBLE, gpu_names
from flows.orchestration import gpus as module
from flows.orchestration.gpus import PREFIX, gpus
from flows.run_settings import RunSettings

NAMES = ["of-a-test", "of-another-test"]
HERE, BOTH, ONE = RunSettings(runner="here"), RunSettings(), RunSettings(workers=1)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with two GPUs."""
    monkeypatch.setattr(module, "gpu_names", lambda: NAMES)
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.1)
    monkeypatch.delenv(VISIBLE, raising=False)
    return NAMES


def taken(client: SyncPrefectClient) -> list[int]:
    return [int(client.read_global_concurrency_limit_by_name(PREFIX + name).active_slots) for name in NAMES]


def test_without_a_gpu_nothing_is_held() -> None:
    assert gpu_names() == []


def test_a_gpu_is_held_by_one_run_at_a_time_and_given_back(client: SyncPrefectClient, two: list[str]) -> None:
    with gpus(BOTH) as held:
        assert held == two
        assert taken(client) == [1, 1]
        with pytest.raises(TimeoutError), concurrency(PREFIX + two[0], timeout_seconds=1):
            pass
    assert taken(client) == [0, 0]


@pytest.mark.parametrize("settings", [HERE, ONE, RunSettings(runner="dask", workers=1), RunSettings(runner="prefect")])
def test_a_run_holds_no_more_gpus_than_it_uses_and_sees_no_other(
    settings: RunSettings, client: SyncPrefectClient, two: list[str]
) -> None:
    with gpus(settings) as first:
        assert (first, os.environ[VISIBLE]) == (two[:1], f"GPU-{two[0]}")
        assert taken(client) == [1, 0]
        with gpus(ONE) as second:
            assert (second, os.environ[VISIBLE]) == (two[1:], f"GPU-{two[1]}")
    assert VISIBLE not in os.environ
    assert taken(client) == [0, 0]


def test_a_run_waits_until_a_gpu_is_free(client: SyncPrefectClient, two: list[str]) -> None:
    code = (
        "import sys, time; from prefect.concurrency.sync import concurrency\n"
        f"with concurrency({[PREFIX + name for name in two]}): print(flush=True); time.sleep(4)"
    )
    module.make_limits(client)
    own = {**os.environ, "PREFECT_API_URL": str(client.api_url)}
    with subprocess.Popen([sys.executable, "-c", code], env=own, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with gpus(ONE) as held:
            assert len(held) == 1 and held[0] in two  # both come free at once
            assert other.wait(10) == 0


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_cluster_elsewhere_holds_none_and_one_of_this_machine_all(
    runner: str, client: SyncPrefectClient, two: list[str]
) -> None:
    with gpus(RunSettings.model_validate({"runner": runner, "address": "tcp://elsewhere:8786"})) as elsewhere:
        assert elsewhere == []
    with gpus(RunSettings.model_validate({"runner": runner})) as held:
        assert held == two
