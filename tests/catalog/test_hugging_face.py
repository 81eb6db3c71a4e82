"""Packs on the Hugging Face Hub: its client, unmodified, speaks HTTP to a Hub on loopback in which things go wrong."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog.fs import CARD, MANIFEST
from tests.catalog.drafts import REPOSITORY, card, draft, shard
from tests.catalog.hub_client import Client, client
from tests.catalog.hub_server import READER, TOKEN, HubServer, serve
from tests.catalog.hub_state import Repository

ONE, TWO, THREE = (shard(number)[0] for number in (1, 2, 3))
SIZE = 3000


@pytest.fixture(scope="module")
def _server() -> Iterator[HubServer]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(_server: HubServer) -> Iterator[HubServer]:
    """An empty hub. In the end: no token has left it, and none came to the store of large files."""
    yield _server
    assert _server.strangers == set()
    _server.reset()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("client") / "home"


@pytest.fixture(scope="module")
def _user(_server: HubServer, home: Path) -> Iterator[Client]:
    with client(_server, home) as user:
        yield user
    held = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert TOKEN not in user.stderr()
    assert TOKEN.encode() not in held


@pytest.fixture
def user(_user: Client, home: Path) -> Client:
    """A client with an empty cache, that publishes and reads."""
    shutil.rmtree(home / "hub", ignore_errors=True)
    return _user


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "drafts")


def repository(hub: HubServer) -> Repository:
    return hub.repositories.get(REPOSITORY)


def holds(hub: HubServer, version: str, numbers: tuple[int, ...], revision: str | None = None) -> None:
    """Assert that a revision, or the version's tag, has exactly the files of the draft."""
    names = repository(hub).files(revision or f"v{version}")
    expected = {**dict(map(shard, numbers)), CARD: card(version)}
    assert set(names) - {".gitattributes", "LICENSE"} == {*expected, MANIFEST}
    for name, data in expected.items():
        assert hub.content(REPOSITORY, name, revision or f"v{version}") == data
    assert f'"version": "{version}"'.encode() in hub.content(REPOSITORY, MANIFEST, revision or f"v{version}")


def refused(answer: dict[str, Any], error: str, *parts: str) -> None:
    """Assert that something failed with an error that says so, in one line, without secrets."""
    assert answer.get("error") == error, answer
    for part in parts:
        assert part in answer["message"]
    assert TOKEN not in answer["message"]
    assert "signature" not in answer["message"]
    assert "\n" not in answer["message"]


def test_only_what_is_new_is_sent_and_what_is_no_longer_listed_goes(hub: HubServer, user: Client, folder: str) -> None:
    first = user.do("publish", folder=folder, version="1.0.0")
    assert hub.received["upload"] == 2 * SIZE
    assert repository(hub).history() == ["Version 1.0.0", "initial commit"]
    hub.commit(REPOSITORY, {"LICENSE": b"mine", "directions/stray.parquet": b"PAR1"})
    second = user.do("publish", folder=folder, version="1.1.0", numbers=[1, 3], held=[1], former=first["revision"])
    assert hub.received["upload"] == 3 * SIZE
    assert user.do("versions") == {"1.0.0": first["revision"], "1.1.0": second["revision"]}
    holds(hub, "1.0.0", (1, 2))
    holds(hub, "1.1.0", (1, 3))
    assert list(repository(hub).branches) == ["main"]
    holds(hub, "1.1.0", (1, 3), "main")
    assert hub.content(REPOSITORY, "LICENSE") == b"mine"
    done = [line[1] for line in second["progress"]]
    assert done == sorted(done)
    assert done[-1] == second["progress"][-1][2]


def test_files_that_the_head_no_longer_has_are_taken_from_the_former_version(
    hub: HubServer, user: Client, folder: str
) -> None:
    first = user.do("publish", folder=folder, version="1.0.0")
    del repository(hub).commits[first["revision"]].files[ONE]  # type: ignore[attr-defined]
    hub.commit(REPOSITORY, {}, "somebody deletes a shard")
    repository(hub).commits[first["revision"]].files[ONE] = hub.repositories.file(ONE, shard(1)[1])  # type: ignore[index]
    user.do("publish", folder=folder, version="1.1.0", numbers=[1, 3], held=[1], former=first["revision"])
    holds(hub, "1.1.0", (1, 3))
    assert hub.received["upload"] == 3 * SIZE


def test_a_published_version_is_refused_before_anything_is_sent(hub: HubServer, user: Client, folder: str) -> None:
    user.do("publish", folder=folder, version="1.0.0")
    before = dict(repository(hub).branches)
    hub.requests.clear()
    answer = user.do("publish", folder=folder, version="1.0.0", numbers=[4])
    refused(answer, "ConflictError", f"{REPOSITORY} 1.0.0", "never change", "there are 1.0.0")
    assert set(hub.requests) == {"refs", "tree"}
    assert repository(hub).branches == before


@pytest.mark.parametrize("first", [1, 2])
def test_an_edit_of_the_main_branch_meanwhile_is_kept(hub: HubServer, user: Client, folder: str, first: int) -> None:
    edit = {CARD: b"edited", "LICENSE": b"mine"}
    hub.meanwhile("commit", lambda: hub.commit(REPOSITORY, edit, "an edit"), first=first)
    user.do("publish", folder=folder, version="1.0.0")
    assert repository(hub).history() == ["Version 1.0.0", "an edit", "initial commit"]
    holds(hub, "1.0.0", (1, 2))
    holds(hub, "1.0.0", (1, 2), "main")
    assert hub.content(REPOSITORY, "LICENSE") == b"mine"
    assert hub.received["upload"] == 2 * SIZE


def test_another_version_meanwhile_is_named(hub: HubServer, user: Client, folder: str) -> None:
    def rival() -> None:
        repository(hub).tags["v1.1.0"] = hub.commit(REPOSITORY, {CARD: card("1.1.0")})

    first = user.do("publish", folder=folder, version="1.0.0")
    hub.meanwhile("commit", rival)
    answer = user.do("publish", folder=folder, version="1.2.0", numbers=[1, 3], held=[1], former=first["revision"])
    refused(answer, "ConflictError", "1.1.0, which was published", "again")
    assert sorted(repository(hub).tags) == ["v1.0.0", "v1.1.0"]
    hub.meanwhile("commit", lambda: repository(hub).tags.update({"v3.0.0": hub.commit(REPOSITORY, {"x": b""})}))
    refused(
        user.do("publish", folder=folder, version="2.0.0", numbers=[5]), "ConflictError", "3.0.0, which was published"
    )


def test_who_is_late_with_the_tag_is_told_and_leaves_the_head_to_the_winner(
    hub: HubServer, user: Client, folder: str, tmp_path: Path
) -> None:
    def rival() -> None:
        files = {name: path.read_bytes() for name, path in draft(tmp_path, "1.0.0", (7,)).places.items()}
        told = draft(tmp_path, "1.0.0", (7,)).manifest
        commit = hub.commit(REPOSITORY, {**files, MANIFEST: told}, "the rival's")
        repository(hub).branches["main"] = str(repository(hub).commits[commit].parent)  # it came by another branch
        clean = {name: file for name, file in repository(hub).files(commit).items() if name not in (ONE, TWO)}
        repository(hub).tags["v1.0.0"] = repository(hub).add("rival", clean, "the rival's")

    hub.meanwhile("tag", rival)
    refused(user.do("publish", folder=folder, version="1.0.0"), "ConflictError", "1.0.0", "never change")
    holds(hub, "1.0.0", (7,))
    holds(hub, "1.0.0", (7,), "main")


def test_of_two_processes_that_publish_one_version_one_wins(
    hub: HubServer, user: Client, folder: str, tmp_path: Path
) -> None:
    with client(hub, tmp_path / "second") as second:
        hub.commit(REPOSITORY, {})
        numbers = {user: (1, 2), second: (1, 9)}
        for other in numbers:
            other.do("versions")  # both are awake
            other.ask("publish", folder=f"{folder}/{other.process.pid}", version="1.0.0", numbers=numbers[other])
        answers = {other: other.answer() for other in numbers}
        losers = [answer for answer in answers.values() if "error" in answer]
        assert len(losers) == 1
        refused(losers[0], "ConflictError", "1.0.0")
        (winner,) = (other for other in numbers if "revision" in answers[other])
    holds(hub, "1.0.0", numbers[winner])


@pytest.mark.parametrize("kind", ["create", "commit", "tag"])
def test_a_lost_answer_is_made_out(hub: HubServer, user: Client, folder: str, kind: str) -> None:
    hub.loses(kind)
    assert "revision" in user.do("publish", folder=folder, version="1.0.0")
    assert repository(hub).history() == ["Version 1.0.0", "initial commit"]
    holds(hub, "1.0.0", (1, 2))


def test_a_busy_hub_and_cut_connections_are_waited_for(hub: HubServer, user: Client, folder: str) -> None:
    hub.answers("refs", 503)
    hub.answers("preupload", 429, headers={"Retry-After": "0"})
    hub.answers("commit", 429, headers={"Retry-After": "1"})
    hub.answers("tag", 500)
    hub.cuts("upload", after=1000)
    assert "revision" in user.do("publish", folder=folder, version="1.0.0")
    assert hub.received["upload"] in range(2 * SIZE + 1000, 2 * SIZE + 1001)
    holds(hub, "1.0.0", (1, 2))


def test_a_hub_that_stays_down_ends_a_publication_that_a_rerun_finishes(
    hub: HubServer, user: Client, folder: str
) -> None:
    for kind in ("commit", "tag", "refs"):
        hub.answers(kind, 503, times=99)
        answer = user.do("publish", folder=folder, version="1.0.0", patience=0.2)
        refused(answer, "StoreError", REPOSITORY, "HTTP 503", "Try again")
        hub.faults.clear()
        assert user.do("versions") == {}
        assert list(repository(hub).files("main")) == [".gitattributes"]
    assert "revision" in user.do("publish", folder=folder, version="1.0.0")
    assert hub.received["upload"] == 2 * SIZE
    assert repository(hub).history() == ["Version 1.0.0", "initial commit"]


@pytest.mark.parametrize(
    ("kind", "first", "lost"),
    [("create", 1, False), ("create", 1, True), ("branch", 1, False), ("branch", 1, True), ("upload", 2, False),
     ("commit", 1, False), ("commit", 1, True), ("tag", 1, False), ("tag", 1, True), ("commit", 2, False),
     ("commit", 2, True), ("branch", 2, False), ("branch", 2, True)],
)  # fmt: skip
def test_a_killed_publication_shows_nothing_without_a_tag_and_a_rerun_finishes_it(
    hub: HubServer, user: Client, tmp_path: Path, kind: str, first: int, lost: bool
) -> None:
    pause = hub.pauses(kind, first=first, lost=lost)
    with client(hub, tmp_path / "victim") as victim:
        victim.ask("publish", folder=str(tmp_path / "drafts"), version="1.0.0")
        assert pause.reached.wait(60)
        victim.kill()
    pause.drop()
    published = (kind, lost) == ("tag", True) or (first == 2 and kind != "upload")
    assert user.do("versions") == ({"1.0.0": repository(hub).tags["v1.0.0"]} if published else {})
    followed = published and (kind == "branch" or (kind, lost) == ("commit", True))
    shown = repository(hub).files("main") if REPOSITORY in hub.repositories.all else {}
    assert bool(set(shown) - {".gitattributes"}) == followed
    again = user.do("publish", folder=str(tmp_path / "drafts"), version="1.0.0")
    if published:
        refused(again, "ConflictError", "1.0.0", "never change")
    else:
        assert "revision" in again
    for revision in ("v1.0.0", "main"):
        holds(hub, "1.0.0", (1, 2), revision)
        assert repository(hub).history(revision) == ["Version 1.0.0", "initial commit"]
    assert list(repository(hub).branches) == ["main"]
    assert hub.received["upload"] <= (3 if kind == "upload" else 2) * SIZE


def test_a_draft_too_large_for_a_commit_goes_through_a_branch(hub: HubServer, user: Client, folder: str) -> None:
    user.do("publish", folder=folder, version="1.0.0")
    first = repository(hub).tags["v1.0.0"]
    hub.commit(REPOSITORY, {"LICENSE": b"mine"})
    answer = user.do(
        "publish", folder=folder, version="1.1.0", numbers=[1, 3, 4, 5], held=[1], former=first, files=2
    )  # fmt: skip
    assert repository(hub).history("v1.1.0") == ["Version 1.1.0"] * 3 + ["an edit", "Version 1.0.0", "initial commit"]
    assert repository(hub).history("main") == ["Version 1.1.0", "an edit", "Version 1.0.0", "initial commit"]
    assert repository(hub).tags["v1.1.0"] == answer["revision"]
    holds(hub, "1.1.0", (1, 3, 4, 5))
    assert list(repository(hub).branches) == ["main"]
    holds(hub, "1.1.0", (1, 3, 4, 5), "main")
    assert hub.content(REPOSITORY, "LICENSE") == b"mine"
    assert hub.received["upload"] == 5 * SIZE


@pytest.mark.parametrize(("kind", "first"), [("branch", 1), ("commit", 2), ("commit", 3), ("tag", 1)])
def test_a_large_draft_that_was_killed_goes_on_where_it_was(
    hub: HubServer, user: Client, tmp_path: Path, kind: str, first: int
) -> None:
    told = {"folder": str(tmp_path / "drafts"), "version": "1.0.0", "numbers": [1, 2, 3, 4], "files": 2}
    pause = hub.pauses(kind, first=first)
    with client(hub, tmp_path / "victim") as victim:
        victim.ask("publish", **told)
        assert pause.reached.wait(60)
        victim.kill()
    pause.drop()
    assert user.do("versions") == {}
    assert list(repository(hub).files("main")) == [".gitattributes"]
    assert "revision" in user.do("publish", **told)
    holds(hub, "1.0.0", (1, 2, 3, 4))
    holds(hub, "1.0.0", (1, 2, 3, 4), "main")
    assert repository(hub).history("v1.0.0") == ["Version 1.0.0"] * 3 + ["initial commit"]
    assert hub.received["upload"] == 4 * SIZE
    assert list(repository(hub).branches) == ["main"]


def test_a_branch_that_somebody_else_commits_to_is_told(hub: HubServer, user: Client, folder: str) -> None:
    told = {"folder": folder, "version": "1.0.0", "numbers": [1, 2, 3, 4], "files": 2}
    hub.meanwhile("commit", lambda: hub.commit(REPOSITORY, {"x": b"x"}, branch="staging-v1.0.0"), first=2)
    refused(user.do("publish", **told), "ConflictError", "somebody else", "1.0.0")
    assert user.do("versions") == {}


def test_what_a_main_branch_could_not_follow_it_does_with_the_next_version(
    hub: HubServer, user: Client, folder: str
) -> None:
    hub.answers("commit", 403, first=2)
    hub.answers("branch", 403, first=2)
    assert "revision" in user.do("publish", folder=folder, version="1.0.0")
    assert sorted(repository(hub).branches) == ["main", "staging-v1.0.0"]
    assert list(repository(hub).files("main")) == [".gitattributes"]
    user.do("publish", version="1.1.0", folder=folder)
    assert list(repository(hub).branches) == ["main"]
    holds(hub, "1.1.0", (1, 2), "main")


def test_a_main_branch_that_shows_what_was_never_tagged_is_put_right_by_the_next_version(
    hub: HubServer, user: Client, folder: str
) -> None:
    hub.commit(REPOSITORY, {MANIFEST: b"{}", "directions/stray.parquet": b"PAR1"}, "a publication without a tag")
    user.do("publish", folder=folder, version="1.0.0")
    holds(hub, "1.0.0", (1, 2), "main")


def test_a_version_older_than_the_newest_leaves_the_main_branch_alone(
    hub: HubServer, user: Client, folder: str
) -> None:
    first = user.do("publish", folder=folder, version="1.0.0")["revision"]
    user.do("publish", folder=folder, version="2.0.0", numbers=[5])
    before = dict(repository(hub).branches)
    user.do("publish", folder=folder, version="1.0.1", numbers=[1, 3], held=[1], former=first)
    holds(hub, "1.0.1", (1, 3))
    assert repository(hub).branches == before


def test_a_file_that_changed_since_the_draft_is_not_published(hub: HubServer, user: Client, tmp_path: Path) -> None:
    def change() -> None:
        (tmp_path / "drafts/1.0.0" / ONE).write_bytes(b"x" * SIZE)

    hub.meanwhile("yaml", change)
    hub.meanwhile("preupload", change)
    answer = user.do("publish", folder=str(tmp_path / "drafts"), version="1.0.0")
    refused(answer, "CatalogError", Path(ONE).name, "changed")
    assert user.do("versions") == {}
    assert list(repository(hub).files("main")) == [".gitattributes"]


def test_a_card_that_the_hub_refuses_is_told(hub: HubServer, user: Client, tmp_path: Path) -> None:
    hub.answers("yaml", 400)
    refused(user.do("publish", folder=str(tmp_path), version="1.0.0"), "InputError", REPOSITORY, "README.md")
    assert user.do("versions") == {}


@pytest.mark.parametrize(
    ("token", "words"),
    [("", ["HTTP 401", "hf auth login"]), ("hf_expiredexpired", ["HTTP 401", "hf auth login", "expired"]),
     (READER, ["HTTP 403", "does not allow this"])],
)  # fmt: skip
def test_a_token_that_will_not_do_is_told_and_not_shown(
    hub: HubServer, tmp_path: Path, token: str, words: list[str]
) -> None:
    hub.commit(REPOSITORY, {})
    with client(hub, tmp_path / "home", token) as stranger:
        answer = stranger.do("publish", folder=str(tmp_path), version="1.0.0")
        refused(answer, "InputError", REPOSITORY, *words)
        assert token == "" or token not in answer["message"] + stranger.stderr()
    assert list(repository(hub).files("main")) == [".gitattributes"]


def test_a_token_that_expires_on_the_way_publishes_nothing(hub: HubServer, user: Client, folder: str) -> None:
    hub.answers("commit", 401)
    refused(user.do("publish", folder=folder, version="1.0.0"), "InputError", "expired", "hf auth login")
    assert user.do("versions") == {}
    assert "revision" in user.do("publish", folder=folder, version="1.0.0")
    assert hub.received["upload"] == 2 * SIZE


def test_private_packs_are_private_from_the_beginning(hub: HubServer, user: Client, tmp_path: Path) -> None:
    user.do("publish", folder=str(tmp_path), version="1.0.0", private=True)
    assert repository(hub).private
    with client(hub, tmp_path / "home", READER) as stranger:
        assert stranger.do("versions") == {}
        assert stranger.do("find", words=[]) == {"found": []}
    with client(hub, tmp_path / "home", "") as nobody:
        refused(nobody.do("versions"), "InputError", "hf auth login")
    repository(hub).private = False
    sent = hub.received["upload"]
    answer = user.do("publish", folder=str(tmp_path), version="1.1.0", numbers=[3], private=True)
    refused(answer, "InputError", "a public repository", "nothing was sent")
    assert hub.received["upload"] == sent


def test_a_gated_pack_says_where_to_ask(hub: HubServer, user: Client, tmp_path: Path) -> None:
    user.do("publish", folder=str(tmp_path), version="1.0.0")
    repository(hub).gated = True
    with client(hub, tmp_path / "home", READER) as stranger:
        target = str(tmp_path / "out")
        answer = stranger.do("fetch", version="1.0.0", name=ONE, target=target)
    refused(answer, "InputError", "gated", f"{hub.url}/datasets/{REPOSITORY}")


def test_files_are_fetched_once_and_anew_where_the_cache_is_damaged(
    hub: HubServer, user: Client, home: Path, tmp_path: Path
) -> None:
    user.do("publish", folder=str(tmp_path), version="1.0.0")
    assert '"version": "1.0.0"' in user.do("manifest", version="1.0.0")["manifest"]
    for number in range(3):
        assert user.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / f"{number}")) == {}
        assert (tmp_path / f"{number}").read_bytes() == shard(1)[1]
    assert hub.sent["content"] == SIZE
    (cached,) = (path for path in home.rglob(Path(ONE).name))
    cached.resolve().write_bytes(b"damaged")
    user.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / "damaged"))
    user.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / "anew"), anew=True)
    assert (tmp_path / "damaged").read_bytes() == b"damaged"
    assert (tmp_path / "anew").read_bytes() == shard(1)[1]
    (manifest,) = home.rglob(MANIFEST)
    manifest.resolve().write_bytes(b"{}")
    assert user.do("manifest", version="1.0.0")["manifest"] == "{}"
    assert '"version": "1.0.0"' in user.do("manifest", version="1.0.0", anew=True)["manifest"]


def test_a_cut_download_goes_on_and_a_hub_that_stays_down_is_told(hub: HubServer, user: Client, tmp_path: Path) -> None:
    user.do("publish", folder=str(tmp_path), version="1.0.0")
    hub.cuts("content", after=1000)
    assert user.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / "one")) == {}
    assert (tmp_path / "one").read_bytes() == shard(1)[1]
    assert hub.sent["content"] == SIZE + 1000
    hub.answers("content", 503, times=9)
    answer = user.do("fetch", version="1.0.0", name=TWO, target=str(tmp_path / "two"))
    refused(answer, "StoreError", REPOSITORY, "HTTP 503")
    hub.faults.clear()
    for name, where in ((ONE, "target"), (TWO, "cache")):
        answer = user.do("fetch", version="1.0.0", name=name, target=str(tmp_path / "full"), full=where)
        refused(answer, "CatalogError", "no space left")
    answer = user.do("fetch", version="1.0.0", name=THREE, target=str(tmp_path / "three"))
    refused(answer, "NotFoundError", REPOSITORY)
    answer = user.do("fetch", version="1.0.0", name="../../x", target=str(tmp_path / "three"))
    refused(answer, "CatalogError", "file name")


def test_of_a_piece_only_that_travels(hub: HubServer, user: Client, tmp_path: Path) -> None:
    user.do("publish", folder=str(tmp_path), version="1.0.0")
    told: dict[str, Any] = {"version": "1.0.0", "name": ONE}
    assert bytes.fromhex(user.do("read", start=100, size=50, **told)["data"]) == shard(1)[1][100:150]
    assert hub.sent["content"] == 50
    assert user.do("read", start=0, size=0, **told)["data"] == ""
    refused(user.do("read", start=2990, size=50, **told), "CatalogError", "10 bytes from 2990 on")
    refused(user.do("read", start=4000, size=50, **told), "CatalogError", "HTTP 416")
    hub.answers("content", 429, headers={"Retry-After": "0"})
    assert bytes.fromhex(user.do("read", start=1, size=3, **told)["data"]) == shard(1)[1][1:4]
    for fault in ("cut", "busy"):
        hub.faults.clear()
        if fault == "cut":
            hub.cuts("content", after=10)
        else:
            hub.answers("resolve", 503)
        refused(user.do("read", start=100, size=50, **told), "StoreError", REPOSITORY)
    hub.ranges = False
    refused(user.do("read", start=100, size=50, **told), "CatalogError", "ignores ranges")
    assert bytes.fromhex(user.do("read", start=0, size=SIZE, **told)["data"]) == shard(1)[1]


def test_a_tag_that_was_moved_is_refused(hub: HubServer, user: Client, folder: str) -> None:
    revision = user.do("publish", folder=folder, version="1.0.0")["revision"]
    repository(hub).tags["v1.0.0"] = hub.commit(REPOSITORY, {MANIFEST: b"{}"})
    answer = user.do("manifest", version="1.0.0", revision=revision)
    refused(answer, "CatalogError", revision, "must not move")


def test_without_a_connection_what_was_fetched_is_there(
    hub: HubServer, user: Client, home: Path, tmp_path: Path
) -> None:
    first = user.do("publish", folder=str(tmp_path), version="1.0.0")["revision"]
    user.do("publish", folder=str(tmp_path), version="1.1.0", numbers=[3])
    manifest = user.do("manifest", version="1.0.0")
    user.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / "out"))
    asked = len(hub.asked)
    with client(hub, home, offline=True) as traveller:
        assert traveller.do("versions") == {"1.0.0": first}
        assert traveller.do("manifest", version="1.0.0") == manifest
        assert traveller.do("fetch", version="1.0.0", name=ONE, target=str(tmp_path / "again")) == {}
        answer = traveller.do("fetch", version="1.0.0", name=TWO, target=str(tmp_path / "two"))
        refused(answer, "InputError", "HF_HUB_OFFLINE")
        refused(traveller.do("read", version="1.0.0", name=ONE, start=0, size=3), "InputError", "HF_HUB_OFFLINE")
        refused(traveller.do("publish", folder=str(tmp_path), version="1.2.0"), "InputError", "HF_HUB_OFFLINE")
        refused(traveller.do("find", words=["smile"]), "InputError", "HF_HUB_OFFLINE")
    assert len(hub.asked) == asked
    with serve() as gone:
        pass
    with client(gone, home) as traveller:
        assert traveller.do("versions") == {"1.0.0": first}
        assert traveller.do("manifest", version="1.0.0") == manifest
        shutil.rmtree(home / "hub")
        refused(traveller.do("versions", patience=0.2), "UnreachableError", "no connection", gone.url)
        begun = time.monotonic()
        refused(traveller.do("find", words=["smile"]), "UnreachableError", "no connection", gone.url)
        assert time.monotonic() - begun < 15


def test_a_repository_that_is_not_there_has_no_versions(hub: HubServer, user: Client) -> None:
    assert user.do("versions") == {}
    refused(user.do("manifest", version="1.0.0", revision="0" * 40), "NotFoundError", REPOSITORY)


def test_a_search_finds_packs_by_tag_and_words(hub: HubServer, user: Client, folder: str) -> None:
    user.do("publish", folder=folder, version="1.0.0")
    user.do("publish", folder=folder, version="1.1.0", numbers=[3])
    hub.commit("org/others", {CARD: b"---\ntags: [rhumb]\npretty_name: Smiles without versions\n---\n"})
    hub.commit("org/strangers", {CARD: b"---\ntags: [cats]\npretty_name: Smiles of cats\n---\n"})
    line = [REPOSITORY, ["1.0.0", "1.1.0"], "Smiles", ["rhumb", "celeba", "mouth"], False]
    hub.page = 1
    assert user.do("find", words=["smiles", "MOUTH"]) == {"found": [line]}
    assert user.do("find", words=[]) == {"found": [line]}
    assert user.do("find", words=["hair"]) == {"found": []}


def test_listings_of_many_pages_are_read_to_their_end(hub: HubServer, user: Client, folder: str) -> None:
    hub.page = 2
    first = user.do("publish", folder=folder, version="1.0.0", numbers=[1, 2, 3, 4])["revision"]
    user.do("publish", folder=folder, version="1.1.0", numbers=[1, 2, 3, 5], held=[1, 2, 3], former=first)
    assert hub.received["upload"] == 5 * SIZE
    holds(hub, "1.1.0", (1, 2, 3, 5))


def test_datasets_loads_a_version_by_its_tag_whole_and_streaming(hub: HubServer, user: Client, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    page = "---\nconfigs:\n- config_name: mouth\n  data_files:\n  - split: train\n    path: directions/*\n---\n"
    for version in ("1.0.0", "1.1.0"):
        pq.write_table(pa.table({"version": [version] * 3}), tmp_path / version)
        data = (tmp_path / version).read_bytes()
        name = f"directions/{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        told = {"contents": {name: str(tmp_path / version)}, "page": page}
        answer = user.do("publish", folder=str(tmp_path / "drafts"), version=version, **told)
        assert "revision" in answer, answer
    for version in ("1.0.0", "1.1.0"):
        for streaming in (False, True):
            told = {"config": "mouth", "revision": f"v{version}", "column": "version"}
            assert user.do("load", streaming=streaming, **told) == {"values": [version] * 3}
