"""Runs of the `rsseg` program, and what they wrote, in a form that can be stored.

Only the command line and the public library are used, so that these tests outlive changes inside the package.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
import shapely
from golden_files import MODEL, REFINER
from numpy.typing import NDArray
from typer.testing import CliRunner

from rsseg_cli import __version__
from rsseg_cli.cli.main import app

ARITHMETIC = ("--runtime", "torch", "--dtype", "float32")  # with which the expectations were made
MODEL_OPTIONS = ("--model", MODEL, *ARITHMETIC)
SMALL_TILES = ("--tile-size", "256", "--overlap", "64")
REFINE = ("--refine", "--refiner", REFINER)
LAYERS = ("confidence", "probabilities", "heatmaps")
REPOSITORY = Path(__file__).resolve().parents[2]
CHANGING = {
    "seconds": 0.0,
    "stages": "TIMES",
    "time": "TIME",
    "RSSEG_RUN": "HASH",
    "modified": 0.0,
    "size": 0,
    "rsseg": "VERSION",
}
SECONDS = re.compile(r" +\d+(\.\d+)? (s|min|h)\b")
RATE = re.compile(r"; [\d.]+ (Mpx|px|scenes)/(s|min|h).*$", re.MULTILINE)  # and the time that is left
AREA = re.compile(r"<?\d+\.\d+ (?=(m2|ha|km2)$)", re.MULTILINE)
DIGITS = 3  # of coordinates in metres, behind the point; degrees have 8


def run(*arguments: object, exit_code: int | None = 0, stdin: str | None = None) -> Any:
    """Run the program in this process; the answer has `stdout` and `stderr`.

    Args:
        exit_code: that the run must have; None takes any.
    """
    answer = CliRunner().invoke(app, [str(item) for item in arguments], input=stdin, env={"COLUMNS": "100"})
    assert exit_code in (None, answer.exit_code), f"{answer.stderr}\n{answer.exception!r}"
    return answer


def command(*arguments: object) -> list[str]:
    """The program as a process of its own."""
    return [sys.executable, "-m", "rsseg_cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """For such a process: it finds the package, and has one thread as this one has."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run_apart(*arguments: object, folder: Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), text=True, capture_output=True, check=False
    )
    assert done.returncode == exit_code, done.stderr
    return done


def reported(answer: Any, *folders: Path) -> str:
    """Exit code, stdout and stderr of a run, without what changes from run to run."""
    code = answer.exit_code if hasattr(answer, "exit_code") else answer.returncode
    text = f"exit code {code}\n--- stdout\n{answer.stdout}--- stderr\n{answer.stderr}"
    return without_changing(text, *folders)


def without_changing(text: str, *folders: Path) -> str:
    """A text without its folders, times and the program's version; areas of rare classes vary too much."""
    for path in folders:
        text = text.replace(str(path), "FOLDER")
    text = text.replace(str(Path(__file__).resolve().parent), "GOLDEN")
    text = AREA.sub("# ", SECONDS.sub(" N s", RATE.sub("; RATE", text)))
    return text.replace(f"rsseg {__version__}", "rsseg VERSION")


def masked(value: Any, *folders: Path) -> Any:
    """Values as JSON has them, without what changes from run to run."""
    if isinstance(value, Mapping):
        return {
            key: CHANGING[key] if key in CHANGING and item is not None else masked(item, *folders)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [masked(item, *folders) for item in value]
    return without_changing(value, *folders) if isinstance(value, str) else value


def pixels(path: Path) -> NDArray[Any]:
    """A raster's values (band, row, col)."""
    with rasterio.open(path) as dataset:
        return dataset.read()


def labels(path: Path) -> NDArray[Any]:
    """A class raster's values (row, col)."""
    [band] = pixels(path)
    return band


def layout(path: Path, folder: Path) -> dict[str, Any]:
    """How a raster is stored: type, grid, blocks, overviews, tags, names and colours."""
    with rasterio.open(path) as dataset:
        kept = {key: value for key, value in dataset.profile.items() if key not in ("crs", "transform")}
        described = {
            "profile": kept,
            "crs": dataset.crs.to_string(),
            "transform": list(dataset.transform)[:6],
            "overviews": dataset.overviews(1),
            "structure": dataset.tags(ns="IMAGE_STRUCTURE"),
            "tags": dataset.tags(),
            "band_tags": [dataset.tags(band) for band in dataset.indexes],
            "descriptions": list(dataset.descriptions),
            "colours": [item.name for item in dataset.colorinterp],
        }
        if dataset.count == 1 and described["colours"] == ["palette"]:
            table = dataset.colormap(1)
            described["colour_table"] = {str(key): list(table[key]) for key in (0, 1, 2, 3, 4, 5, 255)}
    return masked(described, folder)


def polygons(path: Path) -> geopandas.GeoDataFrame:
    """Polygons of a file of any format."""
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=path.stem)  # a GeoPackage has its styles in another one


def polygon_facts(table: geopandas.GeoDataFrame) -> dict[str, Any]:
    """What polygons are, whatever their order.

    The hash is of shapes, to the millimetre, each with its class and numbers; sums are by class.
    """
    name = "class_name" if "class_name" in table else "class"
    digits = 8 if table.crs is not None and table.crs.is_geographic else DIGITS
    shapes = shapely.transform(table.geometry.values, lambda points: np.round(points, digits) + 0.0)
    texts = shapely.to_wkb(shapely.normalize(shapes), hex=True)
    numbers = [field for field in table.select_dtypes("number") if field not in ("class_index", "class_idx")]
    values = ["".join(f" {value:.2f}" for value in row) for row in table[numbers].to_numpy()]
    lines = sorted(map(" ".join, zip(texts, table[name], values, strict=True)))
    classes = {}
    for kind, rows in table.groupby(name):
        sums = {field: float(rows[field].sum()) for field in numbers}
        classes[str(kind)] = {
            "polygons": len(rows),
            "corners": int(shapely.get_num_coordinates(rows.geometry.values).sum()),
            "holes": int(sum(shapely.get_num_interior_rings(part) for part in rows.geometry.explode())),
            "sums": sums,
        }
    return {
        "crs": None if table.crs is None else table.crs.to_string(),
        "fields": {field: _kind(kind) for field, kind in table.dtypes.items()},
        "types": sorted(set(table.geom_type)),
        "polygons": len(table),
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "classes": classes,
    }


def _kind(dtype: Any) -> str:
    """A column's type; that of texts is called otherwise by each version of pandas."""
    return "text" if str(dtype) in ("object", "str", "string") else str(dtype)
