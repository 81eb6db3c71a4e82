"""What a run cost and how good its catalog is, against the last version."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catalog.fs import RUN
from catalog.reader import Catalog
from catalog.records import Chunk
from catalog.writer import CatalogWriter
from flows.gates import Gates, Rejections, adopt_gates, rejections
from flows.publishing import publish_catalog
from flows.watching.progress import Progress
from flows.watching.run_report import KEPT, RunReport, markdown, page, record, report_of, reports, safe, write
from flows.watching.run_sheet import sheet_of
from pipeline.errors import CatalogError
from tests.catalog.samples import chunk_of, provenance

HOSTILE = "<script>x</script> [a](javascript:b) | `c`\n# d"


def worse(chunk: Chunk) -> Chunk:
    """The same directions with ten times the residual."""
    changed = [dataclasses.replace(d, residual=None if d.residual is None else 0.5) for d in chunk.directions]
    return dataclasses.replace(chunk, directions=tuple(changed))


def written(folder: Path, chunk: Chunk) -> Path:
    with CatalogWriter.create(folder, provenance()) as writer:
        writer.commit(chunk)
    return folder


def run(folder: Path, run_id: str = "r1", **note: object) -> Progress:
    progress = Progress(8, str(folder), run_id=run_id)
    cost = {"images": 8, "directions": 80, "seconds": 40.0, "passes": 800, "bytes": 160_000}
    progress.add({**cost, "products": {"jvp": 300, "vjp": 100}, **note})
    progress.end("finished")
    return progress


def test_cost_is_what_a_direction_took_and_quality_that_of_the_catalog(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a", images=8))
    report = report_of(folder, run(folder))
    assert report.cost.model_dump() == {"seconds": 0.5, "products": 5.0, "passes": 10.0, "bytes": 2000.0}
    assert report.quality.directions == 80
    assert (report.before_name, report.worse) == (None, ())
    out = write(report, folder)
    assert out == folder / RUN / "r1"
    assert RunReport.model_validate_json((out / "report.json").read_bytes()) == report
    text = (out / "report.md").read_text()
    assert "cost of a direction**: 0.5 s, 5 Jacobian products, 10 network passes, 2 kB" in text
    assert "There is no former version or run to compare with." in text
    assert Image.open(io.BytesIO((out / "contact-sheet.png").read_bytes())).size[0] >= 900


def test_a_run_is_judged_once_for_its_report_and_for_whoever_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "c", chunk_of("a", images=8))
    judged = []

    def counted(catalog: Catalog, gates: Gates) -> Rejections:
        judged.append(gates)
        return rejections(catalog, gates)

    monkeypatch.setattr("flows.watching.run_report.rejections", counted)
    progress = run(folder)
    out = record(folder, progress)
    report = report_of(folder, progress)
    assert RunReport.model_validate_json((out / "report.json").read_bytes()) == report
    assert len(judged) == 1


def test_a_run_that_added_nothing_cost_nothing_that_can_be_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a"))
    report = report_of(folder, Progress(0, str(folder), run_id="r0"))
    assert set(report.cost.model_dump().values()) == {None}
    assert "cost of a direction" not in markdown(report)


def test_a_run_is_compared_with_the_one_before_until_a_version_is_published(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "good", chunk_of("a", images=8)), worse(chunk_of("b", images=30))
    write(report_of(good, run(good, "r1")), good)
    with CatalogWriter.open(good) as writer:
        writer.commit(bad)
    report = report_of(good, run(good, "r2"))
    assert report.before_name == "run r1"
    assert any(
        figure.startswith("residual of mouth x singular: median 0.5 now, 0.0001 before") for figure in report.worse
    )
    assert "Worse than run r1" in markdown(report)
    publish_catalog(good, str(tmp_path / "hub" / "org" / "pack"), "1.0.0", "cc0-1.0")
    assert report_of(good, run(good, "r3")).before_name == "version 1.0.0 of org/pack"
    assert report_of(good, run(good, "r3")).worse == ()


def test_what_gates_leave_out_is_told_and_not_counted_as_quality(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a", images=8))
    with CatalogWriter.open(folder) as writer:
        adopt_gates(writer, Gates(residual=0.0))
    report = report_of(folder, run(folder))
    assert report.quality.directions == 0
    assert report.rejected == {"residual above 0": 48, "derived from a rejected direction": 32}
    out = write(report, folder)
    assert "left out: 48 directions, residual above 0" in (out / "report.html").read_text()
    assert not (out / "contact-sheet.png").exists()


def test_names_of_others_are_text_and_nothing_else_in_the_page_and_the_text(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a"))
    report = report_of(folder, run(folder, failed={HOSTILE: HOSTILE})).model_copy(update={"recipe": HOSTILE})
    shown = page(report, None)

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found.add(tag)

    found: set[str] = set()
    Tags().feed(shown)
    assert "script" not in found and "table" in found
    text = markdown(report)
    assert not re.search(r"(?<!\\)<script|(?<!\\)\]\(javascript|^# d", text, re.MULTILINE)
    assert safe("a|b_c\nd") == "a\\|b\\_c d"


def test_reports_of_long_ago_are_removed_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a"))
    report = report_of(folder, run(folder))
    for number in range(KEPT + 3):
        one = report.run.model_copy(
            update={"run_id": f"r{number:02}", "started": f"2026-01-01T00:00:{number:02}+00:00"}
        )
        (folder / RUN / one.run_id).mkdir(parents=True)
        document = report.model_copy(update={"run": one}).model_dump_json()
        (folder / RUN / one.run_id / "report.json").write_text(document)
    (folder / RUN / "odd").mkdir()
    (folder / RUN / "odd" / "report.json").write_text("{")
    write(report, folder)
    assert len(reports(folder)) == KEPT
    assert reports(folder)[-1].run.run_id == "r1"
    assert not (folder / RUN / "r00").exists() and (folder / RUN / "odd").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    folder = written(tmp_path / "c", chunk_of("a"))
    (tmp_path / "elsewhere").mkdir()
    (folder / RUN).mkdir()
    (folder / RUN / "r1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CatalogError, match="symbolic link"):
        write(report_of(folder, run(folder)), folder)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_sheet_shows_the_most_local_kept_direction_of_each_region_and_space(tmp_path: Path) -> None:
    chunk = chunk_of("a", images=3)
    folder = written(tmp_path / "c", chunk)
    with Catalog.open(folder) as catalog:
        whole = sheet_of(catalog, "t", "h")
        assert whole is not None
        one = sheet_of(catalog, "t", "h", catalog.select(region="mouth", space="h"))
        assert one is not None
        assert sheet_of(catalog, "t", "h", np.zeros(len(catalog.ids()), dtype=bool)) is None
        assert Image.open(io.BytesIO(one)).size[1] < Image.open(io.BytesIO(whole)).size[1]
        assert sheet_of(catalog, "t", "h") == whole
