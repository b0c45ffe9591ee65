"""Scores of a map along the borders between classes: Boundary IoU, trimap accuracy, weighted F-measure.

For all three, pixels without a label and whatever is beyond the edge of the map are unknown. They are
counted nowhere, and no border runs along them, neither in the labels nor in the map: there both are cut by
the same line, which says nothing of the map. (The released code of Boundary IoU takes the edge of an image
for a contour; a class that fills the image up to its edge then scores better.)

Boundary IoU and trimap accuracy take distances as the released code of Boundary IoU does: a pixel lies within
d px of a border if the square of 2 d + 1 px around it holds a labelled pixel of another class.

Boundary IoU: Cheng et al., CVPR 2021, equation 4: per class, the IoU of those pixels of either mask that lie
within d px of its own contour.
Trimap accuracy: Kohli et al., IJCV 2009: of the labelled pixels within d px of a border between two true
classes, those that are mapped rightly.
Weighted F-measure: Margolin et al., CVPR 2014, on edges by the Sobel gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.errors import UsageError
from rsseg_cli.evaluation.metrics import ratio
from rsseg_cli.raster import classes as class_values

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Part = tuple[slice, slice]
WHOLE: Part = (slice(None), slice(None))

HALF_WINDOW = 3  # px; Margolin's Gaussian is 7 x 7 px
SIGMA_PX = 5.0
HALF_WEIGHT_PX = 5.0  # from an edge, where a false edge pixel weighs half of what it gains with distance
FAR_PX = 128  # false edge pixels farther from an edge weigh 2 in full: at most 2e-8 more than they should
MAX_WIDTH_PX = 256
_REACH = range(-HALF_WINDOW - 1, HALF_WINDOW + 2)
_RINGS = [  # offsets (down, across) of equal length, from the shortest to the window's corner
    [(down, across) for down in _REACH for across in _REACH if down**2 + across**2 == squared]
    for squared in range(1, 2 * HALF_WINDOW**2 + 1)
]
HALO_PX = FAR_PX + 2  # an edge pixel needs two more pixels on each side to be known as one


def edges(values: Labels, known: Mask) -> Mask:
    """Where the Sobel gradient is not zero, and the eight pixels around, among `known` pixels.

    A gradient is taken only where all nine pixels are known.
    """
    gradient = np.zeros(values.shape, np.bool_)
    gradient[1:-1, 1:-1] = _has_gradient(values.astype(np.int16))
    gradient &= _widen(known, 1, np.minimum)
    return _widen(gradient, 1, np.maximum) & known


def _has_gradient(values: NDArray[np.int16]) -> Mask:
    """Of (rows, cols) the inner (rows - 2, cols - 2)."""
    down = values[:-2] + 2 * values[1:-1] + values[2:]
    across = values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:]
    return (down[:, 2:] != down[:, :-2]) | (across[2:] != across[:-2])


def missed_weight(edge: Mask, mapped_edge: Mask, known: Mask, core: Part) -> float:
    """Sum over missed edge pixels of their error, softened by that of the edge around them.

    Margolin's code: a pixel that is no edge takes the error of the nearest edge pixel (of equally near ones
    an error counts), errors are smoothed, zero where unknown, and the smaller of an edge pixel's error and
    its smoothed error stands.
    """
    missed = edge & ~mapped_edge
    if not missed[core].any():
        return 0.0
    from scipy.ndimage import correlate1d

    error = (_nearest_is(missed, edge & mapped_edge) & known).astype(np.float64)
    offsets = np.arange(-HALF_WINDOW, HALF_WINDOW + 1)
    kernel = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        error = correlate1d(error, kernel, axis, mode="constant")
    return float(np.minimum(error[core][missed[core]], 1).sum())


def _nearest_is(these: Mask, others: Mask) -> Mask:
    """Where the nearest pixel of both masks is one of `these`, as far as an edge pixel's Gaussian reaches.

    The corner of its window is 3 px down and 3 px across, so that an edge pixel lies within sqrt(18) px.
    """
    nearest, decided = these.copy(), these | others
    for ring in _RINGS:
        hit, other = np.zeros_like(these), np.zeros_like(these)
        for down, across in ring:
            (rows, from_rows), (cols, from_cols) = overlap(down), overlap(across)
            hit[rows, cols] |= these[from_rows, from_cols]
            other[rows, cols] |= others[from_rows, from_cols]
        nearest |= hit & ~decided
        decided |= hit | other
    return nearest


def overlap(shift: int) -> tuple[slice, slice]:
    """Along an axis, pixels and those `shift` px further on."""
    if shift >= 0:
        return slice(None, -shift or None), slice(shift, None)
    return slice(-shift, None), slice(None, shift)


def false_weight(edge: Mask, mapped_edge: Mask, core: Part) -> float:
    """Sum over false edge pixels of 2 - 0.5 ** (distance from the nearest edge / 5 px)."""
    false = mapped_edge[core] & ~edge[core]
    count = np.count_nonzero(false)
    if count == 0:
        return 0.0
    if not edge.any():
        return 2.0 * count
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(~edge)[core][false]
    weights = 2 - np.exp2(-distance / HALF_WEIGHT_PX)
    return float(np.where(distance <= FAR_PX, weights, 2.0).sum())


def halo_px(widths: Sequence[int]) -> int:
    """How far around a block `BoundaryCounts.add` must see for the same counts as from the whole map."""
    return max(HALO_PX, *widths)


@dataclass(kw_only=True)
class BoundaryCounts:
    """Counts of one map that add up over its blocks; scores from them.

    `bands`, int64 (4, N, W), are pixels within each of W widths of the contour of a class: in the labels, in
    the map, in both at once, and those of the labels that are mapped rightly. `missed` and `false` are the
    weights of edge pixels that only the labels or only the map have.
    """

    classes: int
    widths: tuple[int, ...]
    bands: NDArray[np.int64] = field(init=False)
    edge_pixels: int = 0
    missed: float = 0.0
    false: float = 0.0

    def __post_init__(self) -> None:
        self.widths = check_widths(self.widths)
        self.bands = np.zeros((4, self.classes, len(self.widths)), np.int64)

    def add(
        self, mapped: Labels, labels: Labels, core: Part, parts: Sequence[Part] = (WHOLE,)
    ) -> NDArray[np.int64]:
        """Count the `core` of a block (rows, cols), which has `halo_px` around it.

        `mapped` is N where the map has none of the classes, `labels` 255 where unlabelled and beyond the map.

        Returns:
            int64 (parts, 4, N, W): the bands of each of the `parts` that the core consists of.
        """
        known = labels != class_values.IGNORE
        if not known[core].any() or (_is_plain(labels, known) and _is_plain(mapped, known)):
            return np.zeros((len(parts), *self.bands.shape), np.int64)
        self._add_edges(mapped, labels, known, core)
        return self.add_bands(mapped, labels, core, parts)

    def add_bands(
        self, mapped: Labels, labels: Labels, core: Part, parts: Sequence[Part] = (WHOLE,)
    ) -> NDArray[np.int64]:
        """Do as `add`, but for `wfm`: in a hundredth of the time."""
        known = labels != class_values.IGNORE
        true, other, count = labels[core], mapped[core], len(self.widths)
        level, other_level = (_first_width(values, known, self.widths)[core] for values in (labels, mapped))
        right, last = known[core] & (true == other), np.maximum(level, other_level)
        is_class = known[core] & (other < self.classes)
        kinds = (
            (true, level, level < count),
            (other, other_level, is_class & (other_level < count)),
            (true, last, right & (last < count)),
            (true, level, right & (level < count)),
        )
        counted = np.stack([np.stack([self._count(part, *kind) for kind in kinds]) for part in parts])
        self.bands += counted.sum(0)
        return counted

    def _count(self, part: Part, values: Labels, level: Labels, chosen: Mask) -> NDArray[np.int64]:
        pairs = values[part][chosen[part]] * np.int32(len(self.widths)) + level[part][chosen[part]]
        binned = np.bincount(pairs, minlength=self.bands[0].size).reshape(self.bands[0].shape)
        return binned.cumsum(1)  # what lies within a width lies within the wider ones too

    def merge(self, other: BoundaryCounts) -> None:
        for name in ("bands", "edge_pixels", "missed", "false"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _add_edges(self, mapped: Labels, labels: Labels, known: Mask, core: Part) -> None:
        edge, mapped_edge = edges(labels, known), edges(mapped, known)
        self.edge_pixels += int(np.count_nonzero(edge[core]))
        self.missed += missed_weight(edge, mapped_edge, known, core)
        self.false += false_weight(edge, mapped_edge, core)

    def boundary_iou(self) -> NDArray[np.float64]:
        """(N, W); NaN where neither labels nor map have a contour of the class."""
        return band_iou(self.bands)

    def trimap_accuracy(self) -> NDArray[np.float64]:
        """(N, W), of the pixels of each true class; NaN where it has no border."""
        return ratio(self.bands[3], self.bands[0])

    def overall_trimap_accuracy(self) -> NDArray[np.float64]:
        return ratio(self.bands[3].sum(0), self.bands[0].sum(0))

    def wfm(self) -> float:
        """Weighted F-measure of the edges, 0 to 1; 0 where only the map has edges, NaN where none are."""
        if self.edge_pixels == 0:
            return 0.0 if self.false > 0 else math.nan
        hits = self.edge_pixels - self.missed
        recall = hits / self.edge_pixels
        precision = hits / (hits + self.false) if hits + self.false > 0 else 0.0
        return 2 * recall * precision / (recall + precision) if recall + precision > 0 else 0.0


def band_iou(bands: NDArray[Any]) -> NDArray[np.float64]:
    """Boundary IoU (..., N, W) of bands (3 or more, ..., N, W), see `BoundaryCounts`."""
    return ratio(bands[2], bands[0] + bands[1] - bands[2])


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Widths in ascending order, each once."""
    if not widths or any(int(width) != width or not 1 <= width <= MAX_WIDTH_PX for width in widths):
        shown = f"--boundary-widths: widths {list(widths)}"
        raise UsageError(f"{shown}; needs whole numbers from 1 to {MAX_WIDTH_PX} px")
    return tuple(sorted({int(width) for width in widths}))


def near_border(labels: Labels, radius_px: int) -> Mask:
    """Labelled pixels at most `radius_px` (Euclidean) from one of another class; (rows, cols) as `labels`."""
    known = labels != class_values.IGNORE
    low, high = _bounds(labels, known)
    near = np.zeros(labels.shape, np.bool_)
    for down in range(-radius_px, radius_px + 1):
        across = math.isqrt(radius_px**2 - down**2)
        rows, others = overlap(down)
        lowest, highest = _widen_rows(low, across, np.minimum), _widen_rows(high, across, np.maximum)
        near[rows] |= (lowest[others] < labels[rows]) | (highest[others] > labels[rows])
    return near & known


def _first_width(values: Labels, known: Mask, widths: Sequence[int]) -> Labels:
    """Index of the smallest width within which another class lies; the number of widths where none does."""
    low, high = _bounds(values, known)
    level = np.full(values.shape, len(widths), np.uint8)
    reach = 0
    for width in widths:
        while reach < width:
            step = min(width - reach, 2 * reach + 1)
            low, high = _widen(low, step, np.minimum), _widen(high, step, np.maximum)
            reach += step
        level -= known & ((low != values) | (high != values))
    return level


def _bounds(values: Labels, known: Mask) -> tuple[Labels, Labels]:
    """Values as least and as largest ones, where unknown pixels are neither."""
    return np.where(known, values, np.uint8(255)), np.where(known, values, np.uint8(0))


def _widen(values: NDArray[Any], step: int, choose: Callable[..., Any]) -> NDArray[Any]:
    """The least (or largest) of each pixel and those `step` px up, down, left, right and diagonally."""
    return _shifted(_shifted(values, step, choose).T, step, choose).T


def _shifted(values: NDArray[Any], step: int, choose: Callable[..., Any]) -> NDArray[Any]:
    chosen = values.copy(order="K")
    if step < len(values):
        choose(chosen[step:], values[:-step], out=chosen[step:])
        choose(chosen[:-step], values[step:], out=chosen[:-step])
    return chosen


def _widen_rows(values: Labels, reach: int, choose: Callable[..., Labels]) -> Labels:
    """The least (or largest) value within `reach` px along a row."""
    done = 0
    while done < reach:
        step = min(reach - done, 2 * done + 1)
        values = _shifted(values.T, step, choose).T
        done += step
    return values


def _is_plain(values: Labels, known: Mask) -> bool:
    low, high = _bounds(values, known)
    return bool(low.min() >= high.max())
