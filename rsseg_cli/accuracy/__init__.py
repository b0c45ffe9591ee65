"""Accuracy and area with their uncertainty: samples of a map, assessments, change, and what to label next."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.accuracy import config
    from rsseg_cli.accuracy.assessment import assess, check_assessment_folder, write_assessment
    from rsseg_cli.accuracy.changes import find_changes
    from rsseg_cli.accuracy.drawing import draw_sample
    from rsseg_cli.accuracy.suggestions import suggest

__all__ = [
    "assess",
    "check_assessment_folder",
    "config",
    "draw_sample",
    "find_changes",
    "suggest",
    "write_assessment",
]
__getattr__ = lazy_names(
    __name__,
    assessment="assess check_assessment_folder write_assessment",
    drawing="draw_sample",
    changes="find_changes",
    suggestions="suggest",
)
