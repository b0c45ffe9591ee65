"""Options for polygons, shared by `rsseg vectorize` and `rsseg predict --vector`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rsseg_cli.config import VectorConfig

DEFAULTS = VectorConfig()

MinArea = Annotated[
    float,
    typer.Option(
        "--min-area",
        metavar="M2",
        help="Give objects below this area on the ground to the neighbour with the longest shared edge.",
    ),
]
Simplify = Annotated[
    float,
    typer.Option(
        "--simplify",
        metavar="M",
        help="Take out corners that stand out by less than a square of this side, metres on the ground; "
        "shared edges stay shared.",
    ),
]
Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth", help="Round corners; boundaries are simplified by a pixel first, or --simplify."
    ),
]
FillHoles = Annotated[
    float,
    typer.Option("--fill-holes", metavar="M2", help="Fill holes below this area, those without data too."),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes", metavar="NAME,NAME", help="Write these classes alone, by name or index. Default: all."
    ),
]
Dissolve = Annotated[
    bool, typer.Option("--dissolve", help="One multipolygon a class, not a polygon an object.")
]
DstCrs = Annotated[
    str,
    typer.Option(
        "--dst-crs", metavar="CRS", help="CRS of the polygons, as EPSG:4326. Default: the raster's."
    ),
]
LayerName = Annotated[
    str, typer.Option("--layer", metavar="NAME", help="Name of the layer. Default: the file's.")
]
Format = Annotated[
    Literal["auto", "GPKG", "FlatGeobuf", "GeoParquet", "GeoJSON", "Shapefile"],
    typer.Option("--format", help="auto goes by the ending: .gpkg .fgb .parquet .geojson .shp ."),
]
Qml = Annotated[
    bool, typer.Option("--qml", help="Write a QGIS style beside the file; a GeoPackage carries its own.")
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", metavar="N", help="Worker processes; 0 is one a core for large rasters."),
]


def class_list(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
