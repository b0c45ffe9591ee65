"""Labelled scenes: found in folders, lists and benchmark data sets, and read on one grid."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.data.label_format import LabelFormat
    from rsseg_cli.data.labels import LabelReader
    from rsseg_cli.data.types import DataConfig, LabelledData, LoadedScene

__all__ = [
    "DataConfig",
    "LabelFormat",
    "LabelReader",
    "LabelledData",
    "LoadedScene",
    "datasets",
    "scenes",
    "synthetic",
]
__getattr__ = lazy_names(
    __name__, types="DataConfig LabelledData LoadedScene", label_format="LabelFormat", labels="LabelReader"
)
