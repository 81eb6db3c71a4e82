"""Data sets of a Hub: pinned to a commit, read whole and streamed, and without the network from the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows import dataset_hub, tiny
from tests.flows.dataset_hub import digest
from tests.flows.table_files import SIZE, parquet, picture, rows
from tests.pipeline.hub_driver import TOKEN
from tests.pipeline.tiny_hub import REPO

CARD = b"---\nlicense: cc-by-4.0\n---\nFaces.\n"
ABSENT = "f" * 40


def truths(count: int) -> dict[str, str]:
    return {str(seed): digest(tiny.photograph(seed, SIZE)) for seed in range(count)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every answer of one online and one offline process."""
    home = tmp_path_factory.mktemp("home")
    table = {"path": REPO, "image_column": "image"}
    data = parquet(home / "a.parquet", rows(3)).read_bytes()
    elsewhere = f"---\nconfigs:\n- config_name: default\n  data_files: {home / 'a.parquet'}\n---\n".encode()
    for seed in range(2):
        (home / "pictures").mkdir(exist_ok=True)
        (home / "pictures" / f"{seed}.png").write_bytes(picture(seed))
    zipped = Path(shutil.make_archive(str(home / "zipped"), "zip", home / "pictures")).read_bytes()
    files = {
        "v1": {"README.md": CARD, "data/train-0.parquet": parquet(home / "b.parquet", rows(2)).read_bytes()},
        "main": {"README.md": CARD, "data/train-0.parquet": data},
        "script": {"name.py": b"raise SystemExit(9)", "data/train-0.parquet": data},
        "elsewhere": {"README.md": elsewhere, "data/train-0.parquet": data},
        "pictures": {f"{seed}.png": picture(seed) for seed in range(2)},
        "zipped": {"train.zip": zipped},
    }
    with dataset_hub.serve() as hub:
        commits = {name: hub.commit(name, content) for name, content in files.items()}
        jobs = {
            **{name: {**table, "revision": name} for name in ("v1", "script", "elsewhere", "nothing")},
            "main": table,
            "main streamed": {**table, "streaming": True},
        }
        for name in ("pictures", "zipped"):
            jobs[name] = {"path": REPO, "revision": name}
            jobs[f"{name} streamed"] = {**jobs[name], "streaming": True}
        online = dataset_hub.run(list(jobs.values()), home / "hf", hub.url)
        asked = list(hub.asked)
        offline_jobs = {
            "main": {**table, "revision": commits["main"]},
            "absent": {**table, "revision": ABSENT},
            "other": {"path": "owner/other"},
        }
        offline = dataset_hub.run(list(offline_jobs.values()), home / "hf", hub.url, offline=True)
        assert hub.asked == asked
    return {
        "commits": commits,
        "online": dict(zip([*jobs, "end"], online, strict=True)),
        "offline": dict(zip([*offline_jobs, "end"], offline, strict=True)),
    }


def test_a_data_set_is_read_at_the_commit_that_is_reported(world: dict[str, Any]) -> None:
    for name, revision, count in (("v1", "v1", 2), ("main", "main", 3), ("main streamed", "main", 3)):
        assert world["online"][name] == {
            "name": REPO,
            "split": "train",
            "licence": "cc-by-4.0",
            "redistributable": True,
            "origin": {"repository": REPO, "commit": world["commits"][revision]},
            "pictures": truths(count),
        }


@pytest.mark.parametrize("form", ["pictures", "pictures streamed", "zipped", "zipped streamed"])
def test_pictures_that_are_files_of_a_repository_are_fetched_from_it(world: dict[str, Any], form: str) -> None:
    answer = world["online"][form]
    assert answer.get("pictures") == truths(2), answer
    assert answer["licence"] is None and not answer["redistributable"]


def test_a_commit_in_the_cache_is_read_without_the_network_and_no_other_in_its_place(world: dict[str, Any]) -> None:
    assert world["offline"]["main"] == world["online"]["main"]
    assert f"expected commit {ABSENT}" in world["offline"]["absent"]["error"]
    assert "owner/other" in world["offline"]["other"]["error"]


def test_scripts_files_elsewhere_and_unknown_revisions_are_refused(world: dict[str, Any]) -> None:
    assert "scripts are no longer supported" in world["online"]["script"]["error"]
    assert "files don't belong to owner/name" in world["online"]["elsewhere"]["error"]
    assert "owner/name at nothing" in world["online"]["nothing"]["error"]


def test_tokens_are_shown_nowhere(world: dict[str, Any]) -> None:
    assert TOKEN not in json.dumps(world)
