"""Names of packs and of their versions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.hub.names import PackName, Version, chosen_version
from pipeline.errors import InputError, NotFoundError

SAID: dict[str, tuple[str | None, str, str]] = {
    "org/name": (None, "org/name", ""),
    "org/name@1.2.0": (None, "org/name", "1.2.0"),
    "org/name@>=1.2,<2": (None, "org/name", ">=1.2,<2"),
    "hub/org/name": ("hub", "org/name", ""),
    "./org/name": (".", "org/name", ""),
    "/org/name": ("/", "org/name", ""),
    "/data/a@b/hub/org/name@v1.0.0": ("/data/a@b/hub", "org/name", "v1.0.0"),
    "file:///my%20hub/org/name": ("/my hub", "org/name", ""),
    "s3://bucket/org/name": ("s3://bucket", "org/name", ""),
    "s3://bucket/hub/org/name@1.0.0": ("s3://bucket/hub", "org/name", "1.0.0"),
    "builtin/faces64": ("builtin", "builtin/faces64", ""),
}


@pytest.mark.parametrize("text", SAID)
def test_a_name_says_hub_repository_and_version(text: str) -> None:
    name = PackName.parse(text)
    assert (name.hub, name.repository, name.wanted) == SAID[text]


@pytest.mark.parametrize(
    "text",
    ["pack", "", "org/..", "hub/../etc", "https://hub/org", "file://host/o/p", "s3://org/name", "s3://u:secret@b/o/n?x=1",
     "org/na--me", "org/.name", "org/name@1.x", "org/name@latest", "a/b\nc"],
)  # fmt: skip
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InputError) as refused:
        PackName.parse(text)
    assert "secret" not in str(refused.value)


def test_a_version_is_said_once() -> None:
    assert PackName.parse("org/name", ">=1").wanted == ">=1"
    with pytest.raises(InputError, match="one version"):
        PackName.parse("org/name@1.0.0", "2.0.0")


def test_only_a_folder_means_another_one_elsewhere() -> None:
    assert PackName.parse("hub/org/name").absolute.hub == str(Path("hub").absolute())
    for text in ("org/name", "builtin/faces64", "s3://bucket/hub/org/name", "/hub/org/name"):
        assert PackName.parse(text).absolute == PackName.parse(text)


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 3), min_size=1, unique=True))
def test_the_newest_that_fits_is_chosen_by_number_and_not_by_spelling(numbers: list[tuple[int, int, int]]) -> None:
    versions = [Version(*one) for one in numbers]
    assert chosen_version(versions, "", "p") == Version(*max(numbers))
    for version in versions:
        assert chosen_version(versions, str(version), "p") == Version.of_tag(version.tag) == version
        assert chosen_version(versions, f"<={version}", "p") == version


def test_a_version_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"1\.0\.0, 1\.10\.0"):
        chosen_version([Version(1, 10, 0), Version(1, 0, 0)], ">=2", "org/pack")


@pytest.mark.parametrize("text", ["1", "1.0", "v1.0.0", "1.0.0-rc1", "01.0.0", "../1.0.0", "", "1.0.0\n", "1.0.\u0661"])
def test_only_semantic_versions_are_versions(text: str) -> None:
    with pytest.raises(InputError, match="semantic"):
        Version.parse(text)
