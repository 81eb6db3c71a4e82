"""Work as tasks of Prefect: in this process, or on the workers of Dask or Ray behind it.

A task is a batch of works, so that a run has a few hundred tasks however many images it has. Tasks carry ids and bring
back a count: what is mined goes to the catalog's store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.run_settings import RunSettings
from flows.runners.contract import Runner
from flows.transient import is_transient
from flows.work import Desk, Work, do_batch, keep
from pipeline.errors import InputError

MOST_TASKS = 200  # of a run whose number of images is known
BATCH = 8  # works in a task where it is not
AHEAD = 2  # tasks waiting, per worker
SHARE = 4  # tasks that each worker should get at least, so that none waits long for the last
TASK_SECONDS = 10.0  # that a task should take, where works are short: beginning and ending one takes about a tenth
_WAIT_SECONDS = 0.5

TaskRunner = AbstractContextManager[Any]


def in_tasks(settings: RunSettings, chunks: int, known: bool = True) -> Runner:
    """The runner that makes Prefect tasks of work, `chunks` in all if that is known; for use within a flow.

    A task whose error may pass by itself is tried again, `settings.retries` times, after 2, 4, 8... seconds.

    Raises InputError: the package of a runner is not installed, or nothing answers at its address.
    """

    def run(desk: Desk, works: Iterable[Work]) -> Iterator[None]:
        count = settings.workers or (1 if settings.runner == "prefect" else len(os.sched_getaffinity(0)))
        most = max(1, chunks // (SHARE * count)) if known else None
        grouped = _Batches(works, min(most, -(-chunks // MOST_TASKS)) if most is not None else BATCH, most)
        mine_batch = Task(
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
        job = desk.job if settings.runner == "prefect" else replace(desk.job, threads=1)
        if settings.runner == "prefect":
            keep(desk)
        with _opened(settings, count) as runner:
            waiting: list[PrefectFuture[float]] = []
            for batch in grouped:
                waiting.append(runner.submit(mine_batch, {"job": job, "batch": batch}))
                while len(waiting) >= AHEAD * count:
                    waiting = _some_done(waiting, grouped)
                    yield
            while waiting:
                waiting = _some_done(waiting, grouped)
                yield

    return run


class _Batches:
    """Works in groups, each of as many as take about `TASK_SECONDS` by what the last one took.

    `least` and `most` of a group; no bound where `most` is None.
    """

    def __init__(self, works: Iterable[Work], least: int, most: int | None) -> None:
        self._works, self._least, self._most = iter(works), least, most
        self._size = least

    def __iter__(self) -> Iterator[list[Work]]:
        while batch := list(islice(self._works, self._size)):
            yield batch

    def took(self, seconds: float) -> None:
        """What each work of a group took."""
        fitting = max(self._least, int(TASK_SECONDS / max(seconds, 1e-3)))
        self._size = fitting if self._most is None else min(fitting, self._most)


def _some_done(waiting: list[PrefectFuture[float]], grouped: _Batches) -> list[PrefectFuture[float]]:
    """Those that are not done after a while. Raises the error of one that failed."""
    ready, left = wait(waiting, timeout=_WAIT_SECONDS)
    for future in ready:
        grouped.took(future.result(raise_on_failure=True))
    return list(left)


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


def _opened(settings: RunSettings, count: int) -> TaskRunner:
    """The task runner of a setting, not yet started. Raises InputError."""
    openers: dict[str, Callable[[RunSettings, int], TaskRunner]] = {"prefect": _threads, "dask": _dask, "ray": _ray}
    return openers[settings.runner](settings, count)


def _threads(settings: RunSettings, count: int) -> TaskRunner:
    """One thread: forward-mode differentiation keeps state that all threads of a process share."""
    return ThreadPoolTaskRunner(max_workers=1)


def _dask(settings: RunSettings, count: int) -> TaskRunner:
    try:
        from distributed import Client
        from prefect_dask.task_runners import DaskTaskRunner
    except ImportError as error:
        raise _missing("dask") from error
    if settings.address is None:
        local = {"n_workers": count, "threads_per_worker": 1, "processes": True}
        # Without an address it serves at a fixed port, dashboard or not.
        quiet = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
        return _configured(DaskTaskRunner(cluster_kwargs={**local, **quiet}))
    try:
        with Client(settings.address, timeout=10, set_as_default=False):
            pass
    except (OSError, ValueError) as error:
        raise _unreachable(settings.address, "a Dask scheduler", error) from error
    return DaskTaskRunner(address=settings.address)


@contextmanager
def _configured(runner: TaskRunner) -> Iterator[Any]:
    """A cluster of this machine whose workers compute as fast as a process without Dask.

    Dask has the memory allocator give back at once whatever is free, with which a network pass takes a fifth more time,
    and looks at the stack of the thread that computes a hundred times a second.
    """
    import dask

    trim = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"
    changes = {trim: None, "distributed.worker.profile.enabled": False}
    with dask.config.set(changes), runner as open_runner:
        yield open_runner


def _ray(settings: RunSettings, count: int) -> TaskRunner:
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise _missing("ray") from error
    if settings.address is None:
        local = {"num_cpus": count, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        return RayTaskRunner(init_kwargs=local)
    return RayTaskRunner(address=settings.address)


def _missing(name: str) -> InputError:
    return InputError(
        "--runner", f"{name}, whose packages are not installed", "an installed one", f"pip install 'rhumb[{name}]'"
    )


def _unreachable(address: str, what: str, error: Exception) -> InputError:
    return InputError(
        "--address", f"{address}, where nothing answers ({type(error).__name__})", f"{what} that is running",
        "Start it, or leave --address out for one of this machine",
    )  # fmt: skip
