"""The page of an evaluation: whatever it is told, it asks for nothing, runs nothing, and shows what it was given."""

from __future__ import annotations

import base64
import io
import math
from html.parser import HTMLParser
from typing import Any

import torch
from PIL import Image

from flows.evaluation.pictures import decoded, encoded
from flows.evaluation.report import Drawn, EvaluationPage, render
from flows.evaluation.tables import line
from pipeline.methods.contract import About
from tests.flows.evaluation.rows import ABOUT, cell, home, line_of, refused

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>https://evil.example/"
VOID = ("meta", "img", "br", "hr")


class Read(HTMLParser):
    """What a browser would find: elements with their attributes, the text, and what was not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.faults += self._open

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, {key: value or "" for key, value in attrs}))
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        if not self._open or self._open.pop() != name:
            self.faults.append(f"</{name}>")

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, *names: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name in names]


def picture(level: float) -> str:
    return encoded(torch.full((3, 4, 4), level))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def full(text: str = "plain", **changes: Any) -> EvaluationPage:
    """A page with every part; `text` wherever a text can be."""
    about = About(text, text, "x", transfers=False, deviations=(text,))
    edited = home("image-1", text, factor=text, pictures=[picture(-1.0), picture(1.0)])
    row = {"settings": {"timestep": 0.4, "goals": [], text: text}, "success": 0.5, "roir": 0.3}
    content: dict[str, Any] = {
        "title": f"Evaluation of {text}",
        "facts": [("recipe", text), (text, "x")],
        "lines": [line_of("loco", edited, about=about)],
        "remarks": [text],
        "targets": [{"name": text, "value": 0.95, "target": text, "met": True}],
        "pictures": {text: [cell(edited, refused("image-1", "hair"))]},
        "figures": [Drawn(text, text, {text: png()}, [text])],
        "absent": {text: text},
        "tried": {text: [row]},
    }
    return EvaluationPage(**{**content, **changes})


def assert_harmless(read: Read) -> None:
    """No script, no request, no handler, nothing left open; a policy that forbids the first two."""
    assert read.faults == []
    assert read.of("script", "iframe", "object", "embed", "link", "base", "form") == []
    assert all(value.startswith("data:image/png;base64,") for a in read.of("img") for value in [a["src"]])
    for _, attributes in read.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"href", "srcset", "action"} & set(attributes)
    policy = next(a["content"] for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    page = render(full())
    assert_harmless(Read(page))
    assert "url(" not in page and "@import" not in page


def test_a_hostile_name_is_text_wherever_it_appears() -> None:
    read = Read(render(full(HOSTILE)))
    assert_harmless(read)
    assert read.text.count(HOSTILE) >= 12
    assert len(read.elements) == len(Read(render(full())).elements)


def test_a_picture_of_a_damaged_cell_cannot_leave_its_attribute() -> None:
    edited = home("image-1", pictures=['"><script>alert(1)</script>', picture(0.0)])
    assert_harmless(Read(render(full(pictures={"loco": [cell(edited)]}))))


def test_pictures_and_plots_are_embedded_as_they_were() -> None:
    sources = [attributes["src"].partition(",")[2] for attributes in Read(render(full())).of("img")]
    assert sources == [picture(-1.0), picture(1.0), base64.b64encode(png()).decode()]
    assert [decoded(source).getpixel((0, 0)) for source in sources] == [(0, 0, 0), (255, 255, 255), (255, 0, 0)]
    assert all(attributes["alt"] for attributes in Read(render(full())).of("img"))


def test_the_page_says_what_the_tables_say() -> None:
    text = Read(render(full())).text
    assert "Local edit success" in text or "local edit success" in text
    assert "0.40 (0.40 to 0.40)" in text and "cannot" in text and "refused" in text
    assert "plain: plain" in text


def test_only_the_best_of_a_column_has_a_star() -> None:
    lines = [line_of("loco", home("a", roir=0.4)), line_of("rival", home("a", roir=0.2))]
    page = render(full(lines=lines))
    best = page.split("ROIR, median")[1].split("<tbody>")[1].split("</tbody>")[0]
    assert '<td class="best">0.20 (0.20 to 0.20)</td>' in best and "<td>0.40 (0.40 to 0.40)</td>" in best


def test_all_that_share_the_best_of_a_column_have_a_star() -> None:
    lines = [line_of("loco", home("a", roir=0.2)), line_of("rival", home("a", roir=0.2)), line_of("x", home("a"))]
    page = render(full(lines=lines))
    best = page.split("ROIR, median")[1].split("<tbody>")[1].split("</tbody>")[0]
    assert best.count('<td class="best">0.20 (0.20 to 0.20)</td>') == 2 and "<td>0.40 (0.40 to 0.40)</td>" in best


def test_the_page_says_how_settings_came_about_and_claims_no_choice_that_was_not_made() -> None:
    lines = [line_of("loco", home("a")), line_of("random-x", home("a"))]
    row = {"settings": {"timestep": 0.4}, "success": 0.5, "visible": 1.0, "roir": 0.3}

    def told(tried: dict[str, Any]) -> str:
        return Read(render(full(lines=lines, tried=tried, remarks=[]))).text

    assert "did best" not in told({}) and "of which nothing was chosen here" in told({})
    assert "did best on other images (loco) or the only ones there are (all others)" in told({"loco": [row]})
    assert "with the settings that did best on other images, at" in told({"loco": [row], "random-x": [row]})


def test_the_page_says_what_refused_edits_count_in_and_how_many_there_are() -> None:
    text = Read(render(full(lines=[line_of("loco", home("a"), refused("a", "hair"), refused("b"))]))).text
    assert "counts as failed in success and transfer success, and as infinite in ROIR" in text
    assert "attributes moved are over the edits that were made. Refused: 2 of 3 edits" in text


def test_the_page_says_that_inversion_is_in_no_column_of_cost_and_how_long_it_takes() -> None:
    steps = {"asyrp": 40, "x": 40, "loco": 60}
    lines = [line(name, ABOUT, {"inversion_steps": own}, 1, 0.0, [cell(home("a"))]) for name, own in steps.items()]
    assert "inversion of the picture (40 steps, of methods that need one)" in render(full(lines=lines[:2]))
    assert "inversion of the picture (40 steps (asyrp, x), 60 steps (loco), of methods" in render(full(lines=lines))


def test_the_page_says_how_unequal_tuning_is() -> None:
    row = {"settings": {"timestep": 0.4}, "visible": 0.75, "roir": 0.3}
    lines = [line_of("loco", home("a")), line_of("asyrp", home("a"))]
    text = Read(render(full(lines=lines, tried={"loco": [row] * 6}))).text
    assert "Tuning is not equal. Settings tried here: loco 6, asyrp 1." in text
    assert "faces64-demo.tuning.json" in text


def test_the_page_says_what_learning_took_where_that_is_known() -> None:
    known, unknown = (line("asyrp", ABOUT, {}, 64, 12.0, [cell(home("a"))], passes) for passes in (5000.0, math.nan))
    assert "<td>64</td><td>12</td><td>5000</td>" in render(full(lines=[known]))
    assert "<td>64</td><td>12</td><td>-</td>" in render(full(lines=[unknown]))
    assert "learning, passes" in render(full(lines=[known]))


def test_settings_that_were_tried_where_nothing_reads_attributes_have_no_success() -> None:
    row = {"settings": {"timestep": 0.4}, "visible": 0.75, "roir": 0.3}
    table = render(full(tried={"loco": [row]})).split('id="settings"')[1]
    assert "<tr><td>0.4</td><td>-</td><td>0.75</td><td>0.3</td></tr>" in table


def test_a_quick_figure_is_said_to_be_one() -> None:
    assert "Quick:" in render(full(figures=[Drawn("a", "b", {}, [], quick=True)]))
    assert "Quick:" not in render(full(figures=[Drawn("a", "b", {}, [])]))


def test_a_page_of_only_figures_has_no_empty_tables() -> None:
    page = EvaluationPage("Evaluation of faces", [("recipe", "faces")], figures=[Drawn("Rank", "b", {}, ["It falls."])])
    read = Read(render(page))
    assert_harmless(read)
    assert read.of("table", "img") == []
    assert "It falls." in read.text and "Comparison" not in read.text


def test_pictures_are_shown_of_the_first_two_images_and_where_a_method_has_none_it_says_so() -> None:
    shots = [home(f"image-{i}", pictures=[picture(0.0), picture(0.5)]) for i in range(3)]
    read = Read(render(full(pictures={"loco": [cell(*shots)], "rival": [cell(refused("image-0"))]}, figures=[])))
    assert len(read.of("img")) == 4
    assert "image-1" in read.text and "image-2" not in read.text
