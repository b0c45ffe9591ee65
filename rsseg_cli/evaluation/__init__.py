"""Scores of maps against labels, comparisons of models, and reports."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.evaluation.config import PairConfig
    from rsseg_cli.evaluation.evaluate_model import EvaluationRun, SourceDone, evaluate
    from rsseg_cli.evaluation.pair import score_pair

__all__ = [
    "EvaluationRun",
    "PairConfig",
    "SourceDone",
    "boundary",
    "evaluate",
    "metrics",
    "report",
    "score_pair",
]
__getattr__ = lazy_names(
    __name__, evaluate_model="EvaluationRun SourceDone evaluate", config="PairConfig", pair="score_pair"
)
