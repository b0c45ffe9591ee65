"""What the refiner sees, window by window: bands of the scene, classes of the map, which pixels may
change."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster import SceneReader
from rsseg_cli.raster.classes import CoarseMap, Labels
from rsseg_cli.refine_band import Band
from rsseg_cli.refine_frame import Frame, Integers, Region, reflected

MAX_LABEL_PX = 16 << 20  # of the map that one window may read at a time
EXTRA_BANDS = 2  # behind the scene's: the classes, and where the scene has data


class Window(NamedTuple):
    """What the refiner takes: bands (bands, h, w), classes (h, w), and its place, px from the frame's
    origin."""

    image: NDArray[Any]
    coarse: Labels
    row: int
    col: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape


class RefineReader:
    """Reads windows of the region that is run; beyond the scene's edge it is continued by reflection.

    Pixels are the scene's bands, then the class of the map and 1 where the scene has data, all in one array;
    `valid` are the pixels that may change.

    Args:
        scene: on the frame's grid.
        coarse: the map.
        region: of the frame.
        band: in which pixels may change.
    """

    def __init__(
        self, scene: SceneReader, coarse: CoarseMap, frame: Frame, region: Region, band: Band
    ) -> None:
        self._scene, self._coarse, self._frame, self._region, self._band = scene, coarse, frame, region, band

    def read(self, row: int, col: int, height: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels (bands + 2, height, width) and which of them may change (height, width)."""
        seen, margin = self._frame.seen, self._band.margin
        first_row, first_col = row + self._region.row, col + self._region.col
        rows = reflected(first_row, height, seen.height)
        cols = reflected(first_col, width, seen.width)
        array, valid = self._scene_at(rows, cols)
        coarse = self._coarse_at(
            np.arange(first_row - margin, first_row + height + margin),
            np.arange(first_col - margin, first_col + width + margin),
        )
        near = self._band.mask(coarse) & valid
        inside = coarse[margin:-margin, margin:-margin]
        over = max(0, first_row + height - seen.height), max(0, first_col + width - seen.width)
        if any(over):
            near[height - over[0] :] = False
            near[:, width - over[1] :] = False
            inside = self._coarse_at(rows, cols)
        dtype = np.result_type(array.dtype, np.uint8)
        extra = np.stack([inside, valid.view(np.uint8)])
        return np.concatenate([array.astype(dtype, copy=False), extra.astype(dtype, copy=False)]), near

    def fill(self, array: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """The scene's holes continued from their surroundings."""
        known = array[-1] != 0
        if known.all() or not known.any():
            return array
        bands = self._scene.fill(array[:-EXTRA_BANDS], known)
        return np.concatenate([bands, array[-EXTRA_BANDS:]])

    def window(self, pixels: NDArray[Any], row: int, col: int) -> Window:
        """A tile of the region as the refiner takes it."""
        classes = pixels[-EXTRA_BANDS].astype(np.uint8)
        return Window(pixels[:-EXTRA_BANDS], classes, row + self._region.row, col + self._region.col)

    def _scene_at(self, rows: Integers, cols: Integers) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        array, valid = self._scene.read(top, left, height, width)
        if _is_run(rows) and _is_run(cols):
            return array, valid
        rows, cols = rows - top, cols - left
        return array[:, rows][:, :, cols], valid[rows][:, cols]

    def _coarse_at(self, rows: Integers, cols: Integers) -> Labels:
        """Classes at the centres of these rows and columns that the refiner sees, 255 outside the map."""
        if not self._frame.resampled and _is_run(rows) and _is_run(cols):
            top, left = rows[0] - self._frame.offset[0], cols[0] - self._frame.offset[1]
            return self._coarse.labels(int(top), int(left), len(rows), len(cols))
        return self._nearest(self._frame.label_rows(rows), self._frame.label_cols(cols))

    def _nearest(self, rows: Integers, cols: Integers) -> Labels:
        top, left = int(rows.min()), int(cols.min())
        height, width = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        if height * width > MAX_LABEL_PX and len(rows) * len(cols) > 1:
            if len(rows) >= len(cols):
                half = len(rows) // 2
                return np.concatenate([self._nearest(rows[:half], cols), self._nearest(rows[half:], cols)])
            half = len(cols) // 2
            return np.concatenate([self._nearest(rows, cols[:half]), self._nearest(rows, cols[half:])], 1)
        return self._coarse.labels(top, left, height, width)[rows - top][:, cols - left]


def _is_run(places: Integers) -> bool:
    return int(places[-1] - places[0]) + 1 == len(places)
