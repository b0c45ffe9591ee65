"""The picture of a prediction: scene and map, a scale bar, and a legend with shares of area."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rsseg_cli.raster import classes as values

OPACITY = 0.6
GREY = (190, 190, 190)
PAPER, INK, FAINT = (255, 255, 255), (34, 36, 40), (120, 124, 130)
PANEL_RANGE_PX = (480, 1200)  # longer side of each of the two pictures
MIN_SIDE_PX = 12  # a scene one pixel wide can still be seen
MIN_PAGE_PX = 560  # for the legend
MAX_ENTRIES = 24
GAP = 16

Colour = tuple[int, int, int]


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
        gsd_m: ground size of a pixel of `image`, m; None leaves the scale bar out.
    """
    height, width = labels.shape
    stacked = width > 1.6 * height
    scale = _panel_scale(max(height, width))
    size = max(MIN_SIDE_PX, round(width * scale)), max(MIN_SIDE_PX, round(height * scale))
    page = max((1 if stacked else 2) * (size[0] + GAP) + GAP, MIN_PAGE_PX)
    inside = page - 2 * GAP
    heading, text, small = _font(max(17, page / 46)), _font(page / 62), _font(page / 74)
    line, caption = round(small.size * 1.75), round(text.size * 1.6)
    entries = _legend(labels, classes)
    widest = max((small.getlength(name) + 3.2 * small.size for name, _ in entries), default=1.0)
    columns = max(1, int(inside // widest))

    top = GAP + (round(heading.size * 1.6) if title else 0)
    below = top + (2 if stacked else 1) * (caption + size[1] + GAP)
    bar = line + 4 if gsd_m else 0
    bottom = below + bar + line * -(-len(entries) // columns) + GAP // 2
    canvas = Image.new("RGB", (page, bottom), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP - 4), _shorten(title, heading, inside), fill=INK, font=heading)
    scene = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    for index, (panel, name) in enumerate(((scene, "Scene"), (_overlay(image, labels, classes), "Map"))):
        x = GAP if stacked else GAP + index * (size[0] + GAP)
        y = top + (index * (caption + size[1] + GAP) if stacked else 0)
        if stacked or size[0] >= draw.textlength(name, font=text):
            draw.text((x, y), name, fill=FAINT, font=text)
        larger = size[0] >= width and size[1] >= height
        resampling = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
        canvas.paste(panel.resize(size, resampling), (x, y + caption))
        draw.rectangle((x - 1, y + caption - 1, x + size[0], y + caption + size[1]), outline=(205, 207, 210))
    if gsd_m:
        length_m = round_length_m(0.3 * min(max(size), inside) * gsd_m / scale)
        length, y = length_m * scale / gsd_m, below + round(small.size * 0.4)
        draw.rectangle((GAP, y, GAP + length, y + max(4, round(small.size / 2.6))), fill=INK)
        words = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
        draw.text((GAP + length + 0.6 * small.size, below), words, fill=INK, font=small)
    side = 1.05 * small.size
    for index, (name, colour) in enumerate(entries):
        x = GAP + index % columns * inside / columns
        y = below + bar + index // columns * line
        box = (x, y + 0.2 * small.size, x + side, y + 0.2 * small.size + side)
        draw.rounded_rectangle(box, radius=side / 6, fill=colour, outline=(150, 150, 150))
        room = inside / columns - 2 * small.size
        draw.text((x + side + 0.5 * small.size, y), _shorten(name, small, room), fill=INK, font=small)
    return canvas


def _panel_scale(longest: int) -> float:
    """Panel pixels a pixel of the longer side; whole where it is above 1."""
    low, high = PANEL_RANGE_PX
    return math.ceil(low / longest) if longest < low else min(1.0, high / longest)


def _overlay(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Sequence[tuple[str, Colour]]
) -> Image.Image:
    table = np.full((256, 3), GREY, np.float32)
    table[: len(classes)] = [colour for _, colour in classes]
    mixed = image.transpose(1, 2, 0) * np.float32(1 - OPACITY) + table[labels] * np.float32(OPACITY)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _legend(labels: NDArray[np.uint8], classes: Sequence[tuple[str, Colour]]) -> list[tuple[str, Colour]]:
    """Text and colour of each entry: the largest classes in their order, the rest, no data."""
    counts = np.bincount(labels.ravel(), minlength=256).tolist()
    mapped = sum(counts[: len(classes)])
    shown = sorted(sorted(range(len(classes)), key=lambda index: -counts[index])[:MAX_ENTRIES])
    entries = [
        (f"{classes[index][0]} {_percent(counts[index], mapped)}", classes[index][1]) for index in shown
    ]
    if len(shown) < len(classes):
        rest = _percent(mapped - sum(counts[index] for index in shown), mapped)
        entries.append((f"{len(classes) - len(shown)} other classes {rest}", PAPER))
    if counts[values.NODATA] and len(classes) <= values.NODATA:
        entries.append((f"no data ({_percent(counts[values.NODATA], labels.size)} of the picture)", GREY))
    return entries


def _percent(part: int, whole: int) -> str:
    if part == 0 or whole == 0:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "< 0.1 %"
    return "100 %" if part == whole else f"{min(share, 99.9):.1f} %"


def round_length_m(limit_m: float) -> float:
    """Return the largest of 1, 2 or 5 times a power of ten that is not above a limit."""
    power = 10.0 ** math.floor(math.log10(limit_m))
    return max(k * power for k in (1, 2, 5) if k == 1 or k * power <= limit_m * (1 + 1e-9))


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=float(np.clip(size, 13, 30)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font
