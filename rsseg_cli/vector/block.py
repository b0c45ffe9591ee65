"""One block of rows of a class raster: the polygons that end in it, and what goes on in other blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.curves import Curves
from rsseg_cli.vector.graph import NONE, Graph, Ints, Labels, Objects, build_graph, find_objects
from rsseg_cli.vector.polygons import UNITS, Polygons, make_polygons
from rsseg_cli.vector.rings import ObjectTable
from rsseg_cli.vector.trace import Joints, Pieces, Tracer, spans

if TYPE_CHECKING:
    from rsseg_cli.vector.source import ClassSource
from rsseg_cli.vector.plan import BlockPlan, Stopwatch


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """What a block gives.

    Attributes:
        polygons: of the objects that lie in the block alone.
        table: of the open objects, which the other fields count in.
        pieces, joints: of the open objects' rings.
        top, bottom: int32 (width,), open object of each pixel in the row above the block and in its last row;
            -1 none.
        columns, upper_ends: where an edge leaves the block straight down, and its upper end.
        seconds: by stage.
    """

    polygons: Polygons
    table: ObjectTable
    pieces: Pieces
    joints: Joints
    top: NDArray[np.int32]
    bottom: NDArray[np.int32]
    columns: Ints
    upper_ends: Ints
    seconds: dict[str, float]


def run_block(plan: BlockPlan, first: int, end: int) -> BlockResult:
    """Polygons and pieces of the pixel rows from `first` up to, not including, `end`."""
    watch = Stopwatch()
    height, nodata = plan.source.height, plan.source.nodata
    above = max(first - 1, 0)
    last = end == height
    corners_end = height + 1 if last else end
    wide = plan.source.read(first - 1, corners_end - first + 1)  # a row of no data outside the raster
    labels = wide[above - first + 1 : end - first + 1]
    watch.lap("read")
    objects = find_objects(labels)
    opened = _open_objects(objects, labels, first > 0, last)
    table = _describe(objects, labels, above, plan.confidence, first)
    watch.lap("objects")
    graph, curves = _boundaries(plan, wide, first, corners_end)
    watch.lap("boundaries")
    tracer = Tracer(graph, objects, first, corners_end, opened, nodata)
    traced = tracer.trace()
    watch.lap("rings")
    wanted = _wanted(objects, plan)
    pieces = _pieces(graph, curves, traced, wanted)
    whole = np.flatnonzero(~opened[pieces.objects])
    polygons = make_polygons(pieces.take(whole), table, plan.ground, plan.transform, plan.reprojection())
    watch.lap("polygons")
    number = np.full(len(objects) + 1, NONE, np.int64)
    kept = np.flatnonzero(opened & wanted)
    number[kept] = np.arange(len(kept))
    rest = pieces.take(np.flatnonzero(opened[pieces.objects])).compact()
    rest.objects[:] = number[rest.objects]
    joints = tracer.joints()
    joint_chosen = wanted[joints.objects[:, 0]]
    columns, upper_ends = tracer.leaving_down()
    result = BlockResult(
        polygons=polygons,
        table=table.take(kept),
        pieces=rest,
        joints=Joints(
            objects=number[joints.objects[joint_chosen]],
            arrivals=joints.arrivals[joint_chosen],
            departures=joints.departures[joint_chosen],
        ),
        top=number[_row(objects, 0)].astype(np.int32) if first > 0 else np.full(graph.width, NONE, np.int32),
        bottom=np.full(graph.width, NONE, np.int32) if last else number[_row(objects, -1)].astype(np.int32),
        columns=columns,
        upper_ends=upper_ends,
        seconds=watch.seconds,
    )
    watch.lap("hand over")
    return result


def _boundaries(plan: BlockPlan, wide: Labels, first: int, end: int) -> tuple[Graph, Curves | None]:
    """The graph of the corner rows `first` to `end`, which lie between the rows of `wide`, and its curves."""
    shaping, stored = plan.shaping, plan.boundaries
    if stored is None:
        return build_graph(wide, first, plan.source.nodata), None
    graph = stored.read(max(first - shaping.reach, 0), min(end + shaping.reach, plan.source.height))
    return graph, Curves(graph, shaping.radius_px, first, end) if shaping.radius_px and len(graph) else None


def _row(objects: Objects, row: int) -> NDArray[np.int32]:
    found: NDArray[np.int32] = objects.of_run[objects.run_of[row]]
    return found


def _open_objects(objects: Objects, labels: Labels, has_above: bool, last: bool) -> NDArray[np.bool_]:
    opened = np.zeros(len(objects), np.bool_)
    if has_above:
        opened[_row(objects, 0)] = True
    if not last:
        opened[_row(objects, -1)] = True
    return opened


def _wanted(objects: Objects, plan: BlockPlan) -> NDArray[np.bool_]:
    """Objects that become polygons."""
    wanted: NDArray[np.bool_] = objects.classes != plan.source.nodata
    if plan.classes is not None:
        wanted &= np.isin(objects.classes, list(plan.classes))
    return wanted


def _describe(
    objects: Objects, labels: Labels, first_row: int, confidence: ClassSource | None, counted_from: int
) -> ObjectTable:
    """The objects' table; confidence is counted from row `counted_from`."""
    width = labels.shape[1]
    lengths = np.diff(objects.starts, append=labels.size)
    lasts = np.zeros(len(objects), np.int64)
    lasts[objects.of_run] = objects.starts + lengths - 1 + first_row * width
    counts, sums = (np.zeros(len(objects), np.int64) for _ in range(2))
    mins = np.full(len(objects), 255, np.int64)
    skipped = counted_from - first_row
    if confidence is not None and len(labels) > skipped:
        values = confidence.read(counted_from, len(labels) - skipped).ravel()
        present = values != confidence.nodata
        begins = objects.starts - skipped * width
        runs, begins = objects.of_run[begins >= 0], begins[begins >= 0]
        np.minimum.at(mins, runs, np.minimum.reduceat(values, begins).astype(np.int64))
        for total, what in ((counts, present), (sums, np.where(present, values, 0))):
            per_run = np.add.reduceat(what, begins, dtype=np.int64)
            total += np.bincount(runs, weights=per_run, minlength=len(objects)).astype(np.int64)
    return ObjectTable(
        classes=objects.classes.astype(np.int64),
        lasts=lasts,
        confidence_counts=counts,
        confidence_sums=sums,
        confidence_mins=mins,
    )


def _pieces(
    graph: Graph,
    curves: Curves | None,
    traced: tuple[Ints, Ints, Ints, Ints, Ints],
    wanted: NDArray[np.bool_],
) -> Pieces:
    """Points of the pieces whose objects are wanted."""
    elements, begins, objects, start_keys, end_keys = traced
    chosen = np.flatnonzero((objects != NONE) & wanted[objects])
    lengths = np.diff(begins)[chosen]
    elements = elements[spans(begins[:-1][chosen], lengths)]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    vertices = elements >> 2
    lowest = np.minimum.reduceat(vertices, begins[:-1]) if len(chosen) else vertices
    # Vertices are numbered in row-major order; the lowest of a piece occurs in it once, or is a corner met
    # twice.
    at_lowest = np.flatnonzero(vertices == np.repeat(lowest, lengths))
    first = at_lowest[np.searchsorted(at_lowest, begins[:-1])]
    places = graph.rows[lowest].astype(np.int64) * (graph.width + 1) + graph.cols[lowest]
    if curves is None:
        points = np.stack([graph.cols[vertices], graph.rows[vertices]], axis=1) * np.int32(UNITS)
    else:
        points, counts = curves.points(graph, elements)
        at = np.concatenate([[0], np.cumsum(counts)])
        begins, first = at[begins], at[first]
    return Pieces(
        points=points,
        begins=begins[:-1],
        lengths=np.diff(begins),
        objects=objects[chosen],
        start_keys=start_keys[chosen],
        end_keys=end_keys[chosen],
        places=places,
        offsets=first - begins[:-1],
    )
