"""One scene from its file to published outputs: predict, refine, resume."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.pipeline import passes, refinement, result
    from rsseg_cli.pipeline.preview import round_length_m
    from rsseg_cli.pipeline.result import PredictResult
    from rsseg_cli.pipeline.run import predict, refine
    from rsseg_cli.pipeline.workdir import OutputLock

__all__ = [
    "OutputLock",
    "PredictResult",
    "passes",
    "predict",
    "refine",
    "refinement",
    "result",
    "round_length_m",
]
__getattr__ = lazy_names(
    __name__, workdir="OutputLock", result="PredictResult", run="predict refine", preview="round_length_m"
)
