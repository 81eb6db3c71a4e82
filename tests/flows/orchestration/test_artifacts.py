"""A run on the page of a real Prefect server."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from catalog.writer import CatalogWriter
from flows.pictures import png
from flows.watching import artifacts, run_report
from flows.watching.artifacts import data_uri, keys
from flows.watching.events import event
from flows.watching.progress import Progress
from tests.catalog.samples import chunk_of, provenance


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Path]:
    with CatalogWriter.create(tmp_path / "c", provenance()) as writer:
        writer.commit(chunk_of("a", images=4))
    yield tmp_path / "c"


def of_run(client: SyncPrefectClient, flow_run_id: str) -> dict[str, Artifact]:
    """The artifacts of a flow run by type."""
    found = client.read_artifacts(limit=200)
    own = [artifact for artifact in found if str(artifact.flow_run_id) == flow_run_id]
    assert len(own) == len({artifact.type for artifact in own}), "made once, then renewed"
    return {str(artifact.type): artifact for artifact in own}


def test_a_flow_run_shows_progress_figures_and_at_last_its_report_with_the_contact_sheet(
    client: SyncPrefectClient, catalog: Path
) -> None:
    between: dict[str, Artifact] = {}

    @flow(name="artifacts of a run")
    def mine() -> str:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        run_id = str(context.flow_run.id)
        progress = Progress(4, str(catalog), name="Faces of [me]")
        board = artifacts.begin(progress)
        progress.watchers.append(board)
        note = {"images": 2, "directions": 20, "psnr": [40.0, 42.0], "residual": [0.01, 0.02]}
        progress.add({**note, "failed": {"x.png": "RuntimeError: out of memory | 9"}})
        board.settle()
        between.update(of_run(client, run_id))
        with artifacts.logged():
            event("chunk committed", logging.WARNING, chunk="c1")
        progress.add({"images": 1, "directions": 10})
        progress.end("finished")
        report = run_report.report_of(catalog, progress)
        artifacts.finish(progress, report, run_report.write(report, catalog))
        return run_id

    run_id = mine()
    assert between["progress"].data == 75.0
    assert "residual" in between["table"].data
    after = of_run(client, run_id)
    assert {artifact.key for artifact in after.values()} == set(keys("Faces of [me]").values())
    assert after["progress"].data == 100.0
    assert after["progress"].id == between["progress"].id
    table = {row["what"]: row for row in json.loads(after["table"].data)}
    assert table["round trip"]["value"] == "41 dB"
    assert table["failed"] == {"what": "failed", "value": "1", "more": "RuntimeError: out of memory | #"}
    text = after["markdown"].data
    assert "out of memory \\| \\#" in text and "| mouth | x | local | 8 |" in text
    picture = text.split("![contact sheet](data:image/jpeg;base64,")[1].split(")")[0]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size[0] > 300
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    for _ in range(50):  # logs are sent in the background
        events = [json.loads(log.message) for log in client.read_logs(wanted) if log.name == "rhumb"]
        if events:
            break
        time.sleep(0.2)
    assert [(one["event"], one["level"], one["chunk"]) for one in events] == [("chunk committed", "warning", "c1")]


def test_a_server_that_hangs_holds_no_run_up(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(4, str(catalog))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{deaf.getsockname()[1]}/api"}):
            board = artifacts.begin(progress)
            board(progress)  # returns, though nobody will ever answer
        monkeypatch.setattr(artifacts, "EVERY", 0.1)
        with deaf.accept()[0], pytest.raises(TimeoutError, match="no answer"):
            board.settle()


def test_keys_are_made_of_any_name() -> None:
    assert keys("Faces 64 [me]/x")["progress"] == "rhumb-faces-64-me-x-progress"
    assert keys("\u00fc\u00df!")["table"] == "rhumb-catalog-figures"
    assert all(len(key) < 100 for key in keys("x" * 500).values())


def test_a_sheet_too_large_for_an_artifact_is_made_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3)).astype(np.uint8)
    address = data_uri(png(noise))
    assert address is not None and len(address) < 450_000
