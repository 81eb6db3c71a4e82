"""Deployments: a recipe's flows, known to the server, so that a worker of a pool runs them when asked or on a schedule.

A deployment names a flow by its module, which every worker with this package has, and holds the recipe as it was when
it was deployed: deploying again is what makes a changed recipe count. One run of a deployment at a time: one that
falls due meanwhile is cancelled, not queued, since the next does what it would have done. Two deployments that share a
catalog are kept apart by the catalog's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType

from flows.orchestration import jobs, stale
from flows.orchestration.gpus import make_limits
from flows.orchestration.parameters import as_parameter, folder_of_recipe
from flows.orchestration.places import absolute
from flows.orchestration.schedules import cron_schedule
from flows.orchestration.server import POOL, check_pool, client_of_server, plain_url
from flows.publishing import named
from flows.recipe import Recipe
from flows.run_settings import RunSettings
from pipeline.errors import InputError

ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)


@dataclass(frozen=True)
class Target:
    """What is deployed for a recipe: the catalog's place, where versions go, how it is mined, in which work pool."""

    catalog: str
    repository: str | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    pool: str = POOL

    @classmethod
    def of(
        cls, catalog: str | Path, repository: str | None = None, settings: RunSettings | None = None, pool: str = POOL
    ) -> Target:
        """The same with absolute places, as a worker anywhere needs them.

        Raises InputError: a place that is none, or credentials in one, which the server would store and show.
        """
        if settings is not None and "@" in (settings.address or ""):
            raise InputError("--address", "an address with credentials in it", "one without user and password")
        return cls(absolute(catalog, "--out"), _absolute_repository(repository), settings or RunSettings(), pool)


@dataclass(frozen=True)
class Deployed:
    """The deployments of a recipe, by FLOW/NAME; the schedule of `refresh`, if it has one; the server's address."""

    deployments: tuple[str, ...]
    cron: str | None
    timezone: str | None
    server: str


def deploy(recipe: Recipe, target: Target, cron: str | None = None, timezone: str | None = None) -> Deployed:
    """Make the deployments of a recipe, or renew them: mine, index, refresh, and publish where a repository is given.

    A schedule that `refresh` had is kept unless `cron` gives another.

    Raises:
        InputError: a cron expression or time zone that is none (nothing is made), or no server that answers.
        NotFoundError: the server has no such work pool; nothing is made.
    """
    wanted = None if cron is None else cron_schedule(cron, timezone)
    with client_of_server() as client:
        check_pool(client, target.pool)
        make_limits(client)
        kept = {jobs.refresh.name: _schedules(client, recipe) if wanted is None else [_active(wanted)]}
        names = tuple(
            _deploy(flow, parameters, recipe, target, kept.get(flow.name, []))
            for flow, parameters in _flows(recipe, target)
        )
        stale.end_stale_runs(client)
        return _deployed(client, recipe, names)


def schedule(recipe: Recipe, cron: str, timezone: str | None = None, **places: str | None) -> Deployed:
    """Give the `refresh` deployment of a recipe this schedule in place of any other.

    `places`, the catalog, repository and pool of `Target.of`: where any is given, the recipe is deployed first, with
    what its former deployment had for all that is not.

    Raises:
        InputError: as `deploy`; or it is not deployed and no catalog is given.
    """
    wanted = cron_schedule(cron, timezone)
    anew = {name: place for name, place in places.items() if place is not None}
    with client_of_server() as client:
        if anew:
            return deploy(recipe, Target.of(**(_target_of(client, recipe, anew) | anew)), cron, timezone)
        _refresh_of(client, recipe)
        _set_schedule(client, recipe, wanted)
        return _deployed(client, recipe, ())


def _target_of(client: SyncPrefectClient, recipe: Recipe, anew: Mapping[str, str]) -> dict[str, Any]:
    """What `Target.of` was given for a recipe's deployments; nothing where they are to be the first."""
    try:
        former = _refresh_of(client, recipe)
    except InputError:
        if "catalog" in anew:
            return {}
        raise
    own = former.parameters
    settings = RunSettings.model_validate(own.get("settings", {}))
    found = {"catalog": own.get("catalog"), "repository": own.get("repo"), "pool": former.work_pool_name}
    return {name: place for name, place in found.items() if place is not None} | {"settings": settings}


def unschedule(recipe: Recipe) -> Deployed:
    """Take the schedule of a recipe's `refresh` deployment away. Raises InputError where it is not deployed."""
    with client_of_server() as client:
        _set_schedule(client, recipe, None)
        return _deployed(client, recipe, ())


def _flows(recipe: Recipe, target: Target) -> list[tuple[Any, dict[str, Any]]]:
    """Each flow with the parameters that its deployment gives it."""
    settings = target.settings.model_dump(mode="json")
    mined = {"recipe": as_parameter(recipe), "settings": settings, "folder": folder_of_recipe(recipe)}
    catalog: dict[str, Any] = {"catalog": target.catalog}
    repo: dict[str, Any] = {"repo": target.repository}
    found = [(jobs.mine, mined | catalog), (jobs.index, catalog), (jobs.refresh, mined | catalog | repo)]
    return found + ([(jobs.publish, catalog | repo)] if target.repository is not None else [])


def _deploy(
    flow: Any,
    parameters: Mapping[str, Any],
    recipe: Recipe,
    target: Target,
    schedules: list[DeploymentScheduleCreate],
) -> str:
    deployment = flow.to_deployment(
        recipe.name,
        parameters=dict(parameters),
        schedules=schedules,
        tags=[stale.TAG, stale.tag_of(target.catalog)],
        concurrency_limit=ONE_AT_A_TIME,
        work_pool_name=target.pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
        # A recipe has short forms that its JSON schema does not know; the flow checks its parameters itself.
        enforce_parameter_schema=False,
    )
    deployment.apply()
    return f"{flow.name}/{recipe.name}"


def _refresh_of(client: SyncPrefectClient, recipe: Recipe) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(f"{jobs.refresh.name}/{recipe.name}")
    except ObjectNotFound:
        raise InputError(
            "recipe", f"{recipe.name}, which is not deployed", "a recipe that was deployed",
            "Say where its catalog goes: --out CATALOG",
        ) from None  # fmt: skip


def _set_schedule(client: SyncPrefectClient, recipe: Recipe, wanted: CronSchedule | None) -> None:
    """Put one schedule, or none, in place of all there are."""
    deployment = _refresh_of(client, recipe)
    for former in client.read_deployment_schedules(deployment.id):
        client.delete_deployment_schedule(deployment.id, former.id)
    if wanted is not None:
        client.create_deployment_schedules(deployment.id, [_active(wanted)])


def _active(schedule: CronSchedule) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=schedule, active=True)


def _schedules(client: SyncPrefectClient, recipe: Recipe) -> list[DeploymentScheduleCreate]:
    """The schedules that a recipe's `refresh` deployment has; none where it is not deployed."""
    try:
        deployment = client.read_deployment_by_name(f"{jobs.refresh.name}/{recipe.name}")
    except ObjectNotFound:
        return []
    return [DeploymentScheduleCreate(schedule=s.schedule, active=s.active) for s in deployment.schedules]


def _deployed(client: SyncPrefectClient, recipe: Recipe, names: tuple[str, ...]) -> Deployed:
    deployment = _refresh_of(client, recipe)
    found = [known.schedule for known in client.read_deployment_schedules(deployment.id) if known.active]
    cron = getattr(found[0], "cron", None) if found else None
    timezone = getattr(found[0], "timezone", None) if found else None
    own = names or (f"{jobs.refresh.name}/{recipe.name}",)
    return Deployed(own, cron, timezone, plain_url(str(client.api_url)))


def _absolute_repository(repository: str | None) -> str | None:
    if repository is None:
        return None
    return str(named(repository).absolute)
