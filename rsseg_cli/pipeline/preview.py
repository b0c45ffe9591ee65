"""The picture of a prediction: the scene, the map over it, a legend with shares of area, and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rsseg_cli.raster import classes

NODATA = classes.NODATA
OPACITY = 0.6
GREY = (190, 190, 190)
PAPER, INK, FAINT = (255, 255, 255), (34, 36, 40), (120, 124, 130)
PANEL_RANGE_PX = (480, 1200)  # longer side of each of the two pictures
SHORTEST_SIDE_PX = 12  # a scene one pixel wide can still be seen
NARROWEST_PX = 560  # the legend needs this
MOST_ENTRIES = 24

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class _Entry:
    """A line of the legend."""

    text: str
    colour: Colour


def draw_preview(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    classes: Sequence[tuple[str, Colour]],
    gsd_m: float | None,
    title: str = "",
) -> Image.Image:
    """Draw scene and map side by side, or one above the other where the scene is wide.

    Args:
        image: uint8 (3, h, w), red green blue, north up.
        labels: uint8 (h, w), index into `classes`; 255 is no data, drawn grey.
        classes: name and colour (0 to 255) of each class.
        gsd_m: metres on the ground a pixel of `image`; None leaves the scale bar out.
        title: above the pictures.

    Returns:
        An RGB picture, 560 to about 2,450 px wide. Shares are of the area that has a class.
    """
    _check(image, labels, len(classes))
    height, width = labels.shape
    size, scale = _panel_size(height, width)
    scene = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    panels = [(_resize(scene, size), "Scene"), (_resize(_blend(image, labels, classes), size), "Map")]
    stacked = width > 1.6 * height
    gap = 16
    content = size[0] if stacked else 2 * size[0] + gap
    page = max(content + 2 * gap, NARROWEST_PX)
    text, small = _font(page / 62), _font(page / 74)
    heading = _font(max(17, page / 46))
    rows = _flow(_legend(labels, classes), small, page - 2 * gap)

    line = round(small.size * 1.75)
    top = gap + (round(heading.size * 1.6) if title else 0)
    caption = round(text.size * 1.6)
    count = 2 if stacked else 1
    below = top + count * (caption + size[1] + gap)
    bar = line + 4 if gsd_m else 0
    canvas = Image.new("RGB", (page, below + bar + line * len(rows) + gap // 2), PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((gap, gap - 4), _shorten(title, heading, page - 2 * gap), fill=INK, font=heading)
    for k, (panel, name) in enumerate(panels):
        x = gap if stacked else gap + k * (size[0] + gap)
        y = top + (k * (caption + size[1] + gap) if stacked else 0)
        if stacked or size[0] >= draw.textlength(name, font=text):
            draw.text((x, y), name, fill=FAINT, font=text)
        canvas.paste(panel, (x, y + caption))
        draw.rectangle((x - 1, y + caption - 1, x + size[0], y + caption + size[1]), outline=(205, 207, 210))
    if gsd_m:
        _scale_bar(draw, (gap, below), scale / gsd_m, 0.3 * min(max(size), page - 2 * gap), small)
    for row, entries in enumerate(rows):
        _legend_row(draw, gap, below + bar + row * line, entries, small)
    return canvas


def _check(image: NDArray[np.uint8], labels: NDArray[np.uint8], count: int) -> None:
    if (
        image.dtype != np.uint8
        or labels.dtype != np.uint8
        or labels.ndim != 2
        or image.shape != (3, *labels.shape)
    ):
        found = f"{image.dtype} {image.shape} and {labels.dtype} {labels.shape}"
        raise ValueError(f"needs uint8 (3, h, w) and (h, w), found {found}")
    if labels.size == 0:
        raise ValueError(f"nothing to draw: labels {labels.shape}")
    unknown = np.setdiff1d(np.unique(labels), [*range(count), NODATA])
    if len(unknown):
        raise ValueError(f"label {unknown[0]} has no class; {count} classes were given")


def _panel_size(height: int, width: int) -> tuple[tuple[int, int], float]:
    """Width and height of a panel, px, and panel pixels a pixel of the longer side."""
    longest = max(height, width)
    low, high = PANEL_RANGE_PX
    scale = math.ceil(low / longest) if longest < low else min(1.0, high / longest)
    return (max(SHORTEST_SIDE_PX, round(width * scale)), max(SHORTEST_SIDE_PX, round(height * scale))), scale


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    if size == picture.size:
        return picture
    larger = size[0] >= picture.width and size[1] >= picture.height
    return picture.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def _blend(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Sequence[tuple[str, Colour]]
) -> Image.Image:
    """The map over the scene; no data is grey."""
    table = np.full((256, 3), GREY, np.float32)
    for index, (_, colour) in enumerate(classes):
        table[index] = colour
    mixed = image.transpose(1, 2, 0) * np.float32(1 - OPACITY) + table[labels] * np.float32(OPACITY)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _legend(labels: NDArray[np.uint8], classes: Sequence[tuple[str, Colour]]) -> list[_Entry]:
    counts = np.bincount(labels.ravel(), minlength=256)
    mapped = int(counts[: len(classes)].sum())
    indices = list(range(len(classes)))
    if len(indices) > MOST_ENTRIES:  # the largest
        indices = sorted(sorted(indices, key=lambda k: -int(counts[k]))[:MOST_ENTRIES])
    entries = [_Entry(f"{classes[k][0]} {_percent(int(counts[k]), mapped)}", classes[k][1]) for k in indices]
    if len(indices) < len(classes):
        rest = mapped - sum(int(counts[k]) for k in indices)
        entries.append(_Entry(f"{len(classes) - len(indices)} other classes {_percent(rest, mapped)}", PAPER))
    if counts[NODATA] and len(classes) <= NODATA:
        entries.append(_Entry(f"no data ({_percent(int(counts[NODATA]), labels.size)} of the picture)", GREY))
    return entries


def _percent(part: int, whole: int) -> str:
    if part == 0 or whole == 0:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "< 0.1 %"
    return "100 %" if part == whole else f"{min(share, 99.9):.1f} %"


def _flow(entries: Sequence[_Entry], font: Font, width: float) -> list[list[_Entry]]:
    """Entries in rows that fit the width."""
    rows: list[list[_Entry]] = [[]]
    used = 0.0
    for entry in entries:
        entry = _Entry(_shorten(entry.text, font, width - 2 * font.size), entry.colour)
        need = _entry_width(entry, font)
        if rows[-1] and used + need - font.size > width:
            rows.append([])
            used = 0.0
        rows[-1].append(entry)
        used += need
    return rows if rows[-1] else []


def _entry_width(entry: _Entry, font: Font) -> float:
    return float(font.getlength(entry.text)) + 3.2 * font.size


def _legend_row(draw: ImageDraw.ImageDraw, x: float, y: float, entries: Sequence[_Entry], font: Font) -> None:
    side = font.size * 1.05
    for entry in entries:
        box = (x, y + 0.2 * font.size, x + side, y + 0.2 * font.size + side)
        draw.rounded_rectangle(box, radius=side / 6, fill=entry.colour, outline=(150, 150, 150))
        draw.text((x + side + 0.5 * font.size, y), entry.text, fill=INK, font=font)
        x += _entry_width(entry, font)


def _scale_bar(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], px_per_m: float, most_px: float, font: Font
) -> None:
    """Four black and white parts, and the length they add up to."""
    length_m = round_length_m(most_px / px_per_m)
    length, thick = length_m * px_per_m, max(4, round(font.size / 2.6))
    x, y = at[0], at[1] + round(font.size * 0.4)
    for k in range(4):
        part = (x + length * k / 4, y, x + length * (k + 1) / 4, y + thick)
        draw.rectangle(part, fill=INK if k % 2 == 0 else PAPER, outline=INK)
    draw.text((x + length + 0.6 * font.size, at[1]), _metres(length_m), fill=INK, font=font)


def round_length_m(most_m: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above `most_m`."""
    power = 10.0 ** math.floor(math.log10(most_m))
    return max(k * power for k in (1, 2, 5) if k == 1 or k * power <= most_m * (1 + 1e-9))


def _metres(length_m: float) -> str:
    return f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"


def _shorten(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=float(np.clip(size, 13, 30)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font
