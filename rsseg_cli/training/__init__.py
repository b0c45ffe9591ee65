"""Train networks on labelled scenes."""

from rsseg_cli._lazy import lazy_names

__all__ = ["adapt", "config", "resolve_refiner_settings", "resolve_settings", "train", "train_refiner"]
__getattr__ = lazy_names(
    __name__,
    {
        "adapt": "adaptation",
        "resolve_refiner_settings": "recipes",
        "resolve_settings": "recipes",
        "train": "runs",
        "train_refiner": "runs",
    },
)
