"""Tables and curves of the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsseg_cli.evaluation.charts import legend_items, swatch, swatch_of
from rsseg_cli.evaluation.places import Place
from rsseg_cli.pipeline import round_length_m

if TYPE_CHECKING:
    from rsseg_cli.weights import ClassSpec
from collections.abc import Mapping

from rsseg_cli.evaluation.charts import (
    class_name,
    curves,
    hexadecimal,
    intervals,
    is_number,
    score_text,
    signed_text,
)

if TYPE_CHECKING:
    from rsseg_cli.evaluation.comparison import Comparison
    from rsseg_cli.weights import ClassSpec

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


MANY_CLASSES = 8  # more columns than these stand closer, their names upright
LEAST_SHOWN = 0.0005  # share of a row from which a cell of the confusion matrix is written out


def class_table(
    scores: Mapping[str, Any],
    classes: Sequence[ClassSpec],
    confusion: NDArray[np.int64],
    out_of_means: Sequence[str] = (),
) -> str:
    total = max(1, int(confusion.sum()))
    rows = []
    for item, row, truth in zip(classes, scores["classes"], confusion.sum(1), strict=True):
        iou = row["iou"]
        aside = '<span class="aside">not in the means</span>' if item.name in out_of_means else ""
        bar = f'<i><i style="width:{100 * iou:.1f}%"></i></i>' if is_number(iou) else ""
        cells = "".join(f"<td>{score_text(row[key])}</td>" for key in ("f1", "precision", "recall"))
        rows.append(
            f"<tr><th>{swatch(item)}{aside}</th><td>{score_text(iou)}</td>"
            f'<td class="bar" style="color:{hexadecimal(item.colour)}">{bar}</td>{cells}'
            f'<td title="{int(truth):,} px">{int(truth) / total:.1%}</td></tr>'
        )
    mean = f"<td>{score_text(scores['miou'])}</td><td></td><td>{score_text(scores['mean_f1'])}</td>"
    rows.append(f'<tr class="mean"><th>mean</th>{mean}<td></td><td></td><td></td></tr>')
    titles = ("class", "IoU", "", "F1", "precision", "recall", "share of truth")
    head = "".join(f"<th>{name}</th>" for name in titles)
    return (
        "<h2>Classes</h2>"
        f'<div class="scroll"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def confusion_table(confusion: NDArray[np.int64], classes: Sequence[ClassSpec]) -> str:
    """Rows truth, columns map; the column of pixels outside all classes where there are any."""
    columns = len(classes) + bool(confusion[:, len(classes) :].sum())
    head = "".join(f"<th>{_plain_head(classes, index)}</th>" for index in range(columns))
    rows = []
    for truth, item in enumerate(classes):
        whole = int(confusion[truth].sum())
        cells = "".join(
            _cell(int(confusion[truth, found]), whole, truth == found, item.name, class_name(classes, found))
            for found in range(columns)
        )
        rows.append(f'<tr><th>{swatch(item)}</th>{cells}<td class="total">{whole:,}</td></tr>')
    return (
        "<h2>What is mapped as what</h2>"
        '<p class="note">Each row is a class of the truth; its cells say which share of it the map holds as '
        "what. Pixel counts appear on hover.</p>"
        f'<div class="scroll"><table class="matrix{" dense" * (columns > MANY_CLASSES)}"><thead><tr>'
        '<th class="axis">truth ↓  map →</th>'
        f"{head}<th>pixels</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plain_head(classes: Sequence[ClassSpec], index: int) -> str:
    return swatch(classes[index]) if index < len(classes) else "none of these"


def _cell(count: int, whole: int, right: bool, truth: str, found: str) -> str:
    share = count / whole if whole else 0.0
    text = "" if share < LEAST_SHOWN else f"{100 * share:.1f}"
    strength = (0.1 + 0.75 * share if right else min(0.9, 0.06 + 1.4 * share)) if text else 0.0
    style = f"background:rgba(var(--{'right' if right else 'wrong'}), {strength:.2f})"
    if strength > 0.5:
        style += ";color:#fff"
    title = f"{truth} mapped as {found}: {count:,} of {whole:,} px"
    return f'<td style="{style}" title="{escape(title)}">{text}</td>'


def boundary_section(scores: Mapping[str, Any], classes: Sequence[ClassSpec]) -> str:
    boundary = scores.get("boundary")
    if not boundary:
        return ""
    charts = []
    for kind, name in (("boundary_iou", "Boundary IoU"), ("trimap_accuracy", "Trimap accuracy")):
        values = boundary[kind]
        lines = [
            (item.name, item.colour, values["classes"][item.name])
            for item in classes
            if any(is_number(value) for value in values["classes"][item.name])
        ]
        chart = curves(name, boundary["widths_px"], boundary.get("widths_m"), lines, values["mean"])
        charts.append(f"<figure><figcaption>{name}</figcaption>{chart}</figure>")
    mean = '<li><span class="dash"></span>mean</li>'
    return (
        "<h2>Boundaries</h2>"
        '<p class="note">Boundary IoU compares the bands inside each class along its outline; trimap '
        "accuracy is the share of right pixels near boundaries of the truth. Both by the width of the "
        "band.</p>"
        f'<ul class="legend">{legend_items(classes)}{mean}</ul><div class="charts">{"".join(charts)}</div>'
    )


def comparison_section(comparison: Comparison) -> str:
    rows, drawn = [], []
    for item in comparison.rows():
        low, high = item.interval
        differs = "" if not is_number(low) else "not clear" if item.holds_zero else "yes"
        rows.append(
            f"<tr><th>{escape(item.name)}</th><td>{score_text(item.first)}</td>"
            f"<td>{score_text(item.second)}</td><td>{signed_text(item.difference)}</td>"
            f"<td>{signed_text(low)} to {signed_text(high)}</td><td>{differs}</td></tr>"
        )
        drawn.append((item.name, item.difference, low, high))
    head = (
        f"<th></th><th>{escape(comparison.first)}</th><th>{escape(comparison.second)}</th>"
        f"<th>difference</th><th>{comparison.config.level:.0%} interval</th><th>differs</th>"
    )
    return (
        f"<h2>Against {escape(comparison.second)}</h2>"
        f'<p class="note">{escape(comparison.explanation)}</p>'
        f'<div class="versus"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><figure>{intervals(drawn)}</figure></div>"
    )
