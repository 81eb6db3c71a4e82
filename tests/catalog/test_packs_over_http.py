"""A pack that is published to a Hub over HTTP and pulled again, by clients in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.index import build_indexes
from catalog.reader import Catalog
from catalog.secrecy import HIDDEN
from catalog.verify import verify
from catalog.writer import CatalogWriter
from tests.catalog.hub_client import Client, client
from tests.catalog.hub_server import TOKEN, HubServer, serve
from tests.catalog.samples import chunk_of, small_catalog


def done(answer: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in answer, answer
    return answer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve() as hub:
        yield hub
    assert hub.strangers == set()


@pytest.fixture
def user(hub: HubServer, tmp_path: Path) -> Iterator[Client]:
    with client(hub, tmp_path / "home") as user:
        yield user
    assert TOKEN not in user.stderr()
    assert "signature" not in user.stderr().lower()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    small_catalog(tmp_path / "source", 3)
    build_indexes(tmp_path / "source")
    return tmp_path / "source"


def test_a_pack_is_published_grows_and_comes_back(hub: HubServer, user: Client, source: Path, tmp_path: Path) -> None:
    done(user.do("publish_catalog", catalog=str(source), version="1.0.0"))
    with CatalogWriter.open(source) as writer:
        writer.commit(chunk_of("later", images=1))
    build_indexes(source)
    hub.received.clear()
    hub.cuts("upload", after=500, first=2)
    second = done(user.do("publish_catalog", catalog=str(source), version="1.1.0"))
    assert hub.received["upload"] < second["new_bytes"] + 500 < second["bytes"] / 2
    hub.cuts("content", after=2000, first=3)
    hub.answers("resolve", 503, first=5)
    first = done(user.do("pull", name="org/pack@>=1.1,<2", out=str(tmp_path / "out")))
    assert (first["revision"], first["bytes"]) == (second["revision"], second["bytes"])
    assert verify(tmp_path / "out").problems == ()
    with Catalog.open(tmp_path / "out") as one, Catalog.open(source) as two:
        assert np.array_equal(one.ids(), two.ids())
        ids = [key.decode() for key in one.ids()]
    hub.sent.clear()
    assert user.do("pull", name="org/pack@1.1.0", out=str(tmp_path / "out"))["new_bytes"] == 0
    done(user.do("pull", name="org/pack@1.1.0", out=str(tmp_path / "another")))
    assert hub.sent["content"] == 0
    for streaming in (False, True):
        told = {"config": "directions", "revision": "v1.1.0", "column": "direction_id", "streaming": streaming}
        assert sorted(user.do("load", **told)["values"]) == sorted(ids)
        assert sorted(user.do("load", source=str(tmp_path / "out"), **told)["values"]) == sorted(ids)
    held = [path for folder in ("out", "source", "home") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in held)


def test_a_traveller_reads_what_was_pulled_before(hub: HubServer, user: Client, source: Path, tmp_path: Path) -> None:
    user.do("publish_catalog", catalog=str(source), version="1.0.0")
    first = user.do("pull", name="org/pack", out=str(tmp_path / "out"))
    with client(hub, tmp_path / "home", offline=True) as traveller:
        again = traveller.do("pull", name="org/pack", out=str(tmp_path / "elsewhere"))
        assert again["revision"] == first["revision"]
        refused = traveller.do("pull", name="org/other", out=str(tmp_path / "other"))
        assert refused["error"] == "InputError"
        assert "HF_HUB_OFFLINE" in refused["message"]
    assert verify(tmp_path / "elsewhere").problems == ()


def test_a_traveller_has_the_part_that_is_cached_though_the_name_of_a_newer_version_is_known(
    source: Path, tmp_path: Path
) -> None:
    home, told = tmp_path / "home", {"name": "org/pack", "region": "mouth"}
    with serve() as hub, client(hub, home) as user:
        done(user.do("publish_catalog", catalog=str(source), version="1.0.0"))
        expected = done(user.do("directions", **told))
        done(user.do("pull", **told, out=str(tmp_path / "first")))
        with CatalogWriter.open(source) as writer:
            writer.commit(chunk_of("later", images=1))
        build_indexes(source)
        done(user.do("publish_catalog", catalog=str(source), version="1.1.0"))
        user.do("manifest", version="1.1.0")
    for offline in (True, False):  # told to be, or without a connection
        out = tmp_path / f"offline {offline}"
        with client(hub, home, offline=offline) as traveller:
            begun = time.monotonic()
            assert traveller.do("directions", **told) == expected
            assert done(traveller.do("pull", **told, out=str(out)))["version"] == "1.0.0"
            assert time.monotonic() - begun < 60
        assert verify(out).problems == ()


def test_addresses_that_were_signed_are_not_logged_whoever_listens(
    hub: HubServer, user: Client, source: Path, tmp_path: Path
) -> None:
    hub.cuts("upload", after=500, first=2)
    done(user.do("publish_catalog", catalog=str(source), version="1.0.0"))
    hub.cuts("content", after=2000, first=3)
    done(user.do("pull", name="org/pack", out=str(tmp_path / "out")))
    said = user.stderr()
    assert "thrown while requesting PUT" in said and "Error while downloading" in said
    assert said.count(f"?{HIDDEN}") >= 2
    assert "signed-for-a-while" not in said
