"""A vectorisation as requested: its rasters, classes and CRS, checked before work starts."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.raster import SceneInfo, classes, gdal
from rsseg_cli.system import cores
from rsseg_cli.vector.geometry import PixelGeometry
from rsseg_cli.vector.plan import BlockPlan, SquareOptions, simplify_options
from rsseg_cli.vector.source import ClassSource

if TYPE_CHECKING:
    from rsseg_cli.vector.seam import Seam

logger = logging.getLogger(__name__)
BLOCK_PX = 3 << 19  # of a block: some 40 bytes each with its boundaries
PARALLEL_PX = 8 << 20  # smaller rasters are done before workers have started
MAX_JOBS = 8  # by default
SHIFTS, MAX_SHIFT_PX = 3, 64  # of a wall: by default, in pixels or --simplify; px
BUILDINGS = {"building", "buildings", "house", "houses", "roof", "roofs", "rooftop", "rooftops"}
NEGATIONS = {"no", "non", "not"}


@dataclass(kw_only=True)
class VectorTask:
    """A checked vectorisation; CRS as WKT, "" for none, `own_crs` that of the raster."""

    info: SceneInfo
    name: str
    config: VectorConfig
    plan: BlockPlan
    names: Mapping[int, str]
    colours: Mapping[int, classes.Colour]
    own_crs: str
    crs: str
    seam: Seam | None
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    def warn(self, note: str) -> None:
        """Log an unexpected property of the result, and keep it."""
        logger.warning("%s", note)
        self.notes.append(note)

    @property
    def workers(self) -> int:
        """Number of processes, no more than blocks."""
        large = self.info.grid.height * self.info.grid.width >= PARALLEL_PX
        jobs = self.config.jobs or (min(MAX_JOBS, cores()) if large else 1)
        return min(jobs, len(self.blocks))

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.config.block_rows or max(1, BLOCK_PX // self.info.grid.width)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and end row of each block."""
        step, height = self.block_rows, self.info.grid.height
        return [(first, min(first + step, height)) for first in range(0, height, step)]

    def plan_in(self, folder: Path) -> BlockPlan:
        """Return the plan with rows of tiles that several blocks share kept in `folder`."""

        kept: dict[str, Any] = {
            name: replace(source, store=str(folder / f".{name}"))
            for name in ("source", "confidence")
            if isinstance(source := getattr(self.plan, name), ClassSource)
            and self.block_rows < min(source.height, 2 * source.tile_rows)
        }
        return replace(self.plan, **kept)


def make_task(
    labels: str | os.PathLike[str],
    confidence: str | os.PathLike[str] | None,
    config: VectorConfig,
    name: str = "",
) -> VectorTask:
    """Check a request; `name` is that of the raster in messages, its file's by default."""
    info = SceneInfo.of(os.fspath(labels))
    name = name or info.name
    _refuse_quantities(info, name)
    source = _source(info)
    names, colours = dict(classes.read_names(info.path)), classes.read_colours(info.path)
    if config.remap is not None:
        names, colours, table = _remapped(config.remap, names, colours, name)
        source = replace(source, table=table)
    own = info.grid.wkt
    crs = target_crs(own, config.dst_crs, name)
    seam = None
    if config.dst_crs:
        from rsseg_cli.vector.seam import find_seam

        seam = find_seam(info.grid, own, crs)
    ground = PixelGeometry.of(info.grid)
    task = VectorTask(
        info=info,
        name=name,
        config=config,
        plan=BlockPlan(
            source=source,
            confidence=None if confidence is None else _confidence(os.fspath(confidence), info),
            transform=info.grid.transform,
            ground=ground,
            options=simplify_options(config.simplify_m, config.smooth, ground),
            squares=_square_options(config, squared_classes(config, names, info.name), ground),
            classes=chosen_classes(config.classes, names, info.name),
            reproject=None if crs == own or seam is not None else (own, crs),
        ),
        names=names,
        colours=colours,
        own_crs=own,
        crs=crs,
        seam=seam,
    )
    if not ground.known:
        given = [option for option, value in metres(config).items() if value]
        unit = f"; {' and '.join(given)} count in pixels" if given else ""
        task.warn(f"{name}: has no CRS, so areas and lengths on the ground are left empty{unit}")
    return task


def _remapped(
    path: Path, names: Mapping[int, str], colours: Mapping[int, classes.Colour], where: str
) -> tuple[dict[int, str], dict[int, classes.Colour], NDArray[np.uint8]]:
    """Return new names and colours, numbered from 0, and the new class of each value."""
    values = list(names)
    new = classes.remapped(path, list(names.values()), where)
    table = np.full(256, classes.INVALID, np.uint8)
    for old, number in new.position.items():
        table[values[old]] = number
    chosen = {
        number: colour or colours.get(values[group[0]])
        for number, (group, colour) in enumerate(zip(new.groups, new.colours, strict=True))
    }
    return dict(enumerate(new.names)), {number: rgb for number, rgb in chosen.items() if rgb}, table


def metres(config: VectorConfig) -> dict[str, float]:
    """Settings in metres, by option."""
    return {
        "--simplify": config.simplify_m,
        "--min-area": config.min_area_m2,
        "--fill-holes": config.fill_holes_m2,
        "--max-shift": config.max_shift_m,
    }


def _refuse_quantities(info: SceneInfo, name: str) -> None:
    """Refuse a raster that says that its values are no classes."""
    with gdal.reading(info.path) as dataset:
        kind = gdal.tags(dataset).get("RSSEG_LAYER", "labels")
        scaled = set(dataset.scales) != {1.0} or set(dataset.offsets) != {0.0}
    if kind != "labels":
        raise SceneError(
            f"{name}: holds the {kind} of a map, 0-254 for 0-1, and no classes. Give the map itself, which "
            f"predict wrote as -o{'; pass this one as --confidence' if kind == 'confidence' else ''}."
        )
    if scaled:
        raise SceneError(f"{name}: its values have a scale, so they are no classes. Give a class raster.")


def _source(info: SceneInfo) -> ClassSource:
    if len(info.colour_bands) != 1:
        raise SceneError(
            f"{info.name}: has {info.count} bands, needs the one of a class raster. Map a "
            "scene with rsseg predict first."
        )
    band = info.colour_bands[0]
    dtype, value = info.dtypes[band - 1], info.band_nodata[band - 1]
    if dtype.startswith("complex"):
        raise SceneError(f"{info.name}: complex numbers; needs class indices. Give a class raster.")
    byte = dtype == "uint8"
    masked = info.has_mask and value is None
    # 255 is free for no data if the raster has no other meaning for it.
    wide = not byte or masked or value is None or value != 255
    source = _class_source(info, 65535 if wide else 255, value, masked=masked or not byte, wide=wide)
    kinds = info.colour_interpretations
    return replace(source, band=band, alpha=kinds.index("alpha") + 1 if "alpha" in kinds else 0)


def _class_source(
    info: SceneInfo,
    nodata: int,
    file_nodata: float | None,
    *,
    masked: bool = False,
    wide: bool = False,
) -> ClassSource:
    return ClassSource(
        path=info.path,
        height=info.grid.height,
        width=info.grid.width,
        nodata=nodata,
        file_nodata=file_nodata,
        masked=masked,
        wide=wide,
        tile_rows=info.block_shape[0],
    )


def _confidence(path: str, labels: SceneInfo) -> ClassSource:
    info = SceneInfo.of(path)
    if (info.grid.width, info.grid.height) != (labels.grid.width, labels.grid.height) or not (
        info.grid.transform.almost_equals(labels.grid.transform, 1e-9)
    ):
        raise SceneError(
            f"{info.name}: {info.grid.width} x {info.grid.height} px is another grid than that of "
            f"{labels.name}, {labels.grid.width} x {labels.grid.height} px; needs that of the same map"
        )
    if info.count != 1 or info.dtypes[0] != "uint8":
        raise SceneError(
            f"{info.name}: {info.count} band(s) of {info.dtypes[0]}; needs one of uint8, 0-254 for 0-1, as "
            "predict --confidence writes"
        )
    return _class_source(info, 255, 255)


def chosen_classes(
    wanted: tuple[str, ...] | None, names: Mapping[int, str], where: str, option: str = "--classes"
) -> frozenset[int] | None:
    """Return values of the named classes; a number is a value itself."""
    if wanted is None:
        return None
    by_name = {classes.plain(name): value for value, name in names.items()}
    values = []
    for name in wanted:
        if classes.plain(name) in by_name:
            values.append(by_name[classes.plain(name)])
        elif name.strip().isdecimal() and int(name) < 65535:
            values.append(int(name))
        else:
            known = ", ".join(names.values()) or "none; pass class indices"
            raise UsageError(f"{option} {name}: {where} has no class of this name; it has {known}")
    return frozenset(values)


def check_classes(config: VectorConfig, names: Mapping[int, str], where: str) -> None:
    """Refuse names of classes that are not there."""
    chosen_classes(config.classes, names, where)
    squared_classes(config, names, where)


def squared_classes(config: VectorConfig, names: Mapping[int, str], where: str) -> frozenset[int]:
    """Return values of the classes whose outlines are squared; none without --regularize."""
    if not config.regularize:
        given = {"--max-shift": config.max_shift_m, "--regularize-classes": config.regularize_classes}
        for option, value in given.items():
            if value:
                raise UsageError(f"{option}: belongs to --regularize, which is not given")
        return frozenset()
    if config.smooth:
        raise UsageError("--smooth: rounds the corners that --regularize makes. Leave one of them out.")
    chosen = chosen_classes(config.regularize_classes, names, where, "--regularize-classes")
    if chosen is not None:
        return chosen
    words = {value: set(re.findall("[a-z]+", name.lower())) for value, name in names.items()}
    buildings = frozenset(value for value, own in words.items() if own & BUILDINGS and not own & NEGATIONS)
    if not buildings:
        known = ", ".join(names.values()) or "no names of classes"
        raise UsageError(
            f"--regularize: {where} has no class called building, house or roof; it has {known}. "
            "Pass --regularize-classes."
        )
    return buildings


def _square_options(
    config: VectorConfig, values: frozenset[int], ground: PixelGeometry
) -> SquareOptions | None:
    if not values:
        return None
    pixel_m = float(ground.pixel_area_m2(np.array(ground.height / 2), np.array(ground.width / 2))) ** 0.5
    shift_m = config.max_shift_m or SHIFTS * max(pixel_m, config.simplify_m)
    if shift_m > MAX_SHIFT_PX * pixel_m:
        raise UsageError(
            f"{'--max-shift' if config.max_shift_m else '--simplify with --regularize'}: walls that move by "
            f"{shift_m:g} m, {shift_m / pixel_m:.0f} px; needs at most {MAX_SHIFT_PX} px. Pass --max-shift."
        )
    return SquareOptions(classes=values, max_shift_m=shift_m)


def target_crs(own: str, asked: str, where: str) -> str:
    """Return the WKT of the polygons' CRS."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError, ProjError

    if not asked:
        return own
    if not own:
        raise UsageError(f"{where}: has no CRS, so its polygons cannot be reprojected to {asked}")
    try:
        wanted = CRS.from_user_input(asked)
    except CRSError as err:
        raise UsageError(f"--dst-crs {asked}: is no CRS that PROJ knows; write it as EPSG:4326") from err
    if not (wanted.is_geographic or wanted.is_projected):
        raise UsageError(f"--dst-crs {asked}: is a {wanted.type_name}; needs a geographic or projected one")
    try:
        given = CRS.from_wkt(own)
        Transformer.from_crs(given, wanted, always_xy=True)
    except (CRSError, ProjError) as err:
        name = own.partition('"')[2].partition('"')[0]
        raise UsageError(
            f"{where}: its CRS {name!r:.80} cannot be transformed to {asked}. Georeference the scene, or "
            "write polygons in its own CRS: a GeoPackage (.gpkg) without --dst-crs"
        ) from err
    return own if wanted == given else wanted.to_wkt()
