"""Train networks on labelled scenes."""

from typing import TYPE_CHECKING

from rsseg_cli._lazy import lazy_names

if TYPE_CHECKING:
    from rsseg_cli.training import calibration, config
    from rsseg_cli.training.adaptation import adapt
    from rsseg_cli.training.recipes import resolve_refiner_settings, resolve_settings
    from rsseg_cli.training.runs import train, train_refiner

__all__ = [
    "adapt",
    "calibration",
    "config",
    "resolve_refiner_settings",
    "resolve_settings",
    "train",
    "train_refiner",
]
__getattr__ = lazy_names(
    __name__,
    adaptation="adapt",
    recipes="resolve_refiner_settings resolve_settings",
    runs="train train_refiner",
)
