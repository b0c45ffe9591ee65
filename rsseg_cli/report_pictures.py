"""The worst places of the report: image, truth and map side by side, with where they lie."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsseg_cli.pipeline.preview import round_length_m
from rsseg_cli.report_places import Place
from rsseg_cli.report_text import legend_items, swatch, swatch_of

if TYPE_CHECKING:
    from rsseg_cli.weights.spec import ClassSpec

UNLABELLED = 255
HATCH = ((190, 190, 190), (151, 151, 151))
JPEG_QUALITY = 84


def places_section(places: Sequence[Place], classes: Sequence[ClassSpec]) -> str:
    if not places:
        return "<h2>Worst places</h2><p>None: every labelled pixel is right, or too little is labelled.</p>"
    layers = [("truth", "unlabelled in the truth"), ("found", "no class in the map")]
    marks = [words for layer, words in layers if any((getattr(p, layer) == UNLABELLED).any() for p in places)]
    more = f'<li><span class="swatch hatch"></span>{", ".join(marks)}</li>' if marks else ""
    shown = "".join(_place(number, place, classes) for number, place in enumerate(places, 1))
    return (
        "<h2>Worst places</h2>"
        '<p class="note">The tiles with most wrong pixels, spread over the scenes; not a sample of the '
        "whole map, but where to look first: at the map, and at the truth.</p>"
        f'<ul class="legend">{legend_items(classes)}{more}</ul>{shown}'
    )


def _place(number: int, place: Place, classes: Sequence[ClassSpec]) -> str:
    where = [
        f"rows {place.row}–{place.row + place.height - 1}, columns {place.col}–{place.col + place.width - 1}"
    ]
    if place.centre is not None:
        digits = 6 if max(map(abs, place.centre)) <= 360 else 1
        where.append(f"{place.crs}: {place.centre[0]:.{digits}f}, {place.centre[1]:.{digits}f}")
    if place.lonlat is not None:
        where.append(_degrees(*place.lonlat))
    pictures = [
        _photo(place),
        _classes_picture("Truth", place.truth, classes),
        _classes_picture("Map", place.found, classes),
    ]
    share = 1 - place.wrong / max(1, place.labelled)
    what = [f"<span><b>{share:.1%}</b> of {place.labelled:,} labelled px right</span>"]
    what += [
        f"<span>{swatch(classes[truth])} mapped as {swatch_of(classes, found)}: {pixels:,} px</span>"
        for truth, found, pixels in place.confusions
    ]
    spots = "".join(f"<span>{escape(text)}</span>" for text in where)
    return (
        f'<section class="place"><header><h3>{number}. {escape(place.scene)}</h3>{spots}</header>'
        f'<div class="triplet">{"".join(pictures)}</div><p class="what">{" ".join(what)}</p></section>'
    )


def _photo(place: Place) -> str:
    if place.image is None:
        missing = '<div class="none">no image on the grid of the map</div>'
        return f"<figure><figcaption>Image</figcaption>{missing}</figure>"
    source = _uri(Image.fromarray(place.image), "JPEG", quality=JPEG_QUALITY)
    caption, bar = "Image", ""
    if place.width_m:
        length_m = round_length_m(place.width_m * 0.4)
        caption += f", bar {_metres(length_m)}"
        bar = f'<span class="scale" style="width:{100 * length_m / place.width_m:.2f}%"></span>'
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img class="photo" src="{source}" alt="image of the place">{bar}</figure>'
    )


def _classes_picture(caption: str, labels: NDArray[np.uint8], classes: Sequence[ClassSpec]) -> str:
    source = _uri(draw_classes(labels, classes), "PNG", optimize=True)
    alt = f"{caption.lower()} of the place"
    return f'<figure><figcaption>{caption}</figcaption><img src="{source}" alt="{alt}"></figure>'


def draw_classes(labels: NDArray[np.uint8], classes: Sequence[ClassSpec]) -> Image.Image:
    """A palette picture of classes; 255 hatched, as a class may well be grey."""
    indices = labels.copy()
    rows, cols = np.arange(labels.shape[0])[:, None], np.arange(labels.shape[1])
    indices[(labels == UNLABELLED) & ((rows + cols) % 8 < 3)] = UNLABELLED - 1
    picture = Image.fromarray(indices).convert("P")
    table = np.full((256, 3), HATCH[0], np.uint8)
    for index, item in enumerate(classes):
        table[index] = item.colour
    table[UNLABELLED - 1] = HATCH[1]
    picture.putpalette(table.tobytes())
    return picture


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    stored = io.BytesIO()
    picture.save(stored, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def _metres(length_m: float) -> str:
    return f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"


def _degrees(lon: float, lat: float) -> str:
    return f"{abs(lat):.5f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.5f}° {'E' if lon >= 0 else 'W'}"
