"""A drawn orthophoto with exact labels: for the demo, tests, benchmarks and training.

The labels are what a perfect interpreter would draw from above: a roof is building, a crown over a street
vegetation, a shadow what it falls upon, a bridge road. Paved ground (streets, pavements, drives, yards,
parking) is road, unpaved ground (soil, gravel paths, sand, stubble) land, whatever is green vegetation, and
rivers, the sea, ponds and pools water.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window

from rsseg_cli.data.synthetic.render import BLOCK_PX, Renderer
from rsseg_cli.errors import OutputError, UsageError

CLASSES = (
    ("building", (214, 69, 65)),
    ("land", (222, 203, 164)),
    ("road", (120, 120, 128)),
    ("vegetation", (76, 145, 65)),
    ("water", (58, 124, 190)),
)
NODATA = 255
SIZE_RANGE_PX = (64, 20_000)
GSD_RANGE_M = (0.1, 1.5)
CRS = "EPSG:32632"
UPPER_LEFT_M = (684_300.0, 5_336_700.0)  # easting, northing


def draw_scene(
    size: int = 2048, seed: int = 0, gsd_m: float = 0.3
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an orthophoto and its label map.

    The same arguments give the same pixels. A seed decides place, season, light and colours; seed 0 is the
    demonstration scene. A larger size shows more of the same place, another resolution the same things finer
    or coarser.

    Args:
        size: width and height, 64 to 20,000 px.
        seed: 0 or more.
        gsd_m: metres a pixel on the ground, 0.1 to 1.5.

    Returns:
        image uint8 (3, size, size), red green blue; labels uint8 (size, size): index into CLASSES.
    """
    _check(size, seed, gsd_m)
    image = np.empty((3, size, size), np.uint8)
    labels = np.empty((size, size), np.uint8)
    for row, col, block, block_labels in _blocks(size, seed, gsd_m):
        window = (slice(row, row + block.shape[1]), slice(col, col + block.shape[2]))
        image[:, window[0], window[1]] = block
        labels[window] = block_labels
    return image, labels


def write_scene(
    path: str | os.PathLike[str],
    *,
    size: int = 2048,
    seed: int = 0,
    gsd_m: float = 0.3,
    labels_path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Draw a scene into a tiled GeoTIFF (UTM zone 32N), and its label map into another on the same grid.

    Drawn and written block by block: memory does not grow with `size`. Both files appear whole or not at all.
    """
    _check(size, seed, gsd_m)
    target = Path(path)
    targets = [target] if labels_path is None else [target, Path(labels_path)]
    _check_targets(targets, overwrite)
    temporary = [t.with_name(f".{t.name}.{os.getpid()}.part.tif") for t in targets]
    try:
        _write(temporary, size, seed, gsd_m)
        for part, final in zip(temporary, targets, strict=True):
            _rename(part, final)
    except (RasterioError, OSError) as err:
        raise OutputError(
            f"{target}: cannot be written: {err}. Check the folder and the free space."
        ) from err
    finally:
        for part in temporary:
            part.unlink(missing_ok=True)
            _sidecar(part).unlink(missing_ok=True)


def _check(size: int, seed: int, gsd_m: float) -> None:
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


def _check_targets(targets: list[Path], overwrite: bool) -> None:
    if len(targets) == 2 and targets[0].resolve() == targets[1].resolve():
        raise OutputError(
            f"{targets[0]}: scene and labels would be the same file. Give them different names."
        )
    for target in targets:
        if not target.parent.is_dir():
            raise OutputError(f"{target}: the folder {target.parent} does not exist. Make it first.")
        if target.is_dir():
            raise OutputError(f"{target}: is a folder; a file name is needed.")
        if target.exists() and not overwrite:
            raise OutputError(f"{target}: exists already. Pass --overwrite to replace it, or another name.")


def _blocks(
    size: int, seed: int, gsd_m: float
) -> Iterator[tuple[int, int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Row, column, image and labels of each block, row-major."""
    renderer = Renderer(seed, gsd_m)
    for row in range(0, size, BLOCK_PX):
        for col in range(0, size, BLOCK_PX):
            image, labels = renderer.draw(col, row, min(BLOCK_PX, size - col), min(BLOCK_PX, size - row))
            yield row, col, image, labels


def _write(parts: list[Path], size: int, seed: int, gsd_m: float) -> None:
    tags = {"RSSEG_DRAWN": f"seed {seed}, {size} px, {gsd_m:g} m a pixel"}
    grid = {"width": size, "height": size, "crs": CRS, "transform": _transform(gsd_m)}
    with rasterio.Env(GDAL_CACHEMAX=128), ExitStack() as stack:
        scene = stack.enter_context(rasterio.open(parts[0], "w", **grid, **_profile(3)))
        scene.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        scene.descriptions = ("red", "green", "blue")
        scene.update_tags(**tags)
        labels = None
        if len(parts) == 2:
            labels = stack.enter_context(rasterio.open(parts[1], "w", **grid, **_profile(1), nodata=NODATA))
            labels.write_colormap(1, {k: (*colour, 255) for k, (_, colour) in enumerate(CLASSES)})
            labels.update_tags(**tags)
        for row, col, image, block_labels in _blocks(size, seed, gsd_m):
            window = Window(col, row, image.shape[2], image.shape[1])
            scene.write(image, window=window)
            if labels is not None:
                labels.write(block_labels, 1, window=window)
    _overviews(parts[0], size, Resampling.average)
    if len(parts) == 2:
        _overviews(parts[1], size, Resampling.mode)
        _write_category_names(parts[1])


def _transform(gsd_m: float) -> Affine:
    return from_origin(*UPPER_LEFT_M, gsd_m, gsd_m)


def _profile(count: int) -> dict[str, object]:
    return {
        "driver": "GTiff",
        "count": count,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
        "predictor": 2 if count == 3 else 1,
        "zlevel": 6,
        "interleave": "pixel",
        "bigtiff": "if_safer",
    } | ({"photometric": "rgb"} if count == 3 else {})


def _overviews(path: Path, size: int, resampling: Resampling) -> None:
    factors = [2**k for k in range(1, 8) if size / 2 ** (k - 1) > 256]
    if factors:
        with (
            rasterio.Env(GDAL_CACHEMAX=128, GDAL_TIFF_OVR_BLOCKSIZE=256),
            rasterio.open(path, "r+") as raster,
        ):
            raster.build_overviews(factors, resampling)


def _write_category_names(path: Path) -> None:
    """Class names where GDAL and QGIS look for those of a GeoTIFF: in the file beside it."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name, _ in CLASSES)
    _sidecar(path).write_text(
        '<PAMDataset><PAMRasterBand band="1"><CategoryNames>'
        f"{names}</CategoryNames></PAMRasterBand></PAMDataset>\n",
        encoding="utf-8",
    )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".aux.xml")


def _rename(part: Path, final: Path) -> None:
    for leftover in (
        _sidecar(final),
        final.with_name(final.name + ".ovr"),
        final.with_name(final.name + ".msk"),
    ):
        leftover.unlink(
            missing_ok=True
        )  # of a file that is being replaced; GDAL would apply them to the new one
    if _sidecar(part).exists():
        os.replace(_sidecar(part), _sidecar(final))
    os.replace(part, final)
