"""The page of a prediction: one HTML file with scene, map, classes and polygons, to look at without a GIS.

It opens from disk and loads nothing: pictures are inside it, and its policy forbids everything else. Names
come from files of others, so they are escaped wherever they stand.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsseg_cli._version import __version__
from rsseg_cli.pipeline.result import ClassArea
from rsseg_cli.raster import classes as values

SIDE_PX = 2000  # longest side of the pictures
MAX_PICTURES_BYTES = 6_000_000  # of both; base64 makes a third more of it
MAX_BYTES = 9_800_000  # of the pictures and polygons in the page
JPEG_QUALITY = 85
UNITS = (("m²", 1.0), ("ha", 1e4), ("km²", 1e6))
Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PageText:
    """What the page says beside its pictures; `width_m` is the scene's, None where it is unknown."""

    title: str
    model: str
    size: tuple[int, int]  # height, width, px
    width_m: float | None
    classes: Sequence[tuple[str, Colour]]
    areas: Mapping[str, ClassArea]


def draw_pictures(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], colours: Sequence[Colour]
) -> tuple[bytes, bytes]:
    """Return the scene as JPEG and its map as PNG, as small as they must be to fit.

    Args:
        image: uint8 (3, h, w), red green blue.
        labels: uint8 (h, w), index into `colours`; 255 is no data, transparent.
    """
    scene = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    drawn = Image.fromarray(labels)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    drawn.putpalette(palette.ravel().tolist())
    while True:
        jpeg, png = io.BytesIO(), io.BytesIO()
        scene.save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
        drawn.save(png, "PNG", transparency=values.NODATA, optimize=True)
        if jpeg.tell() + png.tell() <= MAX_PICTURES_BYTES:
            return jpeg.getvalue(), png.getvalue()
        size = max(1, scene.width * 3 // 4), max(1, scene.height * 3 // 4)
        scene = scene.resize(size, Image.Resampling.BOX)
        drawn = drawn.resize(size, Image.Resampling.NEAREST)


def render(
    text: PageText,
    scene: bytes,
    map: bytes,
    size: tuple[int, int],
    polygons: Callable[[int], dict[str, Any]] | None = None,
) -> bytes:
    """Return the page.

    Args:
        scene, map: from `draw_pictures`.
        size: (height, width) of the picture, px.
        polygons: returns those of `vector.Drawn` in at most so many bytes.
    """
    pictures = [base64.b64encode(picture).decode() for picture in (scene, map)]
    room = MAX_BYTES - sum(len(picture) for picture in pictures)
    packed = polygons(room) if polygons is not None else {"count": 0, "left_out": 0}
    height, width = size
    known = [item.area_m2 for item in text.areas.values()]
    areas = [area for area in known if area is not None]
    unit, unit_m2 = [pair for pair in UNITS if pair[1] <= max([1.0, *areas])][-1]
    rows = [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*colour),
            "share": f"{text.areas[name].share:.2%}",
            "area": f"{(text.areas[name].area_m2 or 0) / unit_m2:,.2f}",
        }
        for name, colour in text.classes
    ]
    data = {
        "width": width, "height": height, "metres": text.width_m,
        "names": [name for name, _ in text.classes], "polygons": packed,
    }  # fmt: skip
    style, script = _asset("page.css"), _asset("page.js")
    page = _template().render(
        title=text.title, model=text.model, size=f"{text.size[1]:,} x {text.size[0]:,} px",
        version=__version__, classes=rows, areas=len(areas) == len(known), unit=unit, width=width,
        height=height, polygons=packed["count"], left_out=packed["left_out"],
        scene=pictures[0], map=pictures[1],
        style=style, script=script, style_hash=_hash(style), script_hash=_hash(script), data=_json(data),
    )  # fmt: skip
    return page.encode("utf-8", "replace")


def _json(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html.j2")
