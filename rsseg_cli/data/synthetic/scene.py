"""A drawn orthophoto with exact labels: for the demo, tests, benchmarks and training.

The labels are what a perfect interpreter would draw from above: a roof is building, a crown over a street
vegetation, a shadow what it falls upon, a bridge road. Paved ground (streets, pavements, drives, yards,
parking) is road, unpaved ground (soil, gravel paths, sand, stubble) land, whatever is green vegetation, and
rivers, the sea, ponds and pools water. Vines and fruit trees are vegetation and the soil between their rows
land; all is vegetation where rows are less than three pixels apart. Greenhouses are building, solar panels
building on a roof and land on the ground, snow is land, and a wall that an oblique view shows is building.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import from_origin

from rsseg_cli.data.synthetic.render import Renderer
from rsseg_cli.data.synthetic.style import ANY, CLASSIC, STYLES
from rsseg_cli.errors import OutputError, UsageError
from rsseg_cli.files import replace_all
from rsseg_cli.raster import Grid, RasterWriter, vrt

CLASSES = (
    ("building", (214, 69, 65)),
    ("land", (222, 203, 164)),
    ("road", (120, 120, 128)),
    ("vegetation", (76, 145, 65)),
    ("water", (58, 124, 190)),
)
BLOCK_PX = 2048
SIZE_RANGE_PX = (64, 20_000)
GSD_RANGE_M = (0.1, 1.5)
EPSG = 32632
UPPER_LEFT_M = (684_300.0, 5_336_700.0)  # easting, northing
Pixels = NDArray[np.uint8]


def draw_scene(
    size: int = 2048, seed: int = 0, gsd_m: float = 0.3, style: str = CLASSIC
) -> tuple[Pixels, Pixels]:
    """Draw an orthophoto and its label map.

    The same arguments give the same pixels. A seed decides place, season, light and colours; seed 0 is the
    demonstration scene. A larger size shows more of the same place, another resolution the same things finer
    or coarser.

    Args:
        size: width and height, 64 to 20,000 px.
        seed: 0 or more.
        gsd_m: metres a pixel on the ground, 0.1 to 1.5.
        style: "classic" (the first eight of STYLES), "any" (one of all, in a wider range of light, season
            and camera), or the name of one.

    Returns:
        image uint8 (3, size, size), red green blue; labels uint8 (size, size): index into CLASSES.
    """
    _check(size, seed, gsd_m, style)
    image, labels = zip(*_strips(size, seed, gsd_m, style), strict=True)
    return np.concatenate(image, axis=1), np.concatenate(labels)


def write_scene(
    path: str | os.PathLike[str],
    *,
    size: int = 2048,
    seed: int = 0,
    gsd_m: float = 0.3,
    style: str = CLASSIC,
    labels_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Draw a scene into a GeoTIFF (UTM zone 32N), and its label map into another on the same grid.

    Memory: one row of blocks. Both files appear whole or not at all.
    """
    _check(size, seed, gsd_m, style)
    target, labels_target = Path(path), None if labels_path is None else Path(labels_path)
    if labels_target is not None and target.resolve() == labels_target.resolve():
        raise OutputError(f"{target}: scene and labels would be the same file. Give them different names.")
    transform = from_origin(*UPPER_LEFT_M, gsd_m, gsd_m)
    grid = Grid(crs=CRS.from_epsg(EPSG), transform=transform, width=size, height=size)
    drawn = f"seed {seed}, {size} px, {gsd_m:g} m a pixel"
    tags = {"RSSEG_DRAWN": drawn if style == CLASSIC else f"{drawn}, style {style}"}
    rgb = vrt.RasterMeta(
        count=3, overviews="average", band_names=("red", "green", "blue"), tags=tags, nodata=None
    )
    classes = vrt.RasterMeta(
        colours={k: colour for k, (_, colour) in enumerate(CLASSES)},
        category_names=[name for name, _ in CLASSES],
        tags=tags,
    )
    with ExitStack() as stack:
        options = {"PREDICTOR": "YES"}
        scene = RasterWriter(target, grid, rgb, options=options, overwrite=overwrite)
        writers = [stack.enter_context(scene)]
        if labels_target is not None:
            writers.append(
                stack.enter_context(RasterWriter(labels_target, grid, classes, overwrite=overwrite))
            )
        row = 0
        for image, labels in _strips(size, seed, gsd_m, style):
            for writer, pixels in zip(writers, (image, labels[None]), strict=False):
                writer.write(row, pixels)
            row += len(labels)
        for writer in writers:
            writer.finish()
        renames = {file: name for writer in writers for file, name in writer.renames().items()}
        replace_all(renames)


def _check(size: int, seed: int, gsd_m: float, style: str) -> None:
    low, high = SIZE_RANGE_PX
    if not low <= size <= high:
        raise UsageError(
            f"size {size} px: a drawn scene has {low} to {high} px a side. Pass --size {low}..{high}."
        )
    if seed < 0:
        raise UsageError(f"seed {seed}: needs 0 or more.")
    if not (math.isfinite(gsd_m) and GSD_RANGE_M[0] <= gsd_m <= GSD_RANGE_M[1]):
        raise UsageError(
            f"ground resolution {gsd_m} m a pixel: needs {GSD_RANGE_M[0]} to {GSD_RANGE_M[1]} m."
        )
    if style not in (CLASSIC, ANY, *STYLES):
        raise UsageError(f"style {style!r}: needs one of {', '.join((CLASSIC, ANY, *STYLES))}.")


def _strips(size: int, seed: int, gsd_m: float, style: str) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield image (3, rows, size) and labels (rows, size) from top to bottom, drawn in square blocks."""
    renderer = Renderer(seed, gsd_m, style)
    starts = range(0, size, BLOCK_PX)
    for row in starts:
        height = min(BLOCK_PX, size - row)
        blocks = [renderer.draw(col, row, min(BLOCK_PX, size - col), height) for col in starts]
        images, labels = zip(*blocks, strict=True)
        yield np.concatenate(images, axis=2), np.concatenate(labels, axis=1)
