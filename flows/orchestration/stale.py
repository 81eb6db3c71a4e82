"""Flow runs that Prefect still calls running though their process is dead: found by what they registered, and ended.

Prefect learns that a run is over from its process or from its worker; when the machine goes, neither tells. Such a run
would look busy for ever. So each run registers the catalog that it works on, by a tag, and its process, by labels. A
process of this machine is dead if no process has its id and start; one of another machine is known to be dead where
it had said that it holds the catalog's lock, and the lock was had here: only of a folder, since the lock of a store's
mirror says nothing about other machines.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from catalog.store import as_url
from flows.orchestration.processes import Process

TAG = "rhumb"
UNREGISTERED = timedelta(minutes=10)  # a run registers first of all: what runs longer without, never began
_LOCK = "rhumb.lock"
_BATCH = 200


def tag_of(place: str) -> str:
    """The tag of runs that work on the catalog at a place."""
    return f"catalog:{hashlib.sha256(place.encode()).hexdigest()[:16]}"


def register(run: UUID, place: str) -> None:
    """Say which catalog this flow run works on, and in which process."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run, dict(Process.this().labels()))
        tags = {*client.read_flow_run(run).tags, TAG, tag_of(place)}
        client.update_flow_run(run, tags=sorted(tags))


def hold(run: UUID, lock: str) -> None:
    """Say the lock of which catalog this flow run holds; "" for none, any more."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run, {_LOCK: lock})


def end_stale_runs(
    client: SyncPrefectClient, place: str | None = None, own: UUID | None = None, lock: str | None = None
) -> list[str]:
    """Set the runs of dead processes to Crashed, with the reason; their names.

    Args:
        client: of the server.
        place: only runs on this catalog, as they registered; None looks at all.
        own: the flow run that asks, which lives.
        lock: the catalog, a generation of `place`, whose lock that run holds.
    """
    ended = []
    for run in _unfinished(client, TAG if place is None else tag_of(place)):
        if run.id != own and (reason := why_dead(run, lock)):
            client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
            ended.append(run.name)
    return ended


def _unfinished(client: SyncPrefectClient, tag: str) -> list[FlowRun]:
    wanted = FlowRunFilter.model_validate(
        {"tags": {"all_": [tag]}, "state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}
    )
    return client.read_flow_runs(flow_run_filter=wanted, limit=_BATCH)


def why_dead(run: FlowRun, lock: str | None = None) -> str:
    """Why the process of a flow run is known to be dead; empty where it is not. `lock`: a catalog whose lock another
    run holds."""
    process = Process.of_labels(run.labels)
    if process is None:
        began = run.start_time or run.expected_start_time
        old = began is not None and datetime.now(UTC) - began > UNREGISTERED
        return "its process never began: it did not register within ten minutes" if old else ""
    alive = process.alive()
    what = f"its process ({process.pid} on {process.host})"
    if alive is False:
        return f"{what} is gone; what it had committed is kept, and the next run goes on from there"
    if alive is None and lock is not None and as_url(lock) is None and run.labels.get(_LOCK) == lock:
        return f"{what} lost the catalog's lock, so it is gone; what it had committed is kept"
    return ""
