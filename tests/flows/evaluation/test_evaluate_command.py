"""`rhumb evaluate` as people run it: a small model, a few photographs, real methods."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.experiments import EXPERIMENTS
from pipeline.methods.choices import METHODS
from tests.flows.tiny import model, parsed, photographs, recipe, run

ASKED = ("--images", 2, "--choosing", 0, "--method", "random-x", "--method", "loco")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five photographs, masks, a model of 8 x 8 pixels and recipe.yaml; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    photographs(folder)
    recipe(folder, model(folder / "model", size=8))
    return folder


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    """The folder of an evaluation by one process; not to be changed."""
    out = world / "alone"
    assert run("evaluate", world / "recipe.yaml", *ASKED, "--workers", 1, "--out", out) == 0
    return out


def rows(out: Path) -> pa.Table:
    return pq.read_table(out / "comparison.parquet")


def figures(out: Path) -> list[dict[str, Any]]:
    """The methods of results.json without what a clock says."""
    methods = parsed((out / "results.json").read_text())["methods"]
    return [{name: value for name, value in each.items() if not name.endswith("seconds")} for each in methods]


def alike(one: Any, other: Any) -> bool:
    """Whether two results are the same but for rounding, which depends on how many threads a process has."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4)
    return bool(one == other)


def refusal(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """The one error of a command that fails."""
    capsys.readouterr()
    assert run("evaluate", *command) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("rhumb evaluate:")]
    assert len(errors) == 1 and "Traceback" not in said.err and said.out == ""
    return errors[0]


def test_an_evaluation_leaves_tables_rows_and_a_page(alone: Path) -> None:
    own = {path.name for path in alone.iterdir()}
    assert own == {"cells", "latents", "results.json", "comparison.md", "comparison.parquet", "index.html"}
    table = rows(alone)
    homes = table.filter(pa.compute.equal(table["kind"], "home"))
    assert homes.num_rows == 2 * 2 * 2  # methods, images, regions
    assert set(homes["method"].to_pylist()) == {"random-x", "loco"}
    assert all(value > 0 for value in homes["roir"].to_pylist())
    assert set(homes["success"].to_pylist()) == {None}  # nothing reads photographs
    results = parsed((alone / "results.json").read_text())
    assert results["facts"]["attribute reader"].startswith("none")
    assert [each["name"] for each in results["methods"]] == ["random-x", "loco"]
    assert results["methods"][0]["edits"] == 4 and results["methods"][0]["find_passes"] > 0
    assert "LPIPS" in " ".join(results["absent"])
    assert (alone / "index.html").read_text().count("<img") == 2 * homes.num_rows


def test_two_processes_give_the_rows_of_one(alone: Path, world: Path, tmp_path: Path) -> None:
    assert run("evaluate", world / "recipe.yaml", *ASKED, "--workers", 2, "--out", tmp_path / "two") == 0
    assert alike(rows(tmp_path / "two").to_pylist(), rows(alone).to_pylist())
    assert alike(figures(tmp_path / "two"), figures(alone))
    assert {p.name for p in (tmp_path / "two" / "cells").rglob("*.json")} == {
        p.name for p in (alone / "cells").rglob("*.json")
    }


def test_a_command_that_was_killed_goes_on_where_it_was(alone: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", world / "recipe.yaml", *ASKED, "--workers", 1, "--out", out]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.flows.driver", "kill:flows.evaluation.world/World/perception:6",
         *map(str, arguments)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (kept,) = (out / "cells").rglob("*.json")  # the first method's; the second was at its second edit
    content = kept.read_bytes()
    assert not (out / "results.json").exists()
    assert run(*arguments) == 0
    assert kept.read_bytes() == content
    assert alike(rows(out).to_pylist(), rows(alone).to_pylist()) and alike(figures(out), figures(alone))


def test_json_is_strict_and_says_what_the_files_say(
    alone: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("evaluate", world / "recipe.yaml", *ASKED, "--workers", 1, "--out", alone, "--json") == 0
    answer = parsed(capsys.readouterr().out)
    assert answer["folder"] == str(alone)
    assert answer["lines"] == parsed((alone / "results.json").read_text())["methods"]
    assert answer["lines"][0]["lpips"]["estimate"] is None  # NaN


def test_people_are_shown_the_table_and_where_the_page_is(
    alone: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("evaluate", world / "recipe.yaml", *ASKED, "--workers", 1, "--out", alone) == 0
    said = capsys.readouterr().out
    assert "comparison" in said and "random-x" in said and "LPIPS" in said
    assert said.splitlines()[-1] == f"-> {alone / 'index.html'}"


def test_what_there_is_is_listed_without_opening_anything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("evaluate", tmp_path / "no.yaml", "--list", "--json") == 0
    assert parsed(capsys.readouterr().out) == {"methods": list(METHODS), "figures": list(EXPERIMENTS)}
    assert run("evaluate", "--list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in METHODS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--method", "locco"), r"--method: found locco; expected some of loco"),
        (("--figure", "rankk", "--method", "none"), r"--figure: found rankk; expected"),
        (("--images", 0), "--images: found 0; expected at least 1"),
        (("--choosing", -1), "--choosing: found -1; expected at least 0"),
        (("--workers", 0), "--workers: found 0; expected at least 1"),
        (("--tune", "--budget", 0), "at least 1"),
        (("--backbones", "/no/such/folder"), "--backbones: found /no/such/folder; expected a folder"),
    ],
)
def test_options_that_do_not_fit_are_one_error(
    options: tuple[object, ...], expected: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = () if "--workers" in options else ("--workers", 1)
    assert expected in refusal(capsys, world / "recipe.yaml", "--out", tmp_path / "out", *workers, *options)
    assert not (tmp_path / "out").exists()


def test_too_few_images_are_one_error_before_anything_is_measured(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (world / "recipe.yaml", "--out", tmp_path / "out", "--workers", 1, "--method", "random-x")
    said = refusal(capsys, *command)
    assert "found 2 of the holdout split; expected at least 50. Ask for fewer with --images" in said
    said = refusal(capsys, *command, "--images", 1, "--choosing", 9, "--method", "loco")
    assert "of the mine split; expected at least 9" in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_one_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    said = refusal(capsys, world / "recipe.yaml", *ASKED, "--workers", 1, "--out", tmp_path / "file" / "out")
    assert str(tmp_path / "file") in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_figure_is_measured_drawn_and_concluded_without_a_comparison(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def measure(setup: Setup) -> list[dict[str, Any]]:
        names = [image.image_id for image in setup.world.images("holdout", 1)]
        return setup.cells.get("dots", {"images": names}, lambda: [{"at": 1.0, "quick": setup.quick, "no": 1 / 3}]).rows

    def conclude(found: Any) -> list[str]:
        return [f"{len(found)} <dot> was measured."]

    dots = Experiment("dots", "Dots & more", "nobody's", measure, lambda found: {"dots-1": Figure((1, 1))}, conclude)
    monkeypatch.setitem(EXPERIMENTS, "dots", dots)
    command = ("evaluate", world / "recipe.yaml", "--method", "none", "--figure", "dots", "--quick", "--workers", 1)
    assert run(*command, "--out", tmp_path) == 0
    assert parsed((tmp_path / "figures" / "dots.json").read_text()) == [{"at": 1.0, "quick": True, "no": 1 / 3}]
    assert (tmp_path / "figures" / "dots-1.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "index.html").read_text()
    assert "Dots &amp; more" in page and "1 &lt;dot&gt; was measured." in page and page.count("<img") == 1
    assert not (tmp_path / "comparison.md").exists()
