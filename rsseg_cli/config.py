"""Settings of a run: checked once, when they are made; the command line takes its defaults from here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from rsseg_cli.errors import UsageError

Tta = Literal["none", "flip", "d4", "scales"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
VectorFormat = Literal["auto", "GPKG", "FlatGeobuf", "GeoParquet", "GeoJSON", "Shapefile"]
MAX_ENSEMBLE = 256
VECTOR_ENDINGS = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".parquet": "GeoParquet",
    ".geoparquet": "GeoParquet",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".shp": "Shapefile",
}


class ModelWithSpec(Protocol):
    """A network in memory and its description: a `weights.TrainedModel`."""

    @property
    def network(self) -> Any: ...

    @property
    def spec(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a scene is read, tiled and run.

    Attributes:
        tile_size: side of a tile, px of the grid the network sees; a multiple of 32.
        overlap: px shared by neighbouring tiles, at most half a tile.
        batch_size: tiles a batch, or "auto".
        tta: test-time augmentation, averaged probabilities: "flip" 4 views, "d4" 8 views, "scales" the
            tile and the tile at twice the size.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: arithmetic of the network; "auto" is bfloat16 on CUDA, float32 elsewhere.
        bands: 1-based bands of the scene, in the model's order; None chooses by name.
        nodata: value that marks pixels without data, over the file's own.
        gsd_m: ground resolution the network sees, m a pixel; None takes the model's.
        bbox: part of the scene to map, in its CRS: left, bottom, right, top.
        aoi: vector file; only pixels inside its polygons are mapped.
        creation_options: GDAL creation options of the outputs.
        overwrite: replace outputs that exist.
        readers: threads that read ahead.
    """

    tile_size: int = 512
    overlap: int = 128
    batch_size: int | Literal["auto"] = "auto"
    tta: Tta = "none"
    device: str = "auto"
    dtype: Dtype = "auto"
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    gsd_m: float | None = None
    bbox: tuple[float, float, float, float] | None = None
    aoi: Path | None = None
    creation_options: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    readers: int = 2

    def __post_init__(self) -> None:
        self._plain()
        if not 32 <= self.tile_size <= 8192 or self.tile_size % 32:
            raise UsageError(f"--tile-size {self.tile_size}: needs a multiple of 32 from 32 to 8192 px")
        if not 0 <= self.overlap <= self.tile_size // 2:
            raise UsageError(f"--overlap {self.overlap}: needs 0 to half the tile, {self.tile_size // 2} px")
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size >= 1):
            raise UsageError(f"--batch-size {self.batch_size}: needs 1 or more, or auto")
        if self.tta not in get_args(Tta):
            raise UsageError(f"--tta {self.tta}: needs none, flip, d4 or scales")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise UsageError(f"--dtype {self.dtype}: needs auto, float32, bfloat16 or float16")
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise UsageError(f"--bidx {self.bands}: bands count from 1")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1e5:
            raise UsageError(f"--gsd {self.gsd_m}: needs metres a pixel above 0")
        if self.bbox is not None and not (
            len(self.bbox) == 4
            and all(map(math.isfinite, self.bbox))
            and self.bbox[0] < self.bbox[2]
            and self.bbox[1] < self.bbox[3]
        ):
            raise UsageError(f"--bbox {self.bbox}: needs left < right and bottom < top, in the scene's CRS")
        if self.readers < 1:
            raise UsageError(f"readers {self.readers}: needs 1 or more")

    def _plain(self) -> None:
        """Lists, arrays and their numbers to Python's own, as a result of numpy or rasterio may be given."""
        plain = {
            "bands": None if self.bands is None else tuple(int(band) for band in self.bands),
            "bbox": None if self.bbox is None else tuple(float(edge) for edge in self.bbox),
            "nodata": None if self.nodata is None else float(self.nodata),
            "gsd_m": None if self.gsd_m is None else float(self.gsd_m),
            "aoi": None if self.aoi is None else Path(self.aoi),
            "creation_options": {str(key): str(value) for key, value in self.creation_options.items()},
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How the boundaries of a map are refined.

    Attributes:
        refiner: name of a refiner that comes along, path of its file, or a network with its spec; None for
            the one that belongs to the model of the map.
        steps: of the sampler; None for the refiner's own.
        band_m: only pixels this near to a boundary between classes may change, metres on the ground; None for
            the refiner's own.
        ensemble: samples whose probabilities are averaged; 0 for one, and four where their disagreement is
            asked for.
        seed: of the noise.
        tile_size: side of the windows, px of the grid that the refiner sees; rounded up to what it can take.
        overlap: px shared by neighbouring windows, at most half of one; None for as much as the refiner looks
            around.
        gsd_m: ground resolution that the refiner sees, m a pixel; None takes its own where the map's does not
            suit.
    """

    refiner: str | Path | ModelWithSpec | None = None
    steps: int | None = None
    band_m: float | None = None
    ensemble: int = 0
    seed: int = 0
    tile_size: int = 512
    overlap: int | None = None
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise UsageError(f"--steps {self.steps}: needs 1 to 1000")
        if self.band_m is not None and not 0 < self.band_m < 1e5:
            raise UsageError(f"--band-m {self.band_m}: needs metres above 0")
        if not 0 <= self.ensemble <= MAX_ENSEMBLE:
            raise UsageError(f"--ensemble {self.ensemble}: needs 1 to {MAX_ENSEMBLE}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: needs a whole number from 0, less than 2**63")
        if not 32 <= self.tile_size <= 8192:
            raise UsageError(f"--tile-size {self.tile_size}: needs 32 to 8192 px")
        if self.overlap is not None and not 0 <= self.overlap <= self.tile_size // 2:
            raise UsageError(f"--overlap {self.overlap}: needs 0 to half the tile, {self.tile_size // 2} px")
        if self.gsd_m is not None and not 0 < self.gsd_m < 1e5:
            raise UsageError(f"--gsd {self.gsd_m}: needs metres a pixel above 0")


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """How a class raster becomes polygons. Metres are those on the ground, in any CRS.

    Attributes:
        simplify_m: corners are taken out as long as the triangle with their neighbours is smaller than a
            square of this side, m; 0 keeps every pixel's edge.
        smooth: round corners; boundaries are simplified first, by one pixel unless `simplify_m` says
            otherwise.
        min_area_m2: smaller objects become part of the neighbour with the longest shared edge.
        fill_holes_m2: smaller holes become part of the object around them, those without data too.
        classes: names of the classes that are written; None for all.
        dissolve: one multipolygon a class in place of one polygon an object.
        dst_crs: CRS of the polygons, as "EPSG:4326"; "" for the raster's own.
        layer: name; "" takes the file's.
        format: "auto" goes by the file's ending.
        qml: write a QGIS style beside the file too; a GeoPackage carries its own.
        jobs: worker processes; 0 for one a core, where the raster is large.
        block_rows: rows of the raster that a worker takes at a time; 0 chooses. The polygons do not depend
            on it.
        overwrite: replace a file that exists.
    """

    simplify_m: float = 0.0
    smooth: bool = False
    min_area_m2: float = 0.0
    fill_holes_m2: float = 0.0
    classes: tuple[str, ...] | None = None
    dissolve: bool = False
    dst_crs: str = ""
    layer: str = ""
    format: VectorFormat = "auto"
    qml: bool = False
    jobs: int = 0
    block_rows: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for option, value, unit in (
            ("--simplify", self.simplify_m, "m"),
            ("--min-area", self.min_area_m2, "m2"),
            ("--fill-holes", self.fill_holes_m2, "m2"),
        ):
            if not 0 <= value < math.inf:
                raise UsageError(f"{option} {value}: needs a number of {unit}, 0 or more")
        formats = tuple(dict.fromkeys(VECTOR_ENDINGS.values()))
        if self.format not in ("auto", *formats):
            raise UsageError(f"--format {self.format}: needs auto or one of {', '.join(formats)}")
        if self.classes is not None and not self.classes:
            raise UsageError("--classes: names no class")
        if not 0 <= self.jobs <= 256:
            raise UsageError(f"--jobs {self.jobs}: needs 1 to 256, or 0 for one a core")
        if self.block_rows < 0:
            raise UsageError(f"block_rows {self.block_rows}: needs 1 or more, or 0 to choose")
        if len(self.layer) > 63 or any(sign in self.layer for sign in "\0\n\r\"'"):
            raise UsageError(f"--layer {self.layer!r}: needs at most 63 characters without quotes")
