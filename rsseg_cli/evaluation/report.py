"""The report of a scored map: one HTML page that needs nothing beside it, and its scores as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsseg_cli import files
from rsseg_cli._version import __version__
from rsseg_cli.errors import OutputError
from rsseg_cli.evaluation.charts import class_name, count_text, score_text
from rsseg_cli.evaluation.places import Place, read_place, worst_tiles
from rsseg_cli.evaluation.sections import (
    boundary_section,
    class_table,
    comparison_section,
    confusion_table,
    places_section,
)
from rsseg_cli.evaluation.style import STYLE

if TYPE_CHECKING:
    from rsseg_cli.evaluation.comparison import Comparison
    from rsseg_cli.evaluation.scoring import ScoreResult
    from rsseg_cli.weights import ClassSpec

PAGE, SCORES = "index.html", "scores.json"


def check_report_folder(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot take a report, before work starts.

    Raises:
        OutputError: it holds a report already, is a file, or the folder above it does not exist.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; --report needs a folder")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: its folder {path.parent} does not exist")
    for name in (PAGE, SCORES):
        if (path / name).exists() and not overwrite:
            raise OutputError(f"{path / name}: exists already; pass --overwrite to replace it")


def write_report(
    folder: str | os.PathLike[str],
    result: ScoreResult,
    *,
    title: str,
    classes: Sequence[ClassSpec],
    model: str = "",
    settings: Mapping[str, object] | None = None,
    places: Sequence[Place] | None = None,
    comparison: Comparison | None = None,
    out_of_means: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write FOLDER/index.html and FOLDER/scores.json.

    Args:
        folder: made where it does not exist.
        result: of `Scorer.result`.
        title: headline.
        classes: names and colours, in the order of the result.
        model: whose map it is.
        settings: what was scored and how, a line each.
        places: the worst ones; None reads them from the result's tiles.
        comparison: with a second model.
        out_of_means: classes that do not enter the means; they are marked.
        overwrite: replace a report that lies there.

    Returns:
        path of index.html.

    Raises:
        OutputError: a report lies there already, or cannot be written.
        SceneError, DataError: a map or its truth cannot be read again.
    """
    check_report_folder(folder, overwrite=overwrite)
    if places is None:
        scenes = len({tile.scene for tile in result.tiles})
        places = [read_place(tile) for tile in worst_tiles(result.tiles, scenes)]
    facts = {**({"model": model} if model else {}), **(settings or {})}
    page = _page(
        _Content(
            title=title,
            result=result,
            classes=classes,
            facts=facts,
            places=places,
            comparison=comparison,
            out_of_means=out_of_means,
        )
    )
    numbers = {
        "title": title,
        "settings": {name: str(value) for name, value in facts.items()},
        "scores": result.scores,
        "confusion": {
            "classes": [item.name for item in classes],
            "rows_truth_columns_map": np.asarray(result.confusion).tolist(),
        },
        "worst_places": [_place_numbers(place, classes) for place in places],
        **({"against": comparison.as_dict()} if comparison else {}),
    }
    path = Path(folder)
    try:
        path.mkdir(exist_ok=True)
        with files.write_atomic(path / SCORES) as file:
            text = json.dumps(_finite(numbers), indent=1, ensure_ascii=False) + "\n"
            file.write_text(text, encoding="utf-8")
        with files.write_atomic(path / PAGE) as file:
            file.write_text(page, encoding="utf-8")
    except OSError as err:
        raise OutputError(f"{path}: the report cannot be written ({err})") from err
    return path / PAGE


def _finite(values: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(values, Mapping):
        return {str(key): _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _place_numbers(place: Place, classes: Sequence[ClassSpec]) -> dict[str, Any]:
    return {
        "scene": place.scene,
        "row": place.row,
        "col": place.col,
        "height": place.height,
        "width": place.width,
        "crs": place.crs or None,
        "centre": place.centre,
        "lonlat": place.lonlat,
        "labelled_pixels": place.labelled,
        "wrong_pixels": place.wrong,
        "confusions": [
            {"truth": classes[truth].name, "map": class_name(classes, found), "pixels": pixels}
            for truth, found, pixels in place.confusions
        ],
    }


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What the page tells."""

    title: str
    result: ScoreResult
    classes: Sequence[ClassSpec]
    facts: Mapping[str, object]
    places: Sequence[Place]
    comparison: Comparison | None
    out_of_means: Sequence[str]


def _page(content: _Content) -> str:
    result, classes, facts, title = content.result, content.classes, content.facts, content.title
    confusion = np.asarray(result.confusion)
    scenes = len({tile.scene for tile in result.tiles})
    lead = f"{count_text(int(confusion.sum()))} labelled pixels in {scenes} scene{'' if scenes == 1 else 's'}"
    if "model" in facts:
        lead = f"Model {facts['model']}, {lead}"
    body = [
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
        _cards(result.scores),
        class_table(result.scores, classes, confusion, content.out_of_means),
        confusion_table(confusion, classes),
        boundary_section(result.scores, classes),
        comparison_section(content.comparison) if content.comparison else "",
        places_section(content.places, classes),
        _facts(facts),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + f"\n<footer>Made by rsseg {escape(__version__)}.</footer>\n</main></body></html>\n"
    )


def _cards(scores: Mapping[str, Any]) -> str:
    boundary = scores.get("boundary") or {}
    cards = [
        ("mIoU", scores["miou"]),
        ("mean F1", scores["mean_f1"]),
        ("overall accuracy", scores["overall_accuracy"]),
        ("kappa", scores["kappa"]),
    ]
    if boundary:
        cards.append(("WFm of boundaries", boundary.get("wfm")))
        middle = (len(boundary["widths_px"]) - 1) // 2
        width = boundary["widths_px"][middle]
        cards.append((f"Boundary IoU, {width:g} px", boundary["boundary_iou"]["mean"][middle]))
    shown = "".join(
        f"<div><b>{score_text(value)}</b><span>{escape(name)}</span></div>" for name, value in cards
    )
    return f'<div class="cards">{shown}</div>'


def _facts(facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items()
    )
    return f'<h2>How it was made</h2><table class="facts"><tbody>{rows}</tbody></table>' if rows else ""
