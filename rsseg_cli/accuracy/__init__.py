"""Accuracy and area with their uncertainty: samples of a map, assessments, and change between two maps."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.accuracy.assessment import assess, check_assessment_folder, write_assessment
    from rsseg_cli.accuracy.changes import find_changes
    from rsseg_cli.accuracy.config import AssessConfig, ChangeConfig, SampleConfig
    from rsseg_cli.accuracy.drawing import draw_sample

__all__ = [
    "AssessConfig",
    "ChangeConfig",
    "SampleConfig",
    "assess",
    "check_assessment_folder",
    "draw_sample",
    "find_changes",
    "write_assessment",
]
__getattr__ = lazy_names(
    __name__,
    {
        "AssessConfig": "config",
        "ChangeConfig": "config",
        "SampleConfig": "config",
        "assess": "assessment",
        "check_assessment_folder": "assessment",
        "draw_sample": "drawing",
        "find_changes": "changes",
        "write_assessment": "assessment",
    },
)
