"""One real Prefect server and worker for the session, as `rhumb up` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from tests.flows import tiny
from tests.flows.orchestration.served import Served, serve


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Server and worker of the pool `rhumb`, four runs at once."""
    with serve(tmp_path_factory.mktemp("service"), "--workers", "4") as up:
        yield up


@pytest.fixture
def client(served: Served) -> Iterator[SyncPrefectClient]:
    """A client of that server, which commands of the test find too."""
    with (
        temporary_settings({PREFECT_API_URL: served.url, PREFECT_HOME: served.home}),
        get_client(sync_client=True) as found,
    ):
        yield found


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with two photographs, their masks and a recipe of a name of its own."""
    tiny.photographs(tmp_path, count=2)
    tiny.recipe(tmp_path, tiny_model, name=f"r-{tmp_path.parent.name}-{tmp_path.name}"[:80].rstrip("-"))
    return tmp_path
