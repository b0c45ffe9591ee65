"""Accuracy and class areas of a map, from points whose true class is known."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli._version import __version__
from rsseg_cli.accuracy.config import AssessConfig
from rsseg_cli.accuracy.estimate import Accuracy, Sample, estimate
from rsseg_cli.accuracy.points import CheckedPoints, read_points
from rsseg_cli.accuracy.strata import ClassMap, Progress, Strata
from rsseg_cli.errors import DataError
from rsseg_cli.evaluation import metrics
from rsseg_cli.evaluation import report as reports
from rsseg_cli.raster import classes

FIGURES, MATRIX, AREAS = "assessment.json", "matrix.csv", "areas.csv"
FEW = 10  # points of a stratum, below which its intervals are not to be trusted
MARK = "*"  # of an interval that rests on few units
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Accuracy of a map with N classes.

    Attributes:
        mapped_areas: of each class, by counting pixels; m2 or, without `in_m2`, pixels, as estimated ones.
        strata: name, points and share of the area of each.
    """

    class_names: list[str]
    accuracy: Accuracy
    mapped_areas: NDArray[np.float64]
    strata: list[tuple[str, int, float]]
    points: int
    in_m2: bool
    level: float
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures in types that JSON has; areas in hectares, or in pixels without a CRS."""
        accuracy, area = self.accuracy, self.area_factor
        classes_ = [
            {
                "name": name,
                "users_accuracy": accuracy.users[index].as_dict(self.level),
                "producers_accuracy": accuracy.producers[index].as_dict(self.level),
                "f1": accuracy.f1[index].as_dict(self.level),
                f"area_{self.unit}": accuracy.areas_m2[index].scaled(area).as_dict(self.level),
                f"mapped_area_{self.unit}": float(self.mapped_areas[index]) * area,
            }
            for index, name in enumerate(self.class_names)
        ]
        figures = {
            "points": self.points,
            "confidence_level": self.level,
            "overall_accuracy": accuracy.overall.as_dict(self.level),
            "classes": classes_,
            "error_matrix": {
                "classes": self.class_names,
                "rows_map_columns_truth_points": accuracy.counts.tolist(),
                "rows_map_columns_truth_area_proportions": accuracy.proportions.tolist(),
            },
            "strata": [
                {"name": name, "points": points, "area_proportion": share}
                for name, points, share in self.strata
            ],
            "notes": [*self.notes, *self.few],
        }
        return dict(metrics.without_nan(figures))

    @property
    def few(self) -> list[str]:
        """Return a sentence for each class, and for all, whose intervals rest on few units."""
        accuracy = self.accuracy
        figures = {"all classes": {"overall accuracy": accuracy.overall}}
        for index, name in enumerate(self.class_names):
            figures[name] = {
                "user's accuracy": accuracy.users[index],
                "producer's accuracy": accuracy.producers[index],
                "F1": accuracy.f1[index],
                "area": accuracy.areas_m2[index],
            }
        sentences = []
        for name, items in figures.items():
            marked = [
                f"{kind}: some {item.further_points} points"
                for kind, item in items.items()
                if item.rests_on_few and not np.isnan(item.value)
            ]
            if marked:
                sentences.append(
                    f"{name}: few units: the interval may be too narrow; sample more of this class "
                    f"({', '.join(marked)})"
                )
        return sentences

    def table(self) -> list[list[str]]:
        """Return rows of texts: a heading, the classes, all of them."""
        figures, unit = self.as_dict(), self.unit
        rows = [["class", "user's accuracy", "producer's accuracy", f"area, {unit}", f"counted, {unit}"]]
        for item in figures["classes"]:
            cells = [estimate_text(item[f"{whose}_accuracy"]) for whose in ("users", "producers")]
            areas = area_text(item[f"area_{unit}"]), f"{item[f'mapped_area_{unit}']:.2f}"
            rows.append([item["name"], *cells, *areas])
        return [*rows, ["overall", estimate_text(figures["overall_accuracy"]), "", "", ""]]

    @property
    def unit(self) -> str:
        return "ha" if self.in_m2 else "px"

    @property
    def area_factor(self) -> float:
        return 1e-4 if self.in_m2 else 1.0


def assess(
    labels: str | os.PathLike[str],
    points: str | os.PathLike[str],
    config: AssessConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Assessment:
    """Estimate the accuracy of a map and the areas of its classes from points with a true class.

    Strata and clusters are those that `draw_sample` wrote to the points. Points of another origin are taken
    as a random sample in each mapped class.

    Raises:
        SceneError, DataError: a file cannot be read, or has too few points for its strata.
    """
    config = config or AssessConfig()
    with ClassMap(os.fspath(labels)) as source:
        checked = read_points(os.fspath(points), source, config.truth)
        by_class = Strata(source, by_class=True, boundary_px=0, progress=progress)
        mapped = _mapped(source, checked)
        return _assess(source, checked, by_class, mapped, config)


def _mapped(source: ClassMap, checked: CheckedPoints) -> NDArray[np.int64]:
    """Return the value of the map at each point, NODATA outside."""
    grid = source.grid
    inside = (
        (checked.rows >= 0) & (checked.rows < grid.height) & (checked.cols >= 0) & (checked.cols < grid.width)
    )
    values = np.full(len(checked.rows), classes.NODATA, np.int64)
    for index in np.flatnonzero(inside):
        values[index] = source.read(int(checked.rows[index]), int(checked.cols[index]), 1, 1)[0, 0]
    return values


def _assess(
    source: ClassMap,
    checked: CheckedPoints,
    by_class: Strata,
    mapped: NDArray[np.int64],
    config: AssessConfig,
) -> Assessment:
    kept = mapped != classes.NODATA
    notes = []
    if checked.empty:
        notes.append(f"{checked.empty} points have no true class and were left out")
    if not kept.all():
        notes.append(f"{np.count_nonzero(~kept)} points lie where the map has no class and were left out")
    present = {int(item.value) for item in by_class if item.value is not None}
    values = sorted(set(source.names) | present | set(checked.truth[kept].tolist()))
    number = np.full(classes.MAX_VALUES, -1, np.int64)
    number[values] = np.arange(len(values))
    sample, names = _sample(checked, kept, mapped, number, by_class, source, notes)
    counts = np.bincount(sample.units()[1], minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < FEW:
            notes.append(f"stratum {name!r} has only {count} points; its intervals are not to be trusted")
    for note in notes:
        logger.warning("%s", note)
    areas = {
        int(item.value): area
        for item, area in zip(by_class, by_class.areas, strict=True)
        if item.value is not None
    }
    shares = sample.areas_m2 / sample.area_m2
    return Assessment(
        class_names=[source.name(value) for value in values],
        accuracy=estimate(sample, len(values)),
        mapped_areas=np.array([areas.get(value, 0.0) for value in values]),
        strata=[(name, int(c), float(s)) for name, c, s in zip(names, counts, shares, strict=True)],
        points=len(sample.truth),
        in_m2=source.in_m2,
        level=config.level,
        notes=tuple(notes),
    )


def _sample(
    checked: CheckedPoints,
    kept: NDArray[np.bool_],
    mapped: NDArray[np.int64],
    number: NDArray[np.int64],
    by_class: Strata,
    source: ClassMap,
    notes: list[str],
) -> tuple[Sample, list[str]]:
    """Return the sample with classes by `number`, and the names of its strata."""
    if checked.stratum is not None:
        stratum, areas, names = checked.stratum[kept], checked.stratum_areas, checked.stratum_names
    else:
        notes.append("the points name no strata; taken as a random sample in each mapped class")
        of_value = {item.value: index for index, item in enumerate(by_class)}
        stratum = np.array([of_value[int(value)] for value in mapped[kept]], np.int64)
        areas, names = by_class.areas, [item.name for item in by_class]
    counts = np.bincount(stratum, minlength=len(names))
    missing = [name for name, count in zip(names, counts, strict=True) if count < 2]
    if missing:
        raise DataError(
            f"{source.path}: fewer than 2 points with a true class in {', '.join(missing)}; check more points"
        )
    cluster = None if checked.cluster is None else checked.cluster[kept]
    sample = Sample(
        mapped=number[mapped[kept]],
        truth=number[checked.truth[kept]],
        stratum=stratum,
        areas_m2=areas,
        cluster=cluster,
    )
    return sample, list(names)


def check_assessment_folder(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise OutputError if an assessment cannot be written to this folder."""
    reports.check_report_folder(folder, overwrite=overwrite, names=(reports.PAGE, FIGURES, MATRIX, AREAS))


def write_assessment(
    folder: str | os.PathLike[str], result: Assessment, *, title: str, overwrite: bool = False
) -> Path:
    """Write FOLDER/index.html, assessment.json, matrix.csv and areas.csv; return the path of the page."""
    check_assessment_folder(folder, overwrite=overwrite)
    figures = result.as_dict()
    environment = reports.environment("rsseg_cli.accuracy")
    environment.filters |= {"estimate": estimate_text, "area": area_text}
    page = environment.get_template("assessment.html.j2").render(
        title=title, figures=figures, unit=result.unit, version=__version__
    )
    tables = {MATRIX: _matrix_csv(result), AREAS: _areas_csv(figures, result.unit)}
    return reports.write_files(folder, {FIGURES: reports.json_text(figures), **tables, reports.PAGE: page})


def estimate_text(item: dict[str, Any]) -> str:
    """Word an accuracy and its interval, which is not symmetric."""
    if item["value"] is None:
        return "–"
    mark = MARK if item["few_units"] else ""
    ends = "" if item["interval"] is None else " ({:.3f} to {:.3f})".format(*item["interval"])
    return f"{item['value']:.3f}{ends}{mark}"


def area_text(item: dict[str, Any]) -> str:
    """Word an area as value ± half of its interval, or with its ends where these are not symmetric."""
    if item["value"] is None:
        return "–"
    digits = 0 if item["value"] >= 1000 else 2
    value, mark = f"{item['value']:.{digits}f}", MARK if item["few_units"] else ""
    if item["interval"] is None:
        return value + mark
    low, high = item["interval"]
    if np.isclose(low + high, 2 * item["value"]):
        return f"{value} ± {high - item['value']:.{digits}f}{mark}"
    return f"{value} ({low:.{digits}f} to {high:.{digits}f}){mark}"


def _table(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _matrix_csv(result: Assessment) -> str:
    accuracy = result.accuracy
    rows: list[list[object]] = [["map", "truth", "points", "area_proportion"]]
    for row, mapped in enumerate(result.class_names):
        for col, truth in enumerate(result.class_names):
            share = round(float(accuracy.proportions[row, col]), 8)
            rows.append([mapped, truth, int(accuracy.counts[row, col]), share])
    return _table(rows)


def _areas_csv(figures: dict[str, Any], unit: str) -> str:
    mapped, estimated = f"mapped_area_{unit}", f"area_{unit}"
    rows: list[list[object]] = [["class", mapped, estimated, "standard_error", "low", "high", "few_units"]]
    for item in figures["classes"]:
        area = item[estimated]
        ends = area["interval"] or ("", "")
        rows.append(
            [item["name"], item[mapped], area["value"], area["standard_error"], *ends, area["few_units"]]
        )
    return _table(rows)
