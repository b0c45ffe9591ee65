"""Map sheets that touch as one scene, through a VRT, and cut the map into the sheets' maps."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rasterio.windows import Window

from rsseg_cli import files
from rsseg_cli.batch.plan import check_names, outputs_of, task_of
from rsseg_cli.batch.scenes import BatchScene, is_gdal_name
from rsseg_cli.batch.settings import BatchSettings
from rsseg_cli.batch.task import SceneTask, Sheet
from rsseg_cli.errors import OutputError, SceneError
from rsseg_cli.pipeline import OutputLock, PredictResult
from rsseg_cli.pipeline import result as results_of
from rsseg_cli.raster import Grid, RasterWriter, SceneInfo, gdal, vrt

if TYPE_CHECKING:
    from rsseg_cli.weights import ModelSpec

MAX_OFFSET_PX = 0.01  # of pixels from a common grid
ROWS = 512  # copied at a time
WHOLE = ("vector", "preview", "html")  # outputs of the mosaic, not of its sheets
MAPPED = "mapped.json"  # written once the maps in a mosaic's folder are complete


def plan_mosaics(scenes: Sequence[BatchScene], settings: BatchSettings, model_name: str) -> list[SceneTask]:
    """Plan one task for each group of sheets that touch or overlap."""
    infos = [SceneInfo.of(scene.path, alpha=settings.config.alpha) for scene in scenes]
    for info in infos:
        _check_compatible(info, infos[0])
    windows = [_window(info, infos[0]) for info in infos]
    suffix = f"_{model_name}" if settings.suffix is None else settings.suffix
    tasks: list[SceneTask] = []
    for members in _groups(windows):
        group = [scenes[index] for index in members]
        if len(group) == 1:
            task = task_of(settings, group[0].path, outputs_of(group[0], settings, suffix))
        else:
            placed = [(infos[index], windows[index]) for index in members]
            task = _mosaic_task(group, placed, settings, suffix)
        tasks.append(replace(task, index=len(tasks)))
    check_names(tasks, settings)
    return tasks


def _check_compatible(info: SceneInfo, first: SceneInfo) -> None:
    own, other = info.grid, first.grid
    differences = [
        (title, value, expected)
        for title, value, expected in (
            ("CRS", _crs_name(own), _crs_name(other)),
            ("bands", info.count, first.count),
            ("types", ", ".join(info.dtypes), ", ".join(first.dtypes)),
            ("nodata", info.nodata, first.nodata),
            ("alpha", "alpha" in info.colour_interpretations, "alpha" in first.colour_interpretations),
        )
        if str(value) != str(expected)  # NaN is NaN
    ]
    if differences:
        title, value, expected = differences[0]
        raise SceneError(
            f"{info.name}: {title} {value}, {first.name} has {expected}; --mosaic needs sheets of one kind"
        )
    unsupported = [dtype for dtype in info.dtypes if dtype not in vrt.TYPES]
    if unsupported:
        raise SceneError(f"{info.name}: {unsupported[0]} values; --mosaic needs whole or real numbers")
    row, col = _offset(own, other)
    drift = max(
        abs(getattr(own.transform, part) - getattr(other.transform, part)) * max(own.width, own.height)
        for part in "abde"
    ) / max(abs(getattr(other.transform, part)) for part in "abde")
    off = max(abs(row - round(row)), abs(col - round(col)), drift)
    if off > MAX_OFFSET_PX:
        raise SceneError(
            f"{info.name}: its pixels lie {off:.2g} px off the grid of {first.name}; --mosaic needs sheets "
            "on one grid. Bring it there with gdalwarp -tr ... -tap"
        )


def _crs_name(grid: Grid) -> str:
    return "none" if grid.crs is None else grid.crs.to_string()


def _offset(own: Grid, other: Grid) -> tuple[float, float]:
    """Return a grid's corner (row, col) in another grid's pixels."""
    col, row = ~other.transform * (own.transform.c, own.transform.f)
    return row, col


def _window(info: SceneInfo, first: SceneInfo) -> tuple[int, int, int, int]:
    row, col = _offset(info.grid, first.grid)
    return round(row), round(col), info.grid.height, info.grid.width


def _groups(windows: Sequence[tuple[int, int, int, int]]) -> list[list[int]]:
    """Return the indices of connected sheets, group by group."""
    import shapely
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    boxes = shapely.box(
        *np.array([(col, row, col + width, row + height) for row, col, height, width in windows]).T
    )
    left, right = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    links = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(len(windows),) * 2)
    _, labels = connected_components(links, directed=False)
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        groups.setdefault(label, []).append(index)
    return list(groups.values())


def _mosaic_task(
    group: Sequence[BatchScene],
    placed: Sequence[tuple[SceneInfo, tuple[int, int, int, int]]],
    settings: BatchSettings,
    suffix: str,
) -> SceneTask:
    top, left = (min(place[axis] for _, place in placed) for axis in (0, 1))
    bottom, right = (max(place[axis] + place[axis + 2] for _, place in placed) for axis in (0, 1))
    first, place = placed[0]
    corner = first.grid.window(top - place[0], left - place[1], bottom - top, right - left)
    windows = [(row - top, col - left, height, width) for _, (row, col, height, width) in placed]
    parts = [vrt.Sheet(info, window) for (info, _), window in zip(placed, windows, strict=True)]
    name = f"{group[0].stem}_mosaic"
    outputs = outputs_of(BatchScene(path="", stem=name), settings, suffix)
    folder = settings.folder / f".{name}.mosaic"
    rasters = {kind: folder / path.name for kind, path in outputs.items() if kind not in WHOLE}
    sheets = tuple(
        Sheet(
            scene=scene.path if is_gdal_name(scene.path) else os.path.abspath(scene.path),
            outputs={
                kind: path.absolute()
                for kind, path in outputs_of(scene, settings, suffix).items()
                if kind not in WHOLE
            },
            window=window,
            notes=tuple(info.notes),
        )
        for scene, (info, _), window in zip(group, placed, windows, strict=True)
    )
    task = task_of(settings, str(folder / f"{name}.vrt"), {**outputs, **rasters})
    return replace(task, sheets=sheets, vrt=_vrt(parts, corner, settings.config.nodata))


def _vrt(parts: Sequence[vrt.Sheet], grid: Grid, nodata: float | None) -> str:
    """Join the sheets; holes between them are marked as the sheets mark theirs."""
    first = parts[0].info
    value = first.nodata if nodata is None else nodata
    stored_mask = any(_has_mask_band(part.info) for part in parts)
    has_alpha = "alpha" in first.colour_interpretations
    masked = stored_mask or (value is None and not has_alpha and not _is_covered(parts, grid))
    return vrt.of_sheets(parts, grid, nodata=value, masked=masked)


def _has_mask_band(info: SceneInfo) -> bool:
    return info.has_mask and info.nodata is None and "alpha" not in info.colour_interpretations


def _is_covered(parts: Sequence[vrt.Sheet], grid: Grid) -> bool:
    import shapely

    corners = np.array(
        [(col, row, col + width, row + height) for row, col, height, width in (p.window for p in parts)]
    )
    area: float = shapely.union_all(shapely.box(*corners.T)).area
    return round(area) == grid.width * grid.height


def map_sheets(
    task: SceneTask, spec: ModelSpec, run: Callable[[], PredictResult]
) -> tuple[PredictResult, tuple[PredictResult, ...]]:
    """Map a mosaic by `run` and cut its rasters; return the result of all sheets, and of each."""
    start = time.monotonic()
    folder, spec = Path(task.scene).parent, results_of.with_unsure(spec, task.config)
    lock = OutputLock(folder.with_name(f"{folder.name}.lock"), folder)
    lock.acquire()
    try:
        mapped = _map_whole(task, folder, run)
        results = tuple(_cut(task, sheet, spec) for sheet in task.sheets)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.remove()
    return PredictResult(
        paths={kind: path for kind, path in task.outputs.items() if kind not in task.work},
        seconds=time.monotonic() - start,
        pixels=sum(result.pixels for result in results),
        valid_pixels=sum(result.valid_pixels for result in results),
        classes=_sum_classes(results),
        notes=(*mapped["notes"], *(note for sheet in task.sheets for note in sheet.notes)),
        refined=results_of.Refined(**mapped["refined"]) if mapped["refined"] else None,
        unlike=results_of.Unlike(**mapped["unlike"]) if mapped.get("unlike") else None,
        computed=mapped["computed"],
    ), results


def _map_whole(task: SceneTask, folder: Path, run: Callable[[], PredictResult]) -> dict[str, Any]:
    """Map the VRT unless the resumed run did so; return notes, refining counts, what computed it."""
    state, vrt = folder / MAPPED, Path(task.scene)
    try:
        if not task.resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        if not vrt.exists() or vrt.read_text(encoding="utf-8") != task.vrt:
            state.unlink(missing_ok=True)
            vrt.write_text(task.vrt, encoding="utf-8")
        if state.exists():
            return cast("dict[str, Any]", json.loads(state.read_text(encoding="utf-8")))
    except OSError as err:
        raise OutputError(f"{folder}: cannot be written ({err})") from err
    mapped = run()
    summary: dict[str, Any] = {"notes": list(mapped.notes), "computed": dict(mapped.computed)}
    for name, value in (("refined", mapped.refined), ("unlike", mapped.unlike)):
        summary[name] = None if value is None else asdict(value)
    try:
        with files.write_atomic(state) as file:
            file.write_text(json.dumps(summary), encoding="utf-8")
    except OSError as err:
        raise OutputError(f"{state}: cannot be written ({err})") from err
    return summary


def _cut(task: SceneTask, sheet: Sheet, spec: ModelSpec) -> PredictResult:
    """Write a sheet's rasters on its own grid, its map last."""
    start = time.monotonic()
    grid = SceneInfo.of(sheet.scene).grid
    counter = results_of.AreaCounter(spec.class_names, grid)
    rasters = [kind for kind in sheet.outputs if kind != "stac"]
    for kind in sorted(rasters, key=lambda kind: kind == "labels"):
        for row, rows in _write_part(task, sheet, kind, grid, spec):
            if kind == "labels":
                counter.add(row, rows[0])
    if "stac" in sheet.outputs:
        _write_item(sheet, grid, spec)
    return replace(counter.result(sheet.outputs, start), notes=sheet.notes)


def _write_item(sheet: Sheet, grid: Grid, spec: ModelSpec) -> None:
    path = sheet.outputs["stac"]
    mapped = results_of.Mapped(
        grid=grid,
        scene=sheet.scene,
        model=spec.name,
        classes=spec.stac_classes,
        bands=spec.class_names,
        paths=sheet.outputs,
    )
    try:
        with files.write_atomic(path) as file:
            file.write_bytes(results_of.item_of(mapped, path))
    except OSError as err:
        raise files.write_error(path, err) from err


def _write_part(
    task: SceneTask, sheet: Sheet, kind: str, grid: Grid, spec: ModelSpec
) -> Iterator[tuple[int, np.ndarray]]:
    """Copy a sheet's window of a raster of the mosaic; yield the rows."""
    source, labels = task.outputs[kind], kind == "labels"
    top, left, height, width = sheet.window
    with gdal.env(), gdal.errors(SceneError, str(source)), gdal.open_raster(source) as mosaic:
        tags = {
            key: value
            for key, value in mosaic.tags().items()
            if key.startswith(("RSSEG_", "TIFFTAG_SOFTWARE"))
        }
        meta = vrt.RasterMeta(
            count=mosaic.count,
            overviews="mode" if labels else "average",
            colours={index: item.colour for index, item in enumerate(spec.classes)} if labels else {},
            category_names=spec.class_names if labels else (),
            band_names=[name or "" for name in mosaic.descriptions],
            scale=mosaic.scales[0],
            tags=tags
            | {"RSSEG_SCENE": gdal.display_name(sheet.scene), "RSSEG_MOSAIC": str(len(task.sheets))},
        )
        config = task.config
        writer = RasterWriter(
            sheet.outputs[kind], grid, meta, options=config.creation_options, overwrite=config.overwrite
        )
        with writer:
            for row in range(0, height, ROWS):
                rows = mosaic.read(window=Window(left, top + row, width, min(ROWS, height - row)))
                writer.write(row, rows)
                yield row, rows
            writer.commit()


def _sum_classes(results: Sequence[PredictResult]) -> dict[str, results_of.ClassArea]:
    """Add up the classes of all sheets; overlaps count twice."""
    valid = max(1, sum(result.valid_pixels for result in results))
    classes = {}
    for name in results[0].classes:
        parts = [result.classes[name] for result in results]
        areas = [part.area_m2 for part in parts]
        pixels = sum(part.pixels for part in parts)
        known = [area for area in areas if area is not None]
        area = sum(known) if len(known) == len(areas) else None
        classes[name] = results_of.ClassArea(pixels=pixels, share=pixels / valid, area_m2=area)
    return classes
