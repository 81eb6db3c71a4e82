"""What `rhumb up`, `deploy`, `schedule` and `refresh` do.

Prefect is imported inside the commands that need it: starting it takes seconds.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from flows.console import answer, complain, say
from flows.named_recipes import open_recipe
from flows.plain import plain
from flows.run_arguments import run_settings
from pipeline.errors import InputError

if TYPE_CHECKING:
    from flows.orchestration.deploying import Deployed


def up(arguments: Namespace) -> None:
    """`rhumb up`."""
    if not 0 < arguments.port < 2**16:
        raise InputError("--port", arguments.port, "a port from 1 to 65535")
    if arguments.workers < 1:
        raise InputError("--workers", arguments.workers, "at least 1")
    from flows.orchestration.serving import Service, Serving, database_name

    serving = Serving(arguments.host, arguments.port, arguments.workers, arguments.database, arguments.pool)
    service = Service(serving, complain)
    if not serving.guarded:
        complain(
            f"listening at {serving.host} for other machines, and letting in everyone who reaches it: set "
            "PREFECT_SERVER_API_AUTH_STRING, or keep strangers out otherwise"
        )
    complain(f"starting the Prefect server at {serving.url.removesuffix('/api')}; the first start takes a minute")
    told = {
        "url": serving.url,
        "pool": serving.pool,
        "database": database_name(service.environment),
        "logs": str(service.logs),
    }

    def text() -> None:
        say(f"serving {serving.url.removesuffix('/api')}, worker of pool {serving.pool}")
        say(f"database: {told['database']}; logs: {told['logs']}")
        say(f"next, in another terminal: export PREFECT_API_URL={serving.url}")
        say('  rhumb deploy RECIPE --out CATALOG && rhumb schedule RECIPE --cron "0 3 * * *"')
        say("Ctrl-C ends both")

    service.run(lambda: answer(told, arguments.json, text))
    complain("server and worker ended; what was committed is kept")


def deploy(arguments: Namespace) -> None:
    """`rhumb deploy RECIPE --out CATALOG`."""
    from flows.orchestration import deploying

    settings = run_settings(arguments)
    target = deploying.Target.of(arguments.out, arguments.repo, settings, arguments.pool)
    done = deploying.deploy(open_recipe(arguments.recipe), target, arguments.cron, arguments.timezone)
    answer(plain(done), arguments.json, lambda: _show(done))


def schedule(arguments: Namespace) -> None:
    """`rhumb schedule RECIPE --cron CRON`, or `--off`."""
    if arguments.off == (arguments.cron is not None):
        raise InputError(
            "--cron", "no schedule" if arguments.cron is None else "a schedule and --off", "one of the two",
            'Such as --cron "0 3 * * *"',
        )  # fmt: skip
    from flows.orchestration import deploying

    recipe = open_recipe(arguments.recipe)
    if arguments.off:
        done = deploying.unschedule(recipe)
    else:
        places = {"catalog": arguments.out, "repository": arguments.repo, "pool": arguments.pool}
        done = deploying.schedule(recipe, arguments.cron, arguments.timezone, **places)
    answer(plain(done), arguments.json, lambda: _show(done))


def _show(done: Deployed) -> None:
    for name in done.deployments:
        say(f"deployed {name}")
    say(f"schedule: {f'{done.cron} ({done.timezone})' if done.cron else 'none'}; server: {done.server}")
    say(f"run it now: prefect deployment run '{next(name for name in done.deployments if 'refresh' in name)}'")


def refresh(arguments: Namespace) -> int:
    """`rhumb refresh RECIPE --out CATALOG`."""
    from flows.runners import TASKS

    settings = run_settings(arguments)
    recipe = open_recipe(arguments.recipe)
    if settings.runner in TASKS:
        from flows.orchestration.jobs import refresh_here

        done = refresh_here(recipe, arguments.out, arguments.repo, settings, arguments.override)
    else:
        from flows.orchestration.refreshing import refresh as refresh_alone

        done = refresh_alone(recipe, arguments.out, arguments.repo, settings, arguments.override)

    def text() -> None:
        say(f"{done.images} images mined, {done.already_done} there, {len(done.failed)} failed -> {done.catalog}")
        say(f"published {done.version}: {done.said}" if done.version else f"no version: {done.said}")
        for source, reason in done.failed.items():
            say(f"failed: {source}: {reason}")

    answer(plain(done), arguments.json, text)
    return 1 if done.failed else 0
