"""Land-cover maps and polygons from large georeferenced scenes."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names
from rsseg_cli._version import __version__

if TYPE_CHECKING:
    from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig
    from rsseg_cli.evaluation import evaluate
    from rsseg_cli.pipeline import PredictResult, predict, refine
    from rsseg_cli.training import train
    from rsseg_cli.vector import VectorResult, to_geodataframe, vectorize
    from rsseg_cli.weights import load_model

__all__ = [
    "PredictConfig",
    "PredictResult",
    "RefineConfig",
    "VectorConfig",
    "VectorResult",
    "__version__",
    "evaluate",
    "load_model",
    "predict",
    "refine",
    "to_geodataframe",
    "train",
    "vectorize",
]
__getattr__ = lazy_names(
    __name__,
    config="PredictConfig RefineConfig VectorConfig",
    evaluation="evaluate",
    pipeline="PredictResult predict refine",
    training="train",
    vector="VectorResult to_geodataframe vectorize",
    weights="load_model",
)
