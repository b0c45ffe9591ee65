"""Class rasters to polygons in vector files; geopandas, pyogrio and pyarrow load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.vector.task import check_classes
    from rsseg_cli.vector.vectorize_raster import (
        VectorResult,
        check_output,
        prepare,
        to_geodataframe,
        vectorize,
    )
    from rsseg_cli.vector.write import add_style, load_pyogrio

__all__ = [
    "VectorResult",
    "add_style",
    "check_classes",
    "check_output",
    "load_pyogrio",
    "prepare",
    "to_geodataframe",
    "vectorize",
]
__getattr__ = lazy_names(
    __name__,
    vectorize_raster="VectorResult check_output prepare to_geodataframe vectorize",
    write="add_style load_pyogrio",
    task="check_classes",
)
