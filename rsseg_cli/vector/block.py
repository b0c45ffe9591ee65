"""One block of rows of a class raster: the polygons that end in it, and fragments that continue in others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector.curves import Curves
from rsseg_cli.vector.graph import NONE, Graph, Ints, Labels, Objects, build_graph, find_objects
from rsseg_cli.vector.polygons import UNITS, ObjectTable, Polygons, make_polygons
from rsseg_cli.vector.trace import Junctions, RingFragments, Tracer, spans

if TYPE_CHECKING:
    from rsseg_cli.vector.source import ClassSource
from rsseg_cli.vector.plan import BlockPlan, Stopwatch


@dataclass(frozen=True, kw_only=True)
class BlockResult:
    """Polygons of objects that lie in the block alone, and fragments of the open ones, those of `table`.

    Attributes:
        top, bottom: (width,), open object of each pixel in the row above and in the last row; -1 none.
        columns, upper_ends: columns in which an edge leaves the block straight down, and its upper end.
    """

    polygons: Polygons
    table: ObjectTable
    fragments: RingFragments
    junctions: Junctions
    top: NDArray[np.int32]
    bottom: NDArray[np.int32]
    columns: Ints
    upper_ends: Ints
    seconds: dict[str, float]


def run_block(plan: BlockPlan, first: int, end: int) -> BlockResult:
    """Vectorise the pixel rows from `first` to `end`, exclusive."""
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
    fragments = _fragments(graph, curves, traced, wanted)
    whole = np.flatnonzero(~opened[fragments.objects])
    polygons = make_polygons(fragments.take(whole), table, plan)
    watch.lap("polygons")
    number = np.full(len(objects) + 1, NONE, np.int64)
    kept = np.flatnonzero(opened & wanted)
    number[kept] = np.arange(len(kept))
    rest = fragments.take(np.flatnonzero(opened[fragments.objects])).compact()
    rest.objects[:] = number[rest.objects]
    junctions = tracer.junctions()
    chosen = wanted[junctions.objects[:, 0]]
    columns, upper_ends = tracer.leaving_down()
    result = BlockResult(
        polygons=polygons,
        table=table.take(kept),
        fragments=rest,
        junctions=Junctions(
            objects=number[junctions.objects[chosen]],
            arrivals=junctions.arrivals[chosen],
            departures=junctions.departures[chosen],
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
    """Return the graph of the corner rows `first` to `end`, between the rows of `wide`, and its curves."""
    options, stored = plan.options, plan.boundaries
    if stored is None:
        return build_graph(wide, first, plan.source.nodata), None
    graph = stored.read(max(first - options.reach, 0), min(end + options.reach, plan.source.height))
    return graph, Curves(graph, options.radius_px, first, end) if options.radius_px and len(graph) else None


def _row(objects: Objects, row: int) -> NDArray[np.int32]:
    return objects.of_run[objects.run_of[row]]


def _open_objects(objects: Objects, labels: Labels, has_above: bool, last: bool) -> NDArray[np.bool_]:
    opened = np.zeros(len(objects), np.bool_)
    if has_above:
        opened[_row(objects, 0)] = True
    if not last:
        opened[_row(objects, -1)] = True
    return opened


def _wanted(objects: Objects, plan: BlockPlan) -> NDArray[np.bool_]:
    """Tell which objects become polygons."""
    wanted: NDArray[np.bool_] = objects.classes != plan.source.nodata
    if plan.classes is not None:
        wanted &= np.isin(objects.classes, list(plan.classes))
    return wanted


def _describe(
    objects: Objects, labels: Labels, first_row: int, confidence: ClassSource | None, counted_from: int
) -> ObjectTable:
    """Return the objects' table; confidence is counted from row `counted_from`."""
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


def _fragments(
    graph: Graph,
    curves: Curves | None,
    traced: tuple[Ints, Ints, Ints, Ints, Ints],
    wanted: NDArray[np.bool_],
) -> RingFragments:
    """Return the fragments of wanted objects."""
    elements, begins, objects, start_keys, end_keys = traced
    chosen = np.flatnonzero((objects != NONE) & wanted[objects])
    lengths = np.diff(begins)[chosen]
    elements = elements[spans(begins[:-1][chosen], lengths)]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    vertices = elements >> 2
    lowest = np.minimum.reduceat(vertices, begins[:-1]) if len(chosen) else vertices
    # Vertices are numbered in row-major order; the lowest of a fragment occurs in it once, or is a corner met
    # twice.
    at_lowest = np.flatnonzero(vertices == np.repeat(lowest, lengths))
    first = at_lowest[np.searchsorted(at_lowest, begins[:-1])]
    positions = graph.rows[lowest].astype(np.int64) * (graph.width + 1) + graph.cols[lowest]
    if curves is None:
        points = np.stack([graph.cols[vertices], graph.rows[vertices]], axis=1) * np.int32(UNITS)
        if graph.shift is not None:
            points += graph.shift[vertices]
    else:
        points, counts = curves.points(graph, elements)
        at = np.concatenate([[0], np.cumsum(counts)])
        begins, first = at[begins], at[first]
    return RingFragments(
        points=points,
        begins=begins[:-1],
        lengths=np.diff(begins),
        objects=objects[chosen],
        start_keys=start_keys[chosen],
        end_keys=end_keys[chosen],
        positions=positions,
        offsets=first - begins[:-1],
    )
