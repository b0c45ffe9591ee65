"""What a raster is: size, grid, bands, how pixels without data are marked; read without its pixels."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError

from rsseg_cli.errors import SceneError
from rsseg_cli.raster import gdal, parts
from rsseg_cli.raster.band_names import BandName, name_of, stac_names
from rsseg_cli.raster.bands import holds_data, probe_windows, select_bands
from rsseg_cli.raster.grid import Grid

logger = logging.getLogger(__name__)
MAX_FILES = 100_000  # of a mosaic that outputs are checked against
MAX_SIDE_PX = 2**24  # of a scene: 8,400 km at 0.5 m
MAX_NAMED_BANDS = 1000
MTIME_TOLERANCE_S = 2.0  # of an overview file older than its scene
Alpha = Literal["auto", "mask", "data"]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SceneInfo:
    """What a raster is, without its pixels; `block_shape` is (height, width) as stored, px.

    Attributes:
        nodata: the value for all bands, the user's (`nodata_given`: it holds besides masks) or the file's.
        colour_interpretations: GDAL's names; "undefined" for a band called alpha that holds data.
        has_mask: some pixels may be without data (alpha, mask band, .msk, nodata).
        overviews: factors of those that may be read.
        driver: GDAL's name of the format.
        files: what the raster is read from: itself, its sidecars, the sources of a VRT.
        title: its name where `path` is not what the user gave.
        notes: warnings so far that decide about pixels.
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
    band_names: tuple[BandName, ...] = ()
    title: str = ""
    driver: str = ""
    alpha_is_data: bool = False
    notes: list[str] = field(default_factory=list, compare=False)

    @property
    def name(self) -> str:
        return gdal.display_name(self.title or self.path)

    def warn(self, note: str) -> None:
        """Log a warning and keep it in `notes`, once."""
        if note not in self.notes:
            self.notes.append(note)
            logger.warning("%s", note)

    def open(self, overview: int | None = None, *, plain: bool = False) -> Any:
        """Open the raster or one of its overviews; none is read that must not be.

        `plain` hides from GDAL that a band which holds data is called alpha.
        """
        path = self.path
        if plain and self.alpha_is_data:
            from rsseg_cli.raster import vrt

            bands = [(band, text or "") for band, text in enumerate(self.descriptions, 1)]
            path = vrt.of_bands(self, bands, self.grid)
        if overview is None and self.overviews:
            return gdal.open_raster(path)
        return gdal.open_raster(path, overview_level="NONE" if overview is None else overview)

    @property
    def colour_bands(self) -> tuple[int, ...]:
        """1-based bands that are not alpha."""
        return tuple(band for band, kind in enumerate(self.colour_interpretations, 1) if kind != "alpha")

    @classmethod
    def of(cls, path: str | Path, nodata: float | None = None, alpha: Alpha = "auto") -> SceneInfo:
        """Inspect anything that GDAL opens; pixels are read only of a band called alpha.

        Args:
            nodata: replaces the file's own.
            alpha: what a band called alpha is; "auto" takes it as data if it has many values between 0 and
                its largest, as the near-infrared that GDAL takes for the alpha band of four bytes.
        """
        title = str(path)
        name = gdal.display_name(title)
        advice = "Give a raster that GDAL can read (gdalinfo shows whether it can)."
        if gdal.is_remote(title):
            advice = "Check the address and who may read it, or try again later."
        path = parts.raster_of(title)
        with gdal.reading(path, advice=advice, where=name) as dataset:
            if dataset.count == 0:
                return replace(cls.of(parts.join(dataset, name, advice), nodata, alpha), title=title)
            notes: list[str] = []
            kinds = tuple(kind.name for kind in dataset.colorinterp)
            kinds = tuple(_kind_of(dataset, name, b, kind, alpha, notes) for b, kind in enumerate(kinds, 1))
            flags = [
                mask for mask, kind in zip(dataset.mask_flag_enums, kinds, strict=True) if kind != "alpha"
            ]
            masks = [mask for mask in flags if MaskFlags.alpha not in mask]
            descriptions = _descriptions(dataset)
            if not any(descriptions):
                descriptions = parts.names_of_sources(path, dataset.count) or descriptions
            files = tuple(_files_of(dataset))
            info = cls(
                path=path,
                grid=_grid_of(dataset, name, notes),
                count=dataset.count,
                dtypes=tuple(dataset.dtypes),
                nodata=dataset.nodata if nodata is None else nodata,
                band_nodata=tuple(dataset.nodatavals) if nodata is None else (nodata,) * dataset.count,
                nodata_given=nodata is not None,
                colour_interpretations=kinds,
                descriptions=descriptions,
                has_mask=nodata is not None
                or "alpha" in kinds
                or any(MaskFlags.all_valid not in mask for mask in masks),
                block_shape=dataset.block_shapes[0],
                overviews=_usable_overviews(dataset, name, files, notes),
                files=files,
                band_names=_band_names(dataset, descriptions),
                title=title if title != path else "",
                driver=dataset.driver,
                alpha_is_data=kinds != tuple(kind.name for kind in dataset.colorinterp),
            )
        for note in notes:
            info.warn(note)
        return info

    def in_colour(
        self, wanted: Sequence[str] = ("red", "green", "blue"), bidx: Sequence[int] | None = None
    ) -> SceneInfo:
        """Return the colours of one band of palette indices, unless it is chosen by number; else itself."""
        if self.colour_interpretations != ("palette",) or len(wanted) == 1 or bidx:
            return self
        from rsseg_cli.raster import vrt

        own = SceneInfo.of(self.path) if self.nodata_given else self
        info = SceneInfo.of(vrt.of_palette(own), self.nodata if self.nodata_given else None)
        return replace(info, title=self.title or self.path, overviews=())  # GDAL averages indices

    select_bands = select_bands

    def ranges(
        self, bands: Sequence[int], given: Sequence[Range], *, stretch: bool
    ) -> tuple[list[Range], bool]:
        """Return the values of each band that become 0 and 1, and whether that is a stretch.

        They are the ranges given; else, to `stretch` more than 8 bits, those of `sample.stretch_ranges`; else
        all of an integer type, and floats as they are.
        """
        from rsseg_cli.raster.sample import stretch_ranges

        kinds = [np.dtype(self.dtypes[band - 1]) for band in bands]
        if given or (stretch and any(kind != np.uint8 for kind in kinds)):
            return [*given] or stretch_ranges(self, bands), True
        return [(0.0, float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0) for kind in kinds], False

    @staticmethod
    def common_ranges(paths: Sequence[str], wanted: Sequence[str], *options: Any) -> list[Range]:
        """See `sample.common_ranges`."""
        from rsseg_cli.raster.sample import common_ranges

        return common_ranges(paths, wanted, *options)

    def unmarked_holes(self, bands: Sequence[int], grid: Grid) -> str:
        """See `sample.unmarked_holes`."""
        from rsseg_cli.raster.sample import unmarked_holes

        return unmarked_holes(self, bands, grid)


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


def _kind_of(dataset: Any, name: str, band: int, kind: str, alpha: Alpha, notes: list[str]) -> str:
    """Return a band's colour interpretation, "undefined" for a band that is called alpha but holds data."""
    if kind != "alpha" or alpha == "mask":
        return kind
    if alpha == "data":
        return "undefined"
    values = holds_data(dataset, band)
    if not values:
        return kind
    notes.append(
        f"{name}: band {band} is called alpha but has {values} different values between 0 and its largest; "
        "taken as data, not as a mask; pass --alpha mask if it marks pixels without data"
    )
    return "undefined"


def _band_names(dataset: Any, descriptions: Sequence[str | None]) -> tuple[BandName, ...]:
    if dataset.count > MAX_NAMED_BANDS:
        return (BandName(),) * int(dataset.count)
    others = stac_names(gdal.tags(dataset).get("eo:bands", ""), dataset.count)
    names = []
    for band, description in enumerate(descriptions, 1):
        tags = gdal.tags(dataset, band=band) | gdal.tags(dataset, "IMAGERY", band)
        name = name_of(description or "", tags)
        names.append(name if name.colour or not others else name_of(others[band - 1], tags))
    return tuple(names)


def _usable_overviews(dataset: Any, name: str, files: Sequence[str], notes: list[str]) -> tuple[int, ...]:
    """Return the factors of overviews; () for those of an older picture, or without the scene's mask."""
    overviews = tuple(dataset.overviews(1))
    if not overviews:
        return ()
    for file in files:
        scene = file.removesuffix(".ovr")
        newer = _newer(file, files if scene.endswith(".vrt") else [scene]) if file != scene else ""
        if newer:
            notes.append(
                f"{name}: {file} is older than {newer}, so its overviews may show another picture; they "
                "are not read. Delete it, or make it again with gdaladdo -ro"
            )
            return ()
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and not _mask_has_overviews(dataset):
        return ()
    return overviews


def _newer(overviews: str, files: Sequence[str]) -> str:
    """Return a file that changed after its overviews were made; "" if there is none."""
    with suppress(OSError):
        made = os.stat(overviews).st_mtime + MTIME_TOLERANCE_S
        for file in files:
            if (
                not file.endswith((".ovr", ".aux.xml"))
                and os.path.isfile(file)
                and os.stat(file).st_mtime > made
            ):
                return file
    return ""


def _mask_has_overviews(dataset: Any) -> bool:
    """Whether a mask's holes, if it has any, show in the coarsest overview; GDAL says so of none."""
    coarsest = len(dataset.overviews(1)) - 1
    with gdal.open_raster(dataset.name, overview_level=coarsest) as overview:
        if not overview.read_masks(1).all():
            return True
    with gdal.open_raster(dataset.name, overview_level="NONE") as full:
        windows = probe_windows(full.height, full.width)
        return all(full.read_masks(1, window=window).all() for window in windows)


def _grid_of(dataset: Any, name: str, notes: list[str]) -> Grid:
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
            has = "ground control points" if gcps else "RPCs" if rpcs else "a CRS but no transform"
            notes.append(
                f"{name}: has only {has}; the map is left without georeferencing (gdalwarp the scene first)"
            )
        return replace(grid, crs=None)
    return grid


def _can_be_inverted(grid: Grid) -> bool:
    """Whether coordinates lead back to the pixels that they came from, to a thousandth."""
    steps = ~grid.transform * grid.transform
    slant = max(abs(steps.a - 1), abs(steps.b), abs(steps.d), abs(steps.e - 1))
    drift = slant * max(grid.width, grid.height) + max(abs(steps.c), abs(steps.f))
    return all(map(math.isfinite, (*grid.bounds, *steps))) and drift < 1e-3
