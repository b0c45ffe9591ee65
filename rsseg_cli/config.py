"""Settings of a run: checked once, when they are made; the command line takes its defaults from here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rsseg_cli.errors import UsageError

Tta = Literal["none", "flip", "d4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How a scene is read, tiled and run.

    Attributes:
        tile_size: side of a tile, px of the grid the network sees; a multiple of 32.
        overlap: px shared by neighbouring tiles, at most half a tile.
        batch_size: tiles a batch, or "auto".
        tta: test-time augmentation, averaged probabilities: "flip" 4 views, "d4" 8 views.
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
        if self.tta not in ("none", "flip", "d4"):
            raise UsageError(f"--tta {self.tta}: needs none, flip or d4")
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
