"""Trained models: what a model file says of itself, how it is loaded and saved, which ones are bundled."""

from rsseg_cli.weights import registry, released
from rsseg_cli.weights.registry import TrainedModel, load_model, read_spec, save_model
from rsseg_cli.weights.spec import ClassSpec, ModelSpec

__all__ = [
    "ClassSpec",
    "ModelSpec",
    "TrainedModel",
    "load_model",
    "read_spec",
    "registry",
    "released",
    "save_model",
]
