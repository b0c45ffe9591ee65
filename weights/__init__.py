"""Trained models: what a model file says of itself, how it is loaded and saved, which ones come along."""

from rsseg_cli.weights.registry import TrainedModel, load_model, save_model
from rsseg_cli.weights.spec import ClassSpec, ModelSpec

__all__ = ["ClassSpec", "ModelSpec", "TrainedModel", "load_model", "save_model"]
