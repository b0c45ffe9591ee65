"""Networks from labelled scenes."""

from rsseg_cli._lazy import lazy_names

__all__ = [
    "config",
    "refiner_setting_types",
    "resolve_refiner_settings",
    "resolve_settings",
    "train",
    "train_refiner",
]
__getattr__ = lazy_names(
    __name__,
    {
        "refiner_setting_types": "recipes",
        "resolve_refiner_settings": "recipes",
        "resolve_settings": "recipes",
        "train": "runs",
        "train_refiner": "runs",
    },
)
