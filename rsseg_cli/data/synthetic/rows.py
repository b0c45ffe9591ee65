"""Rows on a drawn scene's ground: vines, orchards and solar panels, with their labels and heights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.synthetic.plan import Rows, Surface

if TYPE_CHECKING:
    from rsseg_cli.data.synthetic.render import Canvas

PIXELS_A_ROW = 3.0  # closer rows are drawn as one tint


def draw_rows(canvas: Canvas, surfaces: Sequence[Surface], which: NDArray[np.int32]) -> None:
    """Draw the rows of the surfaces that have them; `which` is each pixel's surface."""
    row, col = np.nonzero(np.array([s.rows is not None for s in surfaces])[which])
    if len(row) == 0:
        return
    number, gsd = which[row, col], np.float32(canvas.gsd)
    bare = Rows(1.0, 0.0, (0.0, 0.0, 0.0))
    table = [s.rows or bare for s in surfaces]

    def of(name: str) -> NDArray[np.float32]:
        return np.array([getattr(rows, name) for rows in table], np.float32)[number]

    spacing, width, along, ragged = of("spacing_m"), of("width_m"), of("along_m"), of("ragged")
    angle = np.array([s.angle for s in surfaces], np.float32)[number]
    x = (canvas.view.col + col + np.float32(0.5)) * gsd
    y = (canvas.view.row + row + np.float32(0.5)) * gsd
    across = _from_centre(np.cos(angle) * y - np.sin(angle) * x, spacing)
    lengthwise = _from_centre(np.cos(angle) * x + np.sin(angle) * y, np.where(along > 0, along, 1.0))
    round_crowns = (along > 0) & (ragged > 0)
    distance = np.where(round_crowns, np.hypot(across, lengthwise), np.abs(across))
    edge = 1 + ragged * (0.45 * canvas.mottle[row, col] + 0.25 * canvas.grain[row, col])
    on = distance < width / 2 * edge
    on &= (ragged == 0) | (canvas.patchy[row, col] > -1.7)  # plants are missing here and there
    on &= round_crowns | (along == 0) | (np.abs(lengthwise) < along / 2 - 0.4)  # tables of panels
    cover = width / spacing * np.where(round_crowns, 0.8 * width / np.maximum(along, 0.1), 1.0)
    blended = spacing < PIXELS_A_ROW * gsd
    share = np.where(blended, cover, on).astype(np.float32)
    tone = 1 + ragged * (0.22 * canvas.grain[row, col] + 0.3 * canvas.mottle[row, col])
    colour = np.array([rows.colour for rows in table], np.float32)[number].T * tone
    canvas.albedo[:, row, col] += share * (colour - canvas.albedo[:, row, col])
    labelled = np.where(blended, cover > 0.2, on)
    canvas.labels[row[labelled], col[labelled]] = of("label")[labelled]
    on &= ~blended
    canvas.height[row[on], col[on]] = of("height_m")[on]
    toward_sun = np.cos(angle) * canvas.sun.y - np.sin(angle) * canvas.sun.x
    slope = 0.35 * toward_sun / canvas.sun.z * across / width + 0.15 * canvas.grain[row, col]
    canvas.light[row[on], col[on]] = np.clip(1 + np.where(ragged > 0, slope, 0.0), 0.3, 1.5)[on]


def _from_centre(position: NDArray[np.float32], period: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance from the middle of the period that a position lies in, m."""
    return ((position / period) % 1 - np.float32(0.5)) * period
