"""How a scene and a map of it align: on the same pixels, on parallel ones, or in another CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.shutil import copy
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from rsseg_cli.errors import SceneError
from rsseg_cli.inference import windows
from rsseg_cli.pipeline.job import network_grid
from rsseg_cli.raster import Grid, SceneInfo, SceneReader, gdal
from rsseg_cli.weights import ModelSpec

ALIGNED_PX = 1e-3


@dataclass(frozen=True, kw_only=True)
class Grids:
    """Scene and map on common ground.

    Attributes:
        frame: the map's pixels and those that the refiner sees.
        vrt_owner: of the file behind `info`; must live as long as the scene is read.
    """

    frame: windows.Frame
    map: Grid
    info: SceneInfo
    vrt_owner: MemoryFile | None = field(default=None, repr=False)


def find_grids(
    info: SceneInfo,
    bands: Sequence[int],
    labels: Grid,
    window: tuple[int, int, int, int],
    spec: ModelSpec,
    asked_gsd_m: float | None,
    labels_name: str,
    notes: list[str],
) -> Grids:
    """Align scene and map, and choose the resolution that the refiner sees.

    Args:
        labels: the map's grid; `window` of it is refined.
        asked_gsd_m: resolution to see, in place of the refiner's own.
    """
    by_pixel = (labels.crs is None or info.grid.crs is None) and _size(labels) == _size(info.grid)
    offset = (0, 0) if by_pixel else _offset(info.grid, labels)
    base = labels if offset is None else info.grid
    seen = network_grid(base, spec, asked_gsd_m, labels_name if offset is None else info.name, notes)
    scale = (1.0, 1.0) if seen == base else (seen.height / base.height, seen.width / base.width)
    gsd_m = base.gsd_m
    if gsd_m is None:
        side = spec.assumed_gsd_m or 1.0
        gsd_m = (side, side)
        if spec.assumed_gsd_m is None:
            notes.append(f"{info.name}: has no CRS; the band around boundaries is taken in pixels")
    frame = windows.Frame(
        seen=seen,
        scale=scale,
        offset=offset or (0, 0),
        labels=_size(labels),
        window=window,
        gsd_m=gsd_m,
    )
    shown = (info.grid if by_pixel else labels).window(*window)
    if offset is not None or _is_readable(info, bands, seen):
        return Grids(frame=frame, map=shown, info=info)
    _check_overlap(info, labels, labels_name)
    warped, owner = _warp(info, seen)
    return Grids(frame=frame, map=shown, info=warped, vrt_owner=owner)


def _size(grid: Grid) -> tuple[int, int]:
    return grid.height, grid.width


def _offset(scene: Grid, labels: Grid) -> tuple[int, int] | None:
    """Return (row, col) of the scene where the labels begin, if they lie on its pixels."""
    if labels.crs != scene.crs:
        return None
    steps = ~scene.transform * labels.transform
    drift = max(abs(steps.a - 1), abs(steps.b), abs(steps.d), abs(steps.e - 1))
    row, col = round(steps.f), round(steps.c)
    near = max(abs(steps.f - row), abs(steps.c - col), drift * max(_size(labels))) < ALIGNED_PX
    inside = (
        row >= 0 and col >= 0 and row + labels.height <= scene.height and col + labels.width <= scene.width
    )
    return (row, col) if near and inside else None


def _is_readable(info: SceneInfo, bands: Sequence[int], grid: Grid) -> bool:
    """Whether the scene covers a grid of parallel pixels."""
    try:
        SceneReader(info, bands, grid)
    except ValueError:
        return False
    return True


def _check_overlap(info: SceneInfo, labels: Grid, labels_name: str) -> None:
    """Refuse scene and map that cannot be aligned."""
    scene = info.grid
    if labels.crs is None or scene.crs is None:
        without = [name for name, grid in ((labels_name, labels), (info.name, scene)) if grid.crs is None]
        sizes = f"{labels.width} x {labels.height} and {scene.width} x {scene.height} px"
        raise SceneError(
            f"{labels_name}, {info.name}: {sizes}, and no CRS in {' and '.join(without)}, so they cannot be "
            "aligned; needs the same size, or georeferencing"
        )
    with gdal.errors(SceneError, f"{labels_name}: cannot be transformed to the CRS of {info.name}"):
        left, bottom, right, top = transform_bounds(labels.crs, scene.crs, *labels.bounds)
    west, south, east, north = scene.bounds
    if not (left < east and west < right and bottom < north and south < top):
        raise SceneError(
            f"{labels_name}: covers {_box((left, bottom, right, top))}, "
            f"{info.name} {_box(scene.bounds)} (left, bottom, right, top in the scene's CRS); they do not "
            "overlap. Pass the scene that was mapped"
        )


def _box(bounds: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _warp(info: SceneInfo, grid: Grid) -> tuple[SceneInfo, MemoryFile]:
    """Return the scene on another grid, as a virtual raster in memory; pixels outside it have no data."""
    memory = MemoryFile(ext=f"/{Path(info.name).name}.vrt")
    options: dict[str, object] = {} if "alpha" in info.colour_interpretations else {"add_alpha": True}
    if info.nodata_given:
        options["src_nodata"] = info.nodata
    options |= {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    where = f"{info.name}: cannot be warped to the map's grid"
    with (
        gdal.env(info.path),
        gdal.errors(SceneError, where),
        gdal.open_raster(info.path) as dataset,
        WarpedVRT(dataset, resampling=Resampling.bilinear, **options) as warped,
    ):
        copy(warped, memory.name, driver="VRT")
    return SceneInfo.of(memory.name), memory
