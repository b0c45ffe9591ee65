"""Boundaries made simpler and smoother, each corner by itself, so that neighbours keep sharing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.vector_graph import Graph, Ints

if TYPE_CHECKING:
    from rsseg_cli.vector_measure import Ground


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """How boundaries are shaped."""

    simplify_m: float = 0.0
    smooth: bool = False

    def rows_around(self, first: int, end: int, height: int) -> tuple[int, int]:
        """Corner rows, first and last, that decide on the boundaries of a block."""
        return first, end if end == height else end - 1


class Curves:
    def points(self, graph: Graph, elements: Ints) -> tuple[NDArray[np.int32], Ints]:
        raise NotImplementedError


def shape_graph(graph: Graph, shaping: Shaping, ground: Ground) -> tuple[Graph, Curves | None]:
    return graph, None
