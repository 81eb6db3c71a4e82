"""Deployments that any worker can run, one run of a recipe at a time, on a schedule that was checked before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from flows.named_recipes import open_recipe
from flows.orchestration.jobs import mine
from flows.recipe import Recipe
from tests.flows import tiny
from tests.flows.orchestration.served import ROOT, Served, asked_for, deployed, environment, name_of

FLOWS = ("mine", "index", "publish", "refresh")


def test_every_flow_is_deployed_by_its_module_and_runs_one_at_a_time(place: Path, client: SyncPrefectClient) -> None:
    deployed(place)
    for flow in FLOWS:
        found = client.read_deployment_by_name(f"rhumb-{flow}/{name_of(place)}")
        assert found.entrypoint == f"flows.orchestration.jobs.{flow}"
        assert not found.pull_steps
        assert found.global_concurrency_limit is not None
        assert found.global_concurrency_limit.limit == 1
        assert found.concurrency_options is not None
        assert found.concurrency_options.collision_strategy == "CANCEL_NEW"
        assert found.work_pool_name == "rhumb"
        assert "catalog" not in found.parameters or Path(found.parameters["catalog"]).is_absolute()
        assert not found.schedules
    parameters = client.read_deployment_by_name(f"rhumb-refresh/{name_of(place)}").parameters
    assert parameters["repo"] == str(place / "hub/org/pack")
    assert parameters["folder"] == str(place)
    found_recipe = mine.validate_parameters({"recipe": parameters["recipe"], "catalog": "/c"})["recipe"]
    assert found_recipe.model_dump() == open_recipe(place / "recipe.yaml").model_dump()


def test_a_schedule_is_set_replaced_and_taken_away(
    place: Path, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place / "recipe.yaml"
    assert tiny.run("schedule", recipe, "--cron", "0 3 * * *") == 2
    assert "which is not deployed" in capsys.readouterr().err
    asked = ("schedule", recipe, "--out", place / "catalog", "--timezone", "Europe/Berlin")
    assert tiny.run(*asked, "--cron", "0 3 * * *", "--json") == 0
    said = tiny.parsed(capsys.readouterr().out)
    assert (said["cron"], said["timezone"]) == ("0 3 * * *", "Europe/Berlin")
    assert tiny.run("schedule", recipe, "--cron", "0 4 * * *", "--json") == 0
    said = tiny.parsed(capsys.readouterr().out)
    assert (said["cron"], said["timezone"]) == ("0 4 * * *", "UTC")
    deployed(place, "--json")
    assert tiny.parsed(capsys.readouterr().out)["cron"] == "0 4 * * *"
    assert tiny.run("schedule", recipe, "--off", "--json") == 0
    assert tiny.parsed(capsys.readouterr().out)["cron"] is None
    assert client.read_deployment_by_name(f"rhumb-refresh/{name_of(place)}").schedules == []


def places_of(deployment: Any) -> list[str]:
    return [deployment.parameters[name] for name in ("catalog", "repo")]


def test_a_schedule_with_another_catalog_keeps_what_else_was_deployed(place: Path, client: SyncPrefectClient) -> None:
    name, recipe = deployed(place, "--workers", "3"), place / "recipe.yaml"
    assert tiny.run("schedule", recipe, "--cron", "0 3 * * *", "--out", place / "elsewhere") == 0
    found = client.read_deployment_by_name(f"rhumb-refresh/{name}")
    assert places_of(found) == [str(place / "elsewhere"), str(place / "hub/org/pack")]
    assert (found.parameters["settings"]["runner"], found.parameters["settings"]["workers"]) == ("here", 3)
    assert tiny.run("schedule", recipe, "--cron", "0 4 * * *", "--repo", place / "hub/org/other") == 0
    found = client.read_deployment_by_name(f"rhumb-refresh/{name}")
    assert places_of(found) == [str(place / "elsewhere"), str(place / "hub/org/other")]
    assert found.parameters["settings"]["workers"] == 3
    assert [getattr(one.schedule, "cron", None) for one in found.schedules] == ["0 4 * * *"]


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "cron": (("--cron", "0 3 * *"), "--cron: found '0 3 * *'"),
    "time zone": (("--cron", "0 3 * * *", "--timezone", "Mars"), "--timezone: found 'Mars'"),
    "pool": (("--pool", "abyss"), "--pool: found abyss, which is no work pool"),
    "workers": (("--workers", "0"), "--workers"),
    "repository": (("--repo", "nowhere"), "repository"),
    "secret": (("--out", "s3://user:secret@bucket/c"), "--out"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_one_clear_error_and_nothing_is_deployed(
    what: str, place: Path, client: SyncPrefectClient, capsys: pytest.CaptureFixture[str]
) -> None:
    more, expected = WRONG[what]
    assert tiny.run(*asked_for(place), *more) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert "Traceback" not in said
    assert "secret" not in said
    for flow in FLOWS:
        with pytest.raises(ObjectNotFound):
            client.read_deployment_by_name(f"rhumb-{flow}/{name_of(place)}")


def test_a_schedule_and_none_are_not_asked_for_together(place: Path) -> None:
    assert tiny.run("schedule", place / "recipe.yaml") == 2
    assert tiny.run("schedule", place / "recipe.yaml", "--off", "--cron", "0 3 * * *") == 2


def test_the_file_for_prefect_s_own_command_deploys_the_same(
    served: Served, client: SyncPrefectClient, tmp_path: Path
) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", ROOT / "prefect.yaml"],
        cwd=tmp_path, env={**environment(served.home, served.url), "HOME": str(tmp_path)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    recipe = open_recipe(Path("faces64-demo"))
    for flow in FLOWS:
        found: Any = client.read_deployment_by_name(f"rhumb-{flow}/faces64-demo")
        assert found.entrypoint == f"flows.orchestration.jobs.{flow}"
        assert (found.global_concurrency_limit.limit, found.pull_steps) == (1, [])
        assert found.concurrency_options.collision_strategy == "CANCEL_NEW"
        if "recipe" in found.parameters:
            assert Recipe.model_validate(found.parameters["recipe"]) == recipe
        assert found.parameters["catalog"] == f"{tmp_path}/rhumb/faces64"
    assert [schedule.active for schedule in found.schedules] == [False]
