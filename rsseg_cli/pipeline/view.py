"""What a pass shows of the scene while it reads it: a picture, and the holes of the map's own pixels.

Where a pass runs elsewhere or was resumed, the rest is read from the file; where there are overviews, all is.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.pipeline.job import Job
from rsseg_cli.raster import SceneReader, classes

SIZE_PX = {"preview": 1200, "html": 2000}  # longest side of the picture in each output
PERCENTILES = (1.0, 99.0)
MASK_PX = 2**22  # pixels whose mask is read at once
Mask = NDArray[np.bool_]


class Picture:
    """The scene, and the class at the centre of each of its pixels, at the size of an output."""

    def __init__(self, job: Job, kind: str = "preview") -> None:
        shrink = max(1.0, max(job.grid.width, job.grid.height) / SIZE_PX[kind])
        self.grid = job.grid.scaled(
            width=max(1, round(job.grid.width / shrink)), height=max(1, round(job.grid.height / shrink))
        )
        self.labels = np.full((self.grid.height, self.grid.width), classes.NODATA, np.uint8)
        self._rows = _centres(self.grid.height, job.grid.height)
        self._cols = _centres(self.grid.width, job.grid.width)
        self._job, self._seen = job, job.network_grid
        self._has_overview = any(2 * factor <= shrink for factor in job.info.overviews)
        # The scene at this size, or at the network's where that is smaller: sums of the pixels of each cell.
        self._down = _cells(min(self.grid.height, self._seen.height), self._seen.height)
        self._across = _cells(min(self.grid.width, self._seen.width), self._seen.width)
        self._dtype = np.result_type(*(job.info.dtypes[band - 1] for band in job.bands))
        shape = len(self._down) - 1, len(self._across) - 1
        self._bands = 3 if len(job.bands) >= 3 else 1
        self._sums = np.zeros((self._bands, *shape), np.uint32 if self._dtype == np.uint8 else np.float64)
        self._known = np.zeros(shape, np.uint32)
        self._count = np.zeros(shape[0], np.int64)  # pixels of each row that were taken
        self._lock = threading.Lock()

    def add_labels(self, row: int, labels: NDArray[np.uint8]) -> None:
        """Take rows (rows, width) of the map."""
        first, end = np.searchsorted(self._rows, (row, row + len(labels)))
        self.labels[first:end] = labels[self._rows[first:end] - row][:, self._cols]

    def see(self, row: int, col: int, pixels: NDArray[Any], valid: Mask) -> None:
        """Take a window (bands, height, width) of the grid that the network sees, from any thread."""
        if self._has_overview:
            return
        pixels = pixels[: self._bands]
        pixels = pixels if valid.all() else np.where(valid, pixels, np.zeros((), pixels.dtype))
        top, down = _cut(self._down, row, valid.shape[0])
        left, across = _cut(self._across, col, valid.shape[1])
        sums = np.add.reduceat(pixels, across, axis=2, dtype=self._sums.dtype)
        known = np.add.reduceat(valid, across, axis=1, dtype=np.uint32)
        inside = slice(top, top + len(down)), slice(left, left + len(across))
        with self._lock:
            self._sums[:, *inside] += np.add.reduceat(sums, down, axis=1)
            self._known[inside] += np.add.reduceat(known, down, axis=0)
            self._count[inside[0]] += np.diff(down, append=valid.shape[0]) * valid.shape[1]

    def image(self) -> NDArray[np.uint8]:
        """Return the first three bands, or the only one thrice: uint8 (3, h, w), white for no data."""
        pixels, valid = self._read() if self._has_overview else self._means()
        if pixels.dtype != np.uint8:
            valid_values = pixels[:, valid].astype(np.float64)
            low, high = np.percentile(valid_values, PERCENTILES) if valid_values.size else (0.0, 1.0)
            with np.errstate(invalid="ignore"):
                scaled = (pixels.astype(np.float64) - low) / max(high - low, 1e-12) * 255
            pixels = np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)
        image = np.where(valid, pixels, np.uint8(255))
        rows = _centres(self.grid.height, image.shape[1])
        cols = _centres(self.grid.width, image.shape[2])
        return np.broadcast_to(image[:, rows][:, :, cols], (3, self.grid.height, self.grid.width))

    def _read(self) -> tuple[NDArray[Any], Mask]:
        with self._job.reader(self.grid) as reader:
            pixels, valid = reader.read(0, 0, self.grid.height, self.grid.width)
        return pixels[: self._bands], valid

    def _means(self) -> tuple[NDArray[Any], Mask]:
        """Return the means of the cells, after reading the rows that no pass showed whole."""
        sizes = np.outer(np.diff(self._down), np.diff(self._across))
        rest = np.flatnonzero(self._count != sizes.sum(1))
        self._sums[:, rest], self._known[rest] = 0, 0
        step = max(1, MASK_PX // self._seen.width)
        with self._job.reader(self._seen) as reader:
            for cell in rest.tolist():
                for row in range(self._down[cell], self._down[cell + 1], step):
                    window = row, 0, min(step, self._down[cell + 1] - row), self._seen.width
                    self.see(row, 0, *reader.read(*window))
        means = self._sums / np.maximum(self._known, 1)
        whole = np.issubdtype(self._dtype, np.integer)
        return (np.rint(means) if whole else means).astype(self._dtype), 2 * self._known >= sizes


class Pictures(dict[str, Picture]):
    """The pictures of a run, by output; all see what is read."""

    def __init__(self, job: Job) -> None:
        super().__init__({kind: Picture(job, kind) for kind in SIZE_PX if kind in job.paths})

    def add_labels(self, row: int, labels: NDArray[np.uint8]) -> None:
        for picture in self.values():
            picture.add_labels(row, labels)

    def see(self, row: int, col: int, pixels: NDArray[Any], valid: Mask) -> None:
        for picture in self.values():
            picture.see(row, col, pixels, valid)


def _centres(cells: int, size: int) -> NDArray[np.int64]:
    """Return the pixel at the centre of each cell of an axis of `size` pixels."""
    return ((np.arange(cells) + 0.5) * size / cells).astype(np.int64)


def _cells(cells: int, size: int) -> NDArray[np.int64]:
    """Return the first pixel of each cell of an axis of `size` pixels, no fewer than cells, and `size`."""
    return np.arange(cells + 1) * size // cells


def _cut(cells: NDArray[np.int64], start: int, count: int) -> tuple[int, NDArray[np.int64]]:
    """Return the cell of pixel `start`, and where cells begin in the `count` pixels from it."""
    first, end = np.searchsorted(cells, (start + 1, start + count)).tolist()
    return first - 1, np.maximum(cells[first - 1 : end] - start, 0)


class HoleMask:
    """Holes of the map's own grid, for resampled rows: these have values wherever the network ran."""

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self._job, self._stack = job, stack
        down_across = ~job.info.grid.transform * (job.grid.transform.c, job.grid.transform.f)
        self._left, self._top = round(down_across[0]), round(down_across[1])
        self._parts: list[tuple[int, int, NDArray[np.uint8], int]] = []  # packed masks with holes
        self._shown = False
        self._lock = threading.Lock()
        self._reader: SceneReader | None = None

    def see(self, row: int, col: int, valid: Mask) -> None:
        """Take the mask of a window of the scene as stored, from any thread."""
        self._shown = True
        if not valid.all():
            part = row - self._top, col - self._left, np.packbits(valid, axis=1), valid.shape[1]
            with self._lock:
                self._parts.append(part)

    def apply(self, row: int, rows: NDArray[np.uint8]) -> None:
        """Set pixels of the next rows (layers, rows, width) to no data where the scene has none."""
        step = max(1, MASK_PX // rows.shape[2])
        for first in range(0, rows.shape[1], step):
            part = rows[:, first : first + step]
            valid = self._valid(row + first, *part.shape[1:])
            if not valid.all():
                part[:, ~valid] = classes.NODATA

    def _valid(self, row: int, height: int, width: int) -> Mask:
        job = self._job
        if not self._shown:
            if self._reader is None:
                self._reader = self._stack.enter_context(job.reader(job.grid))
            return self._reader.read(row, 0, height, width)[1]
        valid = np.ones((height, width), np.bool_)
        if job.area is not None:
            valid &= job.area.mask(job.grid.window(row, 0, height, width))
        with self._lock:
            self._parts = [part for part in self._parts if part[0] + len(part[2]) > row]
            parts = list(self._parts)
        for top, left, packed, count in parts:
            rows = slice(max(top - row, 0), min(top + len(packed) - row, height))
            cols = slice(max(left, 0), min(left + count, width))
            if rows.start < rows.stop and cols.start < cols.stop:
                mask = np.unpackbits(
                    packed[rows.start + row - top : rows.stop + row - top], axis=1, count=count
                )
                valid[rows, cols] &= mask[:, cols.start - left : cols.stop - left].astype(np.bool_)
        return valid
