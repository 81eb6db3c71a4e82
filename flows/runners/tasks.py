"""Work as tasks of Prefect: in this process, or on the workers of Dask or Ray behind it.

A task is a batch of works, so that a run has a few hundred tasks however many images it has. Tasks carry ids and bring
back a count: what is mined goes to the catalog's store.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.run_settings import RunSettings
from flows.runners.capacity import usable_workers
from flows.runners.contract import Runner
from flows.runners.deaths import WorkerDied, surviving
from flows.transient import is_transient
from flows.work import Desk, Job, Work, do_batch, keep
from pipeline.errors import InputError

MOST_TASKS = 200  # of a run whose number of images is known
BATCH = 8  # works in a task, at first, where it is not
AHEAD = 2  # tasks waiting, per worker
SHARE = 4  # tasks that each worker should get at least, so that none waits long for the last
TASK_SECONDS = 10.0  # that a task should take, where works are short: beginning and ending one takes about a tenth
_WAIT_SECONDS = 0.5
_PROBE_SECONDS = 10.0
_FOREVER = "365 days"


@dataclass(frozen=True)
class Team:
    """Workers that tasks can be submitted to: what Prefect calls a task runner, started; how many there are; and the
    errors by which it tells that one of them died."""

    runner: Any
    count: int
    deaths: tuple[type[Exception], ...] = ()


def in_tasks(settings: RunSettings, chunks: int, known: bool = True) -> Runner:
    """The runner that makes Prefect tasks of work, `chunks` in all if that is known; for use within a flow.

    A task whose error may pass by itself is tried again, `settings.retries` times, after 2, 4, 8... seconds.

    Raises InputError: the package of a runner is not installed, or nothing answers at its address.
    """

    def run(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        job = desk.job if settings.runner == "prefect" else replace(desk.job, threads=1)
        if settings.runner == "prefect":
            keep(desk)
        room = partial(usable_workers, settings.workers, chunks, desk.miner.denoiser)
        with TEAMS[settings.runner](settings, room) as team:
            attempt = partial(_submitted, team, _task(settings), job, chunks if known else None)
            yield from surviving(desk, works, team.count, attempt, attempt)

    return run


def _task(settings: RunSettings) -> Task[..., float]:
    return Task(
        fn=do_batch,
        name="mine batch",
        task_run_name=_name_of_task,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=settings.retries,
        retry_delay_seconds=exponential_backoff(2) if settings.retries else None,
        retry_condition_fn=_may_pass,
        log_prints=False,
    )


def _submitted(
    team: Team, task: Task[..., float], job: Job, chunks: int | None, works: Iterable[Work]
) -> Iterator[bool]:
    """Have works done as tasks; an `Attempt`. Once a worker has died, what is with others is waited for first."""
    batches = Batches(works, team.count, chunks)
    waiting: dict[PrefectFuture[float], list[Work]] = {}
    ended: SimpleQueue[PrefectFuture[float]] = SimpleQueue()
    lost: list[Work] = []

    def take() -> bool:
        """Wait a while, or until a task is over, which is taken out: whether its works were done."""
        try:
            future = ended.get(timeout=_WAIT_SECONDS)
        except Empty:
            return False
        batch = waiting.pop(future)
        try:
            batches.took(future.result(raise_on_failure=True))
        except team.deaths:
            lost.extend(batch)
            return False
        return True

    for batch in batches:
        future = team.runner.submit(task, {"job": job, "batch": batch})
        waiting[future] = batch
        future.add_done_callback(ended.put)  # one for each task: `prefect.futures.wait` adds others at every call
        while len(waiting) >= AHEAD * team.count:
            yield take()
        if lost:
            break
    while waiting:
        yield take()
    if lost:
        raise WorkerDied(lost)


class Batches:
    """Works in groups, each of as many as take about `TASK_SECONDS` by what the last one took, and at most twice as
    many as the one before.

    So many that there are about MOST_TASKS at most, and so few that every worker gets some SHARE of them: of `chunks`
    works in all, or, where that is not known, of those that were handed out before.
    """

    def __init__(self, works: Iterable[Work], workers: int, chunks: int | None) -> None:
        self._works, self._parts, self._chunks = iter(works), SHARE * workers, chunks
        self._given = self._size = 0
        self._fitting = 0.0

    def __iter__(self) -> Iterator[list[Work]]:
        while batch := list(islice(self._works, self._next_size())):
            self._given += len(batch)
            yield batch

    def _next_size(self) -> int:
        if self._chunks is not None:
            most = max(1, self._chunks // self._parts)
            least = min(most, -(-self._chunks // MOST_TASKS))
        else:
            least = max(BATCH, self._given // MOST_TASKS)
            most = max(least, self._given // self._parts)
        self._size = min(max(least, int(self._fitting)), most, max(least, 2 * self._size))
        return self._size

    def took(self, seconds: float) -> None:
        """What each work of a group took."""
        self._fitting = TASK_SECONDS / max(seconds, 1e-3)


def _may_pass(_: Any, run: Any, state: Any) -> bool:
    try:
        state.result()
    except Exception as error:
        return is_transient(error)
    return False


def _name_of_task() -> str:
    from prefect.runtime import task_run

    batch: list[Work] = task_run.parameters["batch"]
    return f"{sum(len(work.items) for work in batch)} images from {batch[0].items[0][0]}"[:200]


# -- where tasks run ---------------------------------------------------------------------------------------------------


@contextmanager
def _threads(settings: RunSettings, room: Callable[[], int]) -> Iterator[Team]:
    """One thread: forward-mode differentiation keeps state that all threads of a process share."""
    own: AbstractContextManager[Any] = ThreadPoolTaskRunner(max_workers=1)
    with own as runner:
        yield Team(runner, 1)


@contextmanager
def _dask(settings: RunSettings, room: Callable[[], int]) -> Iterator[Team]:
    """The cluster at an address, or one of this machine with as many workers as there is room for.

    Workers of the latter compute as fast as a process without Dask: by itself Dask has the memory allocator give back
    at once whatever is free, with which a network pass takes a fifth more time, and looks at the stack of the thread
    that computes a hundred times a second. A task whose worker dies is told at once; whose fault it is, is found here.
    By itself Dask also ends the new process of a worker that is not back fifteen seconds after a death, with what it
    was given meanwhile: loading torch on a busy machine takes as long.
    """
    try:
        import dask
        from distributed import Client, KilledWorker
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise _missing("dask") from error
    if settings.address is not None:
        try:
            with Client(settings.address, timeout=_PROBE_SECONDS, set_as_default=False) as client:
                count = settings.workers or max(1, len(client.nthreads()))
        except (OSError, ValueError) as error:
            raise _unreachable(settings.address, "a Dask scheduler", error) from error
        with DaskTaskRunner(address=settings.address) as runner:
            yield Team(runner, count, (KilledWorker,))
        return
    count = room()
    local = {"n_workers": count, "threads_per_worker": 1, "processes": True, "preload": _DEAF}
    # Without an address it serves at a fixed port, dashboard or not.
    quiet = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    changes = {
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.allowed-failures": 0,
        "distributed.deploy.lost-worker-timeout": _FOREVER,
    }
    with dask.config.set(changes), DaskTaskRunner(cluster_kwargs={**local, **quiet}) as runner:
        yield Team(runner, count, (KilledWorker,))


_DEAF = "from flows.stopping import leave_stopping_to_the_parent\nleave_stopping_to_the_parent()\n"


@contextmanager
def _ray(settings: RunSettings, room: Callable[[], int]) -> Iterator[Team]:
    """The cluster at an address, or one of this machine with as many workers as there is room for. Where it has GPUs,
    each worker gets one: Ray hides those that a task does not ask for."""
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError
    except ImportError as error:
        raise _missing("ray") from error
    deaths = WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError
    if settings.address is None:
        local = {"num_cpus": room(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        opened = RayTaskRunner(init_kwargs=local)
    else:
        _probe(settings.address)
        opened = RayTaskRunner(address=settings.address)
    with opened as runner:
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        count = settings.workers or max(1, gpus or int(there.get("CPU", 1)))
        own = {"num_gpus": 1} if gpus else {}
        with remote_options(max_retries=0, **own):  # whose fault a death is, is found here
            yield Team(runner, count, deaths)


def _probe(address: str) -> None:
    """Raise InputError where nothing listens at the address of a Ray cluster, for which Ray would wait for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"ray://{address}")
        with socket.create_connection((place.hostname, place.port), timeout=_PROBE_SECONDS):
            pass
    except (OSError, ValueError, TypeError) as error:
        raise _unreachable(address, "a Ray cluster", error) from error


TEAMS: dict[str, Callable[[RunSettings, Callable[[], int]], AbstractContextManager[Team]]] = {
    "prefect": _threads, "dask": _dask, "ray": _ray,
}  # fmt: skip


def _missing(name: str) -> InputError:
    return InputError(
        "--runner", f"{name}, whose packages are not installed", "an installed one", f"pip install 'rhumb[{name}]'"
    )


def _unreachable(address: str, what: str, error: Exception) -> InputError:
    return InputError(
        "--address", f"{address}, where nothing answers ({type(error).__name__})", f"{what} that is running",
        "Start it, or leave --address out for one of this machine",
    )  # fmt: skip
