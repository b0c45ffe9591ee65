"""Land-cover maps and polygons from large georeferenced scenes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rsseg_cli._version import __version__

__all__ = [
    "PredictConfig",
    "PredictResult",
    "RefineConfig",
    "VectorConfig",
    "VectorResult",
    "__version__",
    "predict",
    "refine",
    "to_geodataframe",
    "vectorize",
]

# Read when torch is loaded: its threads sleep where they wait for one another. On cores that other programs
# keep busy, spinning threads use up the time of the one they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
    from rsseg_cli.pipeline.predict_scene import PredictResult, predict
    from rsseg_cli.pipeline.refine_scene import refine
    from rsseg_cli.vector import VectorResult, to_geodataframe, vectorize


def __getattr__(name: str) -> Any:
    """Load the library's parts on first use, so that `rsseg --help` does not wait for torch."""
    if name in {"predict", "PredictResult"}:
        from rsseg_cli.pipeline import predict_scene as pipeline

        return getattr(pipeline, name)
    if name == "refine":
        from rsseg_cli.pipeline import refine_scene as refine_scene

        return refine_scene.refine
    if name in {"vectorize", "to_geodataframe", "VectorResult"}:
        from rsseg_cli import vector

        return getattr(vector, name)
    if name in {"PredictConfig", "RefineConfig", "VectorConfig"}:
        from rsseg_cli import config

        return getattr(config, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
