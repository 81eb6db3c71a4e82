"""The contact sheet: one PNG with every region's best directions, drawn with PIL and its built-in font only."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flows.pictures import Picture, change_maps, close_up, outline, png, shrink, shrink_mask, upscale
from flows.report.page import (
    DirectionRow,
    Page,
    RegionSection,
    Triple,
    best_row,
    number,
    plain_change,
    plain_name,
    signed,
)

_PAPER, _INK, _MUTED, _LINE = (251, 250, 247), (28, 28, 26), (91, 89, 82), (205, 201, 190)
_MARGIN, _GAP, _LABEL = 28, 8, 236
_LONGEST = 256
_TRANSFERS = 3
_NARROWEST = 900  # titles and the legend need this much
# The built-in font knows ASCII only; what is not listed here is shown as "?".
_ASCII = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{MIDDLE DOT}": "|",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{GREEK SMALL LETTER SIGMA}": "sigma",
        "\N{GREEK SMALL LETTER LAMDA}": "lambda",
        "\N{GREEK SMALL LETTER ALPHA}": "alpha",
        "\N{RIGHTWARDS ARROW}": "->",
        "\N{LESS-THAN OR EQUAL TO}": "<=",
        "\N{GREATER-THAN OR EQUAL TO}": ">=",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{ALMOST EQUAL TO}": "~",
    }
)


def _ascii(text: str) -> str:
    """One line that the built-in font can draw: accents dropped, other characters shown as '?'."""
    plain = unicodedata.normalize("NFKD", " ".join(text.translate(_ASCII).split()))
    kept = "".join(c for c in plain if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in kept)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int, lines: int) -> list[str]:
    """At most `lines` lines of `text` within `width` pixels; what does not fit ends in three dots."""
    font, out = _font(size), [""]
    for word in _ascii(text).split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= width or not out[-1]:
            out[-1] = longer
        else:
            out.append(word)
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1] + " ..."]
    return [_cut(line, font, width) for line in out]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


@dataclass
class _Sheet:
    """What is to be drawn, collected first, since the height is known only at the end."""

    width: int
    y: int = _MARGIN
    tiles: list[tuple[int, int, Picture]] = field(default_factory=list)
    words: list[tuple[int, int, str, int, tuple[int, int, int]]] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)

    def write(
        self, x: int, y: int, text: str, size: int, width: int, lines: int = 1, colour: tuple[int, int, int] = _INK
    ) -> int:
        """Put text at (x, y); returns the y below it."""
        for line in _wrapped(text, size, width, lines):
            self.words.append((x, y, line, size, colour))
            y += round(size * 1.35)
        return y

    def draw(self) -> Picture:
        canvas = Image.new("RGB", (self.width, self.y), _PAPER)
        pen = ImageDraw.Draw(canvas)
        for y in self.rules:
            pen.line((_MARGIN, y, self.width - _MARGIN, y), fill=_LINE, width=1)
        for x, y, tile in self.tiles:
            canvas.paste(Image.fromarray(tile), (x, y))
        for x, y, text, size, colour in self.words:
            pen.text((x, y), text, fill=colour, font=_font(size))
        return np.asarray(canvas, dtype=np.uint8)


def _fitted(triple: Triple) -> tuple[list[Picture], np.ndarray, int]:
    """The three images and the mask at most 256 pixels long, and the whole factor to enlarge them by."""
    images = [shrink(image, _LONGEST) for image in (triple.minus, triple.original, triple.plus)]
    return images, shrink_mask(triple.mask, _LONGEST), max(1, min(3, 160 // max(images[0].shape[:2])))


def _with_close_up(tile: Picture, image: Picture, mask: np.ndarray) -> Picture:
    """The tile with the region enlarged to the tile's own width underneath, if the region is small."""
    window = close_up(mask)
    if window is None:
        return tile
    crop = Image.fromarray(image[window])
    size = (tile.shape[1], round(tile.shape[1] * crop.height / crop.width))
    gap = np.empty((4, tile.shape[1], 3), dtype=np.uint8)
    gap[:] = _PAPER
    return np.concatenate([tile, gap, np.asarray(crop.resize(size, Image.Resampling.NEAREST), dtype=np.uint8)])


def _home_tiles(triple: Triple) -> list[tuple[str, Picture]]:
    (minus, original, plus), mask, k = _fitted(triple)
    maps, _ = change_maps(original, minus, plus)
    stronger = maps[int(maps[1].sum(dtype=np.int64) >= maps[0].sum(dtype=np.int64))]
    return [
        ("region outlined", outline(original, mask, k)),
        (f"- (strength {signed(-triple.strength)})", _with_close_up(upscale(minus, k), minus, mask)),
        ("original", _with_close_up(upscale(original, k), original, mask)),
        (f"+ (strength {signed(triple.strength)})", _with_close_up(upscale(plus, k), plus, mask)),
        ("where it changed", outline(stronger, mask, k)),
    ]


def _evidence(row: DirectionRow) -> list[str]:
    roir = row.triple.best_roir
    return [
        *(plain_change(change) for change in row.triple.changes[:2]),
        f"ROIR {number(roir)}" if roir is not None else "ROIR not measured",
        *(f"{name} {value}" for name, value in list(row.caption_numbers.items())[:2]),
    ]


def _line(sheet: _Sheet, row: DirectionRow, lead: str) -> None:
    """One direction: its label, the home triple, and pairs (-, +) on other images."""
    tiles = _home_tiles(row.triple)
    y = sheet.write(_MARGIN, sheet.y + 20, lead, 15, _LABEL - 16, colour=_MUTED)
    y = sheet.write(_MARGIN, y, row.title, 17, _LABEL - 16, lines=3)
    for words in _evidence(row):
        y = sheet.write(_MARGIN, y, words, 14, _LABEL - 16, colour=_MUTED)
    x, bottom = _MARGIN + _LABEL, y
    for caption, tile in tiles:
        sheet.write(x, sheet.y, caption, 14, tile.shape[1], colour=_MUTED)
        sheet.tiles.append((x, sheet.y + 20, tile))
        bottom = max(bottom, sheet.y + 20 + tile.shape[0])
        x += tile.shape[1] + _GAP
    x += 20
    for triple in row.transfers[:_TRANSFERS]:
        images, mask, k = _fitted(triple)
        for sign, image in (("-", images[0]), ("+", images[2])):
            tile = _with_close_up(upscale(image, k), image, mask)
            sheet.write(x, sheet.y, sign if sign == "+" else "- on another image", 14, tile.shape[1], colour=_MUTED)
            sheet.tiles.append((x, sheet.y + 20, tile))
            bottom = max(bottom, sheet.y + 20 + tile.shape[0])
            x += tile.shape[1] + (2 if sign == "-" else 14)
    sheet.width = max(sheet.width, x - 14 + _MARGIN)
    sheet.y = bottom + 18


def _section(sheet: _Sheet, section: RegionSection) -> None:
    width = _NARROWEST - 2 * _MARGIN
    sheet.rules.append(sheet.y)
    sheet.y = sheet.write(_MARGIN, sheet.y + 12, plain_name(section.region), 24, width) + 6
    shown = [(best_row(section.rows, space), f"best {space}-space direction") for space in ("x", "h")]
    known = [(row, lead) for row, lead in shown if row is not None]
    if not known and section.rows:
        known = [(section.rows[0], section.rows[0].space)]
    for row, lead in known:
        _line(sheet, row, lead)
    if not known:
        sheet.y = sheet.write(_MARGIN, sheet.y, section.absent, 15, width, lines=2, colour=_MUTED) + 18


def _header(page: Page, width: int) -> _Sheet:
    head, inner = _Sheet(width=width), width - 2 * _MARGIN
    head.y = head.write(_MARGIN, head.y, page.title, 32, inner, lines=2) + 4
    head.y = head.write(_MARGIN, head.y, page.headline, 18, inner, lines=3) + 4
    legend = (
        "White outline: the region. ROIR: change outside the outline over change inside, smaller is more local. "
        "Map: black untouched, yellow changed most. Small regions are enlarged underneath. On other images "
        "directions are shifted to the region there."
    )
    head.y = head.write(_MARGIN, head.y, legend, 15, inner, lines=3, colour=_MUTED) + 8
    return head


def contact_sheet(page: Page) -> bytes:
    """The report's contact sheet as a PNG file.

    Per region, the best x-space and the best h-space direction: the region outlined, -/original/+, where the picture
    changed, and the same direction shifted to the region on up to three other images; small regions enlarged
    underneath. Images are enlarged up to 3 times without smoothing (64 pixels: twice), and shrunk above 256 pixels. No
    randomness.

    Raises:
        InputError: an image or mask that is none, or whose size does not fit.
    """
    body = _Sheet(width=_NARROWEST, y=8)
    for section in page.sections:
        _section(body, section)
    if not page.sections:
        body.y = body.write(_MARGIN, body.y, "No directions were mined.", 16, body.width, colour=_MUTED)
    body.y += _MARGIN
    head = _header(page, body.width)
    return png(np.concatenate([head.draw(), body.draw()]))
