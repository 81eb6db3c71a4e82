"""Models of the Hub are pinned to a commit and their files recorded, with a network and without."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ModelError
from pipeline.models.loading import load_denoiser
from tests.pipeline import hub_driver
from tests.pipeline.tiny_hub import REPO, TinyHub, folder_files, serve
from tests.pipeline.tiny_models import tiny_pipeline_folder

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CARD = b"---\nlicense: other\nlicense_name: tiny-nc\nlicense_link: https://x.org/l\n---\n```\n@misc{tiny}\n```\n"
READ = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS}


def records(files: dict[str, bytes], names: set[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": hashlib.sha256(files[name]).hexdigest(), "bytes": len(files[name])} for name in sorted(names)
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A hub with two commits of a model, asked by one client online and by another without a network."""
    root = tmp_path_factory.mktemp("hub")
    home = root / "home"
    old = folder_files(tiny_pipeline_folder(root / "old"))
    new = folder_files(tiny_pipeline_folder(root / "new", seed=1))
    new |= {"README.md": CARD, "notes.md": b"# no", "run.py": b"raise", "rhumb_conversion.json": b'{"from": "x"}'}
    pickled = {name: data for name, data in old.items() if name != WEIGHTS}
    torch.save(load_file(root / "old" / WEIGHTS), root / "weights.bin")
    pickled |= {WEIGHTS.replace(".safetensors", ".bin"): (root / "weights.bin").read_bytes(), "unet/x.fp16.bin": b"no"}
    broken = {**new, "unet/config.json": b"{"}
    with serve() as hub:
        commits = {name: hub.commit(name, files) for name, files in
                   (("v1", old), ("pickled", pickled), ("broken", broken), ("main", new))}  # fmt: skip
        jobs: list[dict[str, Any]] = [
            {"load": {"reference": REPO}},
            {"load": {"reference": REPO, "revision": "v1"}},
            {"load": {"reference": f"{REPO}@v1"}},
            {"load": {"reference": REPO, "revision": commits["v1"]}},
            {"load": {"reference": REPO, "revision": "pickled"}},
        ]
        refused: list[dict[str, Any]] = [
            {"load": {"reference": REPO, "revision": "v9"}},
            {"load": {"reference": "owner/other"}},
            {"load": {"reference": f"{REPO}@v1", "revision": "main"}},
            {"load": {"reference": REPO, "revision": "../../main"}},
            {"load": {"reference": f"https://user:{hub_driver.TOKEN}@127.0.0.1/{REPO}"}},
            {"load": {"reference": REPO, "revision": "broken"}},
        ]
        online = hub_driver.run(jobs + refused, home, hub.url)
        asked = list(hub.asked)
    snapshot = home / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / commits["main"]
    config = snapshot / "unet/config.json"
    changed = {**json.loads(new["unet/config.json"]), "norm_eps": 0.1}
    tampering: list[dict[str, Any]] = [{"write": [str(config), json.dumps(changed)]}, {"load": {"reference": REPO}}]
    offline = hub_driver.run(
        [*jobs, {"load": {"reference": "owner/other"}}, *tampering], home, "http://127.0.0.1:9", offline=True
    )
    return {
        "hub": hub, "asked": asked, "commits": commits, "old": old, "new": new, "pickled": pickled, "jobs": len(jobs),
        "online": online, "refused": online[len(jobs):-1], "offline": offline,
    }  # fmt: skip


def test_a_model_is_pinned_to_the_commit_its_name_meant(world: dict[str, Any]) -> None:
    main, tagged, inline, pinned, pickled = (result["commit"] for result in world["online"][: world["jobs"]])
    commits = world["commits"]
    assert (main, pickled) == (commits["main"], commits["pickled"])
    assert tagged == inline == pinned == commits["v1"]
    assert all(result["reference"] == REPO for result in world["online"][: world["jobs"]])


def test_exactly_the_files_that_were_read_are_recorded_with_their_hashes(world: dict[str, Any]) -> None:
    main, tagged, inline, _, pickled = world["online"][: world["jobs"]]
    assert main["files"] == records(world["new"], READ | {"rhumb_conversion.json"})
    assert tagged["files"] == inline["files"] == records(world["old"], READ)
    assert pickled["files"] == records(world["pickled"], (READ - {WEIGHTS}) | {WEIGHTS.replace("safetensors", "bin")})
    assert tagged["fingerprint"] == pickled["fingerprint"] != main["fingerprint"]


def test_nothing_else_is_fetched_and_a_known_commit_is_not_asked_for_again(world: dict[str, Any]) -> None:
    fetched = [line for line in world["asked"] if line.startswith("GET") and "/resolve/" in line]
    assert not any(line.endswith(("notes.md", ".py", "fp16.bin")) for line in fetched)
    assert len(fetched) == len(set(fetched))


def test_without_a_network_the_cache_gives_the_same_model_and_the_same_origin(world: dict[str, Any]) -> None:
    assert world["offline"][: world["jobs"]] == world["online"][: world["jobs"]]


def test_the_card_says_the_terms_of_a_model_and_only_small_words_of_it_are_kept(world: dict[str, Any]) -> None:
    main, tagged = (result["terms"] for result in world["online"][:2])
    assert main == {"licence": "tiny-nc (https://x.org/l)", "citation": "@misc{tiny}"}
    assert tagged == {"licence": None, "citation": None}


def test_a_cached_file_that_was_changed_is_found_out(world: dict[str, Any]) -> None:
    error = world["offline"][world["jobs"] + 2]["error"]
    assert "unet/config.json" in error and "changed since it was downloaded" in error
    assert world["commits"]["main"] in error


def test_what_cannot_be_had_is_one_clear_error(world: dict[str, Any]) -> None:
    missing, other, two, path, address, broken = (result["error"] for result in world["refused"])
    assert f"{REPO} at v9" in missing and "RevisionNotFoundError" in missing
    assert "owner/other" in other and "owner/other" in world["offline"][world["jobs"]]["error"]
    assert "one revision" in two
    assert "a branch, tag or commit" in path
    assert "***" in address
    assert "no readable JSON" in broken


def test_the_token_is_sent_and_never_shown(world: dict[str, Any]) -> None:
    assert f"Bearer {hub_driver.TOKEN}" in world["hub"].tokens
    assert hub_driver.TOKEN not in json.dumps([world["online"], world["offline"]])


def test_a_folder_is_recorded_by_the_hashes_of_what_was_read(tmp_path: Path) -> None:
    folder = tiny_pipeline_folder(tmp_path / "model")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"not read, as there are safetensors")
    (folder / "notes.txt").write_text("not read")
    origin = load_denoiser(folder).origin
    assert origin is not None and origin.commit is None
    assert asdict(origin)["files"] == records(folder_files(folder), READ)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    folder = tiny_pipeline_folder(tmp_path / "model")
    with pytest.raises(ModelError, match="only Hub models have revisions"):
        load_denoiser(folder, revision="v1")


def test_a_folder_comes_before_a_hub_id_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline_folder(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    origin = load_denoiser(REPO).origin
    assert origin is not None and (origin.reference, origin.commit) == (REPO, None)


def test_the_hub_of_these_tests_holds_what_it_was_given() -> None:
    hub = TinyHub()
    commit = hub.commit("main", {"a.json": b"{}", "b.bin": b"1"})
    assert (hub.find("main"), hub.find(commit), hub.find("other")) == (commit, commit, None)
    assert [("lfs" in entry) for entry in hub.tree(commit)] == [False, True]
