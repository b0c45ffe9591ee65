"""A vectorisation as requested: its rasters, classes and CRS, checked before work starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rsseg_cli.config import VectorConfig
from rsseg_cli.errors import SceneError, UsageError
from rsseg_cli.raster import SceneInfo, classes
from rsseg_cli.system import cores
from rsseg_cli.vector.geometry import PixelGeometry
from rsseg_cli.vector.layer import Colour
from rsseg_cli.vector.plan import BlockPlan, simplify_options
from rsseg_cli.vector.source import ClassSource

BLOCK_PX = 3 << 19  # of a block: some 40 bytes each with its boundaries
PARALLEL_PX = 8 << 20  # smaller rasters are done before workers have started
MAX_JOBS = 8  # by default


@dataclass(kw_only=True)
class VectorTask:
    """A checked vectorisation.

    Attributes:
        own_crs, crs: WKT of the raster's and of the output's CRS, "" for none.
    """

    info: SceneInfo
    name: str
    config: VectorConfig
    source: ClassSource
    confidence: ClassSource | None
    ground: PixelGeometry
    names: Mapping[int, str]
    colours: Mapping[int, Colour]
    own_crs: str
    crs: str
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """Number of processes, no more than blocks."""
        large = self.source.height * self.source.width >= PARALLEL_PX
        jobs = self.config.jobs or (min(MAX_JOBS, cores()) if large else 1)
        return min(jobs, len(self.blocks))

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return self.config.block_rows or max(1, BLOCK_PX // self.source.width)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First and end row of each block."""
        step, height = self.block_rows, self.source.height
        return [(first, min(first + step, height)) for first in range(0, height, step)]

    def plan(self, folder: Path) -> BlockPlan:
        """Return the settings of all blocks; rows of tiles that several blocks share are kept in `folder`."""

        def kept(source: ClassSource, name: str) -> ClassSource:
            shared = self.block_rows < min(source.height, 2 * source.tile_rows)
            return replace(source, store=str(folder / name)) if shared else source

        options = simplify_options(self.config.simplify_m, self.config.smooth, self.ground)
        return BlockPlan(
            source=kept(self.source, ".labels"),
            confidence=None if self.confidence is None else kept(self.confidence, ".confidence"),
            transform=self.info.grid.transform,
            ground=self.ground,
            options=options,
            classes=chosen_classes(self.config.classes, self.names, self.info.name),
            reproject=None if self.crs == self.own_crs else (self.own_crs, self.crs),
        )


def make_task(
    labels: str | os.PathLike[str],
    confidence: str | os.PathLike[str] | None,
    config: VectorConfig,
    name: str = "",
) -> VectorTask:
    """Check a request.

    Args:
        name: of the raster in messages; its file's by default.
    """
    info = SceneInfo.of(os.fspath(labels))
    source = _source(info)
    names = dict(classes.read_names(info.path))
    notes = []
    own = info.grid.crs.to_wkt() if info.grid.crs is not None else ""
    crs = target_crs(own, config.dst_crs, name or info.name)
    ground = PixelGeometry.of(info.grid)
    if not ground.known:
        given = [option for option, value in metres(config).items() if value]
        unit = f"; {' and '.join(given)} count in pixels" if given else ""
        notes.append(
            f"{name or info.name}: has no CRS, so areas and lengths on the ground are left empty{unit}"
        )
    chosen_classes(config.classes, names, info.name)
    return VectorTask(
        info=info,
        name=name or info.name,
        config=config,
        source=source,
        confidence=None if confidence is None else _confidence(os.fspath(confidence), info),
        ground=ground,
        names=names,
        colours=classes.read_colours(info.path),
        own_crs=own,
        crs=crs,
        notes=notes,
    )


def metres(config: VectorConfig) -> dict[str, float]:
    """Settings in metres, by option."""
    values = config.simplify_m, config.min_area_m2, config.fill_holes_m2
    return dict(zip(("--simplify", "--min-area", "--fill-holes"), values, strict=True))


def _source(info: SceneInfo) -> ClassSource:
    if info.count != 1:
        raise SceneError(
            f"{info.name}: has {info.count} bands, needs the one of a class raster. Map a "
            "scene with rsseg predict first."
        )
    if info.dtypes[0].startswith("complex"):
        raise SceneError(f"{info.name}: complex numbers; needs class indices. Give a class raster.")
    value = info.nodata
    byte = info.dtypes[0] == "uint8"
    masked = info.has_mask and value is None
    # 255 is free for no data if the raster has no other meaning for it.
    wide = not byte or masked or value is None or value != 255
    return _class_source(info, 65535 if wide else 255, value, masked=masked, wide=wide)


def _class_source(
    info: SceneInfo, nodata: int, file_nodata: float | None, *, masked: bool = False, wide: bool = False
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
    wanted: tuple[str, ...] | None, names: Mapping[int, str], where: str
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
            raise UsageError(f"--classes {name}: {where} has no class of this name; it has {known}")
    return frozenset(values)


def target_crs(own: str, asked: str, where: str) -> str:
    """Return the WKT of the polygons' CRS."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    if not asked:
        return own
    if not own:
        raise UsageError(f"{where}: has no CRS, so its polygons cannot be reprojected to {asked}")
    try:
        wanted = CRS.from_user_input(asked)
    except CRSError as err:
        raise UsageError(f"--dst-crs {asked}: is no CRS that PROJ knows; write it as EPSG:4326") from err
    return own if wanted == CRS.from_wkt(own) else wanted.to_wkt()
