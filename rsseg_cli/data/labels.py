"""Labels of a scene, rasters or polygons, read on a grid window by window."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np

from rsseg_cli.data.label_format import LabelFormat, Labels
from rsseg_cli.data.label_raster import RasterLabels
from rsseg_cli.data.label_vector import VectorLabels, is_vector
from rsseg_cli.raster import Grid, gdal

CACHE_BYTES = 64 << 20


class LabelReader:
    """Reads windows of labels on a grid; the same pixels for any windowing. Not for several threads.

    Where pixels do not coincide: the most frequent label where they shrink (unlabelled ones vote too), else
    the nearest; polygons by pixel centre. Blocks of the grid are made and kept for a while, so that neither
    windows nor their order change a pixel. Label rasters of the size of `image_grid`, the image's own, lie on
    it where either has no CRS.

    Raises:
        DataError: the file cannot be read or aligned; from `read`, also a value that is no class.
    """

    def __init__(
        self, path: Path | str, grid: Grid, format: LabelFormat, *, image_grid: Grid | None = None
    ) -> None:
        self.path, self.grid = Path(path), grid
        self._env = gdal.env(str(path))
        with gdal.env(str(path)):
            self._source: RasterLabels | VectorLabels = (
                VectorLabels(self.path, grid, format)
                if is_vector(self.path)
                else RasterLabels(self.path, grid, format, image_grid or grid)
            )
        self._size = self._source.block_size
        self._blocks: OrderedDict[tuple[int, int], Labels] = OrderedDict()

    def __enter__(self) -> LabelReader:
        self._env.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._env.__exit__(None, None, None)

    def close(self) -> None:
        self._source.close()
        self._blocks.clear()

    @property
    def touches(self) -> bool:
        """Whether the labels reach into the grid."""
        return self._source.touches

    def elsewhere(self) -> str:
        """What is wrong where the labels do not lie around the grid; "" where nothing is."""
        return "" if self.touches else self._source.elsewhere()

    @property
    def unknown_px(self) -> int:
        """Pixels of unknown colours that were left unlabelled so far (`LabelFormat.unknown`)."""
        return self._source.unknown_px

    def read(self, row: int, col: int, height: int, width: int) -> Labels:
        """uint8 (height, width): class numbers, 255 where unlabelled or outside the file."""
        self.grid.check_window(row, col, height, width)
        if self._source.direct:
            return self._source.block(row, col, height, width)
        labels = np.empty((height, width), np.uint8)
        size = self._size
        for down in range(row // size, (row + height - 1) // size + 1):
            for across in range(col // size, (col + width - 1) // size + 1):
                block, top, left = self._block(down, across), down * size, across * size
                rows = slice(max(row, top), min(row + height, top + block.shape[0]))
                cols = slice(max(col, left), min(col + width, left + block.shape[1]))
                labels[rows.start - row : rows.stop - row, cols.start - col : cols.stop - col] = block[
                    rows.start - top : rows.stop - top, cols.start - left : cols.stop - left
                ]
        return labels

    def _block(self, down: int, across: int) -> Labels:
        """A block of the grid, kept until others need its room."""
        block = self._blocks.pop((down, across), None)
        if block is None:
            row, col = down * self._size, across * self._size
            height, width = min(self._size, self.grid.height - row), min(self._size, self.grid.width - col)
            block = self._source.block(row, col, height, width)
        self._blocks[down, across] = block
        if len(self._blocks) > CACHE_BYTES // self._size**2:
            self._blocks.popitem(last=False)
        return block
