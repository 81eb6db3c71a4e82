"""`rhumb evaluate` as people run it: a small model, a few photographs, real methods."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.evaluation.evaluating import silence
from flows.evaluation.experiment import Experiment, Setup
from flows.evaluation.experiments import EXPERIMENTS
from flows.evaluation.homes import left_out
from pipeline.errors import InputError, ModelError
from pipeline.methods.choices import METHODS
from pipeline.methods.contract import Found, Refused, Settings, Subject
from pipeline.methods.loco import LocoSettings
from tests.flows.evaluation.linear_world import Planted
from tests.flows.tiny import box, model, parsed, photographs, recipe, run

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
    """The methods of results.json without what a clock says, and where it stood."""
    methods = parsed((out / "results.json").read_text())["methods"]
    clock = ("find_seconds", "edit_seconds", "learn_seconds", "machines")
    return [{name: value for name, value in each.items() if name not in clock} for each in methods]


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
    tables = {"comparison.json", "comparison.md", "comparison.parquet"}
    assert own == {"cells", "latents", "results.json", "index.html", *tables}
    table = rows(alone)
    homes = table.filter(pa.compute.equal(table["kind"], "home"))
    assert homes.num_rows == 2 * 2 * 2  # methods, images, regions
    assert set(homes["method"].to_pylist()) == {"random-x", "loco"}
    assert all(value > 0 for value in homes["roir"].to_pylist())
    assert set(homes["success"].to_pylist()) == {None}  # nothing reads photographs
    results = parsed((alone / "results.json").read_text())
    assert results["facts"]["attribute reader"].startswith("none")
    assert results["facts"]["settings"] == "one set a method, of which nothing was chosen"
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


@pytest.fixture
def dots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Figures "dots" and "more" of one row each; the list tells which were measured, in their order."""
    from matplotlib.figure import Figure

    measured: list[str] = []

    def experiment(name: str) -> Experiment:
        def measure(setup: Setup) -> list[dict[str, Any]]:
            measured.append(name)
            names = [image.image_id for image in setup.world.images("holdout", 1)]
            row = {"at": math.inf, "quick": setup.quick, "no": 1 / 3, "nothing": math.nan}
            return setup.cells.get(name, {"images": names}, lambda: [row]).rows

        def conclude(found: Any) -> list[str]:
            return [f"{len(found)} <{name}> at {found[0]['at']:.1f}, {found[0]['nothing']:.1f} was measured."]

        def draw(found: Any) -> dict[str, Figure]:
            return {f"{name}-1": Figure((1, 1))}

        return Experiment(name, f"All {name} & others", "nobody's", measure, draw, conclude)

    for name in ("dots", "more"):
        monkeypatch.setitem(EXPERIMENTS, name, experiment(name))
    return measured


@pytest.fixture
def copy(alone: Path, tmp_path: Path) -> Path:
    """The folder of an evaluation, to be changed."""
    shutil.copytree(alone, tmp_path / "copy")
    return tmp_path / "copy"


def again(world: Path, out: Path, *options: object, recipe: str = "recipe.yaml") -> dict[str, Any]:
    """results.json after one more call; without options nothing is asked for."""
    assert run("evaluate", world / recipe, "--workers", 1, "--out", out, *(options or ("--method", "none"))) == 0
    found: dict[str, Any] = parsed((out / "results.json").read_text())
    return found


def cells(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "cells").rglob("*.json")}


def test_a_figure_is_measured_drawn_and_concluded_without_a_comparison(
    world: Path, tmp_path: Path, dots: list[str]
) -> None:
    again(world, tmp_path, "--method", "none", "--figure", "dots", "--quick")
    kept = parsed((tmp_path / "figures" / "dots.json").read_text())
    assert kept["rows"] == [{"at": "inf", "quick": True, "no": 1 / 3, "nothing": "nan"}]
    assert kept["of"]["quick"] is True and {"model", "recipe", "images"} <= kept["of"].keys()
    assert (tmp_path / "figures" / "dots-1.png").read_bytes().startswith(b"\x89PNG")
    vector = (tmp_path / "figures" / "dots-1.pdf").read_bytes()
    assert vector.startswith(b"%PDF")
    again(world, tmp_path)  # drawn once more
    assert (tmp_path / "figures" / "dots-1.pdf").read_bytes() == vector
    page = (tmp_path / "index.html").read_text()
    assert "All dots &amp; others" in page and "1 &lt;dots&gt; at inf, nan was" in page and page.count("<img") == 1
    assert not (tmp_path / "comparison.md").exists()


def test_a_figure_asked_for_later_leaves_the_comparison_on_the_page(
    alone: Path, copy: Path, world: Path, dots: list[str]
) -> None:
    before, table = cells(copy), rows(copy)
    found = again(world, copy, "--method", "none", "--figure", "dots", "--quick")
    assert found["methods"] == parsed((alone / "results.json").read_text())["methods"]
    assert found["facts"]["form"] == "full" and found["facts"]["quick figures"] == "dots"
    assert list(found["figures"]) == ["dots"]
    assert rows(copy).equals(table) and before.items() <= cells(copy).items()
    page = (copy / "index.html").read_text()
    assert "Comparison of methods" in page and "All dots &amp; others" in page
    assert "Quick: few images and points" in page


def test_figures_of_other_calls_are_drawn_again_from_their_rows_alone(
    world: Path, tmp_path: Path, dots: list[str]
) -> None:
    first = again(world, tmp_path, "--method", "none", "--figure", "more")
    shutil.rmtree(tmp_path / "cells")
    found = again(world, tmp_path, "--method", "none", "--figure", "dots")
    assert list(found["figures"]) == ["dots", "more"] and found["figures"]["more"] == first["figures"]["more"]
    assert dots == ["more", "dots"]
    assert (tmp_path / "index.html").read_text().count("<img") == 2


def test_a_quick_figure_takes_the_place_of_a_quick_one_alone(
    world: Path, tmp_path: Path, dots: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--method", "none", "--figure", "dots")
    again(world, tmp_path, *asked, "--quick")
    again(world, tmp_path, *asked, "--quick")
    again(world, tmp_path, *asked)
    full = (tmp_path / "figures" / "dots.json").read_bytes()
    assert "the full one" not in capsys.readouterr().err
    found = again(world, tmp_path, *asked, "--figure", "more", "--quick")
    assert "figure dots: the full one that is here is kept" in capsys.readouterr().err
    assert (tmp_path / "figures" / "dots.json").read_bytes() == full and dots == ["dots"] * 3 + ["more"]
    assert found["facts"]["quick figures"] == "more"


def test_a_figure_of_images_whose_regions_are_others_now_is_not_shown(
    tmp_path: Path, dots: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path)
    recipe(tmp_path, model(tmp_path / "model", size=8))
    real = EXPERIMENTS["dots"]

    def measure(setup: Setup) -> list[dict[str, Any]]:
        setup.world.up_to("holdout", 2)
        return list(real.measure(setup))

    monkeypatch.setitem(EXPERIMENTS, "dots", replace(real, measure=measure))
    out = tmp_path / "out"
    again(tmp_path, out, "--method", "none", "--figure", "dots", "--figure", "more")
    for mask in (tmp_path / "masks").rglob("*mouth*"):
        if "d" in (mask.parent.name, mask.name[0]):  # of the second image that is held out
            with Image.open(mask) as picture:
                size = picture.size
            box(size, (0.0, 0.0, 0.3, 0.3)).save(mask)
    capsys.readouterr()
    assert list(again(tmp_path, out)["figures"]) == []
    assert "figures/dots.json" in capsys.readouterr().err
    assert list(again(tmp_path, out, "--method", "none", "--figure", "dots")["figures"]) == ["dots"]


def test_what_settings_figures_are_made_with_is_said_where_others_were_chosen(
    world: Path, tmp_path: Path, dots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Choosy(Planted):
        name = "loco"

        @classmethod
        def grid(cls, settings: Settings) -> list[Settings]:
            assert isinstance(settings, LocoSettings)
            return [settings, replace(settings, null_rank=1)]

        def find(self, subject: Subject) -> Mapping[str, Found | Refused]:
            assert isinstance(self.settings, LocoSettings)
            if self.settings.null_rank == 1:
                return super().find(subject)
            return {region: Refused(region, "not with these") for region in subject.masks}

    monkeypatch.setitem(METHODS, "loco", Choosy)
    asked = ("--images", 1, "--choosing", 1, "--method", "loco")
    assert "settings of figures" not in again(world, tmp_path, *asked)["facts"]
    told = again(world, tmp_path, *asked, "--figure", "dots")["facts"]["settings of figures"]
    assert told == "the recipe's, also where the comparison has chosen others: loco null_rank 30 (chosen: 1)"
    first = ("--images", 1, "--choosing", 0, "--method", "loco")
    assert "settings of figures" not in again(world, tmp_path, *first)["facts"]


def test_seconds_of_another_machine_are_said_to_be(copy: Path, world: Path) -> None:
    facts = again(world, copy)["facts"]
    assert "thread" in facts["machine"] and "seconds measured on" not in facts
    for path in (copy / "cells").rglob("*.json"):
        content = json.loads(path.read_text())
        if content["key"]["method"] == "loco":
            path.write_text(json.dumps({**content, "machine": "a mainframe", "seconds": 66_000.0}))
    found = again(world, copy)
    assert found["facts"]["time for them"].startswith("1,10")  # minutes, of one cell in hours
    assert "loco: a mainframe" in found["facts"]["seconds measured on"]
    assert [each["machines"] for each in found["methods"]][1] == ["a mainframe"]
    assert "loco: a mainframe" in (copy / "comparison.md").read_text()


def test_methods_asked_for_later_join_those_that_were_compared_at_the_same_size(copy: Path, world: Path) -> None:
    asked = ("--images", 2, "--choosing", 0)
    before = [each["name"] for each in again(world, copy)["methods"]]
    found = again(world, copy, *asked, "--method", "random-h", "--method", "loco")
    assert [each["name"] for each in found["methods"]] == [*before, "random-h"] == ["random-x", "loco", "random-h"]
    assert set(rows(copy)["method"].to_pylist()) == {"random-x", "loco", "random-h"}
    assert [each["name"] for each in again(world, copy)["methods"]] == ["random-x", "loco", "random-h"]


def test_a_comparison_of_another_size_takes_the_place_of_the_last(
    copy: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = again(world, copy, "--images", 1, "--choosing", 0, "--method", "random-x")
    assert [(each["name"], each["edits"]) for each in found["methods"]] == [("random-x", 2)]
    assert "the comparison of 2 images that was here is of another size" in capsys.readouterr().err
    assert again(world, copy)["methods"] == found["methods"]


def test_only_methods_with_something_to_choose_from_are_said_to_have_chosen(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grid(cls: type[Planted], settings: LocoSettings) -> list[LocoSettings]:
        return [settings, replace(settings, null_rank=1)]

    monkeypatch.setitem(METHODS, "choosy", type("Choosy", (Planted,), {"name": "choosy", "grid": classmethod(grid)}))
    monkeypatch.setitem(METHODS, "still", type("Still", (Planted,), {"name": "still"}))
    size = ("--images", 1, "--choosing", 1)

    def told(*options: object) -> tuple[str, str]:
        out = tmp_path / f"{len(options)}-{options[-1]}"
        found = again(world, out, *size, *options)
        return found["facts"]["settings"], (out / "index.html").read_text()

    said, page = told("--method", "still")
    assert said == "one set a method, of which nothing was chosen" and "did best" not in page
    said, page = told("--method", "choosy")
    assert said == "chosen on 1 other image" and "with the settings that did best on other images, at" in page
    said, page = told("--quick", "--method", "choosy")  # which tries the first only
    assert said == "one set a method, of which nothing was chosen" and "did best" not in page
    said, page = told("--method", "choosy", "--method", "still")
    assert said == "chosen on 1 other image of choosy; one set, of which nothing was chosen, of still"
    assert "(choosy) or the only ones there are (all others)" in page


def test_a_method_whose_cells_are_gone_is_left_out_and_not_measured_again(
    copy: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (copy / "cells").rglob("*.json"):
        if json.loads(path.read_text())["key"]["method"] == "loco":
            path.unlink()
    before = cells(copy)
    found = again(world, copy)
    assert [each["name"] for each in found["methods"]] == ["random-x"]
    assert "not all its cells" in found["absent"]["LOCO Edit"]
    assert cells(copy) == before
    assert set(rows(copy)["method"].to_pylist()) == {"random-x"}


def test_another_recipe_starts_afresh_says_so_once_and_takes_nothing_away(
    copy: Path, world: Path, dots: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = again(world, copy, "--method", "none", "--figure", "dots")
    other = world / "other.yaml"
    other.write_text((world / "recipe.yaml").read_text() + "\nseed: 7\n")
    capsys.readouterr()
    found = again(world, copy, "--method", "none", "--figure", "more", recipe="other.yaml")
    said = [line for line in capsys.readouterr().err.splitlines() if "of another model, recipe or images" in line]
    assert len(said) == 1 and "comparison.json, figures/dots.json:" in said[0]
    assert found["methods"] == [] and list(found["figures"]) == ["more"]
    assert "random-x" not in (copy / "index.html").read_text()
    assert not (copy / "comparison.md").exists() and not (copy / "comparison.parquet").exists()
    back = again(world, copy)
    assert back["methods"] == before["methods"] and back["figures"] == before["figures"]


def test_a_recipe_under_another_name_is_the_same_recipe(copy: Path, world: Path) -> None:
    other = world / "named.yaml"
    other.write_text((world / "recipe.yaml").read_text().replace("name: tiny", "name: renamed"))
    found = again(world, copy, recipe="named.yaml")
    assert found["facts"]["recipe"] == "renamed" and len(found["methods"]) == 2


def test_rows_that_cannot_be_drawn_any_more_are_left_out_and_told(
    world: Path, tmp_path: Path, dots: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    again(world, tmp_path, "--method", "none", "--figure", "dots", "--figure", "more")
    file = tmp_path / "figures" / "dots.json"
    content = parsed(file.read_text())
    file.write_text(json.dumps({**content, "rows": [{"other": 1}]}))
    assert list(again(world, tmp_path)["figures"]) == ["more"]
    assert "dots.json cannot be drawn (KeyError)" in capsys.readouterr().err


def test_what_is_infinite_is_told_from_what_was_not_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Planted` edits leave every pixel outside the region as it was."""
    monkeypatch.setitem(METHODS, "still", type("Still", (Planted,), {"name": "still"}))
    found = again(world, tmp_path, "--images", 1, "--choosing", 0, "--method", "still")["methods"][0]
    assert found["psnr"]["estimate"] == found["psnr"]["high"] == "inf"
    assert found["lpips"]["estimate"] is None


def test_a_figure_that_cannot_be_measured_is_left_out_with_the_reason_and_costs_no_other(
    world: Path, tmp_path: Path, dots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(setup: Setup) -> Any:
        raise InputError("masks", "<none>", "at least one")

    monkeypatch.setitem(EXPERIMENTS, "dots", replace(EXPERIMENTS["dots"], measure=refuse))
    asked = ("--method", "none", "--figure", "dots", "--figure", "more", "--quick")
    for options in (asked, ("--method", "none")):  # a later call says so too
        found = again(world, tmp_path, *options)
        assert list(found["figures"]) == ["more"]
        assert found["absent"]["figure dots"] == "masks: found <none>; expected at least one"
        page = (tmp_path / "index.html").read_text()
        assert "figure dots: masks: found &lt;none&gt;" in page and "All more" in page and "All dots" not in page


def test_a_figure_measured_before_stays_where_it_cannot_be_measured_again(
    world: Path, tmp_path: Path, dots: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--method", "none", "--figure", "dots", "--quick")
    before = again(world, tmp_path, *asked)["figures"]

    def refuse(setup: Setup) -> Any:
        raise ModelError("weights", "none", "some")

    monkeypatch.setitem(EXPERIMENTS, "dots", replace(EXPERIMENTS["dots"], measure=refuse))
    found = again(world, tmp_path, *asked)
    assert found["figures"] == before and "figure dots" not in found["absent"]
    assert "figure dots is shown as an earlier call measured it; now weights: found none" in capsys.readouterr().err


def test_an_error_that_is_nobodys_input_ends_the_command(
    world: Path, tmp_path: Path, dots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(setup: Setup) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setitem(EXPERIMENTS, "dots", replace(EXPERIMENTS["dots"], measure=broken))
    with pytest.raises(RuntimeError, match="a bug"):
        run("evaluate", world / "recipe.yaml", "--method", "none", "--figure", "dots", "--out", tmp_path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "nothing was there to be measured"),
        ([left_out("attributes", "no reader"), left_out("the whole figure", "no edits")], "no edits"),
        ([left_out("components", "no bottleneck")], "no bottleneck"),
        ([{"failure": "refused: small"}, {"refused": "weak"}], "every edit was refused (small; weak)"),
        ([{"failure": "refused: small"}, {"roir": 1.0}], ""),
        ([left_out("components", "no bottleneck"), {"roir": 1.0}], ""),
    ],
)
def test_rows_that_say_nothing_tell_why(rows: list[dict[str, Any]], reason: str) -> None:
    assert silence(rows) == reason
