"""The report's rendering: what it draws from plain data, and that no data can make it unsafe or malformed."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flows import pictures
from flows.report import (
    ComposedEdit,
    DirectionRow,
    InterpolationGrid,
    Page,
    RegionSection,
    Triple,
    contact_sheet,
    render_html,
)
from flows.report.charts import locality, spectrum
from flows.report.markup import tag, text
from flows.report.page import best_row, number, signed
from pipeline.errors import InputError

HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)><!-- ]]> &amp; \x00\ud800\u202e https://evil.example/"
)
VOID = {"br", "img", "meta", "hr"}


class Checker(HTMLParser):
    """Collects elements, attributes and text; records every tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attrs)))
        if len(dict(attrs)) != len(attrs):
            self.faults.append(f"repeated attribute in {name}")
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        if not self.open or self.open.pop() != name:
            self.faults.append(f"unexpected </{name}>")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"comment {data!r}")


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    if checker.open:
        checker.faults.append(f"left open: {checker.open}")
    return checker


def make_triple(
    height: int = 24, width: int = 24, channels: int = 3, seed: int = 0, words: str = "words", region: bool = True
) -> Triple:
    rng = np.random.default_rng(seed)
    original = rng.integers(60, 200, (height, width, channels), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=bool)
    if region:
        mask[height // 3 : height // 3 + max(1, height // 5), width // 4 : width // 4 + max(1, width // 5)] = True
    minus, plus = original.copy(), original.copy()
    minus[mask] //= 2
    plus[mask] = 250
    return Triple(words, minus, original, plus, mask, 6.25, 0.4, None, words, [words, "mouth_smile +0.31"])


def make_row(
    triple: Triple, space: str = "x", kind: str = "local", words: str = "words", transfers: int = 2
) -> DirectionRow:
    numbers = {"gain": "3.2", words: words}
    return DirectionRow(words, words, words, space, kind, 1, numbers, triple, [triple] * transfers)


def make_page(triple: Triple, words: str = "words") -> Page:
    kinds = (("x", "local"), ("h", "individual"), (words, words))
    rows = [make_row(triple, space, kind, words) for space, kind in kinds]
    spectra = {"x: region": [3.0, 1.0, 0.1], words: [2.0, 1.9]}
    section = RegionSection(words, spectra, [("x-space", 2.0, 0.4), (words, 0.8, 0.5)], rows, words)
    grid = InterpolationGrid(words, words, words, [[triple.minus, triple.plus]] * 2, [words, "b"], [words, "d"], words)
    steps = ComposedEdit(words, [("original", triple.original), (words, triple.plus)], words)
    return Page(
        words,
        words,
        [(words, words)],
        [(words, words, words)],
        [section],
        [grid, steps],
        [{words: words, "t": 0.35}, {"other": 3}],
        [(words, words)],
        [(words, words)],
    )


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_hostile_text_appears_only_as_text() -> None:
    page = render_html(make_page(make_triple(words=HOSTILE), HOSTILE))
    checker = parsed(page)
    assert checker.faults == []
    assert {name for name, _ in checker.elements} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert not [key for _, attributes in checker.elements for key in attributes if key.startswith("on")]
    assert any("<script>alert(1)</script>" in piece for piece in checker.text)
    page.encode("utf-8")  # a lone surrogate would fail here
    assert "\x00" not in page and "\u202e" not in page


def test_nothing_is_fetched_from_elsewhere() -> None:
    page = render_html(make_page(make_triple(words=HOSTILE), HOSTILE))
    for name, attributes in parsed(page).elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/", "#")), (name, key, value)
        assert "url(" not in (attributes.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]


def test_a_policy_forbids_scripts_and_requests() -> None:
    elements = parsed(render_html(make_page(make_triple()))).elements
    policies = [a["content"] for name, a in elements if name == "meta" and "http-equiv" in a]
    assert policies == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]


def test_every_image_is_embedded_decodable_and_described() -> None:
    images = [a for name, a in parsed(render_html(make_page(make_triple()))).elements if name == "img"]
    assert len(images) > 20
    for attributes in images:
        assert attributes["alt"]
        payload = str(attributes["src"]).split(",", 1)[1]
        with Image.open(io.BytesIO(base64.b64decode(payload, validate=True))) as image:
            assert image.width * image.height > 0


def test_links_inside_the_page_lead_to_an_element() -> None:
    elements = parsed(render_html(make_page(make_triple()))).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    targets = {str(a["href"])[1:] for name, a in elements if name == "a"}
    assert len(ids) == len(set(ids))
    assert targets and targets <= set(ids)


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(1, 1, 3), (7, 31, 1), (33, 20, 3), (192, 170, 3), (150, 270, 1)]
)
def test_any_image_size_and_channel_count_is_drawn(height: int, width: int, channels: int) -> None:
    page = make_page(make_triple(height, width, channels))
    assert parsed(render_html(page)).faults == []
    assert opened(contact_sheet(page)).shape[2] == 3


def test_pictures_without_a_channel_axis_are_grey() -> None:
    colour = make_triple(channels=1)
    flat = dataclasses.replace(
        colour, minus=colour.minus[:, :, 0], original=colour.original[:, :, 0], plus=colour.plus[:, :, 0]
    )
    assert render_html(make_page(flat)) == render_html(make_page(colour))
    assert contact_sheet(make_page(flat)) == contact_sheet(make_page(colour))


def test_an_empty_page_and_empty_sections_say_so() -> None:
    empty = Page("title", "headline")
    hollow = Page("title", "headline", sections=[RegionSection("left_eye")])
    assert "No directions were mined." in render_html(empty)
    page = render_html(hollow)
    for missing in ("No direction to show.", "No directions were kept", "No singular values", "Locality was not"):
        assert missing in page
    for each in (empty, hollow):
        assert parsed(render_html(each)).faults == []
        assert opened(contact_sheet(each)).shape[1] >= 900


def test_an_empty_mask_and_unmeasured_numbers_are_drawn_without_claims() -> None:
    triple = dataclasses.replace(make_triple(region=False), roir_minus=float("nan"), roir_plus=None, changes=[])
    page = Page("t", "h", sections=[RegionSection("mouth", rows=[make_row(triple, transfers=0)])])
    shown = render_html(page)
    assert "not measured" in shown and "nan" not in shown.lower().replace("nano", "")
    assert parsed(shown).faults == []
    assert contact_sheet(page)


def test_rendering_is_deterministic() -> None:
    page = make_page(make_triple())
    assert render_html(page) == render_html(page)
    assert contact_sheet(page) == contact_sheet(page)


def test_large_images_are_embedded_shrunk() -> None:
    def page(side: int) -> Page:
        return Page("t", "h", sections=[RegionSection("mouth", rows=[make_row(make_triple(side, side), transfers=1)])])

    small, large = len(render_html(page(320))), len(render_html(page(480)))
    assert large < 1.4 * small  # embedded whole, it would be 2.25 times
    height, width, _ = opened(contact_sheet(page(480))).shape
    assert height < 900 and width < 2600


def test_small_images_are_enlarged_two_to_three_times_in_the_sheet() -> None:
    triple = make_triple(64, 64)
    sheet = opened(contact_sheet(make_page(triple)))
    enlarged = pictures.upscale(triple.minus, 2)
    corner = enlarged[:2, :16].reshape(-1)
    starts = np.argwhere((sheet[:-1, :-15] == enlarged[0, 0]).all(axis=2))
    assert any(np.array_equal(sheet[y : y + 2, x : x + 16].reshape(-1), corner) for y, x in starts)


def test_a_mask_or_edit_of_another_size_is_refused() -> None:
    triple = make_triple()
    with pytest.raises(InputError, match=r"Triple\.mask"):
        dataclasses.replace(triple, mask=np.ones((3, 3), dtype=bool))
    with pytest.raises(InputError, match=r"Triple\.plus"):
        dataclasses.replace(triple, plus=np.zeros((3, 3, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="uint8"):
        dataclasses.replace(triple, original=triple.original.astype(np.float32))


def test_a_row_of_other_images_says_that_the_direction_was_shifted() -> None:
    def words(transfers: int) -> str:
        row = make_row(make_triple(), words="left_eye", transfers=transfers)
        return " ".join(parsed(render_html(Page("t", "h", sections=[RegionSection("left_eye", rows=[row])]))).text)

    assert "on other images, shifted to where each has its left eye" in words(1)
    assert "shifted" not in words(0)


def test_the_row_shown_first_is_the_named_and_most_local_one() -> None:
    base = make_triple()
    unnamed = make_row(dataclasses.replace(base, roir_minus=0.01, changes=[]), words="unnamed")
    local = make_row(dataclasses.replace(base, roir_minus=0.2), words="local")
    leaky = make_row(dataclasses.replace(base, roir_minus=0.9), space="h", words="leaky")
    rows = [unnamed, leaky, local]
    assert best_row(rows) is local
    assert best_row(rows, "h") is leaky
    assert best_row([], "x") is None
    assert RegionSection("mouth", rows=rows).headline_row is local
    assert RegionSection("mouth", rows=rows, highlight="leaky").headline_row is leaky


def test_the_spectrum_is_relative_and_leaves_out_what_cannot_be_drawn() -> None:
    chart = spectrum({"a": [4.0, 2.0, float("nan"), 0.0, -1.0], "empty": []})
    circles = re.findall(r"<circle ", chart)
    assert len(circles) == 2
    assert "σ₁ = 4.00" in chart and "linear scale" in chart
    assert "log scale" in spectrum({"a": [1.0, 0.01]})


def test_locality_bars_keep_their_order_and_survive_outliers() -> None:
    chart = locality([("x-space", 1e6, 0.25), ("h-space", float("nan"), float("inf"))])
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', chart)]
    assert len(widths) == 2 and widths[1] < widths[0] <= 420
    assert "1.0e+06" in chart and "not measured" in chart


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_out_of_an_element_or_attribute(content: str, attribute: str) -> None:
    checker = parsed(tag("p", content, title=attribute))
    assert checker.faults == []
    assert [name for name, _ in checker.elements] == ["p"]
    assert list(checker.elements[0][1]) == ["title"]
    text(content).encode("utf-8")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_outline_path_separates_exactly_inside_from_outside(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    drawn: set[tuple[str, int, int]] = set()
    for x, y, kind, end in re.findall(r"M(\d+) (\d+)([HV])(\d+)", pictures.outline_path(mask)):
        start, line = (int(x), int(y)) if kind == "H" else (int(y), int(x))
        drawn |= {(kind, line, at) for at in range(start, int(end))}
    padded = np.pad(mask, 1)
    across, down = padded[1:, 1:-1] != padded[:-1, 1:-1], padded[1:-1, 1:] != padded[1:-1, :-1]
    expected = {("H", int(y), int(x)) for y, x in np.argwhere(across)}
    expected |= {("V", int(x), int(y)) for y, x in np.argwhere(down)}
    assert drawn == expected


def test_the_contour_leaves_the_region_itself_untouched() -> None:
    triple = make_triple()
    for factor in (1, 3):
        inside = triple.mask.repeat(factor, 0).repeat(factor, 1)
        plain, drawn = pictures.upscale(triple.original, factor), pictures.outline(triple.original, triple.mask, factor)
        assert np.array_equal(plain[inside], drawn[inside])
        assert (plain != drawn).any()


def test_a_close_up_holds_the_whole_region_and_is_left_out_for_large_ones() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[0:5, 58:64] = True
    window = pictures.close_up(mask)
    assert window is not None and mask[window].sum() == mask.sum()
    assert pictures.close_up(np.ones((64, 64), dtype=bool)) is None
    assert pictures.close_up(np.zeros((64, 64), dtype=bool)) is None


def test_change_maps_share_one_scale_and_are_dark_where_nothing_changed() -> None:
    original = np.full((8, 8, 3), 100, dtype=np.uint8)
    weak, strong = original.copy(), original.copy()
    weak[:4] += 10
    strong[:4] += 100
    (low, high), peak = pictures.change_maps(original, weak, strong)
    assert peak == pytest.approx(100.0)
    assert high[0, 0].sum() > low[0, 0].sum() > low[7, 7].sum()
    assert np.array_equal(low[7, 7], pictures.heat_map(np.zeros((1, 1)))[0, 0])


def test_rounding_noise_is_not_shown_as_a_bright_change() -> None:
    original = np.full((8, 8, 3), 100, dtype=np.uint8)
    speck = original.copy()
    speck[0, 0, 0] += 1
    (shown,), peak = pictures.change_maps(original, speck)
    assert peak == 1.0 and shown.max() < 255


def test_strips_and_signed_pictures_keep_their_pixels() -> None:
    a, b = make_triple(5, 4).original, make_triple(3, 6, channels=1).original
    strip = pictures.strip([a, b], gap=2)
    assert strip.shape == (5, 12, 3)
    assert np.array_equal(strip[:, :4], a) and np.array_equal(strip[:3, 6:], np.broadcast_to(b, (3, 6, 3)))
    effect = np.zeros((1, 2, 2), dtype=np.float32)
    effect[0, 0] = (-2.0, 1.0)
    assert pictures.signed_picture(effect)[:, :, 0].tolist() == [[0, 191], [128, 128]]


def test_png_round_trips_every_pixel_and_carries_no_metadata() -> None:
    image = make_triple().original
    with Image.open(io.BytesIO(pictures.png(image))) as back:
        assert np.array_equal(np.asarray(back), image)
        assert back.info == {}


def test_numbers_read_as_numbers_or_say_that_nothing_was_measured() -> None:
    assert [number(v) for v in (0.456, 0.0, float("nan"), None)] == ["0.46", "0.00", "not measured", "not measured"]
    assert number(1.2e-7) == "1.2e-07"
    assert (signed(-6.25), signed(12.34)) == ("\N{MINUS SIGN}6.25", "+12.3")
