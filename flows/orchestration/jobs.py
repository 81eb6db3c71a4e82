"""The flows: mine, index, publish, refresh. Module-level and typed, so that any worker with this package can run them.

They add to the work what Prefect is for: a page for each run with its progress, one run at a time on a GPU, an end that
says what it was. What a run does is elsewhere, in `flows.running` and `flows.orchestration.refreshing`.

How a run ends: Completed; Cancelled where it was stopped, or (as AlreadyRunning) where another run writes to the same
catalog; Failed with one clear message. Whatever the end, what was committed is kept and the next run goes on from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Failed

from catalog.fs import RUN
from catalog.store import as_url
from flows.orchestration import refreshing, stale
from flows.orchestration.gpus import gpus
from flows.orchestration.parameters import folder_of_recipe, placed
from flows.orchestration.places import absolute, folder_of
from flows.orchestration.server import reach_server
from flows.publishing import named, publish_catalog
from flows.recipe import Recipe
from flows.run_settings import RunSettings
from flows.watching.errands import Errand
from pipeline.errors import BusyError, InputError, RhumbError

if TYPE_CHECKING:
    from flows.miner import MiningReport
    from flows.watching.progress import Progress

_PATIENCE = 10.0  # seconds, with what a server has not answered when a run is over
BUSY = "AlreadyRunning"
"""Name of the Cancelled state of a run that found another one at work on its catalog."""


@flow(name="rhumb-mine", flow_run_name="mine {recipe.name}", persist_result=False)
def mine(recipe: Recipe, catalog: str, settings: RunSettings = RunSettings(), folder: str = ".") -> Any:  # noqa: B008
    """Mine a recipe into a catalog, or continue it there.

    Args:
        recipe: what is mined; relative paths in it start at `folder`.
        catalog: its folder, absolute when run by a worker, or the URL of a store.
        settings: how it is mined.
        folder: where relative paths of the recipe start.
    """
    own = placed(recipe, folder)

    def work(place: str, progress: Progress) -> MiningReport:
        done = refreshing.mine(own, place, settings, progress)
        get_run_logger().info(
            "%d images, %d directions; %d were there", done.images, done.directions, done.already_done
        )
        return done

    return _ended(lambda: _mined(own, catalog, settings, work))


@flow(name="rhumb-index", flow_run_name="index {catalog}", persist_result=False)
def index(catalog: str) -> Any:
    """Index the directions of a catalog that are not indexed yet."""

    def work() -> dict[str, int]:
        place = _registered(catalog)
        built = refreshing.index(place)
        get_run_logger().info("%s: %s", place, built or "all indexes are up to date")
        return built

    return _ended(work)


@flow(name="rhumb-publish", flow_run_name="publish {catalog}", persist_result=False)
def publish(catalog: str, repo: str, version: str | None = None, override: bool = False) -> Any:
    """Publish a catalog: under `version`, or, where that is left out, under the next one if anything changed.

    `override` publishes it even where its quality is worse than the last version's.
    """

    def work() -> str | None:
        _check_repository(repo)
        place = _registered(catalog)
        if version is not None:
            publish_catalog(folder_of(place), repo, version, override=override)
            return version
        published, said = refreshing.publish_if_changed(place, repo, override)
        get_run_logger().info("%s: %s", published or "no version", said)
        return published

    return _ended(work)


@flow(name="rhumb-refresh", flow_run_name="refresh {recipe.name}", persist_result=False)
def refresh(
    recipe: Recipe,
    catalog: str,
    repo: str | None = None,
    settings: RunSettings = RunSettings(),  # noqa: B008
    override: bool = False,
    folder: str = ".",
) -> Any:
    """Mine what is new or changed since the last version, index it, and publish the next version if anything is.

    `catalog` is the place of the first generation (`flows.orchestration.refreshing`), `repo` where versions are
    published, None for nowhere; the others are as those of `mine` and `publish`.
    """
    own = placed(recipe, folder)

    def work(place: str, progress: Progress) -> refreshing.Refreshed:
        done = refreshing.refresh(own, place, repo, settings, override, progress)
        get_run_logger().info(
            "%d images, %d directions; %d were there; generation %d at %s",
            done.images, done.directions, done.already_done, done.generation, done.catalog,
        )  # fmt: skip
        get_run_logger().info("%s: %s", done.version or "no version", done.said)
        return done

    def checked() -> refreshing.Refreshed:
        if repo is not None:
            _check_repository(repo)
        return _mined(own, catalog, settings, work)

    return _ended(checked)


def mine_here(recipe: Recipe, place: Path | str, settings: RunSettings) -> MiningReport:
    """Mine as a flow run in this process, of the server at PREFECT_API_URL or of an embedded one.

    Raises:
        InputError: no server answers; nothing is written. And what mining raises.
        ConflictError: another run writes to the catalog.
        KeyboardInterrupt: the run was stopped.
    """
    return cast("MiningReport", _here(lambda: mine(recipe, absolute(place), settings, folder_of_recipe(recipe))))


def refresh_here(
    recipe: Recipe, place: Path | str, repo: str | None, settings: RunSettings, override: bool
) -> refreshing.Refreshed:
    """Refresh as a flow run in this process; see `mine_here`."""
    folder = folder_of_recipe(recipe)
    done = _here(lambda: refresh(recipe, absolute(place), repo, settings, override, folder))
    return cast("refreshing.Refreshed", done)


def _here(run: Callable[[], Any]) -> Any:
    """What a flow called in this process returns; it raises the error that the flow ended with."""
    reach_server()
    return run()


# -- around every run --------------------------------------------------------------------------------------------------


def _ended(work: Callable[[], Any]) -> Any:
    """What `work` returns, or the state in which a run ends that was stopped, was not needed or cannot be done.

    Events meanwhile go to the run's log.
    """
    from flows.watching.artifacts import logged

    try:
        with logged():
            return work()
    except (KeyboardInterrupt, TerminationSignal):
        said = "stopped; what was committed is kept, and the next run goes on from there"
        get_run_logger().warning(said)
        return _end(Cancelled(message=said), KeyboardInterrupt(said))
    except RhumbError as error:
        if isinstance(error, BusyError):
            get_run_logger().warning("%s", error)
            return _end(Cancelled(name=BUSY, message=str(error)), error)
        get_run_logger().error("%s", error)
        return _end(Failed(message=str(error)), error)


def _end(state: State[Any], error: BaseException) -> State[Any]:
    """End this run in a state. A caller in this process gets the error; a worker's log gets no traceback of it."""
    if deployment.id is None:
        return state.model_copy(update={"data": error})
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(_run_id(), state, force=True)
    end = Abort(state.message)
    end.state = state  # type: ignore[attr-defined]  # which the engine takes for the run's
    raise end


def _registered(catalog: str) -> str:
    """The catalog's place, once this run is known to work on it, and dead ones are known to be dead.

    Raises:
        InputError: a relative path in a run of a deployment: it would start at a folder of the worker's own.
    """
    if deployment.id is not None and as_url(catalog) is None and not Path(catalog).is_absolute():
        raise InputError("catalog", catalog, "an absolute path or the URL of a store, since a worker runs anywhere")
    place = absolute(catalog)
    stale.register(_run_id(), place)
    _end_stale_runs(place)
    return place


def _end_stale_runs(place: str, lock: str | None = None) -> None:
    with get_client(sync_client=True) as client:
        ended = stale.end_stale_runs(client, place, _run_id(), lock)
    for name in ended:
        get_run_logger().warning("ended %s, whose process is dead", name)


def _run_id() -> UUID:
    return UUID(str(flow_run.id))


def _check_repository(repo: str) -> None:
    """Raise InputError for a repository that is none, or that a worker would look for in a folder of its own."""
    name = named(repo)
    if deployment.id is not None and name != name.absolute:
        expected = "ORG/NAME of the Hugging Face Hub, a URL, or an absolute path, since a worker runs anywhere"
        raise InputError("repo", repo, expected)


def _mined(recipe: Recipe, catalog: str, settings: RunSettings, work: Callable[[str, Progress], Any]) -> Any:
    """`work` with the GPUs in hand and its progress on the page of the run."""
    from flows.watching.progress import Progress

    place = _registered(catalog)
    with gpus(settings) as held:
        if held:
            get_run_logger().info("holding %s", ", ".join(held))
        page = Page(place)
        try:
            return work(place, Progress(None, place, [page], name=recipe.name))
        finally:
            page.close()


class Page:
    """A watcher that draws the progress of a run on its page. The first time it is called, the catalog's lock is held,
    which an errand tells the server, and a later one where it is away.

    `place` is that of the catalog, the first generation's.
    """

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.place = place
        self._progress: Progress | None = None
        self._clock, self._due = clock, 0.0  # when the server is told next; never, once it was
        self._errand = Errand()

    def __call__(self, progress: Progress) -> None:
        from flows.watching import artifacts

        if self._progress is None:
            self._progress = progress
            progress.watchers.append(artifacts.begin(progress))
        if self._clock() >= self._due:
            self._due = self._clock() + artifacts.EVERY
            self._errand.send(partial(self._hold, progress.catalog))

    def _hold(self, lock: str) -> None:
        stale.hold(_run_id(), lock)
        _end_stale_runs(self.place, lock)
        self._due = math.inf

    def settle(self) -> None:
        """Return once nothing is being told. Raises TimeoutError where the server hangs."""
        self._errand.wait(_PATIENCE)

    def close(self) -> None:
        """Draw the report of the run, which is over; that it cannot be drawn is told, and is no error of the run."""
        if self._progress is None:
            return
        from flows.watching import artifacts
        from flows.watching.run_report import report_of

        try:
            self.settle()
            stale.hold(_run_id(), "")
            folder = folder_of(self._progress.catalog)
            report = report_of(folder, self._progress)
            artifacts.finish(self._progress, report, folder / RUN / self._progress.run_id)
        except Exception as error:
            get_run_logger().warning("the report could not be shown: %s: %s", type(error).__name__, error)
