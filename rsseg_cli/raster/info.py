"""What a raster is: size, grid, bands, how pixels without data are marked; read without its pixels."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal
from rsseg_cli.raster.bands import select_bands
from rsseg_cli.raster.grid import Grid

logger = logging.getLogger(__name__)
MAX_FILES = 100_000  # of a mosaic that outputs are checked against
MAX_SIDE_PX = 2**24  # of a scene: 8,400 km at 0.5 m


@dataclass(frozen=True, kw_only=True)
class SceneInfo:
    """What a raster is, without its pixels; `block_shape` is (height, width) as stored, px.

    Attributes:
        nodata: the value for all bands, the user's (`nodata_given`: it holds besides masks) or the file's.
        has_mask: some pixels may be without data (alpha, mask band, .msk, nodata).
        files: what the raster is read from: itself, its sidecars, the sources of a VRT.
    """

    path: str
    grid: Grid
    count: int
    dtypes: tuple[str, ...]
    nodata: float | None
    band_nodata: tuple[float | None, ...]
    nodata_given: bool
    colour_interpretations: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    has_mask: bool
    block_shape: tuple[int, int]
    overviews: tuple[int, ...]
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return gdal.display_name(self.path)

    @property
    def colour_bands(self) -> tuple[int, ...]:
        """1-based bands that are not alpha."""
        return tuple(band for band, kind in enumerate(self.colour_interpretations, 1) if kind != "alpha")

    @classmethod
    def of(cls, path: str | Path, nodata: float | None = None) -> SceneInfo:
        """Inspect anything that GDAL opens, without reading pixels; `nodata` replaces the file's own."""
        name = gdal.display_name(path)
        advice = "Give a raster that GDAL can read (gdalinfo shows whether it can)."
        if gdal.is_remote(str(path)):
            advice = "Check the address and who may read it, or try again later."
        with gdal.reading(path, advice=advice) as dataset:
            if dataset.count == 0:
                parts = ", ".join(gdal.display_name(part) for part in dataset.subdatasets[:4])
                raise SceneError(
                    f"{name}: holds no bands itself. {f'Pass one of its parts: {parts}' if parts else advice}"
                )
            kinds = tuple(kind.name for kind in dataset.colorinterp)
            flags = [
                mask for mask, kind in zip(dataset.mask_flag_enums, kinds, strict=True) if kind != "alpha"
            ]
            return cls(
                path=str(path),
                grid=_grid_of(dataset, name),
                count=dataset.count,
                dtypes=tuple(dataset.dtypes),
                nodata=dataset.nodata if nodata is None else nodata,
                band_nodata=tuple(dataset.nodatavals) if nodata is None else (nodata,) * dataset.count,
                nodata_given=nodata is not None,
                colour_interpretations=kinds,
                descriptions=_descriptions(dataset),
                has_mask=nodata is not None
                or "alpha" in kinds
                or any(MaskFlags.all_valid not in mask for mask in flags),
                block_shape=dataset.block_shapes[0],
                overviews=tuple(dataset.overviews(1)),
                files=tuple(_files_of(dataset)),
            )

    def select_bands(
        self, wanted: Sequence[str], bidx: Sequence[int] | None = None, model: str = ""
    ) -> tuple[int, ...]:
        """See `bands.select_bands`."""
        return select_bands(self, wanted, bidx, model)

    def percentile_ranges(self, bands: Sequence[int]) -> list[tuple[float, float]]:
        """See `Sample.percentile_ranges`."""
        from rsseg_cli.raster.sample import Sample

        return Sample.read(self, bands).percentile_ranges()

    def unmarked_holes(self, bands: Sequence[int], grid: Grid) -> tuple[int, float]:
        """See `sample.unmarked_holes`."""
        from rsseg_cli.raster.sample import unmarked_holes

        return unmarked_holes(self, bands, grid)

    def type_ranges(self, bands: Sequence[int]) -> list[tuple[float, float]]:
        """Return what becomes 0 and 1 without stretching: all of an integer type, floats as they are."""
        kinds = [np.dtype(self.dtypes[band - 1]) for band in bands]
        return [(0.0, float(np.iinfo(kind).max)) if kind.kind in "iu" else (0.0, 1.0) for kind in kinds]


def _files_of(dataset: Any) -> list[str]:
    """Return the files of a raster, also through VRTs inside VRTs, whether or not they can be opened."""
    files = dict.fromkeys(dataset.files)
    nested = [file for file in files if file.lower().endswith(".vrt") and file != dataset.name]
    while nested and len(files) < MAX_FILES:
        with suppress(RasterioError), gdal.open_raster(nested.pop()) as inner:
            new = [file for file in inner.files if file not in files]
            files |= dict.fromkeys(new)
            nested += [file for file in new if file.lower().endswith(".vrt")]
    return list(files)


def _descriptions(dataset: Any) -> tuple[str | None, ...]:
    try:
        return tuple(dataset.descriptions)
    except UnicodeDecodeError:
        return (None,) * int(dataset.count)


def _grid_of(dataset: Any, name: str) -> Grid:
    crs, transform = dataset.crs or None, dataset.transform
    if max(dataset.width, dataset.height) > MAX_SIDE_PX:
        raise SceneError(
            f"{name}: {dataset.width} x {dataset.height} px; needs {MAX_SIDE_PX} or less a side. Is the file "
            "damaged?"
        )
    grid = Grid(crs=crs, transform=transform, width=dataset.width, height=dataset.height)
    if transform.is_degenerate or not _can_be_inverted(grid):
        raise SceneError(
            f"{name}: its transform {tuple(transform)[:6]} has no area, or numbers too large or too small to "
            "count pixels by. Set it with gdal_edit -a_ullr."
        )
    if transform == Affine.identity():
        gcps, _ = dataset.gcps
        rpcs = bool(gdal.tags(dataset, "RPC"))
        if crs is not None or gcps or rpcs:
            logger.warning(
                "%s: has only %s; the map is left without georeferencing (gdalwarp the scene first)",
                name,
                "ground control points" if gcps else "RPCs" if rpcs else "a CRS but no transform",
            )
        return replace(grid, crs=None)
    return grid


def _can_be_inverted(grid: Grid) -> bool:
    """Whether coordinates lead back to the pixels that they came from, to a thousandth."""
    steps = ~grid.transform * grid.transform
    slant = max(abs(steps.a - 1), abs(steps.b), abs(steps.d), abs(steps.e - 1))
    drift = slant * max(grid.width, grid.height) + max(abs(steps.c), abs(steps.f))
    return all(map(math.isfinite, (*grid.bounds, *steps))) and drift < 1e-3
