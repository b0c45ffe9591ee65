"""The report of a scored map: one self-contained HTML page, and its scores as JSON."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rsseg_cli import files
from rsseg_cli._version import __version__
from rsseg_cli.errors import OutputError
from rsseg_cli.evaluation.metrics import without_nan
from rsseg_cli.evaluation.worst_tiles import WorstTile, read_worst_tile, worst_tiles
from rsseg_cli.pipeline import round_length_m
from rsseg_cli.raster import classes as class_values
from rsseg_cli.weights import ClassSpec

if TYPE_CHECKING:
    from rsseg_cli.evaluation.comparison import Comparison
    from rsseg_cli.evaluation.scoring import ScoreResult

PAGE, SCORES = "index.html", "scores.json"
HATCH = ((190, 190, 190), (151, 151, 151))
JPEG_QUALITY = 84
WIDTH, HEIGHT = 460, 290  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 40, 14, 10, 58
SQUARE = HEIGHT - TOP - BOTTOM  # of the reliability diagram
Value = float | None


def check_report_folder(
    folder: str | os.PathLike[str], *, overwrite: bool = False, names: Sequence[str] = (PAGE, SCORES)
) -> None:
    """Raise OutputError if a report of files with these names cannot be written to a folder."""
    path = Path(folder)
    files.check_folder(path, "a report")
    for name in names:
        files.check_regular(path / name)
        if (path / name).exists() and not overwrite:
            raise OutputError(f"{path / name}: exists already; pass --overwrite to replace it")


def write_report(
    folder: str | os.PathLike[str],
    result: ScoreResult,
    *,
    title: str,
    model: str = "",
    settings: Mapping[str, object] | None = None,
    tiles: Sequence[WorstTile] | None = None,
    comparison: Comparison | None = None,
    overwrite: bool = False,
) -> Path:
    """Write FOLDER/index.html and FOLDER/scores.json, and return the path of the page.

    `tiles` are the worst ones; None reads them from the files that the result names.
    """
    check_report_folder(folder, overwrite=overwrite)
    scenes = len({tile.scene for tile in result.tiles})
    if tiles is None:
        tiles = [read_worst_tile(tile) for tile in worst_tiles(result.tiles, scenes)]
    facts = {**({"model": model} if model else {}), **(settings or {})}
    config, confusion = result.config, np.asarray(result.confusion)
    classes = config.classes
    numbers = {
        "title": title,
        "settings": {name: str(value) for name, value in facts.items()},
        "scores": result.scores,
        "confusion": {
            "classes": [item.name for item in classes],
            "rows_truth_columns_map": confusion.tolist(),
        },
        "worst_places": [_tile_numbers(tile, classes) for tile in tiles],
        **({"against": comparison.as_dict()} if comparison else {}),
    }
    boundary = result.scores.get("boundary") or {}
    calibration = result.scores.get("calibration")
    kinds = (("boundary_iou", "Boundary IoU"), ("trimap_accuracy", "Trimap accuracy")) if boundary else ()
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            lead=_lead(int(confusion.sum()), scenes, model),
            pixels=int(confusion.sum()),
            scores=result.scores,
            cards=_cards(result.scores),
            intervals=_intervals(result.scores),
            boundary=boundary,
            classes=classes,
            out_of_means=[config.names[number] for number in config.out_of_means],
            rows=list(zip(classes, result.scores["classes"], confusion.tolist(), strict=True)),
            columns=len(classes) + bool(confusion[:, len(classes) :].sum()),
            charts=[boundary_chart(boundary, kind, name, classes) for kind, name in kinds],
            calibration=calibration,
            reliability=reliability_chart(calibration) if calibration else None,
            comparison=comparison,
            differences=interval_chart(comparison) if comparison else None,
            tiles=[_shown_tile(tile, classes) for tile in tiles],
            hatched=[
                words
                for words, name in (("unlabelled in the truth", "truth"), ("no class in the map", "mapped"))
                if any((getattr(tile, name) == class_values.NODATA).any() for tile in tiles)
            ],
            facts=facts,
            version=__version__,
        )
    )
    return write_files(folder, {SCORES: json_text(without_nan(numbers)), PAGE: page})


def json_text(values: Any) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def write_files(folder: str | os.PathLike[str], texts: Mapping[str, str]) -> Path:
    """Write the files of a report by name, and return the path of the page."""
    path = Path(folder)
    try:
        path.mkdir(exist_ok=True)
        for name, text in texts.items():
            with files.write_atomic(path / name) as file:
                file.write_text(text, encoding="utf-8")
    except OSError as err:
        raise OutputError(f"{path}: the report cannot be written ({err})") from err
    return path / PAGE


@cache
def environment(package: str = "rsseg_cli.evaluation") -> jinja2.Environment:
    """Return the templates of reports, and those of another package."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, "") for name in dict.fromkeys([package, "rsseg_cli.evaluation"])]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "hex": hexadecimal,
        "is_number": is_number,
        "px": lambda value: f"{value:.1f}",
        "score": lambda value: f"{value:.3f}" if is_number(value) else "–",
        "signed": lambda value: f"{value:+.3f}".replace("-", "−") if is_number(value) else "–",
    }
    return environment


def _lead(pixels: int, scenes: int, model: str) -> str:
    count = f"{pixels / 1e6:.1f} million" if pixels >= 1e6 else f"{pixels:,}"
    lead = f"{count} labelled pixels in {scenes} scene{'' if scenes == 1 else 's'}"
    return f"Model {model}, {lead}" if model else lead


def _cards(scores: Mapping[str, Any]) -> list[tuple[str, Value, Sequence[Value]]]:
    """Names, values and the ends of their intervals, () where there are none."""
    intervals = _intervals(scores)
    names = {"miou": "mIoU", "mean_f1": "mean F1", "overall_accuracy": "overall accuracy", "kappa": "kappa"}
    cards = [(name, scores[key], intervals.get(key, ())) for key, name in names.items()]
    if calibration := scores.get("calibration"):
        cards.append(("expected calibration error", calibration["ece"], ()))
    boundary = scores.get("boundary")
    if boundary:
        middle = (len(boundary["widths_px"]) - 1) // 2
        iou, metres = boundary["boundary_iou"]["mean"][middle], boundary.get("widths_m")
        width = f"{boundary['widths_px'][middle]:g} px" + (f" ({metres[middle]:.2g} m)" if metres else "")
        ends = intervals["boundary_iou"]["mean"][middle] if intervals else ()
        cards.append(("WFm of boundaries", boundary.get("wfm"), ()))
        cards.append((f"Boundary IoU, {width}", iou, ends))
    return cards


def _intervals(scores: Mapping[str, Any]) -> Mapping[str, Any]:
    """The intervals, {} where there are too few blocks for them."""
    intervals = scores.get("intervals") or {"miou": [None]}
    return intervals if is_number(intervals["miou"][0]) else {}


def _class_name(classes: Sequence[ClassSpec], index: int) -> str:
    return classes[index].name if index < len(classes) else "none of these"


def _tile_numbers(tile: WorstTile, classes: Sequence[ClassSpec]) -> dict[str, Any]:
    window = {key: getattr(tile, key) for key in ("scene", "row", "col", "height", "width")}
    return {
        **window,
        "crs": tile.crs or None,
        "centre": tile.centre,
        "lonlat": tile.lonlat,
        "labelled_pixels": tile.labelled,
        "wrong_pixels": tile.wrong,
        "confusions": [
            {"truth": classes[truth].name, "map": _class_name(classes, mapped), "pixels": pixels}
            for truth, mapped, pixels in tile.confusions
        ],
    }


def _shown_tile(tile: WorstTile, classes: Sequence[ClassSpec]) -> dict[str, Any]:
    location = [
        f"rows {tile.row}–{tile.row + tile.height - 1}, columns {tile.col}–{tile.col + tile.width - 1}"
    ]
    if tile.centre is not None:
        digits = 6 if max(map(abs, tile.centre)) <= 360 else 1
        location.append(f"{tile.crs}: {tile.centre[0]:.{digits}f}, {tile.centre[1]:.{digits}f}")
    if tile.lonlat is not None:
        lon, lat = tile.lonlat
        location.append(f"{abs(lat):.5f}° {'NS'[lat < 0]}, {abs(lon):.5f}° {'EW'[lon < 0]}")
    bar_m = round_length_m(tile.width_m * 0.4) if tile.width_m else 0.0
    photo = "" if tile.image is None else _uri(Image.fromarray(tile.image), "JPEG", quality=JPEG_QUALITY)
    return {
        "scene": tile.scene,
        "location": location,
        "photo": photo,
        "bar": (f"{bar_m / 1000:g} km" if bar_m >= 1000 else f"{bar_m:g} m") if bar_m else "",
        "bar_percent": 100 * bar_m / (tile.width_m or 1),
        "truth": _uri(_drawn(tile.truth, classes), "PNG", optimize=True),
        "mapped": _uri(_drawn(tile.mapped, classes), "PNG", optimize=True),
        "right": 1 - tile.wrong / max(1, tile.labelled),
        "labelled": tile.labelled,
        "confusions": tile.confusions,
    }


def _drawn(labels: NDArray[np.uint8], classes: Sequence[ClassSpec]) -> Image.Image:
    """A palette picture of classes; 255 is hatched, as a class may well be grey."""
    indices = labels.copy()
    rows, cols = np.arange(labels.shape[0])[:, None], np.arange(labels.shape[1])
    indices[(labels == class_values.NODATA) & ((rows + cols) % 8 < 3)] = class_values.INVALID
    picture = Image.fromarray(indices).convert("P")
    table = np.full((256, 3), HATCH[0], np.uint8)
    table[: len(classes)] = [item.colour for item in classes]
    table[class_values.INVALID] = HATCH[1]
    picture.putpalette(table.tobytes())
    return picture


def _uri(picture: Image.Image, kind: str, **options: Any) -> str:
    stored = io.BytesIO()
    picture.save(stored, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def is_number(value: Value) -> bool:
    return value is not None and math.isfinite(value)


def hexadecimal(colour: Sequence[int]) -> str:
    red, green, blue = (min(255, max(0, int(part))) for part in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"


def boundary_chart(
    boundary: Mapping[str, Any], kind: str, title: str, classes: Sequence[ClassSpec]
) -> dict[str, Any]:
    """Scores from 0 to 1 by distance from a boundary, on a logarithmic axis.

    A curve per class that has scores, then the mean, which has no colour.
    """
    widths, values = boundary["widths_px"], boundary[kind]
    logs = [math.log(max(width, 1e-6)) for width in widths]
    low, span = min(logs), max(logs) - min(logs)
    inner = WIDTH - LEFT - RIGHT - 40
    xs = [LEFT + 20 + inner * ((log - low) / span if span else 0.5) for log in logs]

    def curve(name: str, colour: str, scores: Sequence[Value]) -> dict[str, Any]:
        points = [(x, _y(v), v) for x, v in zip(xs, scores, strict=True) if v is not None and is_number(v)]
        return {"name": name, "colour": colour, "points": points}

    curves = [
        curve(item.name, hexadecimal(item.colour), values["classes"][item.name])
        for item in classes
        if any(is_number(value) for value in values["classes"][item.name])
    ]
    metres = boundary.get("widths_m") or [None] * len(widths)
    return {
        "title": title,
        "levels": [(share / 5, _y(share / 5)) for share in range(6)],
        "ticks": list(zip(xs, widths, metres, strict=True)),
        "in_metres": bool(boundary.get("widths_m")),
        "curves": [*curves, curve("mean", "", values["mean"])],
    }


def reliability_chart(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Share of right pixels in each bin by its confidence; dots grow with the pixels that they stand for."""

    def dot(row: Mapping[str, Any]) -> dict[str, Any]:
        radius = 3 + 9 * math.sqrt(row["pixels"] / calibration["pixels"])
        return {**row, "x": LEFT + SQUARE * row["confidence"], "y": _y(row["accuracy"]), "radius": radius}

    return {
        "side": SQUARE,
        "left": LEFT,
        "top": TOP,
        "levels": [(share / 5, LEFT + SQUARE * share / 5, _y(share / 5)) for share in range(6)],
        "dots": [dot(row) for row in calibration["bins"] if row["pixels"]],
    }


def interval_chart(comparison: Comparison) -> dict[str, Any]:
    """Differences of two models with their intervals around zero, a row each, in percentage points."""
    rows = comparison.rows()
    ends = [abs(end) for row in rows for end in (row.difference, *row.interval) if math.isfinite(end)]
    reach = max([*ends, 0.01]) * 1.1
    left, right, step, top = 150, 450, 26, 8

    def x(value: float) -> float:
        return (left + right) / 2 + value / reach * (right - left) / 2

    drawn = []
    for index, row in enumerate(rows):
        low, high = row.interval
        colour = f"rgb(var(--{'right' if row.difference > 0 else 'wrong'}))"
        known = math.isfinite(row.difference + low + high)
        drawn.append(
            {
                "name": row.name if len(row.name) <= 20 else f"{row.name[:19]}…",
                "y": top + step * (index + 0.5),
                "colour": "currentColor" if row.holds_zero else colour,
                "interval": (x(low), x(row.difference), x(high)) if known else None,
            }
        )
    tick = round_length_m(reach / 2)
    steps = range(-int(reach / tick), int(reach / tick) + 1)
    return {
        "height": top + step * len(rows) + 34,
        "top": top,
        "bottom": top + step * len(rows),
        "label_x": left - 12,
        "middle": (left + right) / 2,
        "ticks": [(x(k * tick), f"{100 * k * tick:+g}" if k else "0") for k in steps],
        "rows": drawn,
    }


def _y(value: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(1.0, max(0.0, value)))
